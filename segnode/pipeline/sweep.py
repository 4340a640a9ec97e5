"""The sweep: which series are complete and what is to be done with them follows from rows, again and again."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from segnode.dicom.uids import derived_digest
from segnode.pipeline.rules import Rule, SeriesValues, series_values
from segnode.store.index import Index, QuietSeries
from segnode.store.jobs import Decision, Jobs

# The values of these attributes in the images of a series, as these were at a time.
ImageValues = Callable[[str, frozenset[str], float], SeriesValues]


@dataclass(frozen=True)
class Sweep:
    """Decides on series that have been quiet for long enough; a repeat decides nothing new.

    `image_values` reads attributes of the images of a series as they are at a time.
    """

    index: Index
    jobs: Jobs
    rules: Sequence[Rule]
    first_loaded: Mapping[str, float]
    image_values: ImageValues
    clock: Callable[[], float]

    def decide(self) -> None:
        """Commit a decision for each series and rule whose time has come."""
        for series in self.index.quiet_series():
            self.consider(series)

    def consider(self, series: QuietSeries) -> None:
        """Ask every rule that selects the series; one that was loaded after the last image came is not asked.

        Jobs of fewer images are cancelled when nobody has their SEG yet.
        """
        values = series_values(series.attributes, self.index.senders(series.series_instance_uid))
        selecting = [
            rule
            for rule in self.rules
            if self.first_loaded[rule.digest] <= series.last_received_at and not rule.unsatisfied(values)
        ]
        quiet_for = self.clock() - series.last_received_at
        complete = [rule for rule in selecting if quiet_for >= rule.config.quiet and not series.is_being_sent]
        due = [rule for rule in complete if self._images_satisfy(rule, series)]
        unsent = self.jobs.unsent(series.series_instance_uid)
        if due or unsent:
            images = self.index.images(series.series_instance_uid)
            content = content_digest(image.sop_instance_uid for image in images)
            for job_id, of_content in unsent.items():
                if of_content != content:
                    self.jobs.supersede(job_id, self.clock())
            if any(image.received_at > series.last_received_at for image in images):
                return  # it came while this was looked at
            for rule in due:
                self.jobs.decide(decision_of(series.series_instance_uid, content, rule), self.clock())
        if len(complete) == len(selecting):
            self.index.set_considered(series)

    def _images_satisfy(self, rule: Rule, series: QuietSeries) -> bool:
        keywords = rule.image_keywords
        if not keywords:
            return True
        return not rule.unsatisfied(self.image_values(series.series_instance_uid, keywords, series.last_received_at))


def decision_of(series: str, content: str, rule: Rule) -> Decision:
    """What a rule decides of a series with that content: always the same job."""
    job_id = derived_digest("job", series, content, rule.digest)[:32]
    return Decision(job_id, series, content, rule.digest, rule.model.name, rule.model.version)


def content_digest(sop_instance_uids: Iterable[str]) -> str:
    """Names the images of a series, in whatever order they are given."""
    return derived_digest("content", sorted(sop_instance_uids))
