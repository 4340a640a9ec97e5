"""The proof of placement: what kinds of source come through, and what is put between model and encoder does not."""

import random
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import highdicom
import numpy as np
import pytest
from msgspec import structs
from pydicom import Dataset, dcmread

from segnode.config import OutputConfig, parse_config
from segnode.dicom.codes import Code
from segnode.dicom.slices import Slices, order_slices, read_volume
from segnode.dicom.volume import Volume
from segnode.errors import Misplaced
from segnode.models import Result, threshold
from segnode.pipeline.assemble import Assembler
from segnode.pipeline.encode import Encoder, Maker
from segnode.pipeline.infer import Inferrer
from segnode.pipeline.labelmaps import Labelmaps
from segnode.pipeline.placement_proof import SourceHeader, model_labels, require_images_in_volume, require_placed, source_header
from segnode.pipeline.ports import Run
from segnode.pipeline.receive import Receiver
from segnode.pipeline.rules import Rule, documents, resolve_rules
from segnode.pipeline.sweep import content_digest, decision_of
from segnode.pipeline.workflows import Stages
from segnode.seg.forms import FORMS
from segnode.seg.segments import LabelDictionary, Segment
from segnode.seg.write import Algorithm, Identity, write_labelmap
from segnode.store.database import open_database
from segnode.store.index import Index
from segnode.store.jobs import Job, Jobs
from segnode.store.leases import Lease
from segnode.store.measures import Meter
from segnode.store.objects import ObjectStore

MODEL = '[[models]]\nname = "m"\nrun = "python:m"\nlabels = "{labels}"\nversion = "1"\n'
RULE = '[[rules]]\nwhen = {{}}\nmodel = "m"\n{keys}\n'
Change = Callable[[list[Dataset]], list[Dataset]]


@dataclass
class Node:
    """The pipeline of a node, from what is received to what is owed, without processes; models are functions."""

    folder: Path
    model: Callable[[Volume], Result] = threshold.segment
    keys: str = ""
    labels: str = "threshold"
    output: OutputConfig = OutputConfig()  # noqa: RUF009  it is frozen
    returned: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lease = Lease("a" * 12, "worker-1")
        self.folder.mkdir(exist_ok=True)
        self.index = Index(open_database(self.folder / "index.sqlite"))
        self.jobs = Jobs(open_database(self.folder / "pipeline.sqlite"))
        self.objects = ObjectStore(self.folder / "objects", lease)
        self.labelmaps = Labelmaps(self.folder / "work")
        self.receiver = Receiver(self.objects, self.index, Meter("web"), "SEGNODE", 0, lambda: 1.0)
        assembler = Assembler(self.objects, self.index)
        inferrer = Inferrer(assembler, self.jobs, {("m", "1"): self._run}, self.labelmaps, lambda: 1.0)
        maker = Maker("SEGNODE", self.output, b"secret")
        encoder = Encoder(assembler, self.receiver, self.jobs, self.labelmaps, maker, lambda: 1.0)
        nobody = None
        self.stages = Stages(inferrer, encoder, nobody, nobody, self.jobs, Meter("worker"), lambda: 1.0)  # type: ignore[arg-type]

    @property
    def rule(self) -> Rule:
        """The one rule of its configuration."""
        (rule,) = resolve_rules(parse_config(MODEL.format(labels=self.labels) + RULE.format(keys=self.keys), self.folder))
        return rule

    def receive(self, images: Sequence[Dataset]) -> None:
        """Images come in, in this order."""
        for image in images:
            file = BytesIO()
            image.save_as(file, enforce_file_format=True)
            with self.objects.spool() as spool:
                spool.write(file.getvalue())
                spool.complete()
                self.receiver.receive(spool)

    def decide(self, images: Sequence[Dataset]) -> str:
        """A job of the images of a series that came; its id."""
        self.jobs.load_rules(documents([self.rule]), 1.0)
        series = str(images[0].SeriesInstanceUID)
        content = content_digest(image.content for image in self.index.images(series))
        decision = decision_of(series, content, self.rule)
        self.jobs.decide(decision, 1.0)
        return decision.id

    def run(self, images: Sequence[Dataset]) -> Job:
        """Receive the images of a series, and do all that follows up to what is owed."""
        self.receive(images)
        job_id = self.decide(images)
        if self.stages.infer(job_id, 0):
            self.stages.encode(job_id)
            self.stages.clear(job_id)
        return self.jobs.job(job_id)

    def seg(self, job: Job) -> Path:
        """The SEG of a job, as it is held."""
        made = self.index.find(job.sop_instance_uid)
        assert made is not None
        return self.objects.path(made.object_key)

    def made(self) -> list[str]:
        """Everything that is held and was not received."""
        studies = {image.StudyInstanceUID for image in self.sent}
        return [i.sop_instance_uid for study in studies for i in self.index.instances(study) if i.origin == "made"]

    @property
    def sent(self) -> list[Dataset]:
        """What was received."""
        return [dcmread(path, stop_before_pixels=True) for path in (self.folder / "objects").glob("??/??/*")]

    def _run(self, volume: Volume, run: Run) -> Result:  # noqa: ARG002  it has nothing to tell
        result = self.model(volume)
        if len(result.layers) > 1 or result.affine is not None:
            return result
        self.returned = dict(zip(volume.sop_instance_uids, np.asarray(result.labelmap), strict=True))
        return result


def images_in(folder: Path) -> list[Dataset]:
    """The images of a folder."""
    return [dcmread(file) for file in sorted(folder.iterdir())]


def shuffled(images: list[Dataset]) -> list[Dataset]:
    """In any order, with instance numbers in any other."""
    random.Random(1).shuffle(images)
    for number, image in enumerate(images):
        image.InstanceNumber = number
    return images


def turned(*cosines: float) -> Change:
    """The same pixels in another orientation, as far apart along its normal."""

    def turn(images: list[Dataset]) -> list[Dataset]:
        normal = np.cross(cosines[:3], cosines[3:])
        for number, image in enumerate(images):
            image.ImageOrientationPatient = [f"{cosine:.6f}" for cosine in cosines]
            image.ImagePositionPatient = [f"{value:.6f}" for value in np.array([-100.0, 50.0, 7.0]) + 2.5 * number * normal]
        return images

    return turn


def each(keyword: str, value: Callable[[int], object]) -> Change:
    """An attribute of each image, by its place in the file order."""

    def change(images: list[Dataset]) -> list[Dataset]:
        for number, image in enumerate(images):
            setattr(image, keyword, value(number))
        return images

    return change


def localizer(images: list[Dataset]) -> list[Dataset]:
    """A localizer comes with the slices."""
    scout = deepcopy(images[0])
    scout.ImageType, scout.SOPInstanceUID = ["ORIGINAL", "PRIMARY", "LOCALIZER"], "1.2.3"
    scout.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    scout.ImageOrientationPatient = ["1", "0", "0", "0", "0", "-1"]
    return [*images, scout]


def tilted(images: list[Dataset]) -> list[Dataset]:
    """Each slice lies 0.5 mm further to the back than the one before."""
    for number, image in enumerate(images):
        x, y, z = image.ImagePositionPatient
        image.ImagePositionPatient = [x, y + 0.5 * number, z]
    return images


def staggered(images: list[Dataset]) -> list[Dataset]:
    """Every other slice lies 2 mm to the side."""
    for image in images[::2]:
        x, y, z = image.ImagePositionPatient
        image.ImagePositionPatient = [x + 2, y, z]
    return images


def twice(images: list[Dataset]) -> list[Dataset]:
    """A slice comes twice, under another UID."""
    again = deepcopy(images[3])
    again.SOPInstanceUID = "1.2.4"
    return [*images, again]


def changed(keyword: str, value: object) -> Change:
    """One image says otherwise."""

    def change(images: list[Dataset]) -> list[Dataset]:
        setattr(images[4], keyword, value)
        return images

    return change


ACCEPTED: dict[str, Change] = {
    "as they are": lambda images: images,
    "reversed": lambda images: images[::-1],
    "shuffled": shuffled,
    "oblique": turned(0.8, 0.6, 0.0, -0.48, 0.64, 0.6),
    "sagittal": turned(0, 1, 0, 0, 0, -1),
    "coronal": turned(1, 0, 0, 0, 0, -1),
    "negative cosines": turned(-1, 0, 0, 0, -1, 0),
    "a negative cosine": turned(1, 0, 0, 0, -1, 0),
    "pixels that are not square": each("PixelSpacing", lambda _: ["0.7", "1.9"]),
    "one slice": lambda images: images[:1],
    "a rescale of each image": each("RescaleSlope", lambda number: str(1 + number / 100)),
    "no frame of reference": each("FrameOfReferenceUID", lambda _: ""),
    "a frame of reference that is no UID": each("FrameOfReferenceUID", lambda _: "isocentre"),
    "a localizer": localizer,
}
REFUSED: dict[str, tuple[Change, str]] = {
    "a gap": (lambda images: [*images[:3], *images[4:]], "there is a gap of 5.00 mm where 2.50 mm is usual"),
    "a duplicate position": (twice, "two slices lie in one place"),
    "mixed orientations": (changed("ImageOrientationPatient", ["-1", "0", "0", "0", "1", "0"]), "mixes orientations"),
    "mixed frames of reference": (changed("FrameOfReferenceUID", "1.2.9"), "mixes frames of reference"),
    "mixed sizes of pixels": (changed("PixelSpacing", ["1", "1"]), "mixes pixel spacings"),
    "two PatientIDs": (changed("PatientID", "SOMEBODY"), "name different patients"),
    "a tilted gantry": (tilted, "the gantry was tilted; allow_tilt in the rule"),
    "slices that are shifted unevenly": (staggered, "not evenly"),
    "nothing but a localizer": (lambda images: localizer(images)[-1:], "nothing but localizers"),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_source_is_accepted(tmp_path: Path, ct: Path, kind: str) -> None:
    """The SEG has the labels that the model returned for each image, by highdicom, and lies where that image does."""
    node = Node(tmp_path)
    job = node.run(ACCEPTED[kind](images_in(ct)))
    assert (job.state, job.error) == ("delivered", "")
    require_on_images(node, job)
    assert job.note == ("1 localizer(s) left out: 1.2.3" if kind == "a localizer" else "")


def require_on_images(node: Node, job: Job) -> None:
    """Hold a SEG to what the model was asked about and returned, by image."""
    path = node.seg(job)
    found = highdicom.seg.segread(path).get_pixels_by_source_instance(list(node.returned), combine_segments=True)
    np.testing.assert_array_equal(found, list(node.returned.values()))
    positions = {image.SOPInstanceUID: image.ImagePositionPatient for image in node.sent if image.Modality == "CT"}
    groups = dcmread(path).PerFrameFunctionalGroupsSequence
    assert len(groups) == len(node.returned)
    for item in groups:
        source = item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert item.PlanePositionSequence[0].ImagePositionPatient == positions[source]


@pytest.mark.parametrize("kind", REFUSED)
def test_source_is_refused(tmp_path: Path, ct: Path, kind: str) -> None:
    """The job fails with the reason; the model is not asked, and nothing is made."""
    change, reason = REFUSED[kind]
    node = Node(tmp_path)
    job = node.run(change(images_in(ct)))
    assert (job.state, reason in job.error) == ("failed", True), job.error
    assert (node.returned, node.made()) == ({}, [])
    assert not any(value in job.error for value in ("PHANTOM", "SOMEBODY"))


def test_two_patients_under_one_study(tmp_path: Path, ct: Path) -> None:
    """Another series of the study that names another patient refuses both: which of them is right cannot be known."""
    node = Node(tmp_path)
    other = each("SeriesInstanceUID", lambda _: "1.2.5")(each("PatientID", lambda _: "SOMEBODY")(images_in(ct)))
    for number, image in enumerate(other):
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"1.2.5.{number}"
    node.receive(other)
    for images in (images_in(ct), other):
        job = node.run(images)
        assert (job.state, "name different patients" in job.error) == ("failed", True)


def test_another_series_that_is_deleted_meanwhile(tmp_path: Path, ct: Path) -> None:
    """One whose file is gone between its row and the look at it is in nobody's way."""
    node = Node(tmp_path)
    images = images_in(ct)
    other = deepcopy(images[0])
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = other.SeriesInstanceUID = "1.2.5"
    node.receive([other])
    (held,) = node.index.images("1.2.5")
    node.objects.delete(held.object_key)
    job = node.run(images)
    assert (job.state, job.error) == ("delivered", "")


@pytest.mark.parametrize("patient", ["Zoë 1 ", ""])
def test_another_series_of_the_patient(tmp_path: Path, ct: Path, patient: str) -> None:
    """Series that name one patient, in whatever characters, or none, are in nobody's way."""
    node = Node(tmp_path)
    images = each("SpecificCharacterSet", lambda _: "ISO_IR 100")(each("PatientID", lambda _: patient)(images_in(ct)))
    other = deepcopy(images[0])
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = other.SeriesInstanceUID = "1.2.5"
    other.SpecificCharacterSet = "ISO_IR 192"
    node.receive([other])
    job = node.run(images)
    assert (job.state, job.error) == ("delivered", "")


@pytest.mark.parametrize("change", [tilted, lambda images: tilted(images)[::-1]], ids=["tilted", "tilted and reversed"])
def test_tilt_that_is_allowed(tmp_path: Path, ct: Path, change: Change) -> None:
    """Each frame lies where its image does; slices are 2.5 mm apart along their normal; the model is told of the shift."""
    volumes = []

    def model(volume: Volume) -> Result:
        volumes.append(volume)
        return threshold.segment(volume)

    node = Node(tmp_path, model, keys="allow_tilt = true")
    job = node.run(change(images_in(ct)))
    assert (job.state, job.error) == ("delivered", "")
    require_on_images(node, job)
    (shared,) = dcmread(node.seg(job)).SharedFunctionalGroupsSequence
    assert shared.PixelMeasuresSequence[0].SpacingBetweenSlices == 2.5
    np.testing.assert_allclose(np.abs(volumes[0].affine[:3, 0]), [0, 0.5, 2.5], atol=1e-6)


def test_uneven_shift_is_never_allowed(tmp_path: Path, ct: Path) -> None:
    """Slices that no tilt shifts are refused with allow_tilt too."""
    job = Node(tmp_path, keys="allow_tilt = true").run(staggered(images_in(ct)))
    assert (job.state, "not evenly" in job.error) == ("failed", True)


def test_tilt_makes_another_rule_of_it(tmp_path: Path) -> None:
    """A rule that allows it is another; which side is looked at changes nothing that is made."""
    digests = [
        Node(tmp_path, keys=k).rule.digest for k in ("", "allow_tilt = true", "allow_tilt = false", 'laterality = "off"')
    ]
    assert [digest == digests[0] for digest in digests] == [True, False, True, True]


FAULTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "slices are flipped": lambda labels: labels[::-1],
    "rows are flipped": lambda labels: labels[:, ::-1],
    "columns are flipped": lambda labels: labels[:, :, ::-1],
    "rows and columns are swapped": lambda labels: labels.swapaxes(1, 2),
    "everything is a slice further": lambda labels: np.roll(labels, 1, axis=0),
    "everything is a row further": lambda labels: np.roll(labels, 1, axis=1),
    "everything is a column further": lambda labels: np.roll(labels, 1, axis=2),
    "two slices are swapped": lambda labels: labels[[0, 2, 1, *range(3, len(labels))]],
    "segments are swapped": lambda labels: np.array([0, 1, 3, 2], np.uint8)[labels],
    "the last slice is empty": lambda labels: np.where(np.arange(len(labels))[:, None, None] < len(labels) - 1, labels, 0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_between_model_and_encoder(tmp_path: Path, ct: Path, fault: str) -> None:
    """A labelmap that is another when it is encoded fails its job; nothing is held, nothing is owed."""
    node = Node(tmp_path)
    images = images_in(ct)
    node.receive(images)
    job_id = node.decide(images)
    assert node.stages.infer(job_id, 0)
    kept = node.labelmaps
    kept.save(job_id, FAULTS[fault](kept.load(job_id)).astype(np.uint8), kept.returned(job_id))
    assert not node.stages.encode(job_id)
    job = node.jobs.job(job_id)
    assert (job.state, job.deliveries, node.made()) == ("failed", (), [])
    assert "is not where the model put it" in job.error
    assert list((tmp_path / "work").iterdir()) == []


class FaultyAssembler(Assembler):
    """One that puts the pixels of other images into slices."""

    def volume(self, slices: Slices) -> Volume:
        """The last slice first."""
        volume = super().volume(slices)
        return replace(volume, array=volume.array[::-1])


def test_fault_between_images_and_model(tmp_path: Path, ct: Path) -> None:
    """A volume whose slices are not the images that it names fails the job, whatever the model has made of it."""
    node = Node(tmp_path)
    inferrer = node.stages.inferrer
    faulty = replace(inferrer, assembler=FaultyAssembler(node.objects, node.index))
    node.stages = replace(node.stages, inferrer=faulty)
    job = node.run(images_in(ct))
    assert (job.state, "hold different pixels" in job.error) == ("failed", True)
    assert not list(tmp_path.rglob("*.returned"))


CODE = Code("SCT", "123037004", "Anatomical structure")
LEFT = Code("SCT", "7771000", "Left")
DICTIONARY = LabelDictionary(
    (Segment(5, "One", CODE, CODE, number=1), Segment(7, "Two", CODE, CODE, number=2), Segment(300, "Three", CODE, CODE))
)
ALGORITHM = Algorithm("m", "1", Code("DCM", "123110", "Artificial Intelligence"))
FORM = FORMS["labelmap:rle"]


@dataclass(frozen=True, eq=False)
class Case:
    """Slices, what a model returned for them, and that in segment numbers."""

    slices: Slices
    returned: np.ndarray
    numbers: np.ndarray

    def write(self, numbers: np.ndarray | None = None, images: Sequence[Dataset] | None = None, **options) -> bytes:
        """A SEG of this, or of something else."""
        identity = Identity("2.25.1", "2.25.2", "", datetime(2026, 1, 2, tzinfo=UTC), "1", "1")
        labels = self.numbers if numbers is None else numbers
        given = self.slices.images if images is None else images
        dictionary = options.get("dictionary", DICTIONARY)
        return write_labelmap(labels, self.slices.affine, given, dictionary, ALGORITHM, identity, options.get("form", FORM))

    @property
    def headers(self) -> list[SourceHeader]:
        """What the proof has of the images."""
        return [source_header(image) for image in self.slices.images]

    def prove(self, part10: bytes) -> None:
        """Prove a SEG against this."""
        uids = [str(image.SOPInstanceUID) for image in self.slices.images]
        require_placed(dcmread(BytesIO(part10)), self.headers, model_labels(self.returned, uids), DICTIONARY)


@pytest.fixture
def case(ct: Path) -> Case:
    """Two segments of which no mirror, shift or swap is the same, and one in the last slice alone."""
    slices = order_slices(images_in(ct))
    numbers = np.zeros((8, 64, 64), np.uint16)
    numbers[1:4, 5:20, 30:50], numbers[2:7, 40:44, 3:9], numbers[7, 10:12, 10] = 1, 2, 300
    returned = np.zeros(301, np.int64)
    returned[[1, 2, 300]] = 5, 7, 300
    return Case(slices, returned[numbers], numbers)


def test_segment_that_was_returned_and_is_not_described(case: Case) -> None:
    """A SEG without an entry that the model returned is found, though it is right in all that it says."""
    without = LabelDictionary(DICTIONARY.segment[:1] + DICTIONARY.segment[2:])
    numbers = np.where(case.numbers == 2, 0, case.numbers).astype(np.uint16)
    part10 = case.write(numbers, dictionary=without)
    labels = model_labels(case.returned, [str(image.SOPInstanceUID) for image in case.slices.images])
    with pytest.raises(Misplaced, match="does not describe a segment of 120 voxels"):
        require_placed(dcmread(BytesIO(part10)), case.headers, labels, without)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_right_is_proven(case: Case, form) -> None:
    """Values of any type of integer, under other segment numbers, in each form that a destination may have."""
    case.prove(case.write(form=FORMS[form]))


def test_frames_may_be_in_any_order(case: Case) -> None:
    """What counts is where a frame lies, not when it comes."""
    order = [3, 1, 7, 0, 2, 6, 4, 5]
    case.prove(case.write(case.numbers[order], [case.slices.images[i] for i in order]))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda n: n[::-1], r"1,800 voxels differ, its centre lies 7\.50 mm away; 8 images differ, the first is image 1 of 8"),
        (lambda n: n[:, ::-1], r"its centre lies 243\.75 mm away; .* the first is image 2 of 8"),
        (lambda n: n.swapaxes(1, 2), "segment 1 is not where"),
        (lambda n: np.roll(n, 1, 2), r"its centre lies 6\.25 mm away"),
        (
            lambda n: np.where(n == 300, 0, n),
            r"segment 300 .* 2 voxels differ, the SEG has none of it; 1 images differ, the first is image 8 of 8",
        ),
        (lambda n: np.where(n == 0, np.indices(n.shape).sum(0) == 100, n), "segment 1 is not where"),
    ],
)
def test_difference_is_named(case: Case, fault, said: str) -> None:
    """Which segment, in how many voxels, from which image on, and how far in mm."""
    with pytest.raises(Misplaced, match=said):
        case.prove(case.write(fault(case.numbers).astype(np.uint16)))


def moved(image: Dataset, keyword: str, *values: float) -> Dataset:
    """An image that says to lie elsewhere."""
    copied = deepcopy(image)
    setattr(copied, keyword, list(values))
    return copied


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (lambda i: [moved(x, "ImagePositionPatient", *(np.array(x.ImagePositionPatient) + [2.5, 0, 0])) for x in i], "2.50 mm"),
        (
            lambda i: [moved(x, "ImagePositionPatient", *(np.array(x.ImagePositionPatient) * [1, 1, -1])) for x in i],
            "does not lie",
        ),
        (lambda i: [moved(x, "ImageOrientationPatient", 0, 1, 0, 1, 0, 0) for x in i], "does not lie"),
        (lambda i: [moved(x, "ImageOrientationPatient", -1, 0, 0, 0, 1, 0) for x in i], "does not lie"),
        (lambda i: [moved(x, "PixelSpacing", 6.25, 6.3) for x in i], "does not lie"),
        (lambda i: [changed_uid(x) for x in i], "FrameOfReferenceUID"),
    ],
)
def test_frames_that_do_not_lie_on_their_images(case: Case, images, said: str) -> None:
    """A shift, a mirror, swapped axes, another size of pixels or frame of reference in the SEG is refused."""
    with pytest.raises(Misplaced, match=said):
        case.prove(case.write(images=images(case.slices.images)))


def changed_uid(image: Dataset) -> Dataset:
    """An image of another frame of reference."""
    copied = deepcopy(image)
    copied.FrameOfReferenceUID = "1.2.9"
    return copied


def test_lost_last_slice(case: Case) -> None:
    """A SEG of all images but the last is refused where the model found something on it, and only there."""
    with pytest.raises(Misplaced, match=r"no frame on image 8 of 8 .* found segments \[300\]"):
        case.prove(case.write(case.numbers[:-1], case.slices.images[:-1]))
    empty = replace(case, returned=np.where(case.numbers == 300, 0, case.returned))
    empty.prove(case.write(case.numbers[:-1], case.slices.images[:-1]))


def test_images_that_the_encoder_has_lost(case: Case) -> None:
    """The model's own list of images is what is proven, whatever list the encoder has."""
    uids = [str(image.SOPInstanceUID) for image in case.slices.images]
    with pytest.raises(Misplaced, match="1 images that the model has labelled are not among the source images"):
        require_placed(dcmread(BytesIO(case.write())), case.headers[:-1], model_labels(case.returned, uids), DICTIONARY)


@pytest.mark.parametrize("wrong", [{"label": "Two"}, {"type": LEFT}, {"modifier": LEFT}, {"region": LEFT}])
def test_segments_that_are_described_as_others(case: Case, wrong) -> None:
    """The right pixels under the wrong name or code are refused."""
    one, two, three = DICTIONARY.segment
    swapped = LabelDictionary((structs.replace(one, **wrong), two, three))
    with pytest.raises(Misplaced, match="segment 1 of the SEG is not described as One"):
        case.prove(case.write(dictionary=swapped))


def test_another_patient(case: Case) -> None:
    """A SEG of somebody else is refused, without a name."""
    others = [deepcopy(image) for image in case.slices.images]
    for image in others:
        image.PatientID = "SOMEBODY"
    with pytest.raises(Misplaced, match="the SEG has not the PatientID of its images$"):
        case.prove(case.write(images=others))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: {"array": v.array[::-1]}, "hold different pixels"),
        (lambda v: {"array": v.array[:, ::-1]}, "hold different pixels"),
        (lambda v: {"array": v.array.swapaxes(1, 2)}, "hold different pixels"),
        (lambda v: {"array": v.array[[0, 2, 1, 3, 4, 5, 6, 7]]}, "slice [23] of the volume .* different pixels"),
        (lambda v: {"array": v.array + 1}, "hold different pixels"),
        (lambda v: {"sop_instance_uids": v.sop_instance_uids[::-1]}, "lie 7.00 slices, 0.00 rows and 0.00 columns apart"),
        (lambda v: {"affine": v.affine @ np.diag([1, -1, 1, 1])}, "rows and 0.00 columns apart"),
        (lambda v: {"affine": v.affine[:, [0, 2, 1, 3]]}, "apart"),
        (lambda v: {"array": v.array[:-1], "sop_instance_uids": v.sop_instance_uids[:-1]}, "is no slice of the volume"),
        (lambda v: {"sop_instance_uids": (*v.sop_instance_uids[:-1], "1.2.3")}, "is no slice of the volume"),
    ],
)
def test_volume_that_is_not_its_images(case: Case, change, said: str) -> None:
    """Slices of other images, elsewhere than their images, or of no image at all: the model is not asked."""
    volume = read_volume(case.slices, case.slices.images)
    require_images_in_volume(volume, case.slices.images)
    with pytest.raises(Misplaced, match=said):
        require_images_in_volume(replace(volume, **change(volume)), case.slices.images)
