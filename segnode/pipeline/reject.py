"""Rejecting: who took a SEG that was replaced is owed a note that says so, once everybody has what took its place."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from pydicom import dcmread

from segnode.dicom.uids import derived_digest, derived_uid, root_of
from segnode.pipeline.receive import Receiver
from segnode.seg.rejection_note import NoteIdentity, rejection_note
from segnode.store.index import Instance
from segnode.store.jobs import Job, Jobs

_log = structlog.get_logger()


@dataclass(frozen=True)
class Rejecter:
    """Makes rejection notes of what rows say was replaced; a repeat makes nothing new."""

    receiver: Receiver
    jobs: Jobs
    clock: Callable[[], float]

    def owe_notes(self) -> None:
        """Owe a note for each result that was replaced, where that has come to its end."""
        for job_id, replaced_id in self.jobs.replacements():
            replaced = self.jobs.job(replaced_id)
            if replaced.has_ended:
                self._reject(self.jobs.job(job_id), replaced)

    def _reject(self, job: Job, replaced: Job) -> None:
        """Owe a note to those who took the replaced SEG; when its replacement is gone, as retention says, it is too late."""
        replacement = self.receiver.index.find(job.sop_instance_uid)
        delivered = [delivery for delivery in replaced.deliveries if delivery.state == "delivered"]
        own = ("", replaced.sop_instance_uid)
        took = [delivery.destination for delivery in delivered if delivery.sent_sop_instance_uid in own]
        for delivery in delivered:
            if delivery.sent_sop_instance_uid not in own:
                what = f"{delivery.destination} holds it as {delivery.form} {delivery.sent_sop_instance_uid}"
                self.jobs.note(replaced.id, f"{what}, which no note rejects: reject it there")
        if replacement is None or not took:
            self.jobs.settle_replacement(job.id, replaced.id)
            return
        now = self.clock()
        uid = derived_uid("rejection note", replaced.sop_instance_uid, root=root_of(replaced.sop_instance_uid))
        if self.receiver.index.find(uid) is None:
            self._hold(uid, job, replaced, replacement)
        self.jobs.owe_note(derived_digest("note", replaced.id)[:32], job, replaced, uid, took, now)
        _log.info("a rejection note is owed", job=job.id, rejected=replaced.sop_instance_uid, destinations=took)

    def _hold(self, uid: str, job: Job, replaced: Job, replacement: Instance) -> None:
        header = dcmread(self.receiver.objects.path(replacement.object_key), stop_before_pixels=True)
        series = derived_uid("rejection notes", job.series_instance_uid, job.rule_digest, root=root_of(uid))
        identity = NoteIdentity(uid, series, datetime.fromtimestamp(job.updated_at, UTC), self.receiver.ae_title)
        part10 = rejection_note(replaced.sop_instance_uid, header, identity)
        with self.receiver.objects.spool() as spool:
            spool.write(part10)
            spool.complete()
            self.receiver.hold_made(spool)
