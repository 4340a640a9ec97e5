"""Hostile and broken peers on the DICOM port: each is answered or cut, and the node serves on in little memory."""

import signal
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from segnode.dimse import messages
from segnode.dimse.guarded_socket import LONGEST_MESSAGE
from segnode.testing.light_sender import (
    IMPLICIT,
    VERIFICATION,
    LightAssociation,
    NotAssociated,
    Sendable,
    association_request,
    data_pdu,
    data_pdus,
    store_command,
)
from segnode.testing.processes import cpu_seconds, descendants, forget_peak, peak, post_of, resident
from segnode.testing.servers import Server, segnode, until
from tests.wire.test_serve import events
from tests.wire.test_storage import files, held
from tests.wire.test_storage_lane import BOTH, an_object, associate, by_lane, by_pynetdicom, fresh

ABORT = 7
_BOGUS = 300 << 20
_GROWTH = 20 << 20


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A node that takes objects of a megabyte, and has room for many associations."""
    tables = 'models = []\nrules = []\n[storage]\nlargest_object = "1 MiB"\n'
    with segnode(tmp_path_factory.mktemp("node"), tables) as server:
        yield server


def settled(node: Server) -> set[Path]:
    """The files of a node, when all that came before has been dealt with."""
    until(lambda: len(events(node, "association opened")) == len(events(node, "association closed")))
    return files(node)


def connect(node: Server) -> socket.socket:
    """A connection that nothing was said on."""
    return socket.create_connection(("127.0.0.1", node.dicom_port), 10)


def echo(node: Server) -> int:
    """The status of an echo in an association of its own."""
    with LightAssociation(node.dicom_port, node.ae_title, [(VERIFICATION, [IMPLICIT])]) as association:
        association.socket.settimeout(5)
        return association.echo()


def said(peer: socket.socket) -> bytes:
    """Everything that comes until the node closes."""
    found = b""
    with suppress(ConnectionResetError):
        while block := peer.recv(1 << 16):
            found += block
    return found


def pour(peer: socket.socket, size: int) -> None:
    """Send zeros until so many are sent, or nobody takes them any more."""
    with suppress(ConnectionResetError, BrokenPipeError):
        for _ in range(size >> 20):
            peer.sendall(bytes(1 << 20))


def open_association(node: Server) -> socket.socket:
    """A connection with an accepted association."""
    association = associate(node)
    return association.socket


@pytest.mark.parametrize(("kind", "begin"), [(1, connect), (4, connect), (4, open_association), (1, open_association)])
def test_bogus_pdu_is_not_read(node: Server, kind: int, begin) -> None:
    """A PDU of 300 MiB, before an association and in one, is answered with A-ABORT and takes no memory."""
    processes = descendants(node.process.pid)
    for process in processes:
        forget_peak(process)
    before = sum(map(resident, processes))
    with begin(node) as peer:
        peer.sendall(struct.pack(">BxI", kind, _BOGUS))
        assert said(peer)[:1] == bytes([ABORT])
    with begin(node) as peer:
        pour_from = struct.pack(">BxI", kind, _BOGUS)
        with suppress(ConnectionResetError, BrokenPipeError):
            peer.sendall(pour_from)
        pour(peer, _BOGUS)
    assert echo(node) == 0
    assert sum(map(peak, processes)) - before < _GROWTH


def test_http_is_closed_at_once(node: Server) -> None:
    """Who speaks HTTP on the DICOM port is closed, whatever more is to come."""
    with connect(node) as peer:
        peer.settimeout(5)
        peer.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert b"HTTP" not in said(peer)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(max_size=400))
def test_noise_ends_nothing(node: Server, noise: bytes) -> None:
    """After any bytes, and a closed connection, the node answers an echo."""
    with connect(node) as peer:
        peer.sendall(noise)
    assert echo(node) == 0


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), is_open=st.booleans())
def test_mutated_pdus_end_nothing(node: Server, data: st.DataObject, is_open: bool) -> None:
    """With some bytes changed in the request for an association, or in an object's message, the node serves on."""
    with ExitStack() as stack:
        if is_open:
            association = associate(node)
            peer = stack.enter_context(association.socket)
            sent = bytearray(by_lane(association, an_object("1.2.21.1")))
        else:
            peer = stack.enter_context(connect(node))
            contexts = {1: (VERIFICATION, [IMPLICIT]), 3: (CTImageStorage, [ExplicitVRLittleEndian])}
            sent = bytearray(association_request(node.ae_title, "MUTANT", contexts))
        for _ in range(data.draw(st.integers(1, 4))):
            sent[data.draw(st.integers(0, min(len(sent), 300) - 1))] = data.draw(st.integers(0, 255))
        with suppress(ConnectionResetError, BrokenPipeError):
            peer.sendall(sent)
            peer.shutdown(socket.SHUT_WR)
            said(peer)
    assert echo(node) == 0


@BOTH
@pytest.mark.parametrize("uid", ["../../../../tmp/segnode-was-here", "/etc/passwd", "1.2\0.3", "1.2.3/../4", "", "1" * 65])
def test_uids_are_no_paths(node: Server, pack, uid: str) -> None:
    """What is no UID is refused, whether the command or the data set has it, and no file is left anywhere."""
    before = settled(node)
    inside = an_object("1.2.21.22222")
    inside = replace(
        inside, sop_instance_uid=uid, data_set=inside.data_set.replace(b"1.2.21.22222", uid.encode()[:12].ljust(12))
    )
    with ExitStack() as stack:
        association = associate(node)
        stack.callback(association.socket.close)
        with suppress(NotAssociated):  # pynetdicom aborts on a command that it cannot read
            assert association.send(pack(association, inside)) in (0x0117, 0xA900, 0xC000)
    until(lambda: files(node) == before)
    assert not Path("/tmp/segnode-was-here").exists()
    assert echo(node) == 0


def deep(levels: int) -> bytes:
    """Sequences of undefined length in each other."""
    begin, end = (
        b"\x40\0\x75\x02SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff",
        b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0",
    )
    return begin * levels + end * levels


def broken(what: str) -> Sendable:
    """An object that is not as it should be."""
    item = an_object(f"1.2.21.3.{len(what)}")
    pixels = b"\xe0\x7f\x10\x00OW\0\0" + (1 << 31).to_bytes(4, "little") + b"abc"
    return replace(
        item,
        data_set={
            "nested 400 deep": item.data_set + deep(400),
            "nested 20000 deep": item.data_set + deep(20000),
            "short pixel data": item.data_set + pixels,
            "many frames": item.data_set + b"\x28\0\x08\0IS\x0a\x002147483648",
            "nothing": b"",
            "one byte": b"\x08",
        }[what],
    )


@BOTH
@pytest.mark.parametrize("what", ["nested 400 deep", "nested 20000 deep", "short pixel data", "many frames", "one byte"])
def test_broken_data_sets_get_a_status(node: Server, pack, what: str) -> None:
    """A broken data set is answered, and the same association goes on."""
    with associate(node) as association:
        status = association.send(pack(association, broken(what)))
        assert status in (0x0000, 0xC000)
        assert (status == 0) == (held(node, broken(what).sop_instance_uid) is not None)
        assert association.echo() == 0


@BOTH
def test_object_may_have_so_many_bytes(node: Server, pack) -> None:
    """An object over storage.largest_object is answered A700, leaves nothing, and the next is taken."""
    before = settled(node)
    large = an_object("1.2.21.4", SeriesDescription="x")
    large = replace(
        large, data_set=large.data_set + b"\xe0\x7f\x10\x00OW\0\0" + (3 << 20).to_bytes(4, "little") + bytes(3 << 20)
    )
    with associate(node) as association:
        assert association.send(pack(association, large)) == 0xA700
        assert files(node) == before
        assert association.send(pack(association, an_object(f"1.2.21.5.{len(pack.__name__)}"))) == 0


@pytest.mark.parametrize(
    ("control", "context", "more"),
    [
        (1, 0, b""),
        (0, 2, b""),
        (2, 0, b"\0\0\0\x04\1\2ab"),
        (0, 0, b"\0\0\xff\xff\1\0ab"),
        (0, 0, b"\0\0"),
        (0, 0, b"\0\0\0\0\1\0"),
    ],
)
def test_broken_fragments_end_the_association(node: Server, control: int, context: int, more: bytes) -> None:
    """Fragments of a data set that are none are answered with A-ABORT, and nothing is kept."""
    before, item = settled(node), an_object("1.2.21.6")
    association = associate(node)
    with association.socket as peer:
        number = association.context_of(item.sop_class_uid, item.transfer_syntax_uid)
        fragment = data_pdu(number + context, control, item.data_set)
        fragment = struct.pack(">BxI", 4, len(fragment) - 6 + len(more)) + fragment[6:] + more
        peer.sendall(data_pdu(number, 3, store_command(item)) + fragment)
        assert association.receive()[0] == ABORT
    until(lambda: files(node) == before)


def test_idle_and_half_open_connections_keep_nobody_out(node: Server) -> None:
    """With 200 associations that do nothing, and 200 connections that say nothing, an echo is answered within 5 seconds."""
    with ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(connect(node))
        for _ in range(200):
            stack.enter_context(open_association(node))
        assert echo(node) == 0


def test_silent_and_slow_peers_are_cut(tmp_path: Path) -> None:
    """Who says nothing, and who stops inside a PDU, before an association and in one, is cut, and leaves no file."""
    with segnode(tmp_path / "node", "models = []\nrules = []\n[dimse]\nartim = 1.0\nidle = 1.0\n", roles=("dimse",)) as node:
        before, item = settled(node), an_object("1.2.21.8")
        start = data_pdu(3, 3, store_command(item)) + data_pdu(3, 0, item.data_set[:100])
        for begin, some in (
            (connect, b""),
            (connect, b"\1"),
            (connect, struct.pack(">BxI", 1, 500) + bytes(100)),
            (open_association, b""),
            (open_association, b"\4\0\0"),
            (open_association, struct.pack(">BxI", 4, 500) + bytes(100)),
            (open_association, start),
            (open_association, start + struct.pack(">BxI", 4, 500)),
        ):
            with begin(node) as peer:
                peer.settimeout(20)
                peer.sendall(some)
                said(peer)
        until(lambda: files(node) == before)
        assert echo(node) == 0


def test_peer_that_trickles_is_cut(tmp_path: Path) -> None:
    """A PDU of which byte after byte comes does not take longer than it may, however often something comes of it."""
    with segnode(tmp_path / "node", "models = []\nrules = []\n[dimse]\nartim = 1.0\nidle = 1.0\n", roles=("dimse",)) as node:
        for begin, kind in ((connect, 1), (open_association, 4)):
            with begin(node) as peer:
                peer.sendall(struct.pack(">BxI", kind, 500))
                peer.settimeout(0.1)
                sent, answer = 0, b"until the node says something"
                while answer and sent < 500 and answer[0] != ABORT:
                    try:
                        answer = peer.recv(100)
                    except TimeoutError:
                        sent += peer.send(b"\0")
                    except ConnectionResetError:
                        break
                assert 0 < sent < 500
        assert echo(node) == 0


def test_flood_of_connections_is_bounded(tmp_path: Path) -> None:
    """Beyond what a process has threads for a connection is closed at once; when the others are gone, it serves as before."""
    with segnode(tmp_path / "node", "models = []\nrules = []\n", roles=("dimse",)) as node:
        with ExitStack() as stack:
            for _ in range(1500):
                peer = stack.enter_context(connect(node))
            peer.settimeout(20)
            assert said(peer) == b""
        until(lambda: echoes(node))


def test_many_open_associations_end_with_the_node(tmp_path: Path) -> None:
    """Each is aborted when the node stops, and none keeps it from stopping by itself."""
    with segnode(tmp_path / "node", "models = []\nrules = []\n", roles=("dimse",)) as node, ExitStack() as stack:
        peers = [stack.enter_context(open_association(node)) for _ in range(200)]
        node.process.send_signal(signal.SIGTERM)
        assert node.process.wait(30) == 0
        assert {said(peer)[:1] for peer in peers} == {b"\7"}
        assert "did not stop" not in node.log.read_text()


def echoes(node: Server) -> bool:
    """Whether an echo is answered."""
    try:
        return echo(node) == 0
    except (NotAssociated, OSError):
        return False


def test_half_a_pdu_takes_no_cpu(node: Server) -> None:
    """Who waits for the rest of a PDU sleeps: twenty that have sent half of one take less than a core's third."""
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(open_association(node)).sendall(struct.pack(">BxI", 4, 500) + bytes(100))
        processes = descendants(node.process.pid)
        before, began = cpu_seconds(processes), time.monotonic()
        time.sleep(2)  # nothing happens that could be waited for
        assert (cpu_seconds(processes) - before) / (time.monotonic() - began) < 1 / 3


def test_data_set_of_nothing_is_refused(node: Server) -> None:
    """A last fragment without bytes is a data set without UIDs."""
    item = an_object("1.2.21.7")
    with associate(node) as association:
        context = association.context_of(item.sop_class_uid, item.transfer_syntax_uid)
        empty = data_pdu(context, 2, b"")
        assert association.send(data_pdu(context, 3, store_command(item)) + empty) == 0xC000
        rest = b"".join(data_pdus(context, item.data_set, 1024))
        assert association.send(data_pdu(context, 3, store_command(item)) + rest) == 0


FIND = "1.2.840.10008.5.1.4.1.2.2.1"


def asks(kind: int, sop_class: str, data_set: int) -> bytes:
    """The command set of a C-ECHO or C-FIND."""
    elements = {
        messages.AFFECTED_SOP_CLASS_UID: sop_class,
        messages.COMMAND_FIELD: kind,
        messages.MESSAGE_ID: 7,
        messages.PRIORITY: 0,
        messages.DATA_SET_TYPE: data_set,
    }
    return messages.command_set(elements)


_BLOCK = bytes(100_000)


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (b"", data_pdu(1, 1, _BLOCK)),
        (b"", data_pdu(1, 0, _BLOCK)),
        (data_pdu(3, 3, asks(messages.C_FIND_RQ, FIND, messages.DATA_SET)), data_pdu(3, 0, _BLOCK)),
    ],
    ids=["command", "data before a command", "identifier"],
)
def test_message_without_an_end_is_cut(node: Server, first: bytes, again: bytes) -> None:
    """Whatever it is that is no object: of 100 MB no more than the longest message is in memory, and the peer is cut."""
    (process,) = [each for each in descendants(node.process.pid) if post_of(each) == "dimse-1"]
    forget_peak(process)
    before = resident(process)
    contexts = [(VERIFICATION, [IMPLICIT]), (FIND, [IMPLICIT])]
    peer = LightAssociation(node.dicom_port, node.ae_title, contexts).socket
    peer.settimeout(10)
    with peer, suppress(ConnectionResetError, BrokenPipeError):
        peer.sendall(first)
        for _ in range(1000):
            peer.sendall(again)
        raise AssertionError("it was taken")
    assert peak(process) - before < 3 * LONGEST_MESSAGE


def test_data_set_with_elements_of_files_is_refused(node: Server) -> None:
    """Kept behind file meta information they would be taken for a part of it, and the object for another: C000."""
    sop = fresh()
    item = an_object(sop)
    disguise = b"\2\0\x10\0UI\x16\x001.2.840.10008.1.2.4.50"
    for pack in (by_lane, by_pynetdicom):
        with associate(node) as association:
            status = association.send(pack(association, replace(item, data_set=disguise + item.data_set)))
        assert (status, held(node, sop)) == (0xC000, None)
    with associate(node) as association:
        assert association.send(by_lane(association, item)) == 0


def test_request_without_a_data_set_is_refused(node: Server) -> None:
    """A C-STORE that says it has none is answered with C000."""
    command = {
        messages.AFFECTED_SOP_CLASS_UID: str(CTImageStorage),
        messages.COMMAND_FIELD: messages.C_STORE_RQ,
        messages.MESSAGE_ID: 1,
        messages.PRIORITY: 0,
        messages.DATA_SET_TYPE: messages.NO_DATA_SET,
        messages.AFFECTED_SOP_INSTANCE_UID: fresh(),
    }
    with associate(node) as association:
        assert association.send(data_pdu(3, 3, messages.command_set(command))) == 0xC000
