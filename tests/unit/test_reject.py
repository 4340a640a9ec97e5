"""Rejection notes: who is owed one, when, and what it says; with a clock in the hand."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import highdicom
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, KeyObjectSelectionDocumentStorage

from segnode.dicom.uids import LABEL_MAP_SEGMENTATION_STORAGE
from segnode.pipeline.receive import Receiver
from segnode.pipeline.reject import Rejecter
from segnode.store.database import open_database
from segnode.store.index import Index
from segnode.store.jobs import Decision, Jobs, Taken
from segnode.store.leases import Lease
from segnode.store.measures import Meter
from segnode.store.objects import ObjectStore
from segnode.testing.part10 import encode_part10
from tests.conftest import installed

REPLACED, REPLACEMENT = "2.25.1", "2.25.2"


@dataclass
class Node:
    """Rows, objects, and what rejects."""

    receiver: Receiver
    jobs: Jobs
    rejecter: Rejecter

    def decide(self, name: str, result: str, *destinations: str) -> None:
        """A job of a series has a result that is owed."""
        self.jobs.decide(Decision(name, "1.3", f"content {name}", "rule", "m", "1"), 100.0)
        self.jobs.owe(name, result, destinations, 100.0)

    def take(self, name: str, destination: str) -> None:
        """A destination takes the result of a job."""
        delivery = self.jobs.delivery(name, destination)
        self.jobs.delivered(delivery, Taken("labelmap:rle", delivery.sop_instance_uid), "stored", 100.0)

    def note(self) -> Dataset | None:
        """The rejection note that is held, where there is one."""
        held = [i for i in self.receiver.index.instances("1.2") if i.sop_class_uid == KeyObjectSelectionDocumentStorage]
        return dcmread(self.receiver.objects.path(held[0].object_key)) if held else None

    def owed(self) -> list[list[str]]:
        """The destinations of every rejection note."""
        return [[d.destination for d in job.deliveries] for job in self.jobs.all() if not job.content_digest]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node that holds a SEG which is to replace another."""
    objects = ObjectStore(tmp_path / "objects", Lease("a" * 12, "worker-1"))
    index = Index(open_database(tmp_path / "index.sqlite"))
    receiver = Receiver(objects, index, Meter("worker"), "SEGNODE", 0, lambda: 100.0)
    seg = Dataset()
    seg.SOPClassUID, seg.SOPInstanceUID = LABEL_MAP_SEGMENTATION_STORAGE, REPLACEMENT
    seg.StudyInstanceUID, seg.SeriesInstanceUID, seg.SeriesNumber, seg.InstanceNumber = "1.2", "1.4", 301, 2
    seg.PatientName, seg.PatientID, seg.PatientBirthDate, seg.PatientSex = "Some^Body", "4711", "", "O"
    seg.StudyDate, seg.StudyTime, seg.StudyID, seg.AccessionNumber, seg.ReferringPhysicianName = "20260101", "", "", "", ""
    seg.DeviceSerialNumber, seg.SoftwareVersions = "SEGNODE", "1"
    seg.Manufacturer = seg.ManufacturerModelName = "segnode"
    with objects.spool() as spool:
        spool.write(encode_part10(seg, ExplicitVRLittleEndian))
        spool.complete()
        receiver.hold_made(spool)
    jobs = Jobs(open_database(tmp_path / "pipeline.sqlite"))
    return Node(receiver, jobs, Rejecter(receiver, jobs, lambda: 200.0))


def test_note_is_owed_when_everybody_has_the_replacement(node: Node) -> None:
    """Not before every destination has the new one and the old one is on its way to nobody; then to those who took it."""
    node.decide("old", REPLACED, "a", "b", "c")
    node.take("old", "a")
    node.decide("new", REPLACEMENT, "a", "b", "c")
    node.jobs.replace("new", ["old"])
    node.take("new", "a")
    node.take("new", "b")
    node.rejecter.owe_notes()
    node.take("new", "c")
    node.rejecter.owe_notes()
    assert (node.owed(), node.note()) == ([], None)
    node.take("old", "b")
    node.jobs.refused(node.jobs.delivery("old", "c"), "no", 100.0)
    node.rejecter.owe_notes()
    node.rejecter.owe_notes()
    assert node.owed() == [["a", "b"]]
    assert node.jobs.replacements() == []


def test_note_of_what_nobody_took_is_not_made(node: Node) -> None:
    """Where the old result was only held here, or its replacement is gone, there is no note."""
    node.decide("old", REPLACED)
    node.decide("new", REPLACEMENT)
    node.jobs.replace("new", ["old"])
    node.decide("other", "2.25.3", "a")
    node.take("other", "a")
    node.decide("gone", "2.25.4")
    node.jobs.replace("gone", ["other"])
    node.rejecter.owe_notes()
    assert (node.owed(), node.note(), node.jobs.replacements()) == ([], None, [])


def test_archive_that_has_a_binary_is_named(node: Node) -> None:
    """What it holds has another UID, which the note does not reject: the replaced job says so, and the others get the note."""
    node.decide("old", REPLACED, "a", "b")
    node.take("old", "a")
    node.jobs.delivered(node.jobs.delivery("old", "b"), Taken("binary:native", "2.25.9"), "stored", 100.0)
    node.decide("new", REPLACEMENT)
    node.jobs.replace("new", ["old"])
    node.rejecter.owe_notes()
    assert node.owed() == [["a"]]
    assert node.jobs.job("old").note == "b holds it as binary:native 2.25.9, which no note rejects: reject it there"


def test_note_that_is_owed_is_no_result(node: Node) -> None:
    """Images that come while a note is on its way do not cancel it."""
    node.decide("old", REPLACED, "a")
    node.take("old", "a")
    node.decide("new", REPLACEMENT, "a")
    node.jobs.replace("new", ["old"])
    node.take("new", "a")
    node.rejecter.owe_notes()
    assert node.jobs.unsent("1.3") == {}


def made_note(node: Node) -> Dataset:
    """The note that rejects the old result."""
    node.decide("old", REPLACED, "a")
    node.take("old", "a")
    node.decide("new", REPLACEMENT)
    node.jobs.replace("new", ["old"])
    node.rejecter.owe_notes()
    note = node.note()
    assert note is not None
    return note


def test_note_rejects_the_replaced_result(node: Node) -> None:
    """It is rejected for quality reasons, as evidence and as content, in its study and series; highdicom reads it so."""
    note = highdicom.ko.KeyObjectSelectionDocument.from_dataset(made_note(node))
    assert note.ConceptNameCodeSequence[0].CodeValue == "113001"
    assert note.resolve_reference(REPLACED) == ("1.2", "1.4", REPLACED)
    (reference,) = note.content.get_references()
    assert reference.ReferencedSOPSequence[0].ReferencedSOPClassUID == LABEL_MAP_SEGMENTATION_STORAGE
    assert (note.PatientID, note.StudyInstanceUID, note.Modality) == ("4711", "1.2", "KO")


def test_note_is_sound(node: Node, tmp_path: Path, dcmtk: Callable[[str], str]) -> None:
    """Dciodvfy finds no error, and DCMTK's dsrdump reads the document."""
    file = tmp_path / "note.dcm"
    buffer = BytesIO()
    made_note(node).save_as(buffer)
    file.write_bytes(buffer.getvalue())
    found = subprocess.run(
        [installed("dciodvfy", "dicom3tools"), str(file)], check=False, capture_output=True, text=True
    ).stderr
    assert [line for line in found.splitlines() if line.startswith("Error")] == []
    assert "KeyObjectSelectionDocument" in found
    ignoring = [dcmtk("dsrdump"), "--ignore-item-errors", str(file)]  # it knows no LABELMAP, which is an image (PS3.3 A.51)
    dumped = subprocess.run(ignoring, check=True, capture_output=True, text=True).stdout
    assert "Rejected for Quality Reasons" in dumped
