"""Dispatching: which of the deliveries that are due are attempted now, so that an archive that is ill delays no other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from segnode.config import DestinationConfig
from segnode.store.jobs import Attempt, Jobs
from segnode.store.standings import Standings

_PROBE_EVERY_S: Final = 60.0
_AT_ONCE: Final = 4


@dataclass(frozen=True)
class Dispatch:
    """Chooses among what is due, by rows alone: what is chosen stays chosen until its attempt is over."""

    jobs: Jobs
    standings: Standings
    configs: Mapping[str, DestinationConfig]

    def due(self, now: float) -> list[Attempt]:
        """What is to be attempted now, longest due first: of each destination no more at once than it may have associations.

        Of one that is paused nothing; of one that is down one attempt a minute, until that gets an answer.
        """
        standings = self.standings.all()
        chosen: list[Attempt] = []
        for name in self.jobs.owed(now):
            standing, config = standings.get(name), self.configs.get(name)
            at_once = config.max_associations if config else _AT_ONCE
            if standing and standing.is_paused and config:
                continue
            if standing and standing.is_down and config:
                at_once = 0 if 0 <= now - standing.answered_at < _PROBE_EVERY_S else 1  # the clock may have been set back
            chosen += self.jobs.attempts(now, name, at_once) if at_once else []
        return sorted(chosen, key=lambda attempt: attempt.due_at)

    def give_up(self, now: float) -> None:
        """Give up what is overdue for a destination that is down, and so is not attempted any more."""
        for name, standing in self.standings.all().items():
            config = self.configs.get(name)
            if config is None or not standing.is_down or standing.is_paused:
                continue
            probed = {attempt.job_id for attempt in self.jobs.attempts(now, name, 1)}
            for delivery in self.jobs.due(now, name, owed_before=now - config.give_up_after_s):
                if delivery.job_id not in probed:
                    answer = f"given up after {config.give_up_after}; the last answer of {name}: {standing.last_answer}"
                    self.jobs.given_up(delivery, answer, now)
