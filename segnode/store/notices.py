"""Rows of notices: who is to be told of which state that a job came into, and how that went."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Column, Engine, Float, Integer, MetaData, Select, String, Table, column, exists, select, table, text
from sqlalchemy.dialects.sqlite import insert

from segnode.store.database import reading
from segnode.store.jobs import LONGEST_WAIT_S, State

_WAITING: Final = "waiting"
_LATE_S: Final = 3600.0

_metadata = MetaData()
_webhook = Table(
    "webhook",
    _metadata,
    Column("name", String, primary_key=True),
    Column("owed_from", Float, nullable=False),
)
_notice = Table(
    "notice",
    _metadata,
    Column("job_id", String, primary_key=True),
    Column("sequence", Integer, primary_key=True),
    Column("webhook", String, primary_key=True),
    Column("state", String, nullable=False, index=True),
    Column("attempts", Integer, nullable=False),
    Column("next_attempt_at", Float, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("last_answer", String, nullable=False),
)
# The rows of jobs lie in the same database.
_transition = table("transition", column("job_id"), column("sequence"), column("state"), column("at"))


@dataclass(frozen=True)
class Notice:
    """A webhook is to be told that a job came into a state, which is its transition of that number."""

    job_id: str
    sequence: int
    webhook: str
    state: State
    at: float
    attempts: int
    created_at: float

    @property
    def id(self) -> str:
        """The same whenever it is told again."""
        return f"{self.job_id}-{self.sequence}"


class Notices:
    """What webhooks are to be told; it is owed from a job's transition on, so that no crash loses it."""

    def __init__(self, engine: Engine) -> None:
        self._writer = engine
        self._reader = reading(engine)
        with engine.begin() as connection:
            _metadata.create_all(connection)
            connection.execute(text("CREATE INDEX IF NOT EXISTS transition_at ON transition (at)"))

    def owe(self, webhook: str, states: Collection[State], now: float) -> None:
        """Owe a webhook what has happened since it was first loaded and is not owed yet."""
        with self._reader.connect() as connection:
            owed_from = connection.execute(_owed_from(webhook)).scalar()
            if owed_from is not None and not connection.execute(_not_owed(webhook, states, owed_from)).first():
                return
        with self._writer.begin() as connection:
            connection.execute(insert(_webhook).values(name=webhook, owed_from=now).on_conflict_do_nothing())
            owed_from = connection.execute(_owed_from(webhook)).scalar_one()
            found = connection.execute(_not_owed(webhook, states, owed_from)).all()
            for job_id, sequence, at in found:
                row = {"job_id": job_id, "sequence": sequence, "webhook": webhook, "state": _WAITING, "last_answer": ""}
                connection.execute(_notice.insert().values(**row, attempts=0, next_attempt_at=now, created_at=now))
                # What was committed late may have happened before.
                owed_from = max(owed_from, at - _LATE_S)
            connection.execute(_webhook.update().where(_webhook.c.name == webhook).values(owed_from=owed_from))

    def due(self, webhook: str, now: float) -> list[Notice]:
        """What a webhook is to be told now, the oldest first."""
        of_job = (_transition.c.job_id == _notice.c.job_id) & (_transition.c.sequence == _notice.c.sequence)
        columns = (_notice.c.job_id, _notice.c.sequence, _notice.c.webhook, _transition.c.state, _transition.c.at)
        query = select(*columns, _notice.c.attempts, _notice.c.created_at).join_from(_notice, _transition, of_job)
        # Nothing waits so long, but where the clock has been set back since.
        due = (_notice.c.next_attempt_at <= now) | (_notice.c.next_attempt_at > now + LONGEST_WAIT_S)
        query = query.where(_notice.c.state == _WAITING, _notice.c.webhook == webhook, due)
        with self._reader.connect() as connection:
            return [Notice(*row) for row in connection.execute(query.order_by(_transition.c.at, _notice.c.sequence))]

    def told(self, notice: Notice, answer: str) -> None:
        """A webhook has taken a notice."""
        self._set(notice, state="told", last_answer=answer)

    def deferred(self, notice: Notice, answer: str, next_attempt_at: float) -> None:
        """A webhook has not taken a notice; it is told again then."""
        self._set(notice, next_attempt_at=next_attempt_at, last_answer=answer)

    def given_up(self, notice: Notice, answer: str) -> None:
        """A webhook is not told any more."""
        self._set(notice, state="given up", last_answer=answer)

    def _set(self, notice: Notice, **values: Any) -> None:
        mine = (_notice.c.job_id == notice.job_id) & (_notice.c.sequence == notice.sequence)
        update = _notice.update().where(mine, _notice.c.webhook == notice.webhook)
        with self._writer.begin() as connection:
            connection.execute(update.values(attempts=notice.attempts + 1, **values))


def _owed_from(webhook: str) -> Select[Any]:
    return select(_webhook.c.owed_from).where(_webhook.c.name == webhook)


def _not_owed(webhook: str, states: Collection[State], since: float) -> Select[Any]:
    """Transitions that a webhook is to be told of and is not owed."""
    of_job = (_notice.c.job_id == _transition.c.job_id) & (_notice.c.sequence == _transition.c.sequence)
    query = select(_transition.c.job_id, _transition.c.sequence, _transition.c.at)
    query = query.where(_transition.c.state.in_(states), _transition.c.at >= since)
    return query.where(~exists().where(of_job, _notice.c.webhook == webhook))
