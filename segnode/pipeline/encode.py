"""Encoding: the labels of a job become one SEG that is held like any object, and is owed to its destinations.

It is a LABELMAP; a BINARY where segments overlap.
"""

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from io import BytesIO

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmread

from segnode.config import OutputConfig
from segnode.dicom.slices import Slices
from segnode.dicom.uids import UUID_ROOT, derived_digest, derived_uid
from segnode.errors import BadSegmentation
from segnode.pipeline.assemble import Assembler
from segnode.pipeline.labelmaps import Labelmaps, Returned
from segnode.pipeline.placement_proof import require_placed
from segnode.pipeline.receive import Receiver
from segnode.pipeline.rules import Rule
from segnode.pipeline.sweep import taken
from segnode.seg.check import check_attributes
from segnode.seg.forms import FORMS
from segnode.seg.segments import LabelDictionary, Segment, found_in
from segnode.seg.write import ENCODER_REVISION, Algorithm, Identity, write_labels
from segnode.seg.write.placement import on_grid_beside, on_volume
from segnode.store.jobs import Job, Jobs


@dataclass(frozen=True)
class Maker:
    """What SEGs say of who made them: `station_name` is the node's, by which it knows its own again.

    `secret` keys the tracking UIDs, so that nobody can guess them from a PatientID; without it nothing is tracked.
    """

    station_name: str
    output: OutputConfig
    secret: bytes | None

    @property
    def root(self) -> str:
        """What the UIDs that it derives begin with."""
        return self.output.uid_root or UUID_ROOT

    def identity(self, rule: Rule, image: Dataset, uids: tuple[str, str], created: datetime) -> Identity:
        """What the SEG of a rule is called, made of a series with that image; `uids` are of SOP instance and series."""
        sop_instance_uid, series_instance_uid = uids
        return Identity(
            sop_instance_uid=sop_instance_uid,
            series_instance_uid=series_instance_uid,
            series_description=self.output.series_description.replace("{model}", rule.model.name),
            series_number=self.output.series_number,
            created=created,
            manufacturer=self.output.manufacturer,
            manufacturer_model_name=self.output.model_name,
            device_serial_number=self.output.serial_number or self.station_name,
            software_version=version("segnode"),
            station_name=self.station_name,
            tracking_uids=self._tracking_uids(rule, image),
            uid_root=self.root,
        )

    def _tracking_uids(self, rule: Rule, image: Dataset) -> Mapping[int, str]:
        """By segment number, the same for a structure of a patient in every result of a model, whatever its version."""
        if self.secret is None:
            return {}
        # Of whom nothing is said, nobody knows whether another study is of the same.
        whose = "PatientID" if image.get("PatientID") else "StudyInstanceUID"
        patient = [str(image.get(keyword) or "") for keyword in ("IssuerOfPatientID", whose)]
        found = {}
        for segment in rule.dictionary.segment:
            if segment.track:
                which = derived_digest(patient, rule.model.name, _structure(segment, rule.dictionary))
                keyed = hmac.new(self.secret, which.encode(), hashlib.sha256).hexdigest()
                found[segment.segment_number] = derived_uid("track", keyed, root=self.root)
        return found


def _structure(segment: Segment, dictionary: LabelDictionary) -> Sequence[str]:
    """What a segment is by its codes, and by its label where others have the same: values change from version to version."""
    codes = _codes_of(segment)
    alike = sum(_codes_of(other) == codes for other in dictionary.segment)
    return (*codes, segment.label) if alike > 1 else codes


def _codes_of(segment: Segment) -> tuple[str, ...]:
    codes = (segment.category, segment.type, segment.modifier, segment.region)
    return tuple(f"{code.scheme} {code.value}" if code else "" for code in codes)


@dataclass(frozen=True)
class Encoder:
    """Writes SEGs."""

    assembler: Assembler
    receiver: Receiver
    jobs: Jobs
    labelmaps: Labelmaps
    maker: Maker
    clock: Callable[[], float]

    def encode(self, job: Job, rule: Rule) -> None:
        """Make the SEG of a job from its labelmap, hold it, and owe it to the rule's destinations; may be repeated.

        The labelmap stays: to delete it takes longer than the destinations should wait. The first SEG that was committed for
        a job is the one: a repeat finds it and makes no other. One with a segment on the wrong side may be held instead: then
        it is in no index and owed to nobody until a person lets it go. Raises BadSegmentation for one that breaks a rule of
        the standard, Misplaced for one that is not what the model returned.
        """
        if job.state == "held":
            return
        if job.state != "encoding":
            self.jobs.enter(job.id, "encoding", self.clock())
        slices = self.assembler.slices(job, rule)
        sop_instance_uid = _instance_uid(job, rule, slices, self.assembler.contents(job), self.maker.root)
        if self.receiver.index.find(sop_instance_uid) is None:
            part10 = self.labelmaps.held(job.id) if job.is_released else None
            if part10 is None:
                returned = self.labelmaps.returned(job.id)
                part10 = self._write(job, rule, slices, sop_instance_uid, returned)
                if returned.wrong_sides and rule.config.laterality == "hold" and not job.is_released:
                    self._hold(job, part10, returned.wrong_sides)
                    return
            with self.receiver.objects.spool() as spool:
                spool.write(part10)
                spool.complete()
                self.receiver.hold_made(spool)
        if rule.config.iocm:
            self.jobs.replace(job.id, [other.id for other in self._replaced_by(job)])
        self.jobs.owe(job.id, sop_instance_uid, rule.config.send_to, self.clock())
        self.labelmaps.delete_held(job.id)

    def _hold(self, job: Job, part10: bytes, reasons: Sequence[str]) -> None:
        path = self.labelmaps.hold(job.id, part10)
        what = f"{'; '.join(reasons)}: look at {path}; `segnode jobs release` sends it as it is, `cancel` drops it"
        self.jobs.hold(job.id, what, self.clock())

    def _write(self, job: Job, rule: Rule, slices: Slices, sop_instance_uid: str, returned: Returned) -> bytes:
        earlier = [other for other in self.jobs.of_series(job.series_instance_uid) if _is_earlier(other, job)]
        replaced = self._replaced_by(job)
        before = self.receiver.index.find(replaced[-1].sop_instance_uid) if replaced else None
        # One for all results of a rule and a series; what an earlier version made is in another, and its successors too.
        series = derived_uid("series", job.series_instance_uid, rule.digest, root=self.maker.root)
        uids = sop_instance_uid, before.series_instance_uid if before else series
        identity = replace(
            self.maker.identity(rule, slices.images[0], uids, datetime.fromtimestamp(job.created_at, UTC)),
            series_created=datetime.fromtimestamp((*earlier, job)[0].created_at, UTC),
            instance_number=len(earlier) + 1,
            replaces=replaced[-1].sop_instance_uid if replaced else "",
            replaced_class=before.sop_class_uid if before else "",
        )
        return write_proven(self.labelmaps.load(job.id), returned, slices, rule, identity)

    def _replaced_by(self, job: Job) -> list[Job]:
        """The jobs whose results this one's takes the place of, oldest first: of fewer images, and somebody has them.

        Where the images that it was made of are gone, as retention says, nothing is replaced: this one is not of them all.
        """
        came_first = min(image.received_at for image in self.assembler.index.images(job.series_instance_uid))
        return [other for other in taken(self.jobs, job) if _is_earlier(other, job) and other.created_at >= came_first]


def write_proven(
    labels: npt.NDArray[np.unsignedinteger], returned: Returned, slices: Slices, rule: Rule, identity: Identity
) -> bytes:
    """The SEG, as a Part 10 file, of segment numbers ([layers,] planes, rows, columns) of what a model returned.

    It has the segments that were found; where none was, all that were looked for: a SEG has one at least. Raises LabelError;
    BadSegmentation for one that breaks a rule of the standard, Misplaced for one that is not what the model returned.
    """
    dictionary = found_in(labels, rule.dictionary)
    algorithm = Algorithm(rule.model.name, rule.model.version, rule.model.family)
    if returned.labels.affine is None:
        placement = on_volume(slices.images, slices.affine)
    else:
        placement = on_grid_beside(slices.images, np.array(returned.labels.affine), labels.shape[-3])
    part10 = write_labels(labels, placement, dictionary, algorithm, identity, FORMS[rule.first_form])
    seg = dcmread(BytesIO(part10))
    _require_sound(seg)
    require_placed(seg, returned.images, returned.labels, dictionary)
    return part10


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


def _instance_uid(job: Job, rule: Rule, slices: Slices, contents: Mapping[str, str], root: str) -> str:
    images = sorted(contents[str(image.SOPInstanceUID)] for image in slices.images)
    return derived_uid("instance", job.series_instance_uid, images, rule.digest, ENCODER_REVISION, root=root)
