"""The lane that sends by C-STORE, with peers by the byte, pynetdicom and TLS at the other end."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, evt

from segnode.config import parse_dimse_address
from segnode.dicom.header import read_file_meta
from segnode.dimse.peer import DimsePeer
from segnode.dimse.scu import storing
from segnode.dimse.send_lane import SendLane
from segnode.dimse.store_messages import Originator
from segnode.errors import BrokeOff, DeliveryDeferred, DeliveryRefused, FormRefused
from segnode.testing.part10 import encode_part10
from segnode.testing.raw_scp import RawAssociation, raw_scp

KIND = (str(CTImageStorage), str(ExplicitVRLittleEndian))
LARGE = 1 << 31


def header(uid: str = "1.2.3.4") -> bytes:
    """A Part 10 file with next to nothing in it."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, uid
    return encode_part10(dataset, ExplicitVRLittleEndian)


def sparse(folder: Path, size: int = LARGE) -> Path:
    """A file of that size, which takes no room on the disk."""
    path = folder / "large.dcm"
    with path.open("wb") as file:
        file.write(header())
        file.truncate(size)
    return path


@contextmanager
def lane(address: str, timeout_s: float = 20) -> Iterator[SendLane]:
    """A lane to a peer."""
    with storing(DimsePeer(parse_dimse_address(address, ""), "TEST", timeout_s), {KIND}) as opened:
        yield opened


def take_all(association: RawAssociation) -> None:
    """Store whatever comes."""
    while True:
        context_id, *_ = association.message()
        association.answer(context_id, 0)


@pytest.mark.parametrize(
    ("maximum", "longest"), [(0, 131072), (8, 8), (9, 8), (4096, 4096), (4097, 4096), (16384, 16384), (1 << 31, 1 << 20)]
)
def test_maximum_pdu_of_the_peer_is_kept_to(maximum: int, longest: int) -> None:
    """No PDU is longer, and the longest is as long as may be; without a limit 128 KiB, of as much as anybody likes 1 MiB."""
    body = bytes(range(256)) * (1 if maximum in (8, 9) else 8300)
    got: list[bytes] = []

    def take(association: RawAssociation) -> None:
        while True:
            context_id, _, data = association.message()
            got.append(data)
            association.answer(context_id, 0)

    part10 = header() + body
    with raw_scp(take, maximum) as (address, associations), lane(address) as sends:
        assert sends.store(part10) == "status 0x0000"
        assert max(associations[0].lengths) == longest
    assert got[0].endswith(body)
    assert len(got[0]) == len(part10) - read_offset(part10)


def read_offset(part10: bytes) -> int:
    """Where the data set of a Part 10 file begins."""
    from io import BytesIO

    return read_file_meta(BytesIO(part10)).dataset_offset


def test_maximum_pdu_without_room_is_refused() -> None:
    """A peer that allows PDUs in which nothing can be is not sent anything."""
    with raw_scp(take_all, 7) as (address, _), pytest.raises(DeliveryRefused, match="maximum PDU length of 7"), lane(address):
        pass


def test_messages_are_numbered_and_name_who_moves() -> None:
    """Each request has an ID of its own; one for a C-MOVE says of whom and which (PS3.7 9.3.1.1)."""
    commands: list[bytes] = []

    def take(association: RawAssociation) -> None:
        while True:
            context_id, command, _ = association.message()
            commands.append(command)
            association.answer(context_id, 0)

    with raw_scp(take) as (address, _), lane(address) as sends:
        sends.store(header())
        sends.store(header(), Originator("MOVER", 7))
    assert [command[command.index(b"\x10\x01\x02\0\0\0") + 6] for command in commands] == [1, 2]
    assert b"\x30\x10\x06\0\0\0MOVER " not in commands[0]
    assert b"\x30\x10\x06\0\0\0MOVER \0\0\x31\x10\x02\0\0\0\x07\0" in commands[1]


@pytest.mark.parametrize("reads_on", [True, False])
def test_abort_by_the_peer_ends_a_large_object_at_once(tmp_path: Path, reads_on: bool) -> None:
    """Whether the peer reads on or not: most of two gigabytes is never sent."""
    came: list[int] = []

    def abort(association: RawAssociation) -> None:
        association.pdu()
        association.abort()
        came.append(association.drain() if reads_on else 0)

    path = sparse(tmp_path)
    with raw_scp(abort) as (address, _), lane(address) as sends, pytest.raises(BrokeOff, match="aborted there|broke off"):
        sends.store(path)
    assert came[0] < LARGE / 2


def test_abort_here_ends_a_large_object_at_once(tmp_path: Path) -> None:
    """Another thread aborts while the peer reads nothing: the sender does not wait for its time-out of an hour."""
    begun, ended = threading.Event(), threading.Event()

    def wait(association: RawAssociation) -> None:
        association.pdu()
        begun.set()
        ended.wait(60)

    path = sparse(tmp_path)
    with raw_scp(wait) as (address, _), lane(address, 3600) as sends:

        def abort() -> None:
            begun.wait(60)
            sends._association.abort()

        aborting = threading.Thread(target=abort)
        aborting.start()
        with pytest.raises(BrokeOff):
            sends.store(path)
        ended.set()
        aborting.join()


@pytest.mark.parametrize("after", ["nothing", "a PDU", "the object"])
def test_connection_that_is_closed(tmp_path: Path, after: str) -> None:
    """At whatever point: it is not known whether the peer has the object, and nothing more goes in that association."""
    established = threading.Event()

    def close(association: RawAssociation) -> None:
        established.wait(60)  # closed before, it would be no association
        if after == "a PDU":
            association.pdu()
        elif after == "the object":
            association.message()

    with raw_scp(close) as (address, _), lane(address) as sends:
        established.set()
        with pytest.raises(BrokeOff, match="broke off before the object was acknowledged"):
            sends.store(sparse(tmp_path, 1 << 22))
        with pytest.raises(BrokeOff):
            sends.store(header())


BOGUS: dict[str, tuple[Callable[[RawAssociation], object], str]] = {
    "another message": (lambda a: a.answer(1, 0, message_id=77), "answers message 77, and not 1"),
    "unknown PDU": (lambda a: a.connection.sendall(b"\x09\0\0\0\0\x04abcd"), "PDU of type 09"),
    "HTTP": (lambda a: a.connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "PDU of type 48"),
    "association again": (lambda a: a.connection.sendall(b"\x02\0\0\0\0\x04abcd"), "PDU of type 02"),
    "PDU of 4 GiB": (lambda a: a.connection.sendall(b"\x04\0\xff\xff\xff\xff"), "length 4294967295"),
    "fragment beyond its PDU": (lambda a: a.connection.sendall(b"\x04\0\0\0\0\x06\0\0\0\x63\x01\x03"), "ends outside of it"),
    "half a fragment": (lambda a: a.connection.sendall(b"\x04\0\0\0\0\x03\0\0\0"), "ends inside the header"),
    "no command set": (lambda a: a.send_command(1, b"\x08\0\x05\0\x02\0\0\0ab"), "no command set"),
    "half an element": (lambda a: a.send_command(1, b"\0\0\0\x09"), "ends inside an element"),
    "no status": (lambda a: a.send_command(1, b"\0\0\0\1\x02\0\0\0\x01\x80\0\0\x20\1\x02\0\0\0\1\0"), "is not one"),
    "release": (lambda a: a.connection.sendall(b"\x05\0\0\0\0\x04\0\0\0\0"), "released"),
    "abort": (lambda a: a.abort(), "aborted there"),
}


@pytest.mark.parametrize("what", BOGUS)
def test_answer_that_is_none_is_an_error(what: str) -> None:
    """Bogus bytes in place of a response end the association, with an error that says what came."""
    answer, said = BOGUS[what]
    ended = threading.Event()

    def bogus(association: RawAssociation) -> None:
        association.message()
        answer(association)
        association.drain()
        ended.set()

    with raw_scp(bogus) as (address, _), lane(address) as sends:
        with pytest.raises(BrokeOff, match=said):
            sends.store(header())
        assert ended.wait(10)
        assert not sends._association.is_established


def test_silent_peer_is_not_waited_for(tmp_path: Path) -> None:
    """One that gives no answer, or takes nothing more, ends the association when its time is over."""
    done = threading.Event()
    for script, path, said in (
        (lambda a: (a.message(), done.wait(60)), header(), "no answer in time"),
        (lambda a: (a.pdu(), done.wait(60)), sparse(tmp_path), "takes nothing more in time"),
    ):
        start = time.monotonic()
        with raw_scp(script) as (address, _):
            with lane(address, 0.5) as sends, pytest.raises(BrokeOff, match=said):
                sends.store(path)
            assert time.monotonic() - start < 10
            done.set()
        done.clear()


def test_other_message_is_pynetdicoms(tmp_path: Path) -> None:
    """A C-CANCEL-RQ that comes before the response does not keep the object from being stored, nor the next one."""

    def cancel(association: RawAssociation) -> None:
        while True:
            context_id, *_ = association.message()
            elements = ((0x0100, 0x0FFF), (0x0120, 1), (0x0800, 0x0101))
            import struct

            body = b"".join(struct.pack("<HHLH", 0, element, 2, value) for element, value in elements)
            association.send_command(context_id, struct.pack("<HHLL", 0, 0, 4, len(body)) + body)
            association.answer(context_id, 0)

    with raw_scp(cancel) as (address, associations), lane(address) as sends:
        assert [sends.store(header()) for _ in range(2)] == ["status 0x0000"] * 2
    assert len(associations) == 1


def test_file_that_shrinks_is_an_error_of_its_own(tmp_path: Path) -> None:
    """It is not the peer's fault: the connection is cut, as half an object is no object."""
    path, begun, go_on = sparse(tmp_path, 1 << 28), threading.Event(), threading.Event()
    came: list[int] = []

    def wait(association: RawAssociation) -> None:
        association.pdu()
        begun.set()
        go_on.wait(60)
        came.append(association.drain())

    def shrink() -> None:
        begun.wait(60)
        with path.open("r+b") as file:
            file.truncate(1 << 20)
        go_on.set()

    shrinking = threading.Thread(target=shrink)
    with raw_scp(wait) as (address, _), lane(address) as sends:
        shrinking.start()
        with pytest.raises(DeliveryRefused, match="changed while it was sent"):
            sends.store(path)
        shrinking.join()
    assert came[0] < 1 << 28


def test_what_is_no_dicom_or_not_negotiated_leaves_the_association(tmp_path: Path) -> None:
    """They are refused here, and the next object goes in the same association."""
    (tmp_path / "note.txt").write_text("no DICOM")
    other = Dataset()
    other.SOPClassUID, other.SOPInstanceUID = "1.2.3.99", "1.2.3.5"
    with raw_scp(take_all) as (address, associations), lane(address) as sends:
        for wrong, said in (
            (tmp_path / "note.txt", "not a DICOM file"),
            (tmp_path / "nothing", "cannot be read"),
            (encode_part10(other, ExplicitVRLittleEndian), "1.2.3.99 in .* was not negotiated"),
        ):
            with pytest.raises(FormRefused, match=said):
                sends.store(wrong)
        assert sends.store(header()) == "status 0x0000"
    assert len(associations) == 1


@pytest.mark.parametrize(("status", "error"), [(0xA700, DeliveryDeferred), (0x0122, FormRefused), (0x0124, DeliveryRefused)])
def test_status_leaves_the_association(status: int, error: type[Exception]) -> None:
    """What the peer says of one object is said of that; the next goes in the same association."""
    statuses = iter((status, 0))

    def take(association: RawAssociation) -> None:
        for answer in statuses:
            context_id, *_ = association.message()
            association.answer(context_id, answer)
        association.message()

    with raw_scp(take) as (address, associations), lane(address) as sends:
        with pytest.raises(error, match=f"status 0x{status:04X}"):
            sends.store(header())
        assert sends.store(header()) == "status 0x0000"
    assert len(associations) == 1


def test_idle_association_is_answered_and_released(tmp_path: Path) -> None:
    """Between two objects pynetdicom has the socket again; in the end it releases the association as it should."""
    released = threading.Event()
    ae = AE("SINK")
    ae.add_supported_context(*KIND)
    handlers = [(evt.EVT_C_STORE, lambda _: 0), (evt.EVT_RELEASED, lambda _: released.set())]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    try:
        with lane(f"SINK@127.0.0.1:{server.server_address[1]}") as sends:
            sends.store(header())
            assert sends._association.dul.socket.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            dul, looked = sends._association.dul, threading.Event()
            look = dul._is_transport_event
            dul._is_transport_event = lambda: (look(), looked.set())[0]
            assert looked.wait(10)
            sends.store(header())
        assert released.wait(10)
    finally:
        server.shutdown()
