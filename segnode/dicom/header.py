"""The header of a DICOM file: a walk over its top-level elements that decodes only what is asked for.

It goes past pixel data without reading it, follows no nesting by recursion and holds a bounded amount of a deflated
data set, so that a hostile object costs no more than an honest one.
"""

import io
import struct
import zlib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import BinaryIO, Final, NamedTuple

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.filereader import read_sequence

from segnode.dicom.attributes import (
    CLASS_ATTRIBUTES,
    INSTANCE_ATTRIBUTES,
    ITEM_ATTRIBUTES,
    SERIES_ATTRIBUTES,
    STUDY_ATTRIBUTES,
    UID_ATTRIBUTES,
)
from segnode.dicom.elements import LONG_VRS
from segnode.dicom.transfer_syntaxes import Encoding, encoding_of
from segnode.dicom.uids import is_uid
from segnode.errors import BadIdentifier, InvalidInstance, Mismatch, NotDicom

PREAMBLE: Final = 128
_META: Final = PREAMBLE + 4
_FIRST_BLOCK: Final = 4096
_META_GROUP_LENGTH: Final = struct.Struct("<HH2sHL")
_IS_META_GROUP_LENGTH: Final = [0x0002, 0x0000, b"UL", 4]
_META_WANTED: Final[Mapping[int, str]] = {
    0x00020002: "MediaStorageSOPClassUID",
    0x00020003: "MediaStorageSOPInstanceUID",
    0x00020010: "TransferSyntaxUID",
}
_UNDEFINED: Final = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_LONGEST_VALUE: Final = 64 * 1024
_LONGEST_SEQUENCE: Final = 4 * 1024 * 1024
_MOST_ITEMS: Final = 65535  # as many segments as there are numbers for
_LONGEST_DEFLATED_HEADER: Final = 32 * 1024 * 1024
_HEAD: Final = 32 * 1024
_LONG_HEADER: Final = 12
_DELIMITATION_GROUP: Final = 0xFFFE
_IMPLICIT, _EXPLICIT, _LENGTH = struct.Struct("<HHI"), struct.Struct("<HH2sH"), struct.Struct("<I")
_SHORT_VRS: Final = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_BINARY_NUMBERS = {"US": "H", "SS": "h", "UL": "I", "SL": "i"}
# In these, and without an escape, a byte below 128 is the character of ASCII.
_ASCII_AS_IT_IS: Final = frozenset(("iso8859", "latin_1", "UTF8", "iso8859_2", "iso8859_3", "iso8859_4"))
_ESCAPE: Final = b"\x1b"
_CHARACTER_SET_TAG: Final = 0x00080005
_CONTRIBUTING_EQUIPMENT_TAG: Final = 0x0018A001
_DATA_SET: Final = 0x00030000
_PIXELS: Final = 0x7FE00008
_BEYOND_PIXELS: Final = 0x7FE00011
_BEYOND_ANY: Final = 1 << 32


@dataclass(frozen=True)
class Contributor:
    """An item of ContributingEquipmentSequence: equipment that had a part in making an object (PS3.3 C.12.1)."""

    manufacturer: str
    station_name: str


@dataclass(frozen=True)
class Header:
    """What the node needs to know of an object: its identity, its encoding and the attributes that are indexed.

    `attributes` holds DICOM text by keyword, several values joined by a backslash; absent and empty are both left out.
    `items` holds the same of the items of sequences that are indexed, by path; of a sequence that cannot be read nothing.
    """

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    dataset_offset: int
    attributes: Mapping[str, str]
    contributors: tuple[Contributor, ...] = ()
    items: Mapping[str, Sequence[Mapping[str, str]]] = field(default_factory=dict)


@dataclass(frozen=True)
class FileMeta:
    """What the file meta information says of an object, and where its data set begins."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    dataset_offset: int


class _Element(NamedTuple):
    tag: int
    vr: bytes
    offset: int
    length: int


def read_header(file: BinaryIO) -> Header:
    """Read the header of a Part 10 file that is open for reading.

    Raises NotDicom (PS3.10 7.1 not followed, or an element that ends beyond the file), BadIdentifier (a missing UID,
    or a value that is none), Mismatch (the file meta information names another object).
    """
    meta, dataset_offset = _read_file_meta(file)
    transfer_syntax = _required_uid(meta, "TransferSyntaxUID")
    found, contributors, items = _read_dataset(file, dataset_offset, encoding_of(transfer_syntax))
    uids = {keyword: _required_uid(found, keyword) for keyword in UID_ATTRIBUTES}
    for in_meta, in_dataset in (("MediaStorageSOPClassUID", "SOPClassUID"), ("MediaStorageSOPInstanceUID", "SOPInstanceUID")):
        if meta.get(in_meta) and meta[in_meta] != uids[in_dataset]:
            raise Mismatch(f"{in_dataset} of the data set is not what the command or file meta information says", in_dataset)
    return Header(
        sop_class_uid=uids["SOPClassUID"],
        sop_instance_uid=uids["SOPInstanceUID"],
        study_instance_uid=uids["StudyInstanceUID"],
        series_instance_uid=uids["SeriesInstanceUID"],
        transfer_syntax_uid=transfer_syntax,
        dataset_offset=dataset_offset,
        attributes={keyword: value for keyword, value in found.items() if keyword not in UID_ATTRIBUTES and value},
        contributors=contributors,
        items=items,
    )


def read_file_meta(file: BinaryIO) -> FileMeta:
    """Read the file meta information of a Part 10 file that is open for reading; of its data set only what that lacks.

    Raises what read_header does.
    """
    start = file.tell()
    meta, dataset_offset = _read_file_meta(file)
    transfer_syntax = _required_uid(meta, "TransferSyntaxUID")
    if not (meta.get("MediaStorageSOPClassUID") and meta.get("MediaStorageSOPInstanceUID")):
        file.seek(start)
        header = read_header(file)
        return FileMeta(header.sop_class_uid, header.sop_instance_uid, transfer_syntax, dataset_offset)
    sop_class, sop_instance = (_required_uid(meta, f"MediaStorageSOP{which}UID") for which in ("Class", "Instance"))
    return FileMeta(sop_class, sop_instance, transfer_syntax, dataset_offset)


def require_whole(file: BinaryIO) -> None:
    """Go through a Part 10 file to the end of its pixels. Raises NotDicom where it ends before, and what read_header does.

    Of a deflated data set that shows when it is inflated.
    """
    meta, offset = _read_file_meta(file)
    encoding = encoding_of(_required_uid(meta, "TransferSyntaxUID"))
    file.seek(offset)
    for _ in () if encoding.deflated else _walk(file, encoding, _BEYOND_PIXELS):
        pass


def _read_file_meta(file: BinaryIO) -> tuple[dict[str, str], int]:
    start = file.read(_FIRST_BLOCK)
    if start[PREAMBLE:_META] != b"DICM":
        raise NotDicom("not a DICOM file: there is no DICM prefix after 128 bytes")
    begin = _META + _META_GROUP_LENGTH.size
    *tag_and_vr, length = _META_GROUP_LENGTH.unpack_from(start.ljust(begin, b"\0"), _META)
    end = begin + length
    # What follows may be deflated, and look like an element of the group; where more of that follows the length is wrong.
    if tag_and_vr == _IS_META_GROUP_LENGTH and end <= len(start) and start[end : end + 2] != b"\x02\0":
        found, at = _skim(start[:end], _META, Encoding(), _DATA_SET, _META_WANTED, end)
        if at == end:
            return {_META_WANTED[each.tag]: _text(start[each.offset : each.offset + each.length]) for each in found}, end
    file.seek(_META - len(start), io.SEEK_CUR)
    values: dict[str, str] = {}
    offset = file.tell()
    for element in _walk(file, Encoding(), stop=_DATA_SET):
        offset = element.offset + element.length
        if element.tag in _META_WANTED and element.length <= _LONGEST_VALUE:
            values[_META_WANTED[element.tag]] = _text(_value(file, element))
    return values, offset


_INDEXED: Final[Mapping[int, tuple[str, str]]] = {
    tag: (keyword, dictionary_VR(tag))
    for keyword in (*UID_ATTRIBUTES, *STUDY_ATTRIBUTES, *SERIES_ATTRIBUTES, *INSTANCE_ATTRIBUTES, *CLASS_ATTRIBUTES)
    if (tag := tag_for_keyword(keyword)) is not None
}


_ITEMS: Final[Mapping[int, str]] = {
    tag: keyword for keyword in ITEM_ATTRIBUTES if (tag := tag_for_keyword(keyword)) is not None
}


_LONGEST: Final[Mapping[int, int]] = {
    **dict.fromkeys((_CHARACTER_SET_TAG, _CONTRIBUTING_EQUIPMENT_TAG, *_INDEXED), _LONGEST_VALUE),
    **dict.fromkeys(_ITEMS, _LONGEST_SEQUENCE),
}


def _read_dataset(
    file: BinaryIO, offset: int, encoding: Encoding
) -> tuple[dict[str, str], tuple[Contributor, ...], dict[str, list[dict[str, str]]]]:
    stream, begin, is_whole = _inflated(file, offset) if encoding.deflated else (file, offset, True)
    order = "<" if encoding.little_endian else ">"
    values: dict[str, str] = {}
    contributors: tuple[Contributor, ...] = ()
    items: dict[str, list[dict[str, str]]] = {}
    encodings = ["iso8859"]
    for element, value in _wanted(stream, begin, encoding, stop=_BEYOND_PIXELS if is_whole else _PIXELS):
        if element.tag in _INDEXED:
            keyword, vr = _INDEXED[element.tag]
            values[keyword] = _decoded(value, vr, order, encodings)
        elif element.tag == _CHARACTER_SET_TAG:
            encodings = _python_encodings(_text(value))
        elif element.tag == _CONTRIBUTING_EQUIPMENT_TAG:
            contributors = _contributors(value, encoding)
        else:
            keyword = _ITEMS[element.tag]
            items[keyword] = _indexed_items(keyword, value, _inside(element, encoding), encodings)
    return values, contributors, items


def _contributors(sequence: bytes, encoding: Encoding) -> tuple[Contributor, ...]:
    try:
        items = read_sequence(io.BytesIO(sequence), encoding.implicit_vr, encoding.little_endian, len(sequence), ["iso8859"])
        return tuple(Contributor(str(item.get("Manufacturer", "")), str(item.get("StationName", ""))) for item in items)
    except Exception:  # noqa: BLE001  a sequence that pydicom cannot read is kept as it is, and names nobody
        return ()


def _indexed_items(sequence: str, value: bytes, encoding: Encoding, encodings: list[str]) -> list[dict[str, str]]:
    """What is indexed of the items of a sequence, by path; nothing where they are not written as PS3.5 7.5 says."""
    try:
        return [_indexed_of(item, ITEM_ATTRIBUTES[sequence], encoding, encodings) for item in _items(value, encoding)]
    except NotDicom:
        return []


def _indexed_of(item: bytes, paths: Sequence[str], encoding: Encoding, encodings: list[str]) -> dict[str, str]:
    """The text of elements of an item, and of those of the first item of a sequence in it."""
    found: dict[str, str] = {}
    order = "<" if encoding.little_endian else ">"
    file = io.BytesIO(item)
    for element in _walk(file, encoding, _BEYOND_ANY):
        keyword = keyword_for_tag(element.tag)
        within = [path.removeprefix(f"{keyword}.") for path in paths if path.startswith(f"{keyword}.")]
        if within:
            inside = _inside(element, encoding)
            for nested in islice(_items(_value(file, element), inside), 1):
                values = _indexed_of(nested, within, inside, encodings)
                found |= {f"{keyword}.{path}": text for path, text in values.items()}
        elif keyword in paths and element.length <= _LONGEST_VALUE:
            found[keyword] = _decoded(_value(file, element), dictionary_VR(element.tag), order, encodings)
    return {path: text for path, text in found.items() if text}


def _items(sequence: bytes, encoding: Encoding) -> Iterator[bytes]:
    file = io.BytesIO(sequence)
    items = (item for item in _walk(file, encoding, _BEYOND_ANY) if item.tag == _ITEM)
    return (_value(file, item) for item in islice(items, _MOST_ITEMS))


def _inside(element: _Element, encoding: Encoding) -> Encoding:
    """How what is in an element is encoded: in a value of UN always in implicit little endian (PS3.5 6.2.2)."""
    return Encoding(implicit_vr=True) if element.vr == b"UN" else encoding


def _inflated(file: BinaryIO, offset: int) -> tuple[BinaryIO, int, bool]:
    """A deflated data set, where it begins, and whether that is all of it: of a long one only the start.

    Raises NotDicom where it is cut off.
    """
    file.seek(offset)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = bytearray()
    try:
        while not inflater.eof and len(inflated) < _LONGEST_DEFLATED_HEADER:
            block = file.read(1 << 16)
            if not block:
                raise NotDicom("the data ends inside the deflated data set")
            inflated += inflater.decompress(block, _LONGEST_DEFLATED_HEADER - len(inflated))
    except zlib.error as error:
        raise NotDicom(f"the deflated data set cannot be inflated: {error}") from error
    return io.BytesIO(inflated), 0, inflater.eof


def _wanted(file: BinaryIO, begin: int, encoding: Encoding, stop: int) -> Iterator[tuple[_Element, bytes]]:
    """The top-level elements from there to the tag `stop` that something is read of, with their values."""
    end, at = file.seek(0, io.SEEK_END), 0
    file.seek(begin)
    if encoding.little_endian:
        head = file.read(_HEAD)
        skimmed, at = _skim(head, 0, encoding, stop, _LONGEST, end - begin)
        for element in skimmed:
            yield element, head[element.offset : element.offset + element.length]
        if begin + at == end:
            return
    file.seek(begin + at)
    for element in _walk(file, encoding, stop):
        if element.length <= _LONGEST.get(element.tag, -1):
            yield element, _value(file, element)


def _skim(head: bytes, at: int, encoding: Encoding, stop: int, wanted: Container[int], size: int) -> tuple[list[_Element], int]:
    """The elements of these tags from there on, and where the first is that has to be looked at closer.

    Every object's elements are gone through as it comes in: those with which nothing is unusual are here. `size` is that
    of all which `head` is the beginning of: what is not wanted of it may end there.
    """
    found = []
    implicit_vr, end, vr = encoding.implicit_vr, len(head), b""
    while at <= end - _LONG_HEADER:
        start = at + 8
        if implicit_vr:
            group, number, length = _IMPLICIT.unpack_from(head, at)
        else:
            group, number, vr, length = _EXPLICIT.unpack_from(head, at)
            if vr in LONG_VRS:
                start = at + _LONG_HEADER
                (length,) = _LENGTH.unpack_from(head, at + 8)
            elif vr not in _SHORT_VRS:
                break
        tag = group << 16 | number
        if tag >= stop or start + length > size or length == _UNDEFINED or group == _DELIMITATION_GROUP:
            break
        if tag in wanted:
            if start + length > end:
                break
            found.append(_Element(tag, vr, start, length))
        at = start + length
    return found, at


def _walk(file: BinaryIO, encoding: Encoding, stop: int) -> Iterator[_Element]:
    """The top-level elements from here to the tag `stop`; the value of each may be read before the next is asked for."""
    end = _end_of(file)
    while (element := _next_element(file, encoding, stop)) is not None:
        if element.length == _UNDEFINED:
            is_item = element.tag == _ITEM
            may_lack_its_end = not is_item and element.tag >= _PIXELS
            _skip_undefined_length(file, _inside(element, encoding), is_item=is_item, may_lack_its_end=may_lack_its_end)
            element = _Element(element.tag, element.vr, element.offset, file.tell() - element.offset)
        elif element.offset + element.length > end:
            raise NotDicom(f"the data ends inside {_name(element.tag)}", _name(element.tag))
        yield element
        file.seek(element.offset + element.length)


def _next_element(file: BinaryIO, encoding: Encoding, stop: int = _BEYOND_ANY) -> _Element | None:
    start = file.read(8)
    if not start:
        return None
    if len(start) < 8:
        raise NotDicom("the data ends inside the header of an element")
    order = "<" if encoding.little_endian else ">"
    group, number = struct.unpack(order + "HH", start[:4])
    tag = group << 16 | number
    if tag >= stop:
        return None
    if encoding.implicit_vr or group == _DELIMITATION_GROUP:
        return _Element(tag, b"", file.tell(), struct.unpack(order + "I", start[4:])[0])
    vr = start[4:6]
    if not (vr.isalpha() and vr.isupper()):
        raise NotDicom(f"{_name(tag)} has no value representation that PS3.5 knows: is the transfer syntax right?", _name(tag))
    if vr not in LONG_VRS:
        return _Element(tag, vr, file.tell(), struct.unpack(order + "H", start[6:])[0])
    length = file.read(4)
    if len(length) < 4:
        raise NotDicom(f"the data ends inside the header of {_name(tag)}", _name(tag))
    return _Element(tag, vr, file.tell(), struct.unpack(order + "I", length)[0])


def _skip_undefined_length(file: BinaryIO, encoding: Encoding, *, is_item: bool, may_lack_its_end: bool) -> None:
    """Go past a value of undefined length: sequences, items and elements in them, with a list instead of recursion.

    Encapsulated pixel data that is whole but for its last delimiter is let pass: some writers leave it out.
    """
    end = _end_of(file)
    open_ends = [_ITEM_END if is_item else _SEQUENCE_END]
    encodings = [encoding]
    while open_ends:
        element = _next_element(file, encodings[-1])
        if element is None and may_lack_its_end and len(open_ends) == 1 and file.tell() == end:
            return
        if element is None:
            raise NotDicom("the data ends inside a sequence or pixel data of undefined length")
        if element.tag == open_ends[-1]:
            open_ends.pop()
            encodings.pop()
        elif element.length != _UNDEFINED:
            file.seek(element.offset + element.length)
        else:
            open_ends.append(_ITEM_END if element.tag == _ITEM else _SEQUENCE_END)
            encodings.append(_inside(element, encodings[-1]))


def _end_of(file: BinaryIO) -> int:
    here = file.tell()
    end = file.seek(0, io.SEEK_END)
    file.seek(here)
    return end


def _value(file: BinaryIO, element: _Element) -> bytes:
    file.seek(element.offset)
    return file.read(element.length)


def _text(value: bytes) -> str:
    return value.decode("latin-1").strip(" \0")


def _decoded(value: bytes, vr: str, order: str, encodings: list[str]) -> str:
    code = _BINARY_NUMBERS.get(vr)
    if code:
        count = len(value) // struct.calcsize(code)
        return "\\".join(str(n) for n in struct.unpack_from(f"{order}{count}{code}", value))
    is_ascii = value.isascii() and _ESCAPE not in value and encodings[0] in _ASCII_AS_IT_IS
    if is_ascii or vr not in ("PN", "LO", "SH", "LT", "ST", "UC", "UT"):
        return _text(value)
    delimiters = {0x5E, 0x3D, 0x5C} if vr == "PN" else {0x5C, 0x0A, 0x0C, 0x0D}
    return decode_bytes(value, encodings, delimiters).strip(" \0")


def _python_encodings(character_set: str) -> list[str]:
    try:
        return list(convert_encodings(character_set.split("\\")))
    except LookupError:
        return ["iso8859"]


def _required_uid(values: Mapping[str, str], keyword: str) -> str:
    value = values.get(keyword, "")
    if not value:
        raise BadIdentifier(f"{keyword} is missing: the object cannot be kept without it", keyword)
    if not is_uid(value):
        kind = InvalidInstance if keyword == "SOPInstanceUID" else BadIdentifier
        raise kind(f"{keyword} does not hold a UID (digits and dots, 64 characters at most)", keyword)
    return value


def _name(tag: int) -> str:
    return keyword_for_tag(tag) or f"({tag >> 16:04x},{tag & 0xFFFF:04x})"
