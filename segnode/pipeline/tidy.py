"""Tidying: what nothing leads to any more, and what has stayed as long as its retention says, is deleted."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from segnode.config import RetentionConfig
from segnode.dicom.header import read_header
from segnode.errors import Refusal
from segnode.pipeline.labelmaps import Labelmaps
from segnode.pipeline.sweep import content_digest
from segnode.store.documents import Documents
from segnode.store.index import Index
from segnode.store.jobs import ENDED, Jobs
from segnode.store.leases import Leases
from segnode.store.objects import ABANDONED_S, ObjectStore

_log = structlog.get_logger()

_READ_AT_ONCE: Final = 200
_PRINTS_STAY_S: Final = 30 * 86400.0


@dataclass(frozen=True)
class Tidier:
    """Deletes files, each only when no row leads to it and nobody who is alive may be about to commit one."""

    objects: ObjectStore
    index: Index
    documents: Documents
    jobs: Jobs
    leases: Leases
    labelmaps: Labelmaps
    retention: RetentionConfig
    clock: Callable[[], float]

    def close_associations(self) -> None:
        """Associations of processes that were killed are no longer open."""
        self.index.close_associations(self.leases.alive(self.clock()))

    def delete_unacknowledged(self, shelf: int) -> None:
        """Delete files of a shelf that were never acknowledged: their process ended between the file and its row.

        The documents of objects that are gone are deleted as well.
        """
        living = self.leases.alive(self.clock())
        keys = self.index.rowless(self.objects.left_behind(shelf, living, self.clock() - ABANDONED_S))
        for key in keys:
            self.objects.delete(key)
        self.documents.delete(self.index.rowless(self.documents.on_shelf(shelf)))
        if keys:
            _log.warning("files that were never acknowledged are deleted", files=len(keys))

    def delete_abandoned(self) -> None:
        """Delete what processes that are gone had not written to the end."""
        self.objects.delete_abandoned(self.leases.alive(self.clock()), self.clock() - ABANDONED_S)
        self.leases.forget(self.clock() - ABANDONED_S)

    def delete_no_longer_held(self) -> None:
        """Delete the SEGs that were held of jobs that have ended."""
        for job_id in self.labelmaps.all_held():
            if self.jobs.state(job_id) in (None, *ENDED):
                self.labelmaps.delete(job_id)

    def delete_prints(self) -> None:
        """Delete what models printed a month ago."""
        self.labelmaps.delete_prints(self.clock() - _PRINTS_STAY_S)

    def read_items(self) -> None:
        """Have the index keep what is in the items of objects that were held before it did; some each time."""
        for instance in self.index.unread(_READ_AT_ONCE):
            try:
                with self.objects.path(instance.object_key).open("rb") as file:
                    header = read_header(file)
            except (OSError, Refusal):
                header = None
            self.index.set_read(instance.sop_instance_uid, header)

    def expire(self) -> None:
        """Delete what has been delivered for as long as its retention says; then the files of what was taken off the index."""
        now = self.clock()
        if self.retention.images_s is not None:
            self._expire_images(now - self.retention.images_s)
        if self.retention.segmentations_s is not None:
            for sop_instance_uid in self.jobs.delivered_before(now - self.retention.segmentations_s):
                self.index.doom_made(sop_instance_uid)
        # Who has found an object before it was replaced may still be about to read it.
        doomed = self.index.doomed(now - ABANDONED_S)
        for key in doomed:
            self.objects.delete(key)
        self.index.forget_doomed(doomed)

    def _expire_images(self, before: float) -> None:
        for series in self.index.considered_series(before):
            if self._is_delivered(series, before):
                self.index.doom_images(series)
                _log.info("images are deleted, as retention says", series_instance_uid=series)

    def _is_delivered(self, series: str, before: float) -> bool:
        """Whether the results of a series, as it is now, have all been sent somewhere, and nothing of it goes on."""
        images = self.index.images(series)
        content = content_digest(image.content for image in images)
        jobs = self.jobs.of_series(series)
        current = [job for job in jobs if job.content_digest == content]
        return (
            bool(current)
            and all(job.state == "delivered" and job.counts for job in current)
            and all(job.has_ended and job.updated_at < before for job in jobs)
            # A job of images that came late forwards these alone; the others are those of the jobs before.
            and all(job.state == "delivered" for job in jobs if job.only_forwards)
        )
