"""DIMSE messages by hand: command sets (PS3.7 6.3.1, E.1) and the P-DATA-TF PDUs that carry them (PS3.8 9.3.5)."""

import struct
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Final

from segnode.dicom.elements import Buffer

C_STORE_RQ: Final = 0x0001
C_FIND_RQ: Final = 0x0020
C_GET_RQ: Final = 0x0010
C_CANCEL_RQ: Final = 0x0FFF
RESPONSE: Final = 0x8000  # what the command field of a response has more than that of its request

AFFECTED_SOP_CLASS_UID: Final = 0x0002
COMMAND_FIELD: Final = 0x0100
MESSAGE_ID: Final = 0x0110
MESSAGE_ID_BEING_RESPONDED_TO: Final = 0x0120
PRIORITY: Final = 0x0700
DATA_SET_TYPE: Final = 0x0800
STATUS: Final = 0x0900
OFFENDING_ELEMENT: Final = 0x0901
ERROR_COMMENT: Final = 0x0902
AFFECTED_SOP_INSTANCE_UID: Final = 0x1000
REMAINING: Final = 0x1020
COMPLETED: Final = 0x1021
FAILED: Final = 0x1022
WARNING: Final = 0x1023
ORIGINATOR: Final = 0x1030
ORIGINATOR_MESSAGE_ID: Final = 0x1031

DATA_SET: Final = 0x0001
NO_DATA_SET: Final = 0x0101
LONGEST_COMMENT: Final = 64

P_DATA: Final = 4
A_RELEASE_RQ: Final = 5
A_ABORT: Final = 7
ABORT_PDU: Final = b"\x07\0\0\0\0\x04\0\0\0\0"  # by the user of the service (PS3.8 9.3.8)
PDU_HEADER: Final = struct.Struct(">BxI")
_HEADERS: Final = struct.Struct(">BxIIBB")
_PDV_HEADER: Final = struct.Struct(">IBB")
# Bits of a message control header (PS3.8 E.2).
COMMAND, LAST = 0x01, 0x02
# What a PDU of the greatest length has beside a fragment, and what it is where the peer sets none (PS3.8 D.1).
_BESIDE: Final = _PDV_HEADER.size
# Of those that have room for a message at all.
SHORTEST_PDU: Final = _BESIDE + 2
_UNLIMITED: Final = 1 << 17
_ELEMENT: Final = struct.Struct("<HHI")
_UIDS: Final = (AFFECTED_SOP_CLASS_UID, AFFECTED_SOP_INSTANCE_UID)

Value = int | str


def command_set(elements: Mapping[int, Value]) -> bytes:
    """A command set of elements of group 0000, in the order of their numbers: implicit little endian, its length first."""
    body = b"".join(_element(number, elements[number]) for number in sorted(elements))
    return _ELEMENT.pack(0, 0, 4) + struct.pack("<I", len(body)) + body


def read_command_set(command: Buffer) -> dict[int, bytes]:
    """The values of a command set by the numbers of their elements. Raises ValueError for what is none."""
    values: dict[int, bytes] = {}
    place = 0
    while place < len(command):
        if place + _ELEMENT.size > len(command):
            raise ValueError("a command set ends inside an element")
        group, number, length = _ELEMENT.unpack_from(command, place)
        start = place + _ELEMENT.size
        place = start + length
        if group != 0 or place > len(command):
            raise ValueError("a command set holds what is no element of it")
        values[number] = bytes(command[start:place])
    return values


def number_in(values: Mapping[int, bytes], number: int) -> int:
    """The value of an element of VR US; -1 where there is none."""
    value = values.get(number, b"")
    return int.from_bytes(value, "little") if len(value) == 2 else -1


def fragment_size(longest_pdu: int) -> int:
    """How many bytes of a message a P-DATA-TF PDU has at most, for a peer that takes PDUs of that length; 0 is of any."""
    return max(2, (longest_pdu or _UNLIMITED) - _BESIDE & ~1)


def pdus(context_id: int, message: bytes, size: int, *, is_command: bool) -> bytes:
    """A command set or a data set in P-DATA-TF PDUs, each with a fragment of at most so many bytes."""
    if len(message) <= size:
        return headers(context_id, len(message), is_command=is_command, is_last=True) + message
    pieces = []
    for start in range(0, len(message), size):
        piece = message[start : start + size]
        pieces.append(headers(context_id, len(piece), is_command=is_command, is_last=start + size >= len(message)))
        pieces.append(piece)
    return b"".join(pieces)


def headers(context_id: int, length: int, *, is_command: bool, is_last: bool) -> bytes:
    """What stands before a fragment of that length."""
    control = (COMMAND if is_command else 0) | (LAST if is_last else 0)
    return _HEADERS.pack(P_DATA, length + _BESIDE, length + 2, context_id, control)


HEADERS_LENGTH: Final = _HEADERS.size


def fragments(variable_field: Buffer) -> Iterator[tuple[int, bool, bool, Buffer]]:
    """Of each item of a P-DATA-TF PDU: context, whether it is of a command, whether it is the last, and the fragment.

    Raises ValueError for what is no such PDU.
    """
    place = 0
    while place < len(variable_field):
        if place + _PDV_HEADER.size > len(variable_field):
            raise ValueError("a PDU ends inside the header of an item")
        length, context_id, control = _PDV_HEADER.unpack_from(variable_field, place)
        start, place = place + _PDV_HEADER.size, place + 4 + length
        if length < 2 or place > len(variable_field):
            raise ValueError("an item of a PDU ends outside of it")
        yield context_id, bool(control & COMMAND), bool(control & LAST), variable_field[start:place]


@lru_cache(maxsize=1024)
def _element(number: int, value: Value) -> bytes:
    if isinstance(value, str):
        encoded = value.encode("ascii", "replace")
        encoded += (b"\0" if number in _UIDS else b" ") * (len(encoded) % 2)
    elif number == OFFENDING_ELEMENT:
        encoded = struct.pack("<HH", value >> 16, value & 0xFFFF)
    else:
        encoded = struct.pack("<H", value)
    return _ELEMENT.pack(0, number, len(encoded)) + encoded
