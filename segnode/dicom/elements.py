"""The elements of a data set as places in a buffer: a walk that decodes nothing and copies nothing (PS3.5 7)."""

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from segnode.dicom.transfer_syntaxes import Encoding
from segnode.errors import NotDicom

Buffer = bytes | bytearray | memoryview

ITEM: Final = 0xFFFEE000
PIXEL_DATA: Final = 0x7FE00010
_PREAMBLE: Final = 128
_META_GROUP: Final = b"\x02\x00"
_META_LENGTH: Final = 0x00020000
_META_ENCODING: Final = Encoding()
_TRANSFER_SYNTAX: Final = 0x00020010
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD
_DELIMITERS: Final = (_ITEM_END, _SEQUENCE_END)
_DELIMITATION_GROUP: Final = 0xFFFE
_UNDEFINED: Final = 0xFFFFFFFF
_DEEPEST: Final = 10
_ITEM_TAGS: Final = {True: b"\xfe\xff\x00\xe0", False: b"\xff\xfe\xe0\x00"}
LONG_VRS: Final = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
# What lies in a value of UN is implicit little endian, whatever is around it (PS3.5 6.2.2).
_UNKNOWN_VR: Final = b"UN"
_IN_UNKNOWN: Final = Encoding(implicit_vr=True)


class Element(NamedTuple):
    """An element: its tag, where it begins, its value begins and ends, the next begins, and how its items are encoded."""

    tag: int
    begin: int
    start: int
    end: int
    next: int
    encoding: Encoding


def elements(buffer: Buffer, start: int, end: int, encoding: Encoding, open_at: int | None = None) -> Iterator[Element]:
    """The elements of a data set that lies from start to end; a delimiter ends it as well. Raises NotDicom.

    The element with the tag `open_at` is the last where its length is undefined: its end is not looked for.
    """
    place = start
    while place < end:
        tag, value, length, inner = _header(buffer, place, end, encoding)
        if tag in _DELIMITERS:
            return
        if length == _UNDEFINED and tag == open_at:
            yield Element(tag, place, value, end, end, inner)
            return
        if length == _UNDEFINED:
            last, after = _end_of_undefined(buffer, value, end, inner, may_lack_its_end=tag == PIXEL_DATA)
            yield Element(tag, place, value, last, after, inner)
        else:
            after = value + length
            if after > end:
                raise NotDicom(f"the data ends inside ({tag >> 16:04x},{tag & 0xFFFF:04x})")
            yield Element(tag, place, value, after, after, inner)
        place = after


def items(buffer: Buffer, sequence: Element) -> Iterator[tuple[int, int]]:
    """Where the data set of each item of a sequence (or fragment of pixel data) starts and ends. Raises NotDicom."""
    for item in elements(buffer, sequence.start, sequence.end, sequence.encoding):
        if item.tag != ITEM:
            raise NotDicom(f"a sequence holds ({item.tag >> 16:04x},{item.tag & 0xFFFF:04x}) instead of an item")
        yield item.start, item.end


def require_shallow(buffer: Buffer, element: Element) -> None:
    """Raise NotDicom for sequences that lie in each other deeper than any object has them.

    pydicom says an error of a sequence again in that of the one around it, with its trace: with each level that is twice as
    much, and at some twenty of them nothing ends.
    """
    if bytes(buffer[element.start : element.end]).count(_ITEM_TAGS[element.encoding.little_endian]) <= _DEEPEST:
        return
    level = [element]
    for _ in range(_DEEPEST):
        level = [inner for sequence in level for inner in _sequences_in(buffer, sequence)]
    if level:
        raise NotDicom(f"({element.tag >> 16:04x},{element.tag & 0xFFFF:04x}) holds sequences more than {_DEEPEST} deep")


def _sequences_in(buffer: Buffer, sequence: Element) -> list[Element]:
    """What begins like a sequence, in the items of one; none where its value only begins so."""
    begin = _ITEM_TAGS[sequence.encoding.little_endian]
    try:
        inside = [e for start, end in items(buffer, sequence) for e in elements(buffer, start, end, sequence.encoding)]
    except NotDicom:
        return []
    return [element for element in inside if bytes(buffer[element.start : element.start + 4]) == begin]


def read_meta(data: Buffer) -> tuple[str, int]:
    """The transfer syntax of a Part 10 file, and where its data set begins (PS3.10 7.1). Raises NotDicom."""
    if bytes(data[_PREAMBLE : _PREAMBLE + 4]) != b"DICM":
        raise NotDicom("not a DICOM file: there is no DICM prefix after 128 bytes")
    syntax, start, end = "", _PREAMBLE + 4, len(data)
    # What follows is encoded otherwise, and is not to be looked at as an element.
    while start < end and bytes(data[start : start + 2]) == _META_GROUP:
        tag, value, length, _ = _header(data, start, len(data), _META_ENCODING)
        if length == _UNDEFINED or value + length > len(data):
            raise NotDicom(f"the data ends inside ({tag >> 16:04x},{tag & 0xFFFF:04x})")
        start = value + length
        if tag == _META_LENGTH and length == 4:
            # What follows may be deflated, and look like anything.
            end = min(end, start + int.from_bytes(data[value:start], "little"))
        if tag == _TRANSFER_SYNTAX:
            syntax = str(data[value:start], "latin-1").strip(" \0")
    if not syntax:
        raise NotDicom("TransferSyntaxUID is missing in the file meta information")
    return syntax, start


_EXPLICIT: Final = {True: struct.Struct("<HH2sH"), False: struct.Struct(">HH2sH")}
_IMPLICIT: Final = {True: struct.Struct("<HHI"), False: struct.Struct(">HHI")}
_LENGTH: Final = {True: struct.Struct("<I"), False: struct.Struct(">I")}


def _header(buffer: Buffer, place: int, end: int, encoding: Encoding) -> tuple[int, int, int, Encoding]:
    """Tag, place of the value, length and encoding of the items of the element that begins here."""
    if place + 8 > end:
        raise NotDicom("the data ends inside the header of an element")
    little = encoding.little_endian
    if encoding.implicit_vr:
        group, number, length = _IMPLICIT[little].unpack_from(buffer, place)
        return group << 16 | number, place + 8, length, encoding
    group, number, vr, short = _EXPLICIT[little].unpack_from(buffer, place)
    tag = group << 16 | number
    if group == _DELIMITATION_GROUP:
        return tag, place + 8, _LENGTH[little].unpack_from(buffer, place + 4)[0], encoding
    if vr not in LONG_VRS:
        return tag, place + 8, short, encoding
    if place + 12 > end:
        raise NotDicom("the data ends inside the header of an element")
    inner = _IN_UNKNOWN if vr == _UNKNOWN_VR else encoding
    return tag, place + 12, _LENGTH[little].unpack_from(buffer, place + 8)[0], inner


def _end_of_undefined(buffer: Buffer, place: int, end: int, encoding: Encoding, *, may_lack_its_end: bool) -> tuple[int, int]:
    """Where the delimiter of a value of undefined length begins and ends; nesting is counted, not followed.

    Encapsulated pixel data that is whole but for its last delimiter is let pass: some writers leave it out.
    """
    within = [encoding]
    while place < end:
        begin = place
        tag, place, length, inner = _header(buffer, place, end, within[-1])
        if tag in _DELIMITERS:
            within.pop()
            if not within:
                return begin, place
        elif length == _UNDEFINED:
            within.append(inner)
        else:
            place += length
    if may_lack_its_end and len(within) == 1 and place == end:
        return end, end
    raise NotDicom("the data ends inside a value of undefined length")
