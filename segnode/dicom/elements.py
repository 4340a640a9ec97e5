"""The elements of a data set as places in a buffer: a walk that decodes nothing and copies nothing (PS3.5 7)."""

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from segnode.dicom.transfer_syntaxes import Encoding
from segnode.errors import NotDicom

Buffer = bytes | bytearray | memoryview

ITEM: Final = 0xFFFEE000
PIXEL_DATA: Final = 0x7FE00010
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD
_DELIMITERS: Final = (_ITEM_END, _SEQUENCE_END)
_UNDEFINED: Final = 0xFFFFFFFF
_BEYOND_ANY: Final = 1 << 32
_LONG_VRS: Final = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))


class Element(NamedTuple):
    """An element: its tag, and where it begins, its value begins, its value ends and the next element begins."""

    tag: int
    begin: int
    start: int
    end: int
    next: int
    is_undefined: bool


def elements(buffer: Buffer, start: int, end: int, encoding: Encoding, stop: int = _BEYOND_ANY) -> Iterator[Element]:
    """The elements of a data set that lies from start to end; a delimiter, or the tag `stop`, ends it too. Raises NotDicom."""
    place = start
    while place < end:
        tag, value, length = _header(buffer, place, end, encoding)
        if tag in _DELIMITERS or tag >= stop:
            return
        if length == _UNDEFINED:
            last, after = _end_of_undefined(buffer, value, end, encoding, may_lack_its_end=tag == PIXEL_DATA)
            yield Element(tag, place, value, last, after, True)
        else:
            after = value + length
            if after > end:
                raise NotDicom(f"the data ends inside ({tag >> 16:04x},{tag & 0xFFFF:04x})")
            yield Element(tag, place, value, after, after, False)
        place = after


def items(buffer: Buffer, sequence: Element, encoding: Encoding) -> Iterator[tuple[int, int]]:
    """Where the data set of each item of a sequence (or fragment of pixel data) starts and ends. Raises NotDicom."""
    for item in elements(buffer, sequence.start, sequence.end, encoding):
        if item.tag != ITEM:
            raise NotDicom(f"a sequence holds ({item.tag >> 16:04x},{item.tag & 0xFFFF:04x}) instead of an item")
        yield item.start, item.end


def _header(buffer: Buffer, place: int, end: int, encoding: Encoding) -> tuple[int, int, int]:
    """Tag, place of the value and length of the element that begins here."""
    if place + 8 > end:
        raise NotDicom("the data ends inside the header of an element")
    order = "<" if encoding.little_endian else ">"
    group, number = struct.unpack_from(f"{order}HH", buffer, place)
    tag = group << 16 | number
    if encoding.implicit_vr or group == 0xFFFE:
        return tag, place + 8, struct.unpack_from(f"{order}I", buffer, place + 4)[0]
    if bytes(buffer[place + 4 : place + 6]) not in _LONG_VRS:
        return tag, place + 8, struct.unpack_from(f"{order}H", buffer, place + 6)[0]
    if place + 12 > end:
        raise NotDicom("the data ends inside the header of an element")
    return tag, place + 12, struct.unpack_from(f"{order}I", buffer, place + 8)[0]


def _end_of_undefined(buffer: Buffer, place: int, end: int, encoding: Encoding, *, may_lack_its_end: bool) -> tuple[int, int]:
    """Where the delimiter of a value of undefined length begins and ends; nesting is counted, not followed.

    Encapsulated pixel data that is whole but for its last delimiter is let pass: some writers leave it out.
    """
    depth = 1
    while place < end:
        begin = place
        tag, place, length = _header(buffer, place, end, encoding)
        if tag in _DELIMITERS:
            depth -= 1
            if depth == 0:
                return begin, place
        elif length == _UNDEFINED:
            depth += 1
        else:
            place += length
    if may_lack_its_end and depth == 1 and place == end:
        return end, end
    raise NotDicom("the data ends inside a value of undefined length")
