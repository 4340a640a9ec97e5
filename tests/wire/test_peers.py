"""Who may open an association with a running node, as which title, how often, and what may be stored then."""

import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, SegmentationStorage
from pynetdicom import AE, build_context
from pynetdicom.dsutils import encode

from segnode.cli import main
from segnode.config import DimseAddress
from segnode.dicom.transfer_syntaxes import STORED_TRANSFER_SYNTAXES
from segnode.dicom.uids import LABEL_MAP_SEGMENTATION_STORAGE
from segnode.dimse import messages
from segnode.dimse.scu import send_files
from segnode.dimse.switches import set_switches
from segnode.doctor import examine
from segnode.testing.light_sender import LightAssociation, data_pdu
from segnode.testing.part10 import encode_part10
from segnode.testing.processes import descendants, post_of
from segnode.testing.servers import Server, await_jobs, node_config, segnode, until
from tests.associating import DICOM, VERIFICATION, Called, call, read_pdu, request
from tests.wire.test_serve import events
from tests.wire.test_storage import held, small

NO_WORK = "models = []\nrules = []\n"
PRIVATE = "1.2.826.0.1.3680043.8.498.77"
PEERS = f"""
[[destinations]]
name = "archive"
to = "ARCHIVE@127.0.0.1:1"
calling_ae = "KNOWN-AS"
[dimse]
ae_titles = ["SEG-CT"]
private_sop_classes = ["{PRIVATE}"]
max_associations = 4
[[peers]]
ae_title = "CT1"
hosts = ["10.1.2.3", "127.0.0.0/8"]
max_associations = 2
[[peers]]
ae_title = "CT2"
hosts = ["127.0.0.1"]
[[peers]]
ae_title = "FAR"
hosts = ["10.0.0.0/8", "::1"]
[[peers]]
ae_title = "READER"
hosts = ["127.0.0.1"]
may = ["query"]
[[peers]]
ae_title = "GETTER"
hosts = ["127.0.0.1"]
may = ["retrieve"]
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A node with a list of peers."""
    with segnode(tmp_path_factory.mktemp("peers"), NO_WORK + PEERS, dimse_processes=2) as server:
        yield server


def echo(node: Server, calling: str, called: str = "SEGNODE") -> Called:
    """Ask for an association."""
    return call(node.dicom_port, request(calling, called))


@pytest.mark.parametrize(
    ("calling", "called", "application", "rejected"),
    [
        ("CT1", "SEGNODE", DICOM, None),
        ("CT1", "SEG-CT", DICOM, None),
        ("CT1", "KNOWN-AS", DICOM, None),
        ("CT1", "OTHER", DICOM, (1, 1, 7)),
        ("CT1", "segnode", DICOM, (1, 1, 7)),
        ("CT3", "SEGNODE", DICOM, (1, 1, 3)),
        ("FAR", "SEGNODE", DICOM, (1, 1, 3)),
        ("CT1", "SEGNODE", "1.2.3", (1, 1, 2)),
    ],
)
def test_only_peers_are_let_in(node: Server, calling: str, called: str, application: str, rejected) -> None:
    """By title, from their hosts, to a title of the node; else a rejection says what was not recognised, and the log who."""
    answer = call(node.dicom_port, request(calling, called, application=application))
    assert answer.rejected == rejected
    if rejected is None:
        answer.release()
        return
    last = events(node, "association rejected")[-1]
    assert (last["calling_ae"], last["called_ae"], last["host"]) == (calling, called, "127.0.0.1")
    assert last["code"] == "/".join(map(str, rejected))
    assert last["reason"]


def test_dcmtk_says_why(node: Server, dcmtk: Callable[[str], str]) -> None:
    """What DCMTK's echoscu makes of the rejections."""

    def said(calling: str, called: str) -> str:
        command = [dcmtk("echoscu"), "-aet", calling, "-aec", called, "127.0.0.1", str(node.dicom_port)]
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr

    assert "Called AE Title Not Recognized" in said("CT1", "OTHER")
    assert "Calling AE Title Not Recognized" in said("OTHER", "SEGNODE")
    assert said("CT1", "SEG-CT") == ""


def test_as_many_associations_as_may_be_over_all_processes(node: Server) -> None:
    """One more than the peer, or all, may have is rejected for now; a place is free as soon as a release is acknowledged."""
    first, second = echo(node, "CT1"), echo(node, "CT1")
    assert echo(node, "CT1").rejected == (2, 3, 2)
    for _ in range(5):
        second.release()
        second = echo(node, "CT1")
        assert second.rejected is None
    others = [echo(node, "CT2"), echo(node, "CT2")]
    assert echo(node, "CT2").rejected == (2, 3, 2)
    assert {event["process"] for event in events(node, "association opened")} == {"dimse-1", "dimse-2"}
    for open_one in (first, second, *others):
        assert open_one.rejected is None
        open_one.release()


def test_a_killed_process_holds_no_places(tmp_path: Path) -> None:
    """What was open in it counts no more."""
    with segnode(tmp_path / "node", f"{NO_WORK}[dimse]\nmax_associations = 3\n", roles=("dimse",), dimse_processes=2) as node:
        opened = [echo(node, "A") for _ in range(3)]
        assert echo(node, "A").rejected == (2, 3, 2)
        for post in ("dimse-1", "dimse-2"):
            (process,) = (p for p in descendants(node.process.pid) if post_of(p) == post)
            os.kill(process, signal.SIGKILL)
        until(lambda: len(events(node, "a role is started again")) == 2)
        again = [echo(node, "A") for _ in range(3)]
        assert [answer.rejected for answer in again] == [None] * 3
        assert echo(node, "A").rejected == (2, 3, 2)
        for answer in (*opened, *again):
            answer.connection.close()


def test_an_association_that_breaks_off_gives_its_place_back(node: Server) -> None:
    """Also without a word."""
    for _ in range(4):
        until(lambda: (answer := echo(node, "CT1")).rejected is None and answer.connection.close() is None)


def test_the_first_of_the_nodes_syntaxes_is_accepted(node: Server) -> None:
    """Of several in a context, whatever their order; what is not served has its result."""
    offered = [
        (CTImageStorage, list(reversed(STORED_TRANSFER_SYNTAXES))),
        (CTImageStorage, ["1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.5"]),
        (CTImageStorage, ["1.2.3.4"]),
        ("1.2.840.10008.5.1.4.1.1.6", ["1.2.840.10008.1.2"]),  # retired
        (PRIVATE, ["1.2.840.10008.1.2.1"]),
        (f"{PRIVATE}.1", ["1.2.840.10008.1.2.1"]),
        ("1.2.840.10008.5.1.4.38.1", ["1.2.840.10008.1.2.1"]),  # hanging protocols are of no study
    ]
    answer = call(node.dicom_port, request("CT1", "SEGNODE", offered))
    assert [result for result, _ in answer.results] == [0, 0, 4, 0, 0, 3, 3]
    assert [syntax for _, syntax in answer.results[:2]] == ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"]
    answer.release()


def store(node: Server, calling: str, data: bytes, tmp_path: Path, sop_class: str = CTImageStorage):
    """Send a Part 10 file's data set in one association; the response."""
    file = tmp_path / "sent.dcm"
    file.write_bytes(data)
    set_switches()
    contexts = [build_context(sop_class, ExplicitVRLittleEndian)]
    association = AE(calling).associate("127.0.0.1", node.dicom_port, contexts, node.ae_title)
    response = association.send_c_store(file)
    association.release()
    return response


def test_private_class_is_stored(node: Server, tmp_path: Path) -> None:
    """One that the configuration names."""
    assert store(node, "CT1", encode_part10(small("1.2.20.1", PRIVATE), ExplicitVRLittleEndian), tmp_path, PRIVATE).Status == 0
    assert held(node, "1.2.20.1") is not None


def test_who_may_not_store_is_told(node: Server, tmp_path: Path) -> None:
    """A peer without the right gets 0124 and a reason; a service it may not use is refused when it is proposed."""
    response = store(node, "READER", encode_part10(small("1.2.20.2"), ExplicitVRLittleEndian), tmp_path)
    assert (response.Status, "may not store" in response.ErrorComment) == (0x0124, True)
    assert len(response.ErrorComment) <= 64
    assert held(node, "1.2.20.2") is None
    contexts = [VERIFICATION, ("1.2.840.10008.1.20.1", ["1.2.840.10008.1.2"])]
    answer = call(node.dicom_port, request("READER", "SEGNODE", contexts))
    assert [result for result, _ in answer.results] == [0, 1]
    answer.release()


FIND, GET, MOVE = (f"1.2.840.10008.5.1.4.1.2.2.{number}" for number in (1, 3, 2))
COMMITMENT, WELL_KNOWN = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"


@pytest.mark.parametrize(
    ("calling", "context", "kind", "command"),
    [
        ("READER", FIND, 0x0010, {messages.AFFECTED_SOP_CLASS_UID: GET, messages.PRIORITY: 0}),
        ("READER", FIND, 0x0021, {messages.AFFECTED_SOP_CLASS_UID: MOVE, messages.PRIORITY: 0, 0x0600: "ARCHIVE"}),
        ("READER", FIND, 0x0130, {0x0003: COMMITMENT, 0x1001: WELL_KNOWN, 0x1008: 1}),
        ("READER", FIND, 0x0100, {messages.AFFECTED_SOP_CLASS_UID: COMMITMENT, 0x1000: WELL_KNOWN, 0x1002: 1}),
        ("GETTER", GET, 0x0020, {messages.AFFECTED_SOP_CLASS_UID: FIND, messages.PRIORITY: 0}),
    ],
    ids=["C-GET", "C-MOVE", "N-ACTION", "N-EVENT-REPORT", "C-FIND"],
)
def test_request_of_another_class_than_its_context_is_refused(
    node: Server, calling: str, context: str, kind: int, command: dict[int, messages.Value]
) -> None:
    """It is answered with 0122: rights hold for what is proposed, and a command may name what was not."""
    asked = small("1.2.20.9")
    asked.QueryRetrieveLevel, asked.TransactionUID = "STUDY", "1.2.20.10"
    elements = {**command, messages.COMMAND_FIELD: kind, messages.MESSAGE_ID: 5, messages.DATA_SET_TYPE: messages.DATA_SET}
    packed = messages.command_set(elements)
    with LightAssociation(node.dicom_port, node.ae_title, [(context, [str(ImplicitVRLittleEndian)])], calling=calling) as peer:
        assert peer.send(data_pdu(1, 3, packed) + data_pdu(1, 2, encode(asked, True, True))) == 0x0122


def test_request_of_another_kind_than_its_class_is_not_served(node: Server) -> None:
    """Who may retrieve has nothing listed by a C-FIND that names the class of C-GET."""
    elements = {
        messages.AFFECTED_SOP_CLASS_UID: GET,
        messages.COMMAND_FIELD: messages.C_FIND_RQ,
        messages.MESSAGE_ID: 5,
        messages.PRIORITY: 0,
        messages.DATA_SET_TYPE: messages.DATA_SET,
    }
    asked = Dataset()
    asked.QueryRetrieveLevel, asked.StudyInstanceUID = "STUDY", ""
    sent = data_pdu(1, 3, messages.command_set(elements)) + data_pdu(1, 2, encode(asked, True, True))
    peer = LightAssociation(node.dicom_port, node.ae_title, [(GET, [str(ImplicitVRLittleEndian)])], calling="GETTER")
    peer.socket.sendall(sent)
    kind, body = peer.receive()
    peer.socket.close()
    assert kind == 7 or b"\0\x09\2\0\0\0\0\xff" not in body


@pytest.mark.filterwarnings("ignore")
def test_invalid_instance_and_other_class(node: Server, tmp_path: Path) -> None:
    """An own UID that is none is 0117; a command of another class than its context 0122; each names the element."""
    bad = encode_part10(small("1.2.20.3"), ExplicitVRLittleEndian).replace(
        b"\x08\0\x18\0UI\x08\x001.2.20.3", b"\x08\0\x18\0UI\x08\x001.2/20.3"
    )
    response = store(node, "CT1", bad, tmp_path)
    assert (response.Status, response.OffendingElement) == (0x0117, 0x00080018)
    dataset = small("1.2.20.4", "1.2.840.10008.5.1.4.1.1.4")
    association = AE("CT1").associate(
        "127.0.0.1", node.dicom_port, [build_context(CTImageStorage, ExplicitVRLittleEndian)], node.ae_title
    )
    (context,) = association.accepted_contexts
    context._abstract_syntax = dataset.SOPClassUID  # which it was not accepted for
    set_switches()
    path = tmp_path / "other.dcm"
    path.write_bytes(encode_part10(dataset, ExplicitVRLittleEndian))
    response = association.send_c_store(path)
    association.release()
    assert (response.Status, response.OffendingElement) == (0x0122, 0x00000002)
    assert held(node, "1.2.20.4") is None


@pytest.mark.parametrize(
    ("sop_class", "kind", "status"),
    [
        (LABEL_MAP_SEGMENTATION_STORAGE, "BINARY", 0xB007),
        (SegmentationStorage, "LABELMAP", 0xB007),
        (LABEL_MAP_SEGMENTATION_STORAGE, "LABELMAP", 0x0000),
        (SegmentationStorage, "FRACTIONAL", 0x0000),
    ],
)
def test_segmentation_of_another_class_is_kept_with_a_warning(node: Server, tmp_path: Path, sop_class, kind, status) -> None:
    """B007: it is held as it came, and the sender hears that its SegmentationType is not one of its class."""
    sop = f"1.2.21.{len(kind)}.{sop_class[-1]}"
    data = encode_part10(small(sop, sop_class, SegmentationType=kind), ExplicitVRLittleEndian)
    response = store(node, "CT1", data, tmp_path, sop_class)
    assert response.Status == status
    assert ("SegmentationType" in response.get("ErrorComment", "")) == (status != 0)
    assert held(node, sop) is not None


def test_rules_ask_for_the_title_that_was_called(tmp_path: Path, ct: Path) -> None:
    """Of two series that are sent to two titles of a node the one that a rule names is segmented."""
    other = tmp_path / "other"
    other.mkdir()
    for file in sorted(ct.iterdir()):
        image = dcmread(file)
        image.SeriesInstanceUID = "1.2.23"
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"1.2.23.{image.InstanceNumber}"
        image.save_as(other / file.name)
    rule = '[[rules]]\nwhen = { called_ae = "LIVER" }\nmodel = "threshold"\nquiet = 0.2\n'
    with segnode(tmp_path / "node", f'[dimse]\nae_titles = ["LIVER"]\n{rule}') as node:
        for title, folder in (("SEGNODE", ct), ("LIVER", other)):
            list(send_files(sorted(folder.iterdir()), DimseAddress(title, "127.0.0.1", node.dicom_port), "TEST"))
        (job,) = await_jobs(node_config(node))
        assert job.series_instance_uid == "1.2.23"


@pytest.mark.parametrize(
    ("table", "calling", "called", "rejected"),
    [
        ("any_called_ae = true", "CT1", "OTHER", None),
        ("any_called_ae = true", "OTHER", "OTHER", (1, 1, 3)),
        ("accept_any = true", "OTHER", "SEGNODE", None),
        ("accept_any = true", "FAR", "SEGNODE", (1, 1, 3)),
        ("accept_any = true", "OTHER", "OTHER", (1, 1, 7)),
    ],
)
def test_what_lets_others_in(tmp_path: Path, table: str, calling: str, called: str, rejected) -> None:
    """Other called titles, and other callers; a title that is listed must come from its host all the same."""
    peers = '[[peers]]\nae_title = "CT1"\nhosts = ["127.0.0.1"]\n[[peers]]\nae_title = "FAR"\nhosts = ["10.0.0.1"]\n'
    with segnode(tmp_path / "node", f"{NO_WORK}[dimse]\n{table}\n{peers}", roles=("dimse",)) as node:
        answer = echo(node, calling, called)
        assert answer.rejected == rejected
        if rejected is None:
            answer.release()


def test_doctor_finds_a_node_with_peers_well(node: Server) -> None:
    """Its own question is not that of a peer: a rejection is what it should be."""
    found = {finding.check: finding for finding in examine(node_config(node))}
    assert found["port node.dicom"].ok
    assert "lets in peers alone" in found["port node.dicom"].detail


@pytest.mark.parametrize("command", ["serve", "doctor"])
def test_open_to_everybody_does_not_start(tmp_path: Path, command: str) -> None:
    """A node that others reach needs a list of peers, and says so."""
    file = tmp_path / "segnode.toml"
    file.write_text(f'{NO_WORK}[node]\ndicom = "0.0.0.0:11112"\n')
    ended = CliRunner().invoke(main, [command, "--config", str(file)])
    assert ended.exit_code == 2
    assert "node.dicom: 0.0.0.0:11112 is reached from elsewhere" in ended.stderr
    assert "[[peers]]" in ended.stderr


def test_peers_are_read_again(tmp_path: Path) -> None:
    """At SIGHUP, also by the processes that receive; a list that is wrong changes nothing."""
    peer = '[[peers]]\nae_title = "{}"\nhosts = ["127.0.0.1"]\n'
    with segnode(tmp_path / "node", NO_WORK + peer.format("CT1"), dimse_processes=2) as node:
        file = tmp_path / "node" / "segnode.toml"
        assert echo(node, "CT2").rejected == (1, 1, 3)
        before = file.read_text()
        file.write_text(before + peer.format("CT2"))
        node.process.send_signal(signal.SIGHUP)
        until(lambda: (answer := echo(node, "CT2")).rejected is None and answer.connection.close() is None)
        file.write_text(before + '[[peers]]\nae_title = "CT3"\nhosts = ["nowhere"]\n')
        node.process.send_signal(signal.SIGHUP)
        until(lambda: len(events(node, "the configuration cannot be used: the old one stays")) == 1)
        echo(node, "CT2").release()


def test_silent_peers_are_cut(tmp_path: Path) -> None:
    """A connection without a request is closed after `artim`, an association without a word aborted after `idle`."""
    with segnode(tmp_path / "node", f"{NO_WORK}[dimse]\nartim = 0.5\nidle = 1.0\n", roles=("dimse",)) as node:
        start = time.monotonic()
        with socket.create_connection(("127.0.0.1", node.dicom_port), 30) as connection:
            assert read_pdu(connection)[0] in (0x00, 0x07)
        assert time.monotonic() - start >= 0.4
        answer = echo(node, "A")
        assert read_pdu(answer.connection)[0] == 0x07
        answer.connection.close()


def test_bad_requests_are_aborted_and_the_node_serves_on(node: Server) -> None:
    """Presentation contexts that are not written as they should be are no association."""
    sent = bytearray(request("CT1", "SEGNODE", [VERIFICATION] * 2))
    ids = [at + 4 for at in range(74, len(sent)) if sent[at : at + 2] == b"\x20\0"]
    sent[ids[1]] = sent[ids[0]]
    with socket.create_connection(("127.0.0.1", node.dicom_port), 30) as connection:
        connection.sendall(sent)
        assert read_pdu(connection)[0] == 0x07
    until(lambda: (answer := echo(node, "CT1")).rejected is None and answer.connection.close() is None)


def test_items_that_nobody_knows_are_ignored(node: Server) -> None:
    """One beside the others of the request, and one in its user information (PS3.8 9.3.1)."""
    unknown = b"\x7e\0\0\4none"
    sent = request("CT1", "SEGNODE")
    at = sent.rindex(b"\x50\0")
    user = struct.pack(">BxH", 0x50, len(sent) - at - 4 + len(unknown)) + sent[at + 4 :] + unknown
    body = sent[6:at] + unknown + user
    answer = call(node.dicom_port, struct.pack(">BxI", 1, len(body)) + body)
    assert answer.results == [(0, "1.2.840.10008.1.2")]
    answer.release()


def test_no_patient_is_in_the_log(node: Server, tmp_path: Path) -> None:
    """After all of these: the name that every object has is nowhere in what was logged."""
    store(node, "CT2", encode_part10(small("1.2.22.1"), ExplicitVRLittleEndian), tmp_path)
    assert held(node, "1.2.22.1") is not None
    assert "Some^Body" not in node.log.read_text()
