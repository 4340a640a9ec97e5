"""What a SEG says of who made it, under which root its UIDs are, and what its segments are tracked by."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import highdicom
import pytest
from pydicom import Dataset, dcmread

from segnode.config import ModelConfig, OutputConfig, RuleConfig
from segnode.dicom.uids import is_uid
from segnode.pipeline.deliver import HeldSegmentation
from segnode.pipeline.encode import Maker
from segnode.pipeline.rules import Rule
from segnode.seg.segments import LabelDictionary, read_label_dictionary
from segnode.store.jobs import Job
from segnode.testing.phantom import Phantom
from tests.labels import segment
from tests.unit.test_placement_proof import Node, images_in

ROOT = "1.2.826.0.1.3680043.10.12345"
OUTPUT = OutputConfig(
    manufacturer="Klinikum Süd",
    model_name="Node 7",
    serial_number="0815",
    series_number=901,
    series_description="{model} (research)",
    uid_root=ROOT,
)
# What a SEG repeats of others: the standard's UIDs, and those of its images.
_OF_OTHERS = ("1.2.840.10008.", "2.25.186353398273466513867233812170395281561")


def uids_in(dataset: Dataset) -> set[str]:
    """Every UID of a data set."""
    found: set[str] = set()
    dataset.walk(lambda _, element: found.add(str(element.value)) if element.VR == "UI" else None)
    return found


@pytest.fixture
def made(tmp_path: Path, phantom: Phantom) -> tuple[Node, Job]:
    """A node of that output, and a job of the phantom that it has encoded."""
    node = Node(tmp_path / "node", output=OUTPUT)
    return node, node.run(images_in(phantom.folder))


def test_output_is_said_in_the_seg(made: tuple[Node, Job]) -> None:
    """Equipment, series number and description are as configured; by its station's name the node knows its own still."""
    node, job = made
    seg = dcmread(node.seg(job))
    said = (seg.Manufacturer, seg.ManufacturerModelName, seg.DeviceSerialNumber, seg.SeriesNumber, seg.SeriesDescription)
    assert said == ("Klinikum Süd", "Node 7", "0815", 901, "m (research)")
    held = node.index.find(job.sop_instance_uid)
    assert held is not None
    assert held.origin == "made"
    (contribution,) = seg.ContributingEquipmentSequence
    assert (contribution.Manufacturer, contribution.StationName) == ("segnode", "SEGNODE")


def test_derived_uids_are_under_the_root(made: tuple[Node, Job], phantom: Phantom) -> None:
    """In the SEG, and in the BINARY that is made of it when it is sent: all that is not of its images or of DICOM."""
    node, job = made
    images = images_in(phantom.folder)
    theirs = set.union(*(uids_in(image) | uids_in(image.file_meta) for image in images))
    held = node.index.find(job.sop_instance_uid)
    assert held is not None
    binary = HeldSegmentation(node.objects, held, 1.0).in_form("binary:native")
    path = node.folder / "binary.dcm"
    path.write_bytes(binary.part10)
    for file in (node.seg(job), path):
        seg = dcmread(file)
        own = {
            uid for uid in uids_in(seg) | uids_in(seg.file_meta) if uid and uid not in theirs and not uid.startswith(_OF_OTHERS)
        }
        assert {seg.SOPInstanceUID, seg.SeriesInstanceUID, seg.DimensionOrganizationSequence[0].DimensionOrganizationUID} <= own
        assert all(uid.startswith(f"{ROOT}.") and is_uid(uid) for uid in own), own


def test_a_repeat_under_a_root_is_the_same_object(made: tuple[Node, Job], tmp_path: Path, phantom: Phantom) -> None:
    """Another node of the same output gives it the same UIDs; without the root it has others."""
    _, job = made
    again = Node(tmp_path / "again", output=OUTPUT).run(images_in(phantom.folder))
    other = Node(tmp_path / "other").run(images_in(phantom.folder))
    assert again.sop_instance_uid == job.sop_instance_uid
    assert other.sop_instance_uid.startswith("2.25.")


def test_highdicom_reads_name_version_and_family_of_the_algorithm(made: tuple[Node, Job]) -> None:
    """Of every segment."""
    node, job = made
    seg = highdicom.seg.segread(node.seg(job))
    for number in seg.segment_numbers:
        (algorithm,) = [seg.get_segment_description(number).algorithm_identification]
        assert (algorithm.name, algorithm.version, algorithm.family.value) == ("m", "1", "123110")


TRACKED = (
    segment(1, "Lung", "39607008", "track = true")
    + segment(2, "Lesion 1", "52988006", "track = true", category="49755003")
    + segment(3, "Lesion 2", "52988006", "track = true", category="49755003")
    + segment(4, "Bone", "272673000")
)


def tracked(folder: Path, model: Mapping[str, str], patient: Mapping[str, str], text: str = TRACKED) -> Mapping[str, str]:
    """The tracking UIDs, by label, that a node gives to a patient's structures."""
    (folder / "labels.toml").write_text(text)
    dictionary: LabelDictionary = read_label_dictionary("labels.toml", folder)
    config = ModelConfig(run="python:m", labels="labels.toml", **model)
    rule = Rule(RuleConfig(when={}, model="m"), config, dictionary, "labelmap:rle")
    image = Dataset()
    image.StudyInstanceUID = "1.2.3"
    for keyword, value in patient.items():
        setattr(image, keyword, value)
    maker = Maker("SEGNODE", OutputConfig(), b"secret of the node")
    identity = maker.identity(rule, image, ("2.25.1", "2.25.2"), datetime.now(UTC))
    label = {found.segment_number: found.label for found in dictionary.segment}
    return {label[number]: uid for number, uid in identity.tracking_uids.items()}


M1, P1 = {"name": "m", "version": "1"}, {"PatientID": "1", "IssuerOfPatientID": "A"}


def test_tracking_uids_stay_over_model_versions_that_number_anew(tmp_path: Path) -> None:
    """The structure is what its codes say: not its value, its label, or its segment number."""
    first = tracked(tmp_path, M1, P1)
    anew = TRACKED.replace("value = 1\n", "value = 9\nnumber = 12\n").replace('"Lung"', '"Lungs"')
    second = tracked(tmp_path, {**M1, "version": "2"}, P1, anew)
    assert first.keys() == {"Lung", "Lesion 1", "Lesion 2"}
    assert (second["Lungs"], second["Lesion 1"]) == (first["Lung"], first["Lesion 1"])
    assert len(set(first.values())) == 3


@pytest.mark.parametrize(
    ("model", "patient"),
    [
        ({**M1, "name": "n"}, P1),
        (M1, {**P1, "PatientID": "2"}),
        (M1, {**P1, "IssuerOfPatientID": "B"}),
        (M1, {"StudyInstanceUID": "1.2.4"}),
    ],
)
def test_tracking_uids_are_others_for_another_model_or_patient(
    tmp_path: Path, model: dict[str, str], patient: dict[str, str]
) -> None:
    """None is shared; a study of nobody in particular is somebody else's than any other."""
    assert not {*tracked(tmp_path, M1, P1).values()} & {*tracked(tmp_path, model, patient).values()}
    assert not {*tracked(tmp_path, M1, {}).values()} & {*tracked(tmp_path, model, patient).values()}
