"""A Storage SCP by the byte, for tests: it accepts whatever is proposed, and then does what a script says."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

_HEADER: Final = struct.Struct(">BxL")
_ABORT: Final = b"\x07\0\0\0\0\x04\0\0\0\0"


@dataclass
class RawAssociation:
    """An accepted association: its connection, what was proposed by context ID, and the length of each PDU that came."""

    connection: socket.socket
    proposed: dict[int, tuple[str, str]]
    lengths: list[int] = field(default_factory=list)
    last_id: int = 0

    def pdu(self) -> tuple[int, bytes]:
        """The next PDU: its type, and what follows its length. Raises EOFError."""
        kind, length = _HEADER.unpack(self._exactly(_HEADER.size))
        self.lengths.append(length)
        return kind, self._exactly(length)

    def message(self) -> tuple[int, bytes, bytes]:
        """The next message: its context ID, command set and data set. Raises EOFError where the association ends."""
        parts: dict[int, bytearray] = {1: bytearray(), 0: bytearray()}
        while True:
            kind, body = self.pdu()
            if kind == 5:  # A-RELEASE-RQ
                self.connection.sendall(b"\x06\0\0\0\0\x04\0\0\0\0")
                raise EOFError
            if kind != 4:  # P-DATA-TF
                raise EOFError
            context_id, control = body[4], body[5]
            parts[control & 1] += body[6:]
            if control == 2:  # the last of a data set
                self.last_id = struct.unpack("<H", _value(bytes(parts[1]), 0x0110))[0]
                return context_id, bytes(parts[1]), bytes(parts[0])

    def answer(self, context_id: int, status: int, message_id: int | None = None) -> None:
        """Answer the last C-STORE-RQ, or another."""
        elements = ((0x0100, 0x8001), (0x0120, message_id or self.last_id), (0x0800, 0x0101), (0x0900, status))
        body = b"".join(struct.pack("<HHLH", 0, element, 2, value) for element, value in elements)
        self.send_command(context_id, struct.pack("<HHLL", 0, 0, 4, len(body)) + body)

    def send_command(self, context_id: int, command: bytes) -> None:
        """Send a command set, whatever that is."""
        head = struct.pack(">BxLLBB", 4, len(command) + 6, len(command) + 2, context_id, 3)
        self.connection.sendall(head + command)

    def abort(self) -> None:
        """Send an A-ABORT, and leave the connection open."""
        self.connection.sendall(_ABORT)

    def drain(self) -> int:
        """Read until the other side ends; how many bytes came."""
        count = 0
        with suppress(OSError):
            while received := self.connection.recv(1 << 20):
                count += len(received)
        return count

    def _exactly(self, length: int) -> bytes:
        received = bytearray()
        while len(received) < length:
            more = self.connection.recv(length - len(received))
            if not more:
                raise EOFError
            received += more
        return bytes(received)


Script = Callable[[RawAssociation], object]


@contextmanager
def raw_scp(script: Script, maximum_pdu: int = 16384) -> Iterator[tuple[str, list[RawAssociation]]]:
    """Run the script in each association, one after the other: its address, and the associations so far.

    The script may end by OSError or EOFError; the connection is closed then.
    """
    associations: list[RawAssociation] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=_serve, args=(listening, script, maximum_pdu, associations))
        thread.start()
        try:
            yield f"RAW@127.0.0.1:{listening.getsockname()[1]}", associations
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            for association in associations:
                with suppress(OSError):
                    association.connection.shutdown(socket.SHUT_RDWR)
            thread.join()


def _serve(listening: socket.socket, script: Script, maximum_pdu: int, associations: list[RawAssociation]) -> None:
    while True:
        try:
            connection, _ = listening.accept()
        except OSError:
            return
        with connection, suppress(OSError, EOFError):
            association = RawAssociation(connection, {})
            _, request = association.pdu()
            association.lengths.clear()
            association.proposed.update(_proposed(request))
            connection.sendall(_acceptance(request, association.proposed, maximum_pdu))
            associations.append(association)
            script(association)


def _items(body: bytes) -> Iterator[tuple[int, bytes]]:
    place = 0
    while place < len(body):
        kind, length = struct.unpack_from(">BxH", body, place)
        yield kind, body[place + 4 : place + 4 + length]
        place += 4 + length


def _proposed(request: bytes) -> Iterator[tuple[int, tuple[str, str]]]:
    for kind, body in _items(request[68:]):
        if kind == 0x20:  # a presentation context
            inner = dict(_items(body[4:]))
            yield body[0], (inner[0x30].decode(), inner[0x40].decode())


def _acceptance(request: bytes, proposed: dict[int, tuple[str, str]], maximum_pdu: int) -> bytes:
    body = request[:68] + _item(0x10, b"1.2.840.10008.3.1.1.1")
    for context_id, (_, syntax) in proposed.items():
        body += _item(0x21, bytes((context_id, 0, 0, 0)) + _item(0x40, syntax.encode()))
    body += _item(0x50, _item(0x51, struct.pack(">L", maximum_pdu)) + _item(0x52, b"1.2.3"))
    return _HEADER.pack(2, len(body)) + body


def _item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(body)) + body


def _value(command: bytes, element: int) -> bytes:
    place = 0
    while place < len(command):
        _, number, length = struct.unpack_from("<HHL", command, place)
        if number == element:
            return command[place + 8 : place + 8 + length]
        place += 8 + length
    raise EOFError
