"""A light C-STORE client: every byte of its messages is made before the clock starts, so that it costs next to nothing.

It speaks the upper layer (PS3.8 9.3), C-STORE and C-ECHO (PS3.7 9.3.1, 9.3.5) by itself: what it measures and tests must
not be measured, or tested, by its own code.
"""

import socket
import ssl
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from segnode.errors import SegnodeError

VERIFICATION: Final = "1.2.840.10008.1.1"
IMPLICIT: Final = "1.2.840.10008.1.2"
DATA: Final = 4
_ACCEPT, _RELEASE_REQUEST, _RELEASE_RESPONSE = 2, 5, 6
_APPLICATION_CONTEXT: Final = b"1.2.840.10008.3.1.1.1"
_IMPLEMENTATION: Final = b"1.2.826.0.1.3680043.8.498.7"
_TIMEOUT_S: Final = 60.0
_STORE, _ECHO = 0x0001, 0x0030
_HAS_DATA_SET, _NO_DATA_SET = 0x0001, 0x0101
_STATUS: Final = b"\0\0\0\x09\2\0\0\0"
_OWN_MAXIMUM: Final = 16384
# What a peer that names no maximum is sent.
_LARGEST_PDU: Final = 131072
_META_AT: Final = 132
_LONG: Final = (b"OB", b"UN")

Context = tuple[str, Sequence[str]]


class NotAssociated(SegnodeError):
    """The peer has refused, aborted or closed."""


@dataclass(frozen=True)
class Sendable:
    """An object to be sent: its identity, and its data set in a transfer syntax."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data_set: bytes


def sendable(part10: bytes) -> Sendable:
    """Take a Part 10 file apart (PS3.10 7.1)."""
    found, offset = dict[int, str](), _META_AT
    while part10[offset : offset + 2] == b"\2\0":
        _, number, vr, length = struct.unpack_from("<HH2sH", part10, offset)
        offset += 8
        if vr in _LONG:
            (length,) = struct.unpack_from("<I", part10, offset)
            offset += 4
        found[number] = part10[offset : offset + length].decode("latin-1").rstrip(" \0")
        offset += length
    return Sendable(found[0x0002], found[0x0003], found[0x0010], part10[offset:])


class LightAssociation:
    """An association with a peer on loopback; `contexts` are offered in this order. Raises NotAssociated.

    `contexts` accepted are in `accepted`, by id: the transfer syntax; ids are odd numbers from 1 on.
    """

    def __init__(
        self,
        port: int,
        called: str,
        contexts: Sequence[Context],
        tls: ssl.SSLContext | None = None,
        calling: str = "LIGHT",
    ) -> None:
        plain = socket.create_connection(("127.0.0.1", port), _TIMEOUT_S)
        self.socket = tls.wrap_socket(plain, server_hostname="127.0.0.1") if tls else plain
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.offered = {2 * number + 1: context for number, context in enumerate(contexts)}
        self.socket.sendall(association_request(called, calling, self.offered))
        kind, body = self.receive()
        if kind != _ACCEPT:
            raise NotAssociated(f"PDU {kind} in place of A-ASSOCIATE-AC")
        self.accepted, self.maximum = _read_acceptance(body)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.release()
        self.socket.close()

    def context_of(self, sop_class: str, transfer_syntax: str) -> int:
        """The id of an accepted context. Raises NotAssociated where there is none."""
        for number, (abstract, _) in self.offered.items():
            if abstract == sop_class and self.accepted.get(number) == transfer_syntax:
                return number
        raise NotAssociated(f"no context for {sop_class} in {transfer_syntax}")

    def packed(self, item: Sendable, message: int = 1) -> bytes:
        """All that is sent of an object, in PDUs as long as the peer takes."""
        context = self.context_of(item.sop_class_uid, item.transfer_syntax_uid)
        return b"".join([data_pdu(context, 3, store_command(item, message)), *data_pdus(context, item.data_set, self.maximum)])

    def send(self, packed: bytes) -> int:
        """Send what was packed; the status of the answer."""
        self.socket.sendall(packed)
        return self.status()

    def echo(self) -> int:
        """The status of a C-ECHO."""
        elements = ((0x0002, _uid(VERIFICATION)), (0x0100, _short(_ECHO)), (0x0110, _short(7)), (0x0800, _short(_NO_DATA_SET)))
        return self.send(data_pdu(self.context_of(VERIFICATION, IMPLICIT), 3, _command(elements)))

    def status(self) -> int:
        """The status of the next answer. Raises NotAssociated where another PDU comes."""
        kind, body = self.receive()
        if kind != DATA:
            raise NotAssociated(f"PDU {kind} in place of an answer")
        at = body.index(_STATUS) + len(_STATUS)
        return int.from_bytes(body[at : at + 2], "little")

    def receive(self) -> tuple[int, bytes]:
        """Type and content of the next PDU. Raises NotAssociated where the peer has closed."""
        kind, length = struct.unpack(">BxI", self._exactly(6))
        return kind, self._exactly(length)

    def release(self) -> None:
        """Release the association. Raises NotAssociated where the peer does not answer that."""
        self.socket.sendall(struct.pack(">BxI4x", _RELEASE_REQUEST, 4))
        kind, _ = self.receive()
        if kind != _RELEASE_RESPONSE:
            raise NotAssociated(f"PDU {kind} in place of A-RELEASE-RP")

    def _exactly(self, size: int) -> bytes:
        got = bytearray()
        while len(got) < size:
            block = self.socket.recv(size - len(got))
            if not block:
                raise NotAssociated("the peer has closed the connection")
            got += block
        return bytes(got)


def association_request(called: str, calling: str, contexts: dict[int, Context]) -> bytes:
    """An A-ASSOCIATE-RQ (PS3.8 9.3.2)."""
    items = [_item(0x10, _APPLICATION_CONTEXT)]
    for number, (abstract, syntaxes) in contexts.items():
        syntax_items = b"".join(_item(0x40, syntax.encode()) for syntax in syntaxes)
        items.append(_item(0x20, struct.pack(">B3x", number) + _item(0x30, abstract.encode()) + syntax_items))
    items.append(_item(0x50, _item(0x51, struct.pack(">I", _OWN_MAXIMUM)) + _item(0x52, _IMPLEMENTATION)))
    body = struct.pack(">H2x16s16s32x", 1, called.ljust(16).encode(), calling.ljust(16).encode()) + b"".join(items)
    return struct.pack(">BxI", 1, len(body)) + body


def store_command(item: Sendable, message: int = 1) -> bytes:
    """The command set of a C-STORE-RQ."""
    elements = (
        (0x0002, _uid(item.sop_class_uid)),
        (0x0100, _short(_STORE)),
        (0x0110, _short(message)),
        (0x0700, _short(0)),
        (0x0800, _short(_HAS_DATA_SET)),
        (0x1000, _uid(item.sop_instance_uid)),
    )
    return _command(elements)


def data_pdu(context: int, control: int, value: bytes) -> bytes:
    """A P-DATA-TF of one PDV; `control` has the bits of a command (1) and of the last fragment (2)."""
    return struct.pack(">BxIIBB", DATA, len(value) + 6, len(value) + 2, context, control) + value


def data_pdus(context: int, data_set: bytes, maximum: int) -> Iterator[bytes]:
    """A data set in P-DATA-TFs of that length at most."""
    room = maximum - 6
    for start in range(0, len(data_set), room):
        fragment = data_set[start : start + room]
        yield data_pdu(context, 2 if start + room >= len(data_set) else 0, fragment)


def _command(elements: Sequence[tuple[int, bytes]]) -> bytes:
    packed = b"".join(struct.pack("<HHI", 0, number, len(value)) + value for number, value in elements)
    return struct.pack("<HHII", 0, 0, 4, len(packed)) + packed


def _uid(uid: str) -> bytes:
    return uid.encode() + b"\0" * (len(uid) % 2)


def _short(number: int) -> bytes:
    return struct.pack("<H", number)


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def _read_acceptance(body: bytes) -> tuple[dict[int, str], int]:
    """The transfer syntaxes of what was accepted, by id, and the longest PDU that the peer takes."""
    accepted, maximum = dict[int, str](), _LARGEST_PDU
    for kind, value in _items(body[68:]):
        if kind == 0x21 and value[2] == 0:
            accepted[value[0]] = next(syntax for _, syntax in _items(value[4:])).decode().rstrip("\0 ")
        elif kind == 0x50:
            for inner, said in _items(value):
                if inner == 0x51:
                    maximum = int.from_bytes(said, "big") or _LARGEST_PDU
    return accepted, min(maximum, _LARGEST_PDU)


def _items(body: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset < len(body):
        kind, length = struct.unpack_from(">BxH", body, offset)
        yield kind, body[offset + 4 : offset + 4 + length]
        offset += 4 + length
