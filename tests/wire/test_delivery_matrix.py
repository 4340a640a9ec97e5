"""Archives of every kind, over real connections: each ends with the labels it was sent, or with a failure that says why."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer

import httpx
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    SegmentationStorage,
)
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
)

from segnode.config import FormName, parse_dimse_address
from segnode.dicom.uids import LABEL_MAP_SEGMENTATION_STORAGE
from segnode.dimse.scu import send_files
from segnode.dimse.switches import set_switches
from segnode.node import open_jobs
from segnode.pipeline.deliver import HeldSegmentation
from segnode.pipeline.ports import Encoded
from segnode.seg.codecs import CODECS
from segnode.seg.recode import recode
from segnode.store.jobs import Delivery
from segnode.testing.answering import answering
from segnode.testing.phantom import Phantom
from segnode.testing.processes import listens
from segnode.testing.servers import Server, await_jobs, free_port, node_config, orthanc, orthanc_program, segnode, until
from tests.conftest import absent
from tests.outbox import RESULT, Outbox, outbox, require_truth, segmentation, truth

LABELMAP, BINARY = str(LABEL_MAP_SEGMENTATION_STORAGE), str(SegmentationStorage)
NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
STORE_AND_ABORT = -1


@dataclass
class Archive:
    """What a scripted archive has received and keeps, and how it answers from now on."""

    port: int = field(default_factory=free_port)
    kept: dict[str, bytes] = field(default_factory=dict)
    received: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    also_given: list[bytes] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    cuts_off: int = 0
    loses: int = 0
    connections: int = 0

    def keep(self, dataset: Dataset) -> None:
        """Keep an object, unless it gets lost."""
        if self.loses:
            self.loses -= 1
            return
        file = BytesIO()
        dataset.save_as(file, enforce_file_format=True)
        self.kept[dataset.SOPInstanceUID] = file.getvalue()

    def require_one(self) -> Dataset:
        """The one object that is kept, which has the labels that were sent."""
        (held,) = self.kept.values()
        dataset = dcmread(BytesIO(held))
        require_truth(dataset)
        return dataset

    def on_store(self, event: evt.Event) -> int:
        """Answer a C-STORE; what is kept already is a duplicate."""
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        self.received.append(f"{dataset.file_meta.MediaStorageSOPClassUID} {event.context.transfer_syntax}")
        answer = self.answers.pop(0) if self.answers else 0
        if dataset.SOPInstanceUID in self.kept:
            return 0x0111
        if answer in (0x0000, 0xB000, STORE_AND_ABORT):
            self.keep(dataset)
        if answer == STORE_AND_ABORT:
            event.assoc.abort()
        return max(answer, 0)

    def on_find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        """Answer a C-FIND."""
        uid = event.identifier.SOPInstanceUID
        self.asked.append(uid)
        if uid in self.kept:
            match = Dataset()
            match.QueryRetrieveLevel, match.SOPInstanceUID = "IMAGE", uid
            yield 0xFF00, match

    def on_get(self, event: evt.Event) -> Iterator[object]:
        """Answer a C-GET."""
        given = [*self.also_given, self.kept[event.identifier.SOPInstanceUID]]
        yield len(given)
        for part10 in given:
            yield 0xFF00, dcmread(BytesIO(part10))

    def on_pdu(self, event: evt.Event) -> None:
        """Abort in the middle of an object."""
        if self.cuts_off and type(event.pdu).__name__ == "P_DATA_TF" and len(event.pdu) > 2000:
            self.cuts_off -= 1
            event.assoc.abort()


def reject_who_asks(event: evt.Event) -> None:
    """Reject an association in which C-FIND is proposed, for good."""
    proposed = {context.abstract_syntax for context in event.assoc.requestor.primitive.presentation_context_definition_list}
    if StudyRootQueryRetrieveInformationModelFind in proposed:
        event.assoc.acse.send_reject(1, 1, 3)
        event.assoc.kill()


@contextmanager
def scp(
    archive: Archive,
    *contexts: tuple[str, Sequence[UID]],
    asks: bool = True,
    asking: Callable[[evt.Event], None] | None = None,
    commits: Callable[[evt.Event], object] | None = None,
) -> Iterator[str]:
    """A Storage SCP, its address: it answers as the archive does, and can be asked for what it holds if it `asks`."""
    ae = AE("SINK")
    ae.maximum_pdu_size = 4096
    for sop_class, syntaxes in contexts:
        ae.add_supported_context(sop_class, list(syntaxes), scu_role=True, scp_role=True)
    if asks:
        ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
        ae.add_supported_context(StudyRootQueryRetrieveInformationModelGet)
    if commits:
        ae.add_supported_context(StorageCommitmentPushModel)
    set_switches()
    handlers = [
        (evt.EVT_C_STORE, archive.on_store),
        (evt.EVT_C_FIND, archive.on_find),
        (evt.EVT_C_GET, archive.on_get),
        (evt.EVT_PDU_RECV, archive.on_pdu),
        *([(evt.EVT_REQUESTED, asking)] if asking else []),
        *([(evt.EVT_N_ACTION, commits)] if commits else []),
    ]
    server = ae.start_server(("127.0.0.1", archive.port), block=False, evt_handlers=handlers)
    try:
        yield f"SINK@127.0.0.1:{archive.port}"
    finally:
        server.shutdown()


BOTH = ((LABELMAP, (RLELossless, *NATIVE)), (BINARY, NATIVE))


def go_on(box: Outbox, attempts: int = 1) -> Delivery:
    """Attempt what is owed, each time when it is due; the delivery after that."""
    for _ in range(attempts):
        box.now = max(box.now, box.delivery().next_attempt_at)
        assert box.attempt()
    return box.delivery()


@contextmanager
def storescp(program: str, folder: Path, *options: str) -> Iterator[str]:
    """DCMTK's storescp, which writes what it gets to a folder; its address."""
    folder.mkdir()
    port = free_port()
    process = subprocess.Popen(
        [program, *options, "-od", str(folder), str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: process.poll() is None and listens(port))
        yield f"STORESCP@127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize(
    ("options", "form"), [((), "binary:native"), (("-pm",), "labelmap:native"), (("-pm", "+xi"), "labelmap:implicit")]
)
def test_storescp_gets_the_best_that_it_takes(tmp_path: Path, dcmtk, options: Sequence[str], form: str) -> None:
    """DCMTK's storescp takes BINARY by default, any class when it is promiscuous, and only implicit when it is told to."""
    with storescp(dcmtk("storescp"), tmp_path / "kept", *options) as address:
        box = outbox(tmp_path / "node", address)
        delivery = go_on(box)
    assert (delivery.state, delivery.form) == ("delivered", form), delivery
    (kept,) = (tmp_path / "kept").iterdir()
    held = dcmread(kept)
    require_truth(held)
    assert held.SOPInstanceUID == delivery.sent_sop_instance_uid


@pytest.fixture(scope="module")
def real_archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An Orthanc as Debian ships it: LABELMAP is unknown to it over DIMSE."""
    if orthanc_program() is None:
        absent("Orthanc with its DICOMweb plug-in", "install orthanc and orthanc-dicomweb (scripts/peers does)")
    with orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


@pytest.fixture
def empty_archive(real_archive: Server) -> Server:
    """The same, without any object."""
    root = f"http://127.0.0.1:{real_archive.http_port}"
    for study in httpx.get(f"{root}/studies").json():
        httpx.delete(f"{root}/studies/{study}")
    return real_archive


def held_by(orthanc: Server) -> list[Dataset]:
    """Every object that an Orthanc holds."""
    root = f"http://127.0.0.1:{orthanc.http_port}"
    return [dcmread(BytesIO(httpx.get(f"{root}/instances/{i}/file").content)) for i in httpx.get(f"{root}/instances").json()]


@pytest.mark.parametrize(("door", "form"), [("dimse", "binary:native"), ("dicomweb", "labelmap:rle")])
def test_orthanc_gets_one_object(tmp_path: Path, empty_archive: Server, door: str, form: str) -> None:
    """By DIMSE a BINARY, by STOW the LABELMAP, also when it is owed again: it does not let everybody ask, and has one."""
    box = outbox(tmp_path / "node", getattr(empty_archive, door))
    delivery = go_on(box)
    assert (delivery.state, delivery.form) == ("delivered", form), delivery
    box.owe("archive", job="again")
    box.attempt()
    assert box.delivery(job="again").state == "delivered"
    (held,) = held_by(empty_archive)
    require_truth(held)
    assert held.SOPInstanceUID == delivery.sent_sop_instance_uid


def test_orthanc_that_holds_the_labelmap_gets_no_binary(tmp_path: Path) -> None:
    """What it got by STOW is found by C-FIND; it cannot give that class out by C-GET: a failure that says so, and no BINARY."""
    if orthanc_program() is None:
        absent("Orthanc with its DICOMweb plug-in", "install orthanc and orthanc-dicomweb (scripts/peers does)")
    with orthanc(tmp_path / "orthanc", DicomAlwaysAllowFind=True, DicomAlwaysAllowGet=True) as archive:
        stow = outbox(tmp_path / "stow", archive.dicomweb)
        assert go_on(stow).state == "delivered"
        held = stow.destinations["archive"].held(owed_by(stow))
        assert held is not None
        require_truth(dcmread(BytesIO(held)))
        delivery = go_on(outbox(tmp_path / "dimse", archive.dimse))
        assert (delivery.state, "answers C-GET with status 0xC000" in delivery.last_answer) == ("failed", True), delivery
        assert [str(held.SOPInstanceUID) for held in held_by(archive)] == [RESULT]


def test_orthanc_gives_the_binary_back(tmp_path: Path) -> None:
    """A BINARY is found by C-FIND and fetched by C-GET."""
    if orthanc_program() is None:
        absent("Orthanc with its DICOMweb plug-in", "install orthanc and orthanc-dicomweb (scripts/peers does)")
    with orthanc(tmp_path / "orthanc", DicomAlwaysAllowFind=True, DicomAlwaysAllowGet=True) as archive:
        box = outbox(tmp_path / "node", archive.dimse)
        assert go_on(box).last_answer == "status 0x0000"
        held = box.destinations["archive"].held(owed_by(box, "binary:native"))
        assert held is not None
        require_truth(dcmread(BytesIO(held)))
        assert box.destinations["archive"].held(owed_by(box)) is None


def owed_by(box: Outbox, form: FormName = "labelmap:rle") -> Encoded:
    """What is owed, in a form."""
    index, objects = box.deliverer.index, box.deliverer.objects
    row = index.find(RESULT)
    assert row is not None
    return HeldSegmentation(objects, row, box.now).in_form(form)


def test_dcm4chee_as_it_is_shipped_gets_it_natively(tmp_path: Path) -> None:
    """An archive that takes LABELMAP in the two native syntaxes gets it in the first."""
    archive = Archive()
    with scp(archive, (LABELMAP, NATIVE)) as address:
        delivery = go_on(outbox(tmp_path, address))
    assert (delivery.state, delivery.form) == ("delivered", "labelmap:native")
    assert archive.require_one().file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert archive.received == [f"{LABELMAP} {ExplicitVRLittleEndian}"]


@pytest.mark.parametrize("status", [0x0122, 0xA900, 0xC000])
@pytest.mark.parametrize("asks", [True, False])
def test_status_that_refuses_the_form_is_a_step_down(tmp_path: Path, status: int, asks: bool) -> None:
    """LABELMAP that is accepted at negotiation and refused when it is sent ends as BINARY, after it was asked for."""
    archive = Archive(answers=[status] * 3)
    with scp(archive, *BOTH, asks=asks) as address:
        delivery = go_on(outbox(tmp_path, address))
    assert (delivery.state, delivery.form) == ("delivered", "binary:native"), delivery
    assert len(archive.received) == 4
    assert archive.require_one().SOPInstanceUID == delivery.sent_sop_instance_uid
    assert archive.asked == ([RESULT] if asks else [])
    assert ("is not known" in delivery.last_answer) != asks
    assert delivery.segment_numbers == {2: 1, 7: 2}


def test_archive_that_lets_nobody_ask_gets_binary(tmp_path: Path) -> None:
    """An association for asking that is rejected for good is no reason to wait for another day."""
    archive = Archive(answers=[0x0122])
    with scp(archive, *BOTH, asking=reject_who_asks) as address:
        delivery = go_on(outbox(tmp_path, address, ["labelmap:rle", "binary:native"]))
    assert (delivery.state, delivery.form) == ("delivered", "binary:native"), delivery
    assert "rejected the association" in delivery.last_answer
    archive.require_one()


def test_archive_that_takes_nothing_is_named_with_each_refusal(tmp_path: Path) -> None:
    """At the end of the list the delivery fails, and says what became of each form."""
    with scp(archive := Archive(answers=[0x0122, 0xA900]), (LABELMAP, (RLELossless, ImplicitVRLittleEndian))) as address:
        delivery = go_on(outbox(tmp_path, address))
    assert (delivery.state, archive.kept) == ("failed", {})
    for said in (
        "Label Map Segmentation Storage (1.2.840.10008.5.1.4.1.1.66.7)",
        "labelmap:rle status 0x0122",
        "labelmap:native not accepted at negotiation",
        "labelmap:implicit status 0xA900",
        "binary:native not accepted at negotiation",
    ):
        assert said in delivery.last_answer


def test_abort_in_the_middle_of_an_object_is_a_retry_of_the_same_form(tmp_path: Path) -> None:
    """What broke off is sent again as it was, although the archive would take other forms."""
    archive = Archive(cuts_off=1)
    with scp(archive, *BOTH) as address:
        box = outbox(tmp_path, address, ["labelmap:native", "binary:native"])
        first = go_on(box)
        assert (first.state, first.unanswered, archive.received) == ("waiting", "labelmap:native", [])
        assert go_on(box).form == "labelmap:native"
    archive.require_one()
    assert archive.received == [f"{LABELMAP} {ExplicitVRLittleEndian}"]


@pytest.mark.parametrize(("asks", "state"), [(True, "delivered"), (False, "failed")])
def test_archive_that_stores_and_then_aborts_holds_it_once(tmp_path: Path, asks: bool, state: str) -> None:
    """It is sent again, and is there already: it counts when it is read back, and fails with the reason when it cannot be."""
    archive = Archive(answers=[STORE_AND_ABORT])
    with scp(archive, *BOTH, asks=asks) as address:
        box = outbox(tmp_path, address)
        assert go_on(box).state == "waiting"
        delivery = go_on(box)
    assert delivery.state == state
    assert ("same labels" if asks else "accepts neither C-FIND nor C-GET") in delivery.last_answer
    assert archive.require_one().SOPInstanceUID == RESULT


def test_archive_that_stored_what_it_refuses_now_gets_no_second_object(tmp_path: Path) -> None:
    """Stored, aborted, and then not accepted any more: the LABELMAP is found there before a BINARY is sent."""
    archive = Archive(answers=[STORE_AND_ABORT])
    box = outbox(tmp_path, f"SINK@127.0.0.1:{archive.port}")
    with scp(archive, *BOTH):
        assert go_on(box).state == "waiting"
    # It gives out what it does not take: the class in a syntax that it is not offered for storage.
    archive.kept[RESULT] = recode(archive.kept[RESULT], CODECS["deflate"])
    with scp(archive, (LABELMAP, (DeflatedExplicitVRLittleEndian,)), (BINARY, NATIVE)):
        delivery = go_on(box)
    assert (delivery.state, delivery.sent_sop_instance_uid) == ("delivered", RESULT), delivery
    archive.require_one()


def test_archive_with_another_object_under_the_uid_fails(tmp_path: Path) -> None:
    """0111 of an archive that holds other labels under the UID is a failure that says so."""
    archive = Archive()
    archive.kept[RESULT] = segmentation(np.roll(truth(), 1, axis=1))
    with scp(archive, *BOTH) as address:
        delivery = go_on(outbox(tmp_path, address))
    assert (delivery.state, "other labels" in delivery.last_answer) == ("failed", True)


@pytest.mark.parametrize(
    ("answers", "state"), [([0xA700], "waiting"), ([0x0110], "waiting"), ([0x0124], "failed"), ([0xB000], "delivered")]
)
def test_status_of_the_table_has_its_consequence(tmp_path: Path, answers: list[int], state: str) -> None:
    """Later, for good, or stored with a warning."""
    archive = Archive(answers=answers)
    with scp(archive, *BOTH) as address:
        assert go_on(outbox(tmp_path, address)).state == state
    assert len(archive.received) == 1


@pytest.mark.parametrize("begun", [b"", b"\x02\x00\x00\x00\x40\x00" + b"\x00" * 9, b"\x02\x00\xff\xff\xff\xff\x00"])
def test_archive_that_falls_silent_while_it_is_reached_is_tried_later(tmp_path: Path, begun: bytes) -> None:
    """It accepts the connection and says nothing, or the beginning of an answer, or that of one without an end."""

    class Falling(BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(begun)
            with suppress(OSError):
                while self.request.recv(65536):
                    pass

    with answering(ThreadingTCPServer(("127.0.0.1", 0), Falling)) as address:
        delivery = go_on(outbox(tmp_path, f"SINK@{address}", timeout=1.0))
    assert (delivery.state, "cannot be reached" in delivery.last_answer) == ("waiting", True)


def test_archive_that_is_down_for_a_while_gets_it(tmp_path: Path) -> None:
    """Nobody listens, and then somebody does; an AE title that is rejected is no refusal of the object either."""
    archive = Archive()
    box = outbox(tmp_path, f"SINK@127.0.0.1:{archive.port}")
    delivery = go_on(box, attempts=3)
    assert (delivery.state, delivery.attempts, delivery.unanswered) == ("waiting", 3, "")
    assert "cannot be reached" in delivery.last_answer
    rejecting = AE("OTHER")
    rejecting.require_called_aet = True
    rejecting.add_supported_context(LABELMAP)
    server = rejecting.start_server(("127.0.0.1", archive.port), block=False)
    assert "rejected the association" in go_on(box).last_answer
    server.shutdown()
    with scp(archive, *BOTH):
        assert go_on(box).state == "delivered"
    archive.require_one()


HANG_UP = 0


@dataclass
class Response:
    """What a scripted STOW server answers: a status, a failure reason, whether it keeps the object and says so; or this."""

    status: int
    reason: int | None = None
    keeps: bool = False
    lists: bool = True
    body: bytes | None = None
    encoding: str = "identity"


class Handler(BaseHTTPRequestHandler):
    """A STOW server that answers as it is told to, and gives out what it keeps."""

    protocol_version = "HTTP/1.1"
    archive: Archive
    responses: list[Response]
    searches: bool
    page: bytes | None

    def setup(self) -> None:
        """Count connections."""
        self.archive.connections += 1
        super().setup()

    def do_POST(self) -> None:
        """Store, or not."""
        archive = self.archive
        body = self.rfile.read(int(self.headers["Content-Length"]))
        dataset = dcmread(BytesIO(body[body.index(b"\r\n\r\n") + 4 : body.rindex(b"\r\n--")]))
        archive.received.append(f"{dataset.SOPClassUID} {dataset.file_meta.TransferSyntaxUID}")
        stored = Response(409, 0x0111) if dataset.SOPInstanceUID in archive.kept else Response(200, keeps=True)
        response = self.responses.pop(0) if self.responses else stored
        if response.keeps:
            archive.keep(dataset)
        if response.status == HANG_UP:
            self.close_connection = True
            return
        if response.body is not None:
            self.answer(response.status, response.body, "application/dicom+json", response.encoding)
            return
        item = {"00081155": {"vr": "UI", "Value": [dataset.SOPInstanceUID]}}
        document: dict = {"00081198": {"vr": "SQ"}}
        if response.reason is not None:
            failed = {**item, "00081197": {"vr": "US", "Value": [response.reason]}}
            document["00081198"] = {"vr": "SQ", "Value": [failed]}
        elif response.keeps and response.lists:
            document["00081199"] = {"vr": "SQ", "Value": [item]}
        self.answer(response.status, json.dumps(document).encode(), "application/dicom+json")

    def do_GET(self) -> None:
        """Search for an instance, or give it out."""
        search = re.fullmatch(r"/dicom-web/instances\?SOPInstanceUID=(.*)", self.path)
        if search:
            self.archive.asked.append(search[1])
            if self.page is not None:
                self.answer(200, self.page, "application/dicom+json")
                return
            found = [{"00080018": {"vr": "UI", "Value": [search[1]]}}] if search[1] in self.archive.kept else []
            self.answer(200 if self.searches else 404, json.dumps(found).encode(), "application/dicom+json")
            return
        held = self.archive.kept.get(self.path.rpartition("/")[2])
        if held is None:
            self.answer(404, b"", "text/plain")
            return
        part = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + held + b"\r\n--b--"
        self.answer(200, part, 'multipart/related; type="application/dicom"; boundary=b')

    def answer(self, status: int, body: bytes, kind: str, encoding: str = "identity") -> None:
        """Answer."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Encoding", encoding)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(ConnectionError):  # nobody reads on
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def stow(archive: Archive, responses: list[Response], *, searches: bool = True, page: bytes | None = None) -> Iterator[str]:
    """A STOW server that answers so in turn, then stores what comes, each UID once; its root. To a search it may say `page`."""
    told = {"archive": archive, "responses": responses, "searches": searches, "page": page}
    server = ThreadingHTTPServer(("127.0.0.1", archive.port), type("Told", (Handler,), told))
    with answering(server) as address:
        yield f"http://{address}/dicom-web"


LADDER = ["labelmap:rle", "labelmap:native", "binary:native"]


@pytest.mark.parametrize(
    "refusal",
    [Response(400), Response(409), Response(415), Response(409, 0x0122), Response(202, 0xC122), Response(200, 0xC122)],
)
def test_stow_server_that_refuses_labelmap_gets_binary(tmp_path: Path, refusal: Response) -> None:
    """400, 409, 415 and the two failure reasons are a step down, whatever the HTTP status; before BINARY it is asked."""
    archive = Archive()
    with stow(archive, [refusal, refusal]) as root:
        delivery = go_on(outbox(tmp_path, root, LADDER))
    assert (delivery.state, delivery.form) == ("delivered", "binary:native"), delivery
    assert archive.received == [
        f"{LABELMAP} {RLELossless}",
        f"{LABELMAP} {ExplicitVRLittleEndian}",
        f"{BINARY} {ExplicitVRLittleEndian}",
    ]
    assert archive.asked == [RESULT]
    archive.require_one()


@pytest.mark.parametrize(
    "trouble",
    [
        *(Response(503), Response(500), Response(429), Response(200), Response(202), Response(200, 0xA700), Response(HANG_UP)),
        Response(200, body=b'{"00081199": ["nonsense"]}'),
        Response(200, body=b"no gzip", encoding="gzip"),
        Response(200, body=b" " * (32 << 20)),
    ],
)
def test_stow_server_in_trouble_gets_the_same_form_later(tmp_path: Path, trouble: Response) -> None:
    """No room, a breakdown, 200 with nothing stored or with what nobody can read are tried again, in the same form."""
    archive = Archive()
    with stow(archive, [trouble]) as root:
        box = outbox(tmp_path, root, LADDER)
        assert go_on(box).state == "waiting"
        delivery = go_on(box)
    assert (delivery.state, delivery.form) == ("delivered", "labelmap:rle")
    assert archive.received == [f"{LABELMAP} {RLELossless}"] * 2
    archive.require_one()


def test_stow_server_that_takes_nothing_is_named(tmp_path: Path) -> None:
    """Every form refused is a failure that names each refusal."""
    archive = Archive()
    with stow(archive, [Response(415), Response(409, 0x0122), Response(400)]) as root:
        delivery = go_on(outbox(tmp_path, root, LADDER))
    assert (delivery.state, archive.kept) == ("failed", {})
    refusals = "labelmap:rle HTTP 415; labelmap:native HTTP 409, failure reason 0x0122; binary:native HTTP 400"
    assert refusals in delivery.last_answer


@pytest.mark.parametrize("searches", [True, False])
@pytest.mark.parametrize(
    "first", [Response(200, keeps=True, lists=False), Response(HANG_UP, keeps=True), Response(503, keeps=True, lists=False)]
)
def test_stow_server_that_stores_and_does_not_say_so_holds_it_once(tmp_path: Path, first: Response, searches: bool) -> None:
    """Sent again it is there already, and counts when what is given out has the same labels."""
    archive = Archive()
    with stow(archive, [first], searches=searches) as root:
        box = outbox(tmp_path, root, LADDER)
        assert go_on(box).state == "waiting"
        delivery = go_on(box)
    assert (delivery.state, delivery.sent_sop_instance_uid) == ("delivered", RESULT), delivery
    assert "same labels" in delivery.last_answer
    archive.require_one()


@pytest.mark.parametrize("page", [b"<html>Sign in</html>", b'{"error": "busy"}', b"[{"])
def test_stow_server_whose_search_says_nothing_gets_no_binary(tmp_path: Path, page: bytes) -> None:
    """A page or an error in the place of a list of what is found is no word that there is nothing: it is fetched."""
    archive = Archive()
    with stow(archive, [Response(HANG_UP, keeps=True), Response(415), Response(415)], page=page) as root:
        delivery = go_on(outbox(tmp_path, root, LADDER), attempts=2)
    assert (delivery.state, delivery.sent_sop_instance_uid) == ("delivered", RESULT), delivery
    archive.require_one()


@pytest.mark.parametrize("answer", [Response(409), Response(409, 0x0111), Response(409, 0xB00E), Response(415)])
def test_stow_server_that_has_the_labelmap_gets_no_binary(tmp_path: Path, answer: Response) -> None:
    """A 409 that does not say that it is there already, and one that does, end with what is there."""
    archive = Archive()
    archive.kept[RESULT] = segmentation(truth())
    with stow(archive, [answer, answer]) as root:
        delivery = go_on(outbox(tmp_path, root, LADDER))
    assert (delivery.state, delivery.sent_sop_instance_uid) == ("delivered", RESULT), delivery
    archive.require_one()


def destinations(node: Server, *arguments: str) -> str:
    """What `segnode destinations` says."""
    return command(node, "destinations", *arguments)


def command(node: Server, group: str, *arguments: str) -> str:
    """What a command of segnode says."""
    whole = [sys.executable, "-m", "segnode", group, "--config", str(node.log.parent / "segnode.toml"), *arguments]
    return subprocess.run(whole, check=True, capture_output=True, text=True).stdout


def test_node_shows_pauses_and_resumes_a_destination(tmp_path: Path, phantom: Phantom, dcmtk) -> None:
    """A whole node and DCMTK's storescp: a pause is seen by the worker, what was taken is shown, and so is the BINARY's UID."""
    tables = '[[destinations]]\nname = "pacs"\nto = "{}"\n'
    tables += '[[rules]]\nwhen = {{ Modality = "CT" }}\nmodel = "threshold"\nsend_to = ["pacs"]\nquiet = 0.5\n'
    with storescp(dcmtk("storescp"), tmp_path / "kept") as address, segnode(tmp_path / "node", tables.format(address)) as node:
        destinations(node, "pause", "pacs")
        list(send_files(sorted(phantom.folder.iterdir()), parse_dimse_address(node.dimse, ""), "TEST"))
        rows = open_jobs(node_config(node))
        until(lambda: rows.count_deliveries() == {("pacs", "waiting"): 1})
        (paused,) = json.loads(destinations(node, "--json"))
        assert (paused["state"], paused["waiting"], paused["last_answer"]) == ("paused", 1, "")
        assert list((tmp_path / "kept").iterdir()) == []
        destinations(node, "resume", "pacs")
        (job,) = await_jobs(node_config(node))
        assert (job.state, job.error) == ("delivered", "")
        assert re.search(r"^pacs +ok +0 waiting, 0 failed .* takes binary:native", destinations(node))
        assert "it is not known yet what it takes" in destinations(node, "--relearn", "pacs")
        (sent,) = (dcmread(file) for file in (tmp_path / "kept").iterdir())
        (shown,) = json.loads(command(node, "jobs", "show", job.id, "--json"))["deliveries"]
        assert (shown["segmentation"], shown["segment_numbers"]) == (sent.SOPInstanceUID, {"1": 1, "2": 2, "3": 3})
        assert f"sent as {sent.SOPInstanceUID}, where segment 1 is 1" in command(node, "jobs", "show", job.id)
