"""Sequences that are written in the one plain way, as nearly all are: read in one pass over their bytes, and copied.

Plain is explicit VR little endian with known lengths and ascending tags, texts of one value in printable ASCII, padded
where they must be, and numbers of US: what pydicom would write again byte by byte.
"""

import struct
from typing import Final

from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from segnode.seg.values import PlainItem

_CHARACTER_SET: Final = 0x00080005
# In these, what is printable ASCII means itself, as it does not in the Japanese ones.
_PLAIN_CHARACTER_SETS: Final = ("", "ISO_IR 6", "ISO_IR 100", "ISO_IR 192")
_DEEPEST: Final = 8
_UNDEFINED: Final = 0xFFFFFFFF
_HEADER: Final = struct.Struct("<HH2sH")
_ITEM_HEADER: Final = struct.Struct("<4sI")
_LENGTH: Final = struct.Struct("<I")
_ITEM: Final = b"\xfe\xff\x00\xe0"
_COLOUR: Final = 0x0062000D
_SHORT_TEXTS: Final = (b"SH", b"LO", b"CS", b"UI", b"ST")
_LONG_TEXTS: Final = (b"UT", b"UC", b"UR")


class _NotPlainError(ValueError):
    """Something that the pass over the bytes leaves to pydicom."""


def plain_value(header: Dataset, keyword: str) -> bytes:
    """The bytes of a sequence that is plain as far as its header says, and that nobody has asked for; of any other none."""
    element: object = header.get_item(Tag(keyword))
    if not isinstance(element, RawDataElement) or element.is_implicit_VR or not element.is_little_endian:
        return b""
    if element.VR != "SQ" or element.length == _UNDEFINED:
        return b""
    is_ascii = str(header.get("SpecificCharacterSet") or "") in _PLAIN_CHARACTER_SETS
    return (element.value or b"") if is_ascii else b""


def plain_items(value: bytes) -> list[PlainItem]:
    """The items of a sequence with all that is in them; none where it is not plain."""
    try:
        return _items(value, {}, 0)
    except (ValueError, struct.error):
        return []


def written_items(value: bytes) -> list[bytes]:
    """The items of a plain sequence as they are written, with their headers."""
    found, place = [], 0
    while place < len(value):
        after = place + _ITEM_HEADER.size + _ITEM_HEADER.unpack_from(value, place)[1]
        found.append(value[place:after])
        place = after
    return found


def _items(data: bytes, known: dict[bytes, PlainItem], depth: int) -> list[PlainItem]:
    """Items of known lengths; `known` are those that were met, as whole codes are repeated."""
    if depth > _DEEPEST:
        raise _NotPlainError
    found, place = [], 0
    while place < len(data):
        tag, length = _ITEM_HEADER.unpack_from(data, place)
        start, place = place + _ITEM_HEADER.size, place + _ITEM_HEADER.size + length
        if tag != _ITEM or place > len(data):
            raise _NotPlainError
        written = data[start:place]
        if written not in known:
            known[written] = _item(written, known, depth)
        found.append(known[written])
    return found


def _item(data: bytes, known: dict[bytes, PlainItem], depth: int) -> PlainItem:
    item: PlainItem = {}
    place = last = 0
    while place < len(data):
        group, number, vr, length = _HEADER.unpack_from(data, place)
        tag, start = group << 16 | number, place + _HEADER.size
        is_long = vr == b"SQ" or vr in _LONG_TEXTS
        if is_long:
            (length,) = _LENGTH.unpack_from(data, start)
            start += _LENGTH.size
        place = start + length
        # pydicom writes in ascending order, leaves out group lengths, and pads.
        if place > len(data) or tag <= last or tag == _CHARACTER_SET or not number or length % 2:
            raise _NotPlainError
        last = tag
        if vr == b"SQ":
            item[tag] = _items(data[start:place], known, depth + 1)
        elif is_long or vr in _SHORT_TEXTS:
            item[tag] = _text(data[start:place], b"\0" if vr == b"UI" else b" ")
        elif vr == b"US" and length == 2:
            item[tag] = int.from_bytes(data[start:place], "little")
        elif vr == b"US" and tag == _COLOUR and length == 6:
            item[tag] = struct.unpack_from("<3H", data, start)
        else:
            raise _NotPlainError
    return item


def _text(value: bytes, padding: bytes) -> str:
    """One value of printable ASCII, padded to an even length."""
    text = value.removesuffix(padding).decode("ascii")
    if not text.isprintable() or "\\" in text or text != text.strip():
        raise _NotPlainError
    return text
