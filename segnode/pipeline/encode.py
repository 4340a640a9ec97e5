"""Encoding: the labelmap of a job becomes one LABELMAP SEG that is held like any object, and is owed to its destinations."""

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from io import BytesIO

from pydicom import Dataset, dcmread

from segnode.dicom.uids import derived_uid
from segnode.dicom.volume import Slices
from segnode.errors import BadSegmentation
from segnode.pipeline.assemble import Assembler
from segnode.pipeline.labelmaps import Labelmaps
from segnode.pipeline.placement_proof import require_placed
from segnode.pipeline.receive import Receiver
from segnode.pipeline.rules import Rule
from segnode.pipeline.sweep import taken
from segnode.seg.check import check_attributes
from segnode.seg.forms import FORMS
from segnode.seg.write import ENCODER_REVISION, Algorithm, Identity, write_labelmap
from segnode.store.jobs import Job, Jobs


@dataclass(frozen=True)
class Encoder:
    """Writes SEGs; `secret` keys the tracking UIDs, so that nobody can guess them from a PatientID."""

    assembler: Assembler
    receiver: Receiver
    jobs: Jobs
    labelmaps: Labelmaps
    device_serial_number: str
    secret: bytes
    clock: Callable[[], float]

    def encode(self, job: Job, rule: Rule) -> None:
        """Make the SEG of a job from its labelmap, hold it, and owe it to the rule's destinations; may be repeated.

        The first SEG that was committed for a job is the one: a repeat finds it and makes no other. One with a segment on
        the wrong side may be held instead: then it is in no index and owed to nobody until a person lets it go. Raises
        BadSegmentation for one that breaks a rule of the standard, Misplaced for one that is not what the model returned.
        """
        if job.state == "held":
            return
        self.jobs.enter(job.id, "encoding", self.clock())
        slices = self.assembler.slices(job, allow_tilt=rule.config.allow_tilt)
        sop_instance_uid = _instance_uid(job, rule, slices)
        if self.receiver.index.find(sop_instance_uid) is None:
            part10 = self.labelmaps.held(job.id) if job.is_released else None
            if part10 is None:
                part10 = self._write(job, rule, slices, sop_instance_uid)
                seg, returned = dcmread(BytesIO(part10)), self.labelmaps.returned(job.id)
                _require_sound(seg)
                require_placed(seg, returned.images, returned.labels, rule.dictionary)
                if returned.wrong_sides and rule.config.laterality == "hold" and not job.is_released:
                    self._hold(job, part10, returned.wrong_sides)
                    return
            with self.receiver.objects.spool() as spool:
                spool.write(part10)
                spool.complete()
                self.receiver.hold_made(spool.path)
        if rule.config.iocm:
            self.jobs.replace(job.id, [other.id for other in self._replaced_by(job)])
        self.jobs.owe(job.id, sop_instance_uid, rule.config.send_to, self.clock())
        self.labelmaps.delete(job.id)

    def _hold(self, job: Job, part10: bytes, reasons: Sequence[str]) -> None:
        path = self.labelmaps.hold(job.id, part10)
        what = f"{'; '.join(reasons)}: look at {path}; `segnode jobs release` sends it as it is, `cancel` drops it"
        self.jobs.hold(job.id, what, self.clock())
        self.labelmaps.delete_labels(job.id)

    def _write(self, job: Job, rule: Rule, slices: Slices, sop_instance_uid: str) -> bytes:
        earlier = [other for other in self.jobs.of_series(job.series_instance_uid) if _is_earlier(other, job)]
        replaced = self._replaced_by(job)
        algorithm = Algorithm(rule.model.name, rule.model.version, rule.model.family)
        identity = Identity(
            sop_instance_uid=sop_instance_uid,
            series_instance_uid=self._series_uid(job, rule, replaced),
            series_description=f"Segmentation by {rule.model.name}",
            created=datetime.fromtimestamp(job.created_at, UTC),
            series_created=datetime.fromtimestamp((*earlier, job)[0].created_at, UTC),
            instance_number=len(earlier) + 1,
            replaces=replaced[-1].sop_instance_uid if replaced else "",
            device_serial_number=self.device_serial_number,
            software_version=version("segnode"),
            tracking_uids=self._tracking_uids(rule, slices.images[0]),
        )
        labelmap = self.labelmaps.load(job.id)
        form = FORMS[rule.first_form]
        return write_labelmap(labelmap, slices.affine, slices.images, rule.dictionary, algorithm, identity, form)

    def _series_uid(self, job: Job, rule: Rule, replaced: Sequence[Job]) -> str:
        """One for all results of a rule and a series; what an earlier version made is in another, and its successors too."""
        held = self.receiver.index.find(replaced[-1].sop_instance_uid) if replaced else None
        return held.series_instance_uid if held else derived_uid("series", job.series_instance_uid, rule.digest)

    def _replaced_by(self, job: Job) -> list[Job]:
        """The jobs whose results this one's takes the place of, oldest first: of fewer images, and somebody has them.

        Where the images that it was made of are gone, as retention says, nothing is replaced: this one is not of them all.
        """
        came_first = min(image.received_at for image in self.assembler.index.images(job.series_instance_uid))
        return [other for other in taken(self.jobs, job) if _is_earlier(other, job) and other.created_at >= came_first]

    def _tracking_uids(self, rule: Rule, image: Dataset) -> Mapping[int, str]:
        """The same for a structure of a patient in every result of a model."""
        tracked = [segment for segment in rule.dictionary.segment if segment.track]
        patient = f"{image.get('IssuerOfPatientID', '')}/{image.get('PatientID', '')}"
        return {s.segment_number: derived_uid("track", self._keyed(f"{patient}/{rule.model.name}/{s.value}")) for s in tracked}

    def _keyed(self, text: str) -> str:
        return hmac.new(self.secret, text.encode(), hashlib.sha256).hexdigest()


def _require_sound(seg: Dataset) -> None:
    """A defect of ours stays in the house; the pixels need no look: they were mapped to the dictionary's numbers."""
    findings = check_attributes(seg)
    wrong = [f"{f.attribute} {f.message} ({f.clause})" for f in findings if f.severity == "error"]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise BadSegmentation(f"the SEG of this job breaks the standard and is not kept: {'; '.join(wrong[:3])}{more}")


def _is_earlier(other: Job, job: Job) -> bool:
    """Whether a job of the same series and rule has a result that is older than the other's."""
    of_same_rule = other.rule_digest == job.rule_digest and other.content_digest != ""
    return of_same_rule and other.id != job.id and other.sop_instance_uid != "" and other.created_at <= job.created_at


def _instance_uid(job: Job, rule: Rule, slices: Slices) -> str:
    images = sorted(str(image.SOPInstanceUID) for image in slices.images)
    return derived_uid("instance", job.series_instance_uid, images, rule.digest, ENCODER_REVISION)
