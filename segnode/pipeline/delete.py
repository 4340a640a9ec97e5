"""Deleting: what a client wants gone goes, unless something that goes on needs it."""

from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from segnode.errors import NotFound, OutOfResources, StillNeeded
from segnode.store.documents import Documents
from segnode.store.index import Index, Instance
from segnode.store.jobs import Jobs
from segnode.store.objects import ObjectStore

_log = structlog.get_logger()


@dataclass(frozen=True)
class Deleter:
    """Deletes rows, then files: killed between the two, it has deleted, and the files go when the node tidies up.

    So they do where they cannot be deleted now. A job that is decided on at that moment ends when it finds no images.
    """

    objects: ObjectStore
    index: Index
    documents: Documents
    jobs: Jobs

    def delete(self, study: str, series: str | None = None, instance: str | None = None) -> None:
        """Delete a study, a series of it or the one object. Raises NotFound, StillNeeded."""
        keys = self.index.doom(study, series, instance, self._allow)
        _log.info(
            "deleted, as a client asked",
            study_instance_uid=study,
            series_instance_uid=series,
            sop_instance_uid=instance,
            objects=len(keys),
        )
        try:
            self.documents.delete(keys)
            for key in keys:
                self.objects.delete(key)
            self.index.forget_doomed(keys)
        except (OSError, OutOfResources) as error:  # nobody finds them any more all the same
            reason = error.strerror if isinstance(error, OSError) else str(error)
            _log.error("what was deleted is still on the disk, until the node tidies up", reason=reason)

    def _allow(self, instances: Sequence[Instance]) -> None:
        if not instances:
            raise NotFound("nothing is held under that URL")
        job = self.jobs.needing({i.series_instance_uid for i in instances}, (i.sop_instance_uid for i in instances))
        if job is not None:
            state = self.jobs.state(job)
            raise StillNeeded(f"job {job} needs it, which is {state}: wait until it has ended, or cancel it, and ask again")
