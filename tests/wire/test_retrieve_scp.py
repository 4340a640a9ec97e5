"""C-GET and C-MOVE of what a node holds, by DCMTK and pynetdicom: as it is held, or as its receiver takes it (PS3.4 C.4)."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import (
    PatientRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from segnode.config import parse_dimse_address
from segnode.dicom.elements import read_meta
from segnode.dicom.uids import SEGMENTATION_CLASSES
from segnode.dimse import messages
from segnode.dimse.scu import send_files
from segnode.dimse.switches import set_switches
from segnode.node import object_file
from segnode.seg.codecs import CODECS
from segnode.seg.recode import recode
from segnode.testing.light_scu import light_association
from segnode.testing.light_sender import data_pdu
from segnode.testing.part10 import encode_part10
from segnode.testing.phantom import Phantom
from segnode.testing.processes import listens
from segnode.testing.servers import Server, free_port, node_config, segnode, until
from tests.outbox import SERIES, STUDY, require_truth, segmentation, truth
from tests.wire.test_query_scp import identifier
from tests.wire.test_storage import held, small

GET, MOVE = StudyRootQueryRetrieveInformationModelGet, StudyRootQueryRetrieveInformationModelMove
LABELMAP, BINARY = map(str, reversed(SEGMENTATION_CLASSES))
NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
SYNTAXES = ("native", "implicit", "deflate", "deflate-frames", "rle", "jpeg-ls", "jpeg-2000")


@dataclass
class Received:
    """An object as it came: its class, transfer syntax, the bytes of its data set, and who has asked for it."""

    sop_class: str
    syntax: str
    data: bytes
    originator: tuple[str | None, int | None]

    @property
    def dataset(self) -> Dataset:
        """It, as pydicom reads it."""
        meta = encode_part10(Dataset(), self.syntax)
        return dcmread(BytesIO(meta + self.data), force=True)


@dataclass
class Sink:
    """A receiver: keeps what comes, and answers each with `answer`."""

    port: int = field(default_factory=free_port)
    received: list[Received] = field(default_factory=list)
    answer: Callable[["Sink", evt.Event], int] = lambda *_: 0

    def on_store(self, event: evt.Event) -> int:
        """Keep an object."""
        request, context = event.request, event.context
        asked_by = request.MoveOriginatorApplicationEntityTitle, request.MoveOriginatorMessageID
        data = event.encoded_dataset(include_meta=False)
        self.received.append(Received(str(context.abstract_syntax), str(context.transfer_syntax), data, asked_by))
        return self.answer(self, event)

    @contextmanager
    def serving(self, *contexts: tuple[str, Sequence[str]], also: Sequence[tuple] = ()) -> Iterator[None]:
        """Be a Storage SCP for these."""
        ae = AE("SINK")
        for sop_class, syntaxes in contexts:
            ae.add_supported_context(sop_class, list(syntaxes))
        set_switches()
        handlers = [(evt.EVT_C_STORE, self.on_store), *also]
        server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        try:
            yield
        finally:
            server.shutdown()


@pytest.fixture(scope="module")
def sink_port() -> int:
    """Where the node is told that a receiver is."""
    return free_port()


@pytest.fixture
def sink(sink_port: int) -> Sink:
    """A receiver that the node knows."""
    return Sink(sink_port)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, sink_port: int, phantom: Phantom) -> Iterator[Server]:
    """A node that holds a CT, one image of it compressed, and the same SEG in seven transfer syntaxes."""
    folder = tmp_path_factory.mktemp("node")
    tables = f'models = []\nrules = []\n[[destinations]]\nname = "sink"\nto = "SINK@127.0.0.1:{sink_port}"\n'
    with segnode(folder, tables) as server:
        files = sorted(phantom.folder.iterdir())
        image = dcmread(files.pop())
        image.compress(RLELossless, generate_instance_uid=False)
        image.save_as(folder / "compressed.dcm")
        for number, name in enumerate(SYNTAXES):
            (folder / name).write_bytes(seg(name, number))
        sent = [*files, folder / "compressed.dcm", *(folder / name for name in SYNTAXES)]
        list(send_files(sent, parse_dimse_address(server.dimse, ""), "TEST"))
        yield server


def seg(codec: str, number: int) -> bytes:
    """The SEG of tests in a transfer syntax, under a UID of its own."""
    return recode(segmentation(truth(), f"2.25.{number + 1}"), CODECS[codec])


def data_set(part10: bytes) -> bytes:
    """What stands behind the file meta information."""
    return part10[read_meta(part10)[1] :]


def of_seg(number: int) -> Dataset:
    """What asks for one of the SEGs."""
    return identifier("IMAGE", StudyInstanceUID=STUDY, SeriesInstanceUID=SERIES, SOPInstanceUID=f"2.25.{number + 1}")


def of_ct(phantom: Phantom) -> Dataset:
    """What asks for the CT."""
    image = dcmread(phantom.folder / "0001.dcm", stop_before_pixels=True)
    return identifier("SERIES", StudyInstanceUID=image.StudyInstanceUID, SeriesInstanceUID=image.SeriesInstanceUID)


def get(node: Server, asked: Dataset, *kinds: tuple[str, str], answer=lambda *_: 0, model: str = GET):
    """Ask by C-GET for objects of these kinds: what came, and every response."""
    sink = Sink(0, answer=answer)
    set_switches()
    contexts = [build_context(model), *(build_context(*kind) for kind in kinds)]
    roles = [build_role(sop_class, scp_role=True) for sop_class in {sop_class for sop_class, _ in kinds}]
    association = AE("TEST").associate(
        "127.0.0.1",
        node.dicom_port,
        contexts=contexts,
        ae_title=node.ae_title,
        ext_neg=roles,
        evt_handlers=[(evt.EVT_C_STORE, sink.on_store)],
    )
    assert association.is_established
    responses = list(association.send_c_get(asked, model))
    association.release()
    return sink.received, responses


def move(node: Server, asked: Dataset, to: str = "SINK", told: Callable[[object], None] = lambda _: None):
    """Ask by C-MOVE; every response. `told` is called with the association at each."""
    association = AE("TEST").associate("127.0.0.1", node.dicom_port, contexts=[build_context(MOVE)], ae_title=node.ae_title)
    assert association.is_established
    responses = []
    for response in association.send_c_move(asked, to, MOVE, msg_id=77):
        responses.append(response)
        told(association)
    association.release()
    return responses


def counts(status: Dataset) -> tuple[int, int, int]:
    """How many have completed, failed, completed with a warning."""
    names = ("Completed", "Failed", "Warning")
    return tuple(status.get(f"NumberOf{name}Suboperations") for name in names)


@pytest.mark.parametrize("number", range(len(SYNTAXES)), ids=SYNTAXES)
def test_labelmap_comes_back_as_it_was_sent(node: Server, sink: Sink, number: int) -> None:
    """In every transfer syntax the bytes of the data set are the same, by C-GET and by C-MOVE."""
    codec = CODECS[SYNTAXES[number]]
    sent = data_set(seg(codec.name, number))
    kind = LABELMAP, str(codec.transfer_syntax_uid)
    received, [(last, failed)] = get(node, of_seg(number), kind)
    assert [(each.sop_class, each.syntax, each.data == sent) for each in received] == [(*kind, True)]
    assert (last.Status, counts(last), failed) == (0x0000, (1, 0, 0), None)
    with sink.serving((LABELMAP, [kind[1]])):
        *_, (last, _) = move(node, of_seg(number))
    assert [(each.syntax, each.data == sent, each.originator) for each in sink.received] == [(kind[1], True, ("TEST", 77))]
    assert (last.Status, counts(last)) == (0x0000, (1, 0, 0))


def require_pixels(received: Sequence[Received], phantom: Phantom) -> None:
    """Hold images to those that were sent, pixel for pixel."""
    images = {image.SOPInstanceUID: image.pixel_array for image in map(dcmread, phantom.folder.iterdir())}
    assert {each.dataset.SOPInstanceUID for each in received} == set(images)
    assert all(np.array_equal(each.dataset.pixel_array, images[each.dataset.SOPInstanceUID]) for each in received)


def test_receiver_that_takes_only_implicit(node: Server, sink: Sink, phantom: Phantom) -> None:
    """It gets everything in implicit VR little endian, what was compressed and what was explicit, pixel for pixel."""
    received, [*_, (last, _)] = get(node, of_ct(phantom), (CTImageStorage, ImplicitVRLittleEndian))
    assert (last.Status, counts(last), {each.syntax for each in received}) == (0x0000, (24, 0, 0), {ImplicitVRLittleEndian})
    require_pixels(received, phantom)
    with sink.serving((CTImageStorage, [ImplicitVRLittleEndian])):
        *pending, (last, _) = move(node, of_ct(phantom))
    assert (last.Status, counts(last), len(pending)) == (0x0000, (24, 0, 0), 23)
    assert [status.NumberOfRemainingSuboperations for status, _ in pending] == list(range(23, 0, -1))
    require_pixels(sink.received, phantom)


@pytest.mark.parametrize("number", [0, 4])
def test_receiver_without_labelmap_gets_a_binary(node: Server, sink: Sink, number: int) -> None:
    """It has the same labels, as another object."""
    received, [(last, _)] = get(node, of_seg(number), (BINARY, ExplicitVRLittleEndian))
    with sink.serving((BINARY, NATIVE)):
        [(moved, _)] = move(node, of_seg(number))
    assert (last.Status, moved.Status) == (0x0000, 0x0000)
    for each in (*received, *sink.received):
        assert each.sop_class == BINARY
        assert each.dataset.SOPInstanceUID != f"2.25.{number + 1}"
        held = each.dataset
        held.file_meta.MediaStorageSOPClassUID, held.file_meta.MediaStorageSOPInstanceUID = BINARY, held.SOPInstanceUID
        require_truth(held)
    assert len(received) == len(sink.received) == 1
    assert received[0].data == sink.received[0].data, "whenever it is made, it is the same object"


def test_what_cannot_be_sent_is_listed(node: Server, sink: Sink, phantom: Phantom) -> None:
    """What is accepted in no form, or refused, is counted as failed, and listed by its UID; a warning is counted."""
    received, [(last, failed)] = get(node, of_seg(0), (CTImageStorage, ExplicitVRLittleEndian))
    assert (received, last.Status, counts(last)) == ([], 0xA702, (0, 1, 0))
    assert failed.FailedSOPInstanceUIDList == "2.25.1"
    answers = iter([0x0124, 0xB000, 0xA700])
    received, [*_, (last, failed)] = get(
        node, of_ct(phantom), (CTImageStorage, ExplicitVRLittleEndian), answer=lambda *_: next(answers, 0)
    )
    assert (last.Status, counts(last)) == (0xB000, (21, 2, 1))
    assert list(failed.FailedSOPInstanceUIDList) == [received[n].dataset.SOPInstanceUID for n in (0, 2)]
    sink.answer = lambda *_: 0x0124
    with sink.serving((CTImageStorage, NATIVE)):
        *_, (last, failed) = move(node, of_ct(phantom))
    assert (last.Status, counts(last), len(failed.FailedSOPInstanceUIDList)) == (0xA702, (0, 24, 0), 24)


def test_refusal_of_a_form_is_a_step_to_the_next(node: Server, sink: Sink) -> None:
    """A LABELMAP that is accepted at negotiation and answered 0122 goes as a BINARY."""
    sink.answer = lambda _, event: 0x0122 if event.context.abstract_syntax == LABELMAP else 0
    with sink.serving((LABELMAP, [RLELossless]), (BINARY, NATIVE)):
        [(last, _)] = move(node, of_seg(4))
    assert ([each.sop_class for each in sink.received], last.Status) == ([LABELMAP, BINARY], 0x0000)


def test_destination_that_is_not_there(node: Server, phantom: Phantom) -> None:
    """One that nobody knows is A801; one that cannot be reached has failed everything."""
    [(status, _)] = move(node, of_ct(phantom), to="NOBODY")
    assert (status.Status, status.ErrorComment != "") == (0xA801, True)
    [(status, failed)] = move(node, of_ct(phantom))
    assert (status.Status, counts(status), len(failed.FailedSOPInstanceUIDList)) == (0xA702, (0, 24, 0), 24)


def test_receiver_that_is_killed(node: Server, sink: Sink, phantom: Phantom, tmp_path: Path, dcmtk) -> None:
    """Of a C-MOVE to a storescp that is killed amid it, what had come is counted as completed, the rest as failed."""
    command = [dcmtk("storescp"), "-aet", "SINK", "-od", str(tmp_path), str(sink.port)]
    with subprocess.Popen(command, env={**os.environ, "TCP_NODELAY": "1"}) as process:
        try:
            until(lambda: listens(sink.port))
            *pending, (last, failed) = move(node, of_ct(phantom), told=lambda _: process.kill())
        finally:
            process.kill()
    completed, fails, warned = counts(last)
    assert (last.Status, completed + fails, warned, len(failed.FailedSOPInstanceUIDList)) == (0xB000, 24, 0, fails)
    assert 1 <= completed <= len(list(tmp_path.iterdir()))
    assert len(pending) >= 1


def test_receiver_that_breaks_off_once(node: Server, sink: Sink, phantom: Phantom) -> None:
    """What was being sent then has failed; the rest goes in another association."""

    def answer(sink: Sink, event: evt.Event) -> int:
        if len(sink.received) == 5:
            event.assoc.abort()
        return 0

    sink.answer = answer
    with sink.serving((CTImageStorage, NATIVE)):
        *_, (last, failed) = move(node, of_ct(phantom))
    assert (last.Status, counts(last)) == (0xB000, (23, 1, 0))
    assert failed.FailedSOPInstanceUIDList == sink.received[4].dataset.SOPInstanceUID


def test_cancel(node: Server, sink: Sink, phantom: Phantom) -> None:
    """C-CANCEL ends a C-MOVE and a C-GET with FE00, and with how many remain."""
    cancelled = threading.Event()

    def answer(sink: Sink, _: evt.Event) -> int:
        if len(sink.received) == 3:
            cancelled.wait(30)
        return 0

    def told(association) -> None:
        if not cancelled.is_set():
            association.send_c_cancel(77, query_model=MOVE)
            cancelled.set()

    sink.answer = answer
    with sink.serving((CTImageStorage, NATIVE)):
        *_, (last, _) = move(node, of_ct(phantom), told=told)
    done = len(sink.received)
    assert (last.Status, counts(last), last.NumberOfRemainingSuboperations) == (0xFE00, (done, 0, 0), 24 - done)
    assert done < 24
    encoded = encode(of_ct(phantom), True, True)
    assert encoded is not None
    kinds = [(CTImageStorage, ExplicitVRLittleEndian), (CTImageStorage, RLELossless)]
    with light_association(parse_dimse_address(node.dimse, ""), GET, kinds) as scu:
        counted = scu.ask(messages.C_GET_RQ, encoded, cancel=True)
        assert (counted.status, counted.objects < 24) == (0xFE00, True)
        assert scu.ask(messages.C_GET_RQ, encoded).objects == 24


def test_object_that_cannot_be_read_to_its_end_fails_alone(node: Server, sink: Sink, tmp_path: Path) -> None:
    """Its file shrinks while it is moved: it alone has failed, and what goes before and after is counted once."""
    paths = []
    for number, size in enumerate((1 << 10, 32 << 20, 1 << 10)):
        image = small(f"1.2.90.{number}", PixelData=bytes(size), BitsAllocated=8)
        image.StudyInstanceUID, image.SeriesInstanceUID = "1.2.90", "1.2.90.9"
        paths.append(tmp_path / f"{number}.dcm")
        paths[-1].write_bytes(encode_part10(image, ExplicitVRLittleEndian))
    list(send_files(paths, parse_dimse_address(node.dimse, ""), "TEST"))
    row = held(node, "1.2.90.1")
    assert row is not None
    file = object_file(node_config(node), row.object_key)
    taken = []

    def shrink(event: evt.Event) -> None:
        taken.append(len(event.data))
        if sum(taken) > 1 << 18 and file.stat().st_size > 1 << 20:
            os.truncate(file, 1 << 20)

    with sink.serving((CTImageStorage, NATIVE), also=[(evt.EVT_DATA_RECV, shrink)]):
        *_, (last, failed) = move(node, identifier("STUDY", StudyInstanceUID="1.2.90"))
    assert (last.Status, counts(last), failed.FailedSOPInstanceUIDList) == (0xB000, (2, 1, 0), "1.2.90.1")


@pytest.mark.parametrize("control", [1, 0], ids=["command", "data set"])
def test_flood_instead_of_an_answer_is_cut(node: Server, phantom: Phantom, control: int) -> None:
    """A peer that is given an object, and sends fragments without an end instead of its answer, fills no memory."""
    encoded = encode(of_ct(phantom), True, True)
    assert encoded is not None
    kinds = [(CTImageStorage, ExplicitVRLittleEndian)]
    with light_association(parse_dimse_address(node.dimse, ""), GET, kinds) as scu:
        scu.send(messages.C_GET_RQ, encoded)
        scu.read()
        with suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(1000):
                scu.write(data_pdu(1, control, bytes(100_000)))
            raise AssertionError("it was taken")


@pytest.mark.parametrize(
    ("asked", "model", "status", "element"),
    [
        (identifier(None, StudyInstanceUID="1.2"), GET, 0xA900, 0x00080052),
        (identifier("PATIENT", PatientID="1"), GET, 0xA900, 0x00080052),
        (identifier("STUDY", PatientID="1"), GET, 0xA900, 0x0020000D),
        (identifier("SERIES", SeriesInstanceUID="1.2"), GET, 0xA900, 0x0020000D),
        (identifier("STUDY", StudyInstanceUID="../../etc/passwd"), GET, 0xA900, 0x0020000D),
        (identifier("STUDY", StudyInstanceUID="1.2.*"), GET, 0xA900, 0x0020000D),
        (identifier("PATIENT", PatientID="*"), PatientRootQueryRetrieveInformationModelGet, 0xA900, 0x00100020),
        (identifier("STUDY", StudyInstanceUID="1.2.3.4"), GET, 0x0000, None),
    ],
)
def test_what_asks_for_nothing(node: Server, asked: Dataset, model: str, status: int, element: int | None) -> None:
    """A wrong identifier is refused with its reason; what is not held is nothing, and success."""
    received, [(answer, _)] = get(node, asked, (CTImageStorage, ExplicitVRLittleEndian), model=model)
    assert (received, answer.Status, answer.get("OffendingElement")) == ([], status, element)
    if status:
        assert answer.ErrorComment != ""
        [(answer, _)] = move(node, asked) if model == GET else [(answer, None)]
        assert (answer.Status, answer.get("OffendingElement")) == (status, element)


def test_lists_and_patients(node: Server, phantom: Phantom) -> None:
    """Several UIDs at once; and all of a patient."""
    asked = of_seg(0)
    asked.SOPInstanceUID = ["2.25.1", "2.25.2", "2.25.77"]
    kinds = [(LABELMAP, str(syntax)) for syntax in NATIVE]
    received, [*_, (last, _)] = get(node, asked, *kinds)
    assert (last.Status, sorted(each.dataset.SOPInstanceUID for each in received)) == (0x0000, ["2.25.1", "2.25.2"])
    patient = dcmread(phantom.folder / "0001.dcm", stop_before_pixels=True).PatientID
    kinds = [(CTImageStorage, ExplicitVRLittleEndian), (CTImageStorage, RLELossless)]
    model = PatientRootQueryRetrieveInformationModelGet
    received, [*_, (last, _)] = get(node, identifier("PATIENT", PatientID=patient), *kinds, model=model)
    assert (last.Status, len(received)) == (0x0000, 24)


def test_object_whose_file_is_gone(tmp_path: Path) -> None:
    """What the disk has lost is counted as failed, and listed; the rest comes."""
    with segnode(tmp_path / "node", "models = []\nrules = []") as node:
        for number in (0, 1):
            (tmp_path / f"{number}.dcm").write_bytes(seg("native", number))
        list(send_files(sorted(tmp_path.glob("*.dcm")), parse_dimse_address(node.dimse, ""), "TEST"))
        next((node_config(node).data / "objects").glob("??/??/*")).unlink()
        asked = identifier("SERIES", StudyInstanceUID=STUDY, SeriesInstanceUID=SERIES)
        received, [*_, (last, failed)] = get(node, asked, (LABELMAP, ExplicitVRLittleEndian))
    assert (len(received), last.Status, counts(last)) == (1, 0xB000, (1, 1, 0))
    assert failed.FailedSOPInstanceUIDList in ("2.25.1", "2.25.2")


def test_two_at_once(node: Server, phantom: Phantom) -> None:
    """Associations do not wait for each other."""
    kinds = [(CTImageStorage, ExplicitVRLittleEndian), (CTImageStorage, RLELossless)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: len(get(node, of_ct(phantom), *kinds)[0]), range(4)))
    assert found == [24] * 4


def run(*command: str) -> str:
    """What a program says; it succeeds."""
    ended = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, "TCP_NODELAY": "1"})
    assert ended.returncode == 0, ended.stderr
    return ended.stdout + ended.stderr


def keys(phantom: Phantom) -> list[str]:
    """What asks for the CT, as programs have it."""
    asked = of_ct(phantom)
    named = [f"{keyword}={asked[keyword].value}" for keyword in ("StudyInstanceUID", "SeriesInstanceUID")]
    return [word for key in ("QueryRetrieveLevel=SERIES", *named) for word in ("-k", key)]


def test_programs_of_dcmtk(node: Server, sink: Sink, phantom: Phantom, tmp_path: Path, dcmtk) -> None:
    """getscu gets a series, movescu has it sent to storescp."""
    got, moved = tmp_path / "got", tmp_path / "moved"
    got.mkdir()
    moved.mkdir()
    where = ["-aec", "SEGNODE", "127.0.0.1", str(node.dicom_port)]
    run(dcmtk("getscu"), "-S", "-od", str(got), *keys(phantom), *where)
    assert len(list(got.iterdir())) == 24
    command = [dcmtk("storescp"), "-aet", "SINK", "-od", str(moved), str(sink.port)]
    with subprocess.Popen(command, env={**os.environ, "TCP_NODELAY": "1"}) as process:
        until(lambda: listens(sink.port))
        run(dcmtk("movescu"), "-S", "-aem", "SINK", *keys(phantom), *where)
        process.terminate()
    assert len(list(moved.iterdir())) == 24


def test_programs_of_pynetdicom(node: Server, sink: Sink, phantom: Phantom, tmp_path: Path) -> None:
    """Its getscu and movescu do the same."""
    where = ["127.0.0.1", str(node.dicom_port), "-aec", "SEGNODE", *keys(phantom), "-S"]
    run(sys.executable, "-m", "pynetdicom", "getscu", *where, "-od", str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 24
    with sink.serving((CTImageStorage, NATIVE)):
        run(sys.executable, "-m", "pynetdicom", "movescu", *where, "-aem", "SINK")
    assert len(sink.received) == 24
