"""The sweep: which series are complete and what is to be done with them follows from rows, again and again."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import structlog

from segnode.dicom.uids import derived_digest
from segnode.errors import LabelError, OutOfResources
from segnode.pipeline.route import route
from segnode.pipeline.rules import AnyRule, ForwardRule, SeriesValues, any_rule_of, series_values
from segnode.store.index import Index, Instance, QuietSeries
from segnode.store.jobs import TAKEN, Decision, Job, Jobs

_log = structlog.get_logger()

# How long an answer to what a peer has of a series counts, before it is asked again.
_ASK_AGAIN_S: Final = 10.0
# No series that is waited for is longer on its way.
_FORMER_S: Final = 86400.0
_CAME_LATE: Final = "came late and are not in this result"

# The values of these attributes in the images of a series, as these were at a time.
ImageValues = Callable[[str, frozenset[str], float], SeriesValues]


class Former(NamedTuple):
    """A rule that is no longer in force, and from when to when it was."""

    rule: AnyRule
    since: float
    until: float


@dataclass(frozen=True)
class Sweep:
    """Decides on series that are complete; a repeat decides nothing new.

    `image_values` reads attributes of the images of a series as they are at a time. `ask` has a peer asked what it has of a
    series; it returns at once, and the answer is a row. `is_expected` is told which series a model may soon be asked about,
    again and again, and returns at once as well. `is_stat` says whether an image was asked for as STAT. What came while the
    `former` rules were in force, and waits, is done by them.
    """

    index: Index
    jobs: Jobs
    rules: Sequence[AnyRule]
    first_loaded: Mapping[str, float]
    image_values: ImageValues
    ask: Callable[[str, QuietSeries], None]
    clock: Callable[[], float]
    is_expected: Callable[[QuietSeries], None] = lambda _: None
    is_stat: Callable[[Instance], bool] = lambda _: False
    former: Sequence[Former] = ()

    def decide(self) -> float:
        """Commit a decision for each series and rule whose time has come; in how many seconds the next comes by itself."""
        due_in = math.inf
        for series in self.index.quiet_series():
            try:
                self.consider(series)
            except OutOfResources:
                raise
            except Exception:  # noqa: BLE001  what one series meets keeps no other from its turn
                _log.exception("a series cannot be considered", series_instance_uid=series.series_instance_uid)
            since = self.clock() - series.last_received_at
            due_in = min((due_in, *(rule.config.quiet - since for rule in self.rules if rule.config.quiet > since)))
        return due_in

    def consider(self, series: QuietSeries) -> None:
        """Ask every rule that selects the series; one that was loaded after the last image came is not asked.

        Jobs of fewer images are cancelled when nobody has their SEG yet.
        """
        senders = self.index.senders(series.series_instance_uid)
        values = series_values(series.attributes, senders)
        selecting = [rule for rule in self._in_force(series) if not rule.unsatisfied(values)]
        complete = [rule for rule in selecting if self._is_complete(series, rule)]
        due = [rule for rule in complete if self._images_satisfy(rule, series)]
        unsent = self.jobs.unsent(series.series_instance_uid)
        if due or unsent:
            images = self.index.images(series.series_instance_uid)
            if not images:
                return  # they were deleted while this was looked at
            content = content_digest(image.content for image in images)
            for job_id, of_content in unsent.items():
                if of_content != content:
                    self.jobs.supersede(job_id, self.clock())
            if any(image.received_at > series.last_received_at for image in images):
                return  # it came while this was looked at
            for rule in due:
                decision = decision_of(series.series_instance_uid, content, rule)
                if isinstance(rule, ForwardRule):
                    route(self.jobs, decision, rule, images, senders, self.clock())
                else:
                    self._decide(decision, rule, images)
        if len(complete) == len(selecting):
            self.index.set_considered(series)
        elif any(rule not in complete and not isinstance(rule, ForwardRule) for rule in selecting):
            self.is_expected(series)

    def _in_force(self, series: QuietSeries) -> list[AnyRule]:
        """The rules as they were when the last image came."""
        now = [rule for rule in self.rules if not self._came_before(series, rule)]
        return now + [former.rule for former in self.former if former.since <= series.last_received_at < former.until]

    def _came_before(self, series: QuietSeries, rule: AnyRule) -> bool:
        """Whether a rule was loaded after the last image came; not where that is still to be, by a clock that was set back."""
        return series.last_received_at < self.first_loaded[rule.digest] <= self.clock()

    def _is_complete(self, series: QuietSeries, rule: AnyRule) -> bool:
        """Whether nothing brings the series any more, and what the rule waits for has come, or `quiet` is over."""
        if series.is_being_sent:
            return False
        # By a clock that was set back the last image may be still to come, and for years.
        if abs(self.clock() - series.last_received_at) >= rule.config.quiet:
            return True
        if rule.config.ask is not None:
            return self._has_all(series, rule.config.ask)
        return rule.config.expect == "request" and series.came_well

    def _has_all(self, series: QuietSeries, peer: str) -> bool:
        """Whether as much is held as a peer has; one that has nothing, or does not say, is no evidence."""
        answer = self.index.answer(series.series_instance_uid, peer)
        if answer is None or self.clock() - answer.asked_at >= _ASK_AGAIN_S:
            self.ask(peer, series)
        if answer is None or answer.asked_at < series.last_received_at:
            return False
        return 0 < answer.instances <= self.index.count_images(series.series_instance_uid)

    def _decide(self, decision: Decision, rule: AnyRule, images: Sequence[Instance]) -> None:
        """Commit a decision, unless there is a result already that the rule keeps."""
        kept = taken(self.jobs, decision) if rule.config.late == "keep" else []
        if not kept or any(job.id == decision.id for job in kept):
            if self.jobs.state(decision.id) is None:
                self.jobs.decide(decision, self.clock(), rule.config.priority, stat=self.is_stat(images[0]))
        else:
            self._note_late(kept[-1], images)

    def _note_late(self, job: Job, images: Sequence[Instance]) -> None:
        number = sum(image.received_at > job.created_at for image in images)
        others = [part for part in job.note.split("; ") if part and _CAME_LATE not in part]
        note = "; ".join([*others, f"{number} image(s) {_CAME_LATE}, which the rule keeps"])
        if note != job.note:
            self.jobs.note(job.id, note)
            _log.info("images came late: the result is kept", job=job.id, images=number)

    def _images_satisfy(self, rule: AnyRule, series: QuietSeries) -> bool:
        keywords = rule.image_keywords
        if not keywords:
            return True
        return not rule.unsatisfied(self.image_values(series.series_instance_uid, keywords, series.last_received_at))


def former_rules(jobs: Jobs, now: float) -> list[Former]:
    """The rules that were in force within a day, and are not any more."""
    found = []
    for document, since, until in jobs.former_rules(now - _FORMER_S):
        try:
            found.append(Former(any_rule_of(document), since, until))
        except LabelError as error:
            _log.warning("a rule that is gone is not asked about what waits", reason=str(error))
    return found


def decision_of(series: str, content: str, rule: AnyRule) -> Decision:
    """What a rule decides of a series with that content: always the same job."""
    job_id = derived_digest("job", series, content, rule.digest)[:32]
    return Decision(job_id, series, content, rule.digest, *rule.made_by)


def taken(jobs: Jobs, decision: Decision | Job) -> list[Job]:
    """The jobs of the same rule and series whose result somebody has, oldest first."""
    of_series = [job for job in jobs.of_series(decision.series_instance_uid) if job.content_digest]
    same = [job for job in of_series if job.rule_digest == decision.rule_digest]
    return [job for job in same if job.state == "delivered" or any(d.state in TAKEN for d in job.deliveries)]


def content_digest(contents: Iterable[str]) -> str:
    """Names the images of a series by what each is called there (Instance.content), in whatever order they are given."""
    return derived_digest("content", sorted(contents))
