"""When a series is complete, and what becomes of images that come late: with DCMTK, dicomweb-client and Orthanc at the ends."""

import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind

from segnode.config import DimseAddress
from segnode.dicomweb.find import DicomWebCatalogue
from segnode.dicomweb.peer import DicomWebPeer
from segnode.dimse.find import DimseCatalogue
from segnode.dimse.peer import DimsePeer
from segnode.dimse.scu import send_files
from segnode.errors import FindFailed
from segnode.seg.check import check_attributes
from segnode.testing.answering import answering
from segnode.testing.part10 import encode_part10
from segnode.testing.phantom import Phantom
from segnode.testing.servers import Server, await_jobs, free_port, node_config, orthanc, segnode, until
from tests.rows import index_of, jobs_of
from tests.wire.test_first_path import all_label_maps, dcmsend, fetch
from tests.wire.test_kills import await_starts, kill_role
from tests.wire.test_serve import events
from tests.wire.test_storage import small, stow

FOR_EVER = 3600.0
RULE = '[[rules]]\nwhen = {{}}\nmodel = "threshold"\nquiet = {quiet}\n{more}\n'
REQUEST = RULE.format(quiet=FOR_EVER, more='expect = "request"')
STUDY, SERIES = "1.2.3", "1.2.3.5"


def part10(sop: str, series: str = SERIES, **attributes) -> bytes:
    """A small object of a series."""
    return encode_part10(small(sop, SeriesInstanceUID=series, **attributes), ExplicitVRLittleEndian)


@contextmanager
def slow_stow(node: Server) -> Iterator[Callable[[], bytes]]:
    """A STOW request that has brought an image, and is in the middle of the next; call it to end it, for its first line."""
    parts = [part10("1.1"), part10("1.2", EncapsulatedDocument=bytes(6 << 20))]
    body = b"".join(b"--b\r\nContent-Type: application/dicom\r\n\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"
    head = (
        f"POST /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        'Content-Type: multipart/related; type="application/dicom"; boundary=b\r\n\r\n'
    )
    half = len(body) // 2
    with socket.create_connection(("127.0.0.1", node.http_port)) as connection:

        def end() -> bytes:
            connection.sendall(body[half:])
            return connection.recv(15)

        connection.sendall(head.encode() + body[:half])
        until(lambda: held(node) == 1)
        yield end


def first_of(phantom: Phantom) -> Dataset:
    """One image of the phantom."""
    return dcmread(min(phantom.folder.iterdir()))


def held(node: Server, series: str = SERIES) -> int:
    """How many objects of a series a node holds."""
    return len(index_of(node).images(series))


def series_of_jobs(node: Server) -> list[str]:
    """The series that were decided on, in that order."""
    return [job.series_instance_uid for job in jobs_of(node).all()]


def test_slow_stow_request_holds_its_series_back(tmp_path: Path) -> None:
    """Not complete while the body goes on, however long ago its last image came; complete when the request has ended."""
    with segnode(tmp_path / "node", RULE.format(quiet=0.0, more="")) as node, slow_stow(node) as end:
        assert stow(node, part10("1.8", "1.2.3.6")).status_code == 200
        until(lambda: series_of_jobs(node) == ["1.2.3.6"])
        assert end() == b"HTTP/1.1 200 OK"
        until(lambda: series_of_jobs(node) == ["1.2.3.6", SERIES])


def test_stow_request_that_ends_is_the_whole_series(tmp_path: Path) -> None:
    """With expect = "request" one that ended makes a job at once; one that broke off, or had a part refused, does not."""
    with segnode(tmp_path / "node", REQUEST) as node:
        with slow_stow(node):
            pass
        assert stow(node, part10("1.2", "1.2.3.6"), b"no DICOM").status_code == 202
        client = DICOMwebClient(node.dicomweb)
        client.store_instances([dcmread(BytesIO(part10(f"1.{number}", "1.2.3.7"))) for number in (3, 4)])
        until(lambda: series_of_jobs(node) == ["1.2.3.7"])
        assert stow(node, part10("1.1")).status_code == 200
        until(lambda: series_of_jobs(node) == ["1.2.3.7", SERIES])


def test_association_that_is_released_is_the_whole_series(tmp_path: Path, phantom: Phantom, dcmtk) -> None:
    """With expect = "request" DCMTK's release is followed by a job at once, an abort is not."""
    file = tmp_path / "1.dcm"
    file.write_bytes(part10("1.1"))
    with segnode(tmp_path / "node", REQUEST) as node:
        aborting = [dcmtk("storescu"), "--abort", "-aec", "SEGNODE", "127.0.0.1", str(node.dicom_port), str(file)]
        subprocess.run(aborting, check=True, env={**os.environ, "TCP_NODELAY": "1"}, capture_output=True)
        assert held(node) == 1
        dcmsend(dcmtk("dcmsend"), phantom.folder, node)
        (job,) = await_jobs(node_config(node))
        assert (job.state, job.series_instance_uid) == ("delivered", first_of(phantom).SeriesInstanceUID)


def test_killed_process_is_no_end_of_a_request(tmp_path: Path) -> None:
    """The process of an open STOW request is killed: its series is complete when it is quiet, also for expect = "request"."""
    rules = RULE.format(quiet=3.0, more='expect = "request"')
    with segnode(tmp_path / "node", rules) as node, slow_stow(node):
        (image,) = index_of(node).images(SERIES)
        await_starts(node, kill_role(node, "web"))
        until(lambda: series_of_jobs(node) == [SERIES])
        (job,) = jobs_of(node).all()
        assert job.created_at - image.received_at >= 3.0


@pytest.fixture(scope="module")
def sender(tmp_path_factory: pytest.TempPathFactory, phantom: Phantom) -> Iterator[Server]:
    """An Orthanc that has the phantom and can be asked for it."""
    with orthanc(tmp_path_factory.mktemp("sender"), DicomAlwaysAllowFind=True) as server:
        DICOMwebClient(server.dicomweb).store_instances([dcmread(file) for file in sorted(phantom.folder.iterdir())])
        yield server


def address(server: Server) -> DimseAddress:
    """How a server is reached by DIMSE."""
    return DimseAddress(server.ae_title, "127.0.0.1", server.dicom_port)


def test_orthanc_says_how_many_instances_it_has(sender: Server, phantom: Phantom) -> None:
    """By C-FIND and by QIDO-RS it has as many of a series as were sent to it, and none of a series that it does not know."""
    image = first_of(phantom)
    for catalogue in (DimseCatalogue(DimsePeer(address(sender), "TEST")), DicomWebCatalogue(DicomWebPeer(sender.dicomweb))):
        assert catalogue.count_instances(image.StudyInstanceUID, image.SeriesInstanceUID) == 24
        assert catalogue.count_instances(image.StudyInstanceUID, "1.2.3.4.5") == 0


@contextmanager
def query_scp(answer: Callable[[Dataset], Iterator[tuple[int, Dataset | None]]]) -> Iterator[DimseAddress]:
    """A peer that answers C-FIND so."""
    ae = AE("PEER")
    ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    server = ae.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, lambda event: answer(event.identifier))]
    )
    try:
        yield DimseAddress("PEER", *server.server_address)
    finally:
        server.shutdown()


def test_peer_that_gives_no_number_is_counted(tmp_path: Path) -> None:
    """A peer that answers without NumberOfSeriesRelatedInstances is asked for the instances, by C-FIND."""

    def answer(asked: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        for number in range(3 if asked.QueryRetrieveLevel == "IMAGE" else 1):
            match = Dataset()
            match.QueryRetrieveLevel, match.SeriesInstanceUID = asked.QueryRetrieveLevel, asked.SeriesInstanceUID
            match.SOPInstanceUID = f"1.{number}"
            yield 0xFF00, match

    with query_scp(answer) as peer:
        assert DimseCatalogue(DimsePeer(peer, "TEST")).count_instances(STUDY, SERIES) == 3


def test_search_without_numbers_is_counted_page_by_page() -> None:
    """A server that answers without NumberOfSeriesRelatedInstances and gives two at once is asked until there are no more."""

    def value(tag: str, uid: str) -> dict[str, dict[str, object]]:
        return {tag: {"vr": "UI", "Value": [uid]}}

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            offset = int(parse_qs(url.query).get("offset", ["0"])[0])
            found = [value("0020000E", SERIES)]
            if url.path.endswith("/instances"):
                found = [value("00080018", f"1.{number}") for number in range(5)][offset : offset + 2]
            self.send_response(200 if found else 204)
            self.end_headers()
            self.wfile.write(json.dumps(found).encode() if found else b"")

        def log_message(self, *_: object) -> None:
            pass

    with answering(ThreadingHTTPServer(("127.0.0.1", 0), Pages)) as address:
        assert DicomWebCatalogue(DicomWebPeer(f"http://{address}")).count_instances(STUDY, SERIES) == 5


def test_peer_that_does_not_say_has_no_number() -> None:
    """A C-FIND that fails or is refused, a peer that is down, and what is no DICOMweb: each is an error that says so."""

    def fail(_asked: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        yield 0xC001, None

    with query_scp(fail) as peer, pytest.raises(FindFailed, match="0xC001"):
        DimseCatalogue(DimsePeer(peer, "TEST")).count_instances(STUDY, SERIES)
    for down in (
        DimseCatalogue(DimsePeer(DimseAddress("NOBODY", "127.0.0.1", free_port()), "TEST")),
        DicomWebCatalogue(DicomWebPeer(f"http://127.0.0.1:{free_port()}")),
    ):
        with pytest.raises(FindFailed, match="cannot be reached"):
            down.count_instances(STUDY, SERIES)


@pytest.mark.parametrize("by", ["C-FIND", "QIDO"])
def test_series_is_complete_when_the_sender_has_no_more(tmp_path: Path, sender: Server, phantom: Phantom, by: str) -> None:
    """With expect = "find" half of what Orthanc has makes no job, and all of it makes one, without waiting for quiet."""
    files = sorted(phantom.folder.iterdir())
    to = sender.dimse if by == "C-FIND" else sender.dicomweb
    rules = f'[[destinations]]\nname = "sender"\nto = "{to}"\n'
    rules += RULE.format(quiet=FOR_EVER, more='expect = "find"\nask = "sender"')
    with segnode(tmp_path / "node", rules) as node:
        list(send_files(files[:12], address(node), "TEST"))
        until(lambda: [e["instances"] for e in events(node, "a peer says what it has")] == [24])
        assert series_of_jobs(node) == []
        list(send_files(files[12:], address(node), "TEST"))
        (job,) = await_jobs(node_config(node))
        assert (job.state, job.note) == ("delivered", "")


def test_peer_that_hangs_delays_no_other_series(tmp_path: Path) -> None:
    """While a peer takes the question and does not answer, another series is decided on."""
    asked, done = threading.Event(), threading.Event()

    def hang(_asked: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        asked.set()
        done.wait()
        yield 0x0000, None

    with query_scp(hang) as peer:
        rules = f'[[destinations]]\nname = "peer"\nto = "PEER@127.0.0.1:{peer.port}"\n'
        rules += RULE.format(quiet=FOR_EVER, more='expect = "find"\nask = "peer"').replace("{}", '{ Modality = "MR" }')
        rules += RULE.format(quiet=0.0, more="").replace("{}", '{ Modality = "CT" }')
        with segnode(tmp_path / "node", rules) as node:
            assert stow(node, part10("1.1", Modality="MR")).status_code == 200
            assert asked.wait(60)
            assert stow(node, part10("1.2", "1.2.3.6", Modality="CT")).status_code == 200
            until(lambda: series_of_jobs(node) == ["1.2.3.6"])
            assert events(node, "a peer does not say what it has") == []
        done.set()


def late_tables(archive: Server, more: str) -> str:
    """A rule that sends to an archive, and takes an association for a whole series."""
    destination = f'[[destinations]]\nname = "archive"\nto = "{archive.dicomweb}"\nseg = ["labelmap:native"]\n'
    return destination + RULE.format(quiet=FOR_EVER, more=f'expect = "request"\nsend_to = ["archive"]\n{more}')


def own_series(phantom: Phantom, folder: Path) -> list[Path]:
    """The phantom as a study of its own, in slice order from one end."""
    folder.mkdir()
    study = generate_uid(None)
    for number, file in enumerate(sorted(phantom.folder.iterdir())):
        image = dcmread(file)
        image.StudyInstanceUID, image.SeriesInstanceUID = study, f"{study}.1"
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"{study}.2.{number}"
        image.save_as(folder / f"{number:04}.dcm")
    return sorted(folder.iterdir())


def test_late_images_supersede_the_result(tmp_path: Path, archive: Server, phantom: Phantom) -> None:
    """The SEG of all images is a new instance in the series of the first, counts up, and says which one it replaces."""
    files = own_series(phantom, tmp_path / "ct")
    with segnode(tmp_path / "node", late_tables(archive, "")) as node:
        for number, some in enumerate((files[:20], files[20:22], files[22:]), start=1):
            list(send_files(some, address(node), "TEST"))
            jobs = await_jobs(node_config(node), number)
        segs = [fetch(DICOMwebClient(archive.dicomweb), job.sop_instance_uid)[0] for job in jobs]
    assert [job.state for job in jobs] == ["delivered"] * 3
    assert len({seg.SOPInstanceUID for seg in segs}) == 3
    for keyword in ("SeriesInstanceUID", "SeriesNumber", "SeriesDate", "SeriesTime", "SeriesDescription"):
        assert len({seg[keyword].value for seg in segs}) == 1
    assert [seg.InstanceNumber for seg in segs] == [1, 2, 3]
    assert [seg.NumberOfFrames for seg in segs] == [20, 22, 24]
    assert "ReferencedImageSequence" not in segs[0]
    for replaced, seg in pairwise(segs):
        (item,) = seg.ReferencedImageSequence
        assert (item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) == (replaced.SOPClassUID, replaced.SOPInstanceUID)
        assert item.PurposeOfReferenceCodeSequence[0].CodeValue == "121360"
        images, own = seg.ReferencedSeriesSequence
        assert images.SeriesInstanceUID == dcmread(files[0]).SeriesInstanceUID
        assert own.SeriesInstanceUID == seg.SeriesInstanceUID
        assert [i.ReferencedSOPInstanceUID for i in own.ReferencedInstanceSequence] == [replaced.SOPInstanceUID]
        assert [f for f in check_attributes(seg) if f.severity == "error"] == []


@pytest.mark.parametrize("by", ["STOW", "C-STORE"])
def test_replaced_result_is_rejected(tmp_path: Path, archive_of_any_class: Server, phantom: Phantom, by: str) -> None:
    """With iocm = true Orthanc is sent a rejection note of the SEG that was replaced, as a job of its own."""
    archive, files = archive_of_any_class, own_series(phantom, tmp_path / "ct")
    to = late_tables(archive, "iocm = true").replace(archive.dicomweb, {"STOW": archive.dicomweb, "C-STORE": archive.dimse}[by])
    with segnode(tmp_path / "node", to) as node:
        for number, some in enumerate((files[:20], files[20:]), start=1):
            list(send_files(some, address(node), "TEST"))
            await_jobs(node_config(node), number)
        (old, new, rejection) = await_jobs(node_config(node), 3)
    assert (rejection.state, rejection.error) == ("delivered", "")
    assert rejection.note == f"rejection note for {old.sop_instance_uid}, which job {new.id} replaces"
    (note,) = fetch(DICOMwebClient(archive.dicomweb), rejection.sop_instance_uid)
    (seg,) = fetch(DICOMwebClient(archive.dicomweb), new.sop_instance_uid)
    (evidence,) = note.CurrentRequestedProcedureEvidenceSequence
    (series,) = evidence.ReferencedSeriesSequence
    (rejected,) = series.ReferencedSOPSequence
    assert (evidence.StudyInstanceUID, series.SeriesInstanceUID) == (seg.StudyInstanceUID, seg.SeriesInstanceUID)
    assert rejected.ReferencedSOPInstanceUID == old.sop_instance_uid
    assert (note.PatientID, note.StudyInstanceUID) == (seg.PatientID, seg.StudyInstanceUID)


def test_first_result_is_kept(tmp_path: Path, archive: Server, phantom: Phantom) -> None:
    """With late = "keep" late images make no second SEG, and the job says how many came."""
    files = own_series(phantom, tmp_path / "ct")
    with segnode(tmp_path / "node", late_tables(archive, 'late = "keep"')) as node:
        list(send_files(files[:20], address(node), "TEST"))
        await_jobs(node_config(node))
        list(send_files(files[20:], address(node), "TEST"))
        until(lambda: events(node, "images came late: the result is kept") != [])
        (job,) = jobs_of(node).all()
        assert (job.state, job.note) == ("delivered", "4 image(s) came late and are not in this result, which the rule keeps")
    assert all_label_maps(DICOMwebClient(archive.dicomweb), dcmread(files[0]).StudyInstanceUID) == {job.sop_instance_uid}


def test_result_of_images_that_are_gone_is_not_replaced(tmp_path: Path, archive: Server, phantom: Phantom) -> None:
    """When the images of a result have been deleted, as retention says, a late image alone takes the place of nothing."""
    files = own_series(phantom, tmp_path / "ct")
    with segnode(tmp_path / "node", late_tables(archive, "")) as node:
        list(send_files(files[:20], address(node), "TEST"))
        await_jobs(node_config(node))
        index_of(node).doom_images(str(dcmread(files[0]).SeriesInstanceUID))
        list(send_files(files[20:], address(node), "TEST"))
        (_, job) = await_jobs(node_config(node), 2)
        (seg,) = fetch(DICOMwebClient(archive.dicomweb), job.sop_instance_uid)
    assert (seg.NumberOfFrames, "ReferencedImageSequence" in seg) == (4, False)
