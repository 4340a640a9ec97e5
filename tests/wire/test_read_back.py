"""Read back before it counts: archives that give out what they were sent, something else, nothing yet, or nothing ever."""

from collections.abc import Iterator
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ImplicitVRLittleEndian, KeyObjectSelectionDocumentStorage
from pynetdicom import evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelGet

from segnode.config import parse_dimse_address
from segnode.dicom.header import read_header
from segnode.dimse.peer import DimsePeer
from segnode.dimse.scu import associate, get_instance
from segnode.errors import DeliveryDeferred, DeliveryRefused
from segnode.pipeline.ports import Listed
from segnode.pipeline.read_back import require_same_content
from segnode.seg.rejection_note import NoteIdentity, rejection_note
from segnode.store.jobs import Decision
from segnode.testing.servers import orthanc, orthanc_program
from tests.conftest import absent
from tests.outbox import CREATED, RESULT, SERIES, STUDY, Outbox, outbox, require_truth, segmentation, truth
from tests.wire.test_delivery_matrix import BOTH, NATIVE, Archive, Response, go_on, held_by, scp, stow

DAY = 86400
NOTE = "2.25.7"
READ_BACK = "read back from there, it is what was sent"


@pytest.mark.parametrize(("door", "form"), [("dimse", "binary:native"), ("dicomweb", "labelmap:rle")])
def test_orthanc_gives_back_what_it_was_sent(tmp_path: Path, door: str, form: str) -> None:
    """By C-GET and by WADO-RS: delivered is what came back with the same labels."""
    if orthanc_program() is None:
        absent("Orthanc with its DICOMweb plug-in", "install orthanc and orthanc-dicomweb (scripts/peers does)")
    with orthanc(tmp_path / "orthanc", DicomAlwaysAllowFind=True, DicomAlwaysAllowGet=True) as archive:
        box = outbox(tmp_path / "node", getattr(archive, door), confirm="read-back")
        assert go_on(box).state == "confirming"
        delivery = go_on(box)
        (held,) = held_by(archive)
    assert (delivery.state, delivery.form, delivery.last_answer) == ("delivered", form, READ_BACK)
    require_truth(held)


def test_archive_that_says_stored_and_keeps_nothing_is_found_out(tmp_path: Path) -> None:
    """It is asked again with back-off, and not sent again at once; after a day it is, and then it is there."""
    archive = Archive(loses=1)
    with stow(archive, [Response(200, keeps=True)]) as root:
        box = outbox(tmp_path, root, confirm="read-back")
        delivery = go_on(box, attempts=5)
        assert (delivery.state, len(archive.received)) == ("confirming", 1)
        assert f"does not find {RESULT} yet" in delivery.last_answer
        assert box.jobs.job("j").state == "delivering"
        assert not box.standings.of("archive").is_down
        box.now += DAY
        assert (go_on(box).state, box.delivery().sent_again) == ("waiting", 1)
        assert go_on(box, attempts=2).state == "delivered"
    assert len(archive.received) == 2
    archive.require_one()


def test_archive_that_loses_it_twice_fails(tmp_path: Path) -> None:
    """A day after it was sent again the delivery fails, and says what was not found."""
    archive = Archive(loses=2)
    with stow(archive, [Response(200, keeps=True)] * 2) as root:
        box = outbox(tmp_path, root, confirm="read-back")
        for _ in range(2):
            go_on(box, attempts=2)
            box.now += DAY
            delivery = go_on(box)
    assert (delivery.state, len(archive.received)) == ("failed", 2)
    assert f"does not find {RESULT} 24 hours later, also after it was sent again" in delivery.last_answer


def test_archive_that_is_slow_is_asked_again(tmp_path: Path) -> None:
    """What is there a little later is delivered, sent once."""
    archive = Archive()
    with scp(archive, *BOTH) as address:
        box = outbox(tmp_path, address, confirm="read-back")
        go_on(box)
        kept = archive.kept.pop(RESULT)
        assert go_on(box).state == "confirming"
        archive.kept[RESULT] = kept
        assert go_on(box).state == "delivered"
    assert len(archive.received) == 1


def test_other_labels_are_a_failure(tmp_path: Path) -> None:
    """An archive that gives out something else under the UID."""
    archive = Archive()
    with scp(archive, *BOTH) as address:
        box = outbox(tmp_path, address, confirm="read-back")
        go_on(box)
        archive.kept[RESULT] = segmentation(np.roll(truth(), 1, axis=1))
        delivery = go_on(box)
    assert (delivery.state, "with other labels" in delivery.last_answer) == ("failed", True)


def test_archive_that_gives_out_the_whole_series_has_it(tmp_path: Path) -> None:
    """Of all that comes by C-GET that of the UID is compared."""
    archive = Archive(also_given=[segmentation(truth(), f"{RESULT[:-1]}.7")])
    with scp(archive, *BOTH) as address:
        delivery = go_on(outbox(tmp_path, address, confirm="read-back"), attempts=2)
    assert (delivery.state, delivery.last_answer) == ("delivered", READ_BACK)


def test_archive_that_is_ended_while_it_is_asked_is_asked_again(tmp_path: Path) -> None:
    """C-FIND that breaks off is no proof, nor that there never will be one: for a day; then what to set is in the answer."""
    breaks: list[bool] = [True]

    class Ending(Archive):
        def on_find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
            if breaks:
                event.assoc.abort()
                return
            yield from super().on_find(event)

    archive = Ending()
    with scp(archive, *BOTH) as address:
        box = outbox(tmp_path / "node", address, confirm="read-back")
        assert go_on(box, attempts=2).state == "confirming"
        assert not box.standings.of("archive").is_down
        breaks.clear()
        assert go_on(box).state == "delivered"
        breaks.append(True)
        never = outbox(tmp_path / "other", address, confirm="read-back")
        archive.kept.clear()
        assert go_on(never, attempts=2).state == "confirming"
        never.now += DAY
        delivery = go_on(never)
    assert (delivery.state, "set confirm of archive to status" in delivery.last_answer) == ("failed", True)


def test_association_that_is_gone_before_it_is_asked_is_asked_again(tmp_path: Path) -> None:
    """It broke off between two requests: to be tried later, and nothing unforeseen."""
    with scp(archive := Archive(), *BOTH) as address:
        peer = DimsePeer(parse_dimse_address(address, ""), "TEST")
        kind = (str(StudyRootQueryRetrieveInformationModelGet), str(ImplicitVRLittleEndian))
        with associate(peer, {kind}) as association:
            association.abort()
            with pytest.raises(DeliveryDeferred, match="broke off"):
                get_instance(association, Listed(STUDY, SERIES, RESULT, ""), "SINK")
    assert archive.kept == {}


def test_archive_that_gives_nothing_out_is_a_failure_that_says_so(tmp_path: Path) -> None:
    """Neither C-FIND nor C-GET: what to set is in the answer."""
    with scp(archive := Archive(), *BOTH, asks=False) as address:
        delivery = go_on(outbox(tmp_path, address, confirm="read-back"), attempts=2)
    assert (delivery.state, len(archive.received)) == ("failed", 1)
    assert "accepts neither C-FIND nor C-GET" in delivery.last_answer
    assert "set confirm of archive to status" in delivery.last_answer


def a_note() -> bytes:
    """A rejection note."""
    header = dcmread(BytesIO(segmentation(truth())), stop_before_pixels=True)
    return rejection_note(RESULT, header, NoteIdentity(NOTE, "2.25.8", datetime.fromtimestamp(CREATED, UTC), "SEGNODE"))


def owe_note(box: Outbox) -> None:
    """Owe a rejection note and nothing else."""
    objects = box.deliverer.objects
    with objects.spool() as spool:
        spool.write(a_note())
        spool.complete()
        with spool.path.open("rb") as file:
            header = read_header(file)
        box.deliverer.index.add(header, objects.keep(spool), 1, "digest", "made", CREATED)
    box.jobs.decide(Decision("note", "1.3", "", "rule", "m", "1"), box.now)
    box.jobs.owe("note", NOTE, ["archive"], box.now)
    box.jobs.cancel("j", box.now)


@pytest.mark.parametrize("door", [scp, stow])
def test_note_is_read_back(tmp_path: Path, door) -> None:
    """An object that is no SEG is held to what was sent as well."""
    archive = Archive()
    told = [[Response(200, keeps=True)]] if door is stow else [(KeyObjectSelectionDocumentStorage, NATIVE)]
    with door(archive, *told) as to:
        box = outbox(tmp_path, to, confirm="read-back")
        owe_note(box)
        box.attempt()
        assert box.delivery(job="note").state == "confirming"
        box.attempt()
    assert (box.delivery(job="note").state, box.delivery(job="note").last_answer) == ("delivered", READ_BACK)


def test_content_that_was_changed_is_another_object() -> None:
    """A patient's name that was corrected is let pass, and so is what was added; what the note says is not."""
    corrected, another = dcmread(BytesIO(a_note())), dcmread(BytesIO(a_note()))
    corrected.PatientName, corrected.InstanceAvailability = "SOMEBODY^ELSE", "ONLINE"
    another.ContentSequence[-1].ReferencedSOPSequence[0].ReferencedSOPInstanceUID = "2.25.9"
    require_same_content(NOTE, a_note(), part10(corrected), "ARCHIVE")
    with pytest.raises(DeliveryRefused, match="with other content"):
        require_same_content(NOTE, a_note(), part10(another), "ARCHIVE")
    with pytest.raises(DeliveryRefused, match="with other content"):
        require_same_content("2.25.10", a_note(), a_note(), "ARCHIVE")
    with pytest.raises(DeliveryRefused, match="cannot be compared"):
        require_same_content(NOTE, a_note(), b"no DICOM", "ARCHIVE")


def part10(dataset) -> bytes:
    """A data set as a file."""
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()
