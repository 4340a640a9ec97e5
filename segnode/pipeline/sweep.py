"""The sweep: which series are complete and what is to be done with them follows from rows, again and again."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from segnode.dicom.uids import derived_digest
from segnode.pipeline.rules import Rule
from segnode.store.index import Index, Instance, QuietSeries
from segnode.store.jobs import Decision, Jobs


@dataclass(frozen=True)
class Sweep:
    """Decides on series that have been quiet for long enough; a repeat decides nothing new."""

    index: Index
    jobs: Jobs
    rules: Sequence[Rule]
    first_loaded: Mapping[str, float]
    clock: Callable[[], float]

    def decide(self) -> None:
        """Commit a decision for each series and rule whose time has come."""
        for series in self.index.quiet_series():
            self._consider(series)

    def _consider(self, series: QuietSeries) -> None:
        """Ask every rule that selects the series; one that was loaded after the last image came is not asked."""
        selecting = [
            rule
            for rule in self.rules
            if rule.selects(series.attributes) and self.first_loaded[rule.digest] <= series.last_received_at
        ]
        quiet_for = self.clock() - series.last_received_at
        for rule in selecting:
            if quiet_for >= rule.config.quiet and not self._decide(series, rule):
                return
        if all(quiet_for >= rule.config.quiet for rule in selecting):
            self.index.set_considered(series)

    def _decide(self, series: QuietSeries, rule: Rule) -> bool:
        """Commit the decision, unless another image has come meanwhile."""
        images = self.index.images(series.series_instance_uid)
        if any(image.received_at > series.last_received_at for image in images):
            return False
        self.jobs.decide(decision_of(series.series_instance_uid, images, rule), self.clock())
        return True


def decision_of(series_instance_uid: str, images: Iterable[Instance], rule: Rule) -> Decision:
    """What a rule decides on these images of a series; the same images and rule are always the same job."""
    content = content_digest(image.sop_instance_uid for image in images)
    job_id = derived_digest("job", series_instance_uid, content, rule.digest)[:32]
    return Decision(job_id, series_instance_uid, content, rule.digest, rule.model.name, rule.model.version)


def content_digest(sop_instance_uids: Iterable[str]) -> str:
    """Names the images of a series, in whatever order they are given."""
    return derived_digest("content", sorted(sop_instance_uids))
