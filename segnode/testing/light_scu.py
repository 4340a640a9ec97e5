"""A light SCU: asks by C-FIND and C-GET on a bare socket, counts what comes, and makes nothing of it.

What it takes itself is little beside what it measures.
"""

import socket
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from segnode.config import DimseAddress
from segnode.dicom.uids import IMPLEMENTATION_CLASS_UID
from segnode.dimse import messages
from segnode.dimse.messages import command_set, fragments, number_in, pdus, read_command_set

LONGEST_PDU: Final = 1 << 17
_IMPLICIT: Final = "1.2.840.10008.1.2"
_APPLICATION_CONTEXT: Final = "1.2.840.10008.3.1.1.1"
_PENDING: Final = (0xFF00, 0xFF01)
_RELEASE: Final = struct.pack(">BBII", 5, 0, 4, 0)
_ASSOCIATE_AC: Final = 2
_TIMEOUT_S: Final = 60.0
_CANCEL: Final[dict[int, messages.Value]] = {
    messages.COMMAND_FIELD: messages.C_CANCEL_RQ,
    messages.MESSAGE_ID_BEING_RESPONDED_TO: 1,
    messages.DATA_SET_TYPE: messages.NO_DATA_SET,
}


@dataclass
class Counted:
    """What came of a request: the last status, how many pending responses, objects and bytes of data sets."""

    status: int = -1
    pending: int = 0
    objects: int = 0
    size: int = 0


@contextmanager
def light_association(address: DimseAddress, model: str, gets: Collection[tuple[str, str]] = ()) -> Iterator["LightScu"]:
    """An association for a model of Query/Retrieve, and for objects of these classes and syntaxes that it is to be given."""
    with socket.create_connection((address.host, address.port), _TIMEOUT_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        contexts = [(model, _IMPLICIT), *gets]
        connection.sendall(_associate(address.ae_title, contexts, {sop_class for sop_class, _ in gets}))
        scu = LightScu(connection, model)
        kind, _ = scu.read()
        if kind != _ASSOCIATE_AC:
            raise ConnectionError(f"the association is not accepted: PDU type {kind}")
        yield scu
        with suppress(OSError):
            connection.sendall(_RELEASE)
            scu.read()


class LightScu:
    """An association that is open."""

    def __init__(self, connection: socket.socket, model: str) -> None:
        self._connection = connection
        self._model = model
        self._buffer = memoryview(bytearray(LONGEST_PDU))

    def send(self, command_field: int, identifier: bytes, *, cancel: bool = False) -> None:
        """Send a request (C_FIND_RQ, C_GET_RQ) with an identifier in implicit little endian, and C-CANCEL with it."""
        request: dict[int, messages.Value] = {
            messages.AFFECTED_SOP_CLASS_UID: self._model,
            messages.COMMAND_FIELD: command_field,
            messages.MESSAGE_ID: 1,
            messages.PRIORITY: 0,
            messages.DATA_SET_TYPE: messages.DATA_SET,
        }
        size = messages.fragment_size(16384)
        sent = pdus(1, command_set(request), size, is_command=True) + pdus(1, identifier, size, is_command=False)
        if cancel:
            sent += pdus(1, command_set(_CANCEL), size, is_command=True)
        self.write(sent)

    def write(self, sent: bytes) -> None:
        """Send bytes, whatever they are."""
        self._connection.sendall(sent)

    def cut(self) -> None:
        """Close the connection without a word."""
        self._connection.shutdown(socket.SHUT_RDWR)

    def ask(self, command_field: int, identifier: bytes, *, cancel: bool = False) -> Counted:
        """Send a request; what came of it."""
        self.send(command_field, identifier, cancel=cancel)
        counted, values = Counted(), dict[int, bytes]()
        while True:
            kind, field = self.read()
            if kind != messages.P_DATA:
                raise ConnectionError(f"instead of an answer: PDU type {kind}")
            for context_id, is_command, is_last, fragment in fragments(field):
                if is_command:
                    values = read_command_set(fragment)
                    if number_in(values, messages.COMMAND_FIELD) == command_field | messages.RESPONSE:
                        counted.status = number_in(values, messages.STATUS)
                        counted.pending += counted.status in _PENDING
                        if counted.status not in _PENDING and not _has_data_set(values):
                            return counted
                    continue
                counted.size += len(fragment)
                if is_last and number_in(values, messages.COMMAND_FIELD) == messages.C_STORE_RQ:
                    counted.objects += 1
                    self._connection.sendall(_stored(context_id, values))
                elif is_last and counted.status not in _PENDING:
                    return counted

    def read(self) -> tuple[int, memoryview]:
        """The type and the variable field of the next PDU, which is there until the next is read. Raises ConnectionError."""
        kind, length = messages.PDU_HEADER.unpack(self._fill(messages.PDU_HEADER.size))
        return kind, self._fill(length)

    def _fill(self, length: int) -> memoryview:
        place = 0
        while place < length:
            received = self._connection.recv_into(self._buffer[place:length])
            if not received:
                raise ConnectionError("the connection was closed")
            place += received
        return self._buffer[:length]


def _has_data_set(values: dict[int, bytes]) -> bool:
    return number_in(values, messages.DATA_SET_TYPE) != messages.NO_DATA_SET


def _stored(context_id: int, request: dict[int, bytes]) -> bytes:
    response: dict[int, messages.Value] = {
        messages.AFFECTED_SOP_CLASS_UID: request[messages.AFFECTED_SOP_CLASS_UID].decode("ascii").rstrip("\0"),
        messages.COMMAND_FIELD: messages.C_STORE_RQ | messages.RESPONSE,
        messages.MESSAGE_ID_BEING_RESPONDED_TO: number_in(request, messages.MESSAGE_ID),
        messages.DATA_SET_TYPE: messages.NO_DATA_SET,
        messages.STATUS: 0,
    }
    return pdus(context_id, command_set(response), messages.fragment_size(16384), is_command=True)


def _associate(called: str, contexts: Collection[tuple[str, str]], gets: Collection[str]) -> bytes:
    """An A-ASSOCIATE-RQ PDU (PS3.8 9.3.2), with the SCP role for what is got (PS3.7 D.3.3.4)."""
    proposed = b""
    for number, (abstract, syntax) in enumerate(contexts):
        proposed += _item(0x20, struct.pack("BBBB", 2 * number + 1, 0, 0, 0) + _uid(0x30, abstract) + _uid(0x40, syntax))
    user = _item(0x51, struct.pack(">I", LONGEST_PDU)) + _uid(0x52, IMPLEMENTATION_CLASS_UID)
    for sop_class in gets:
        user += _item(0x54, struct.pack(">H", len(sop_class)) + sop_class.encode() + b"\0\1")
    body = struct.pack(">HH16s16s32x", 1, 0, called.ljust(16).encode(), b"LIGHT".ljust(16))
    body += _uid(0x10, _APPLICATION_CONTEXT) + proposed + _item(0x50, user)
    return struct.pack(">BBI", 1, 0, len(body)) + body


def _uid(kind: int, uid: str) -> bytes:
    return _item(kind, uid.encode())


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value
