"""SegmentSequence (PS3.3 C.8.20.4) as described segments.

A hundred segments are thousands of elements, nearly all of which are written in the one plain way: those are read in one
pass over their bytes, and a sequence that is written in any other by pydicom.
"""

import struct
from collections import Counter
from collections.abc import Mapping
from typing import Final

from pydicom import Dataset
from pydicom.multival import MultiValue

from segnode.dicom.codes import Code
from segnode.dicom.elements import Buffer, Element
from segnode.dicom.transfer_syntaxes import Encoding
from segnode.errors import NotASegmentation
from segnode.seg.segmentation import DescribedSegment, SegmentationType
from segnode.seg.values import Item, PlainItem, items_of, text_of, value_of

_LARGEST_NUMBER: Final = 65535
_SEQUENCE: Final = 0x00620002
_CHARACTER_SET: Final = 0x00080005
# In these, what is printable ASCII means itself, as it does not in the Japanese ones.
_PLAIN_CHARACTER_SETS: Final = (b"", b"ISO_IR 6", b"ISO_IR 100", b"ISO_IR 192")
_DEEPEST: Final = 8
_HEADER: Final = struct.Struct("<HH2sH")
_ITEM_HEADER: Final = struct.Struct("<4sI")
_LENGTH: Final = struct.Struct("<I")
_ITEM: Final = b"\xfe\xff\x00\xe0"
_COLOUR: Final = 0x0062000D
_SHORT_TEXTS: Final = (b"SH", b"LO", b"CS", b"UI", b"ST")
_LONG_TEXTS: Final = (b"UT", b"UC", b"UR")


class _NotPlainError(ValueError):
    """Something that the pass over the bytes leaves to pydicom."""


def read_segments(
    data: Buffer, found: Mapping[int, Element], header: Dataset, kind: SegmentationType
) -> tuple[DescribedSegment, ...]:
    """The segments in the order of their items; `found` are the elements of the data set. Raises NotASegmentation."""
    items = _plain_items(data, found) or items_of(header, "SegmentSequence")
    if not items:
        raise NotASegmentation("SegmentSequence is missing or empty: nothing says what the values mean")
    segments = tuple(_read_segment(item, kind) for item in items)
    number, times = Counter(segment.number for segment in segments).most_common(1)[0]
    if times > 1:
        raise NotASegmentation(f"SegmentSequence describes SegmentNumber {number} twice")
    return segments


def _read_segment(item: Item, kind: SegmentationType) -> DescribedSegment:
    number = value_of(item, "SegmentNumber")
    if not isinstance(number, int):
        raise NotASegmentation("SegmentNumber is missing in an item of SegmentSequence, or is no number")
    if not (kind != "LABELMAP") <= number <= _LARGEST_NUMBER:
        raise NotASegmentation(f"SegmentNumber is {number}, which a {kind} segmentation cannot have (PS3.3 C.8.20.2.4)")
    types = items_of(item, "SegmentedPropertyTypeCodeSequence")
    regions = items_of(item, "AnatomicRegionSequence")
    region_modifiers = tuple(_codes(region, "AnatomicRegionModifierSequence") for region in regions)
    identified = items_of(item, "SegmentationAlgorithmIdentificationSequence")
    cielab = value_of(item, "RecommendedDisplayCIELabValue")
    is_colour = (
        isinstance(cielab, MultiValue | list | tuple) and len(cielab) == 3 and all(isinstance(part, int) for part in cielab)
    )
    return DescribedSegment(
        number=int(number),
        label=text_of(item, "SegmentLabel"),
        category=_first(_codes(item, "SegmentedPropertyCategoryCodeSequence")),
        type=_first(_codes(item, "SegmentedPropertyTypeCodeSequence")),
        modifiers=_codes(types[0], "SegmentedPropertyTypeModifierCodeSequence") if types else (),
        regions=_codes(item, "AnatomicRegionSequence"),
        algorithm_type=text_of(item, "SegmentAlgorithmType"),
        algorithm_name=text_of(item, "SegmentAlgorithmName"),
        tracking_id=text_of(item, "TrackingID"),
        tracking_uid=text_of(item, "TrackingUID"),
        cielab=(cielab[0], cielab[1], cielab[2]) if is_colour else None,
        description=text_of(item, "SegmentDescription"),
        region_modifiers=region_modifiers if any(region_modifiers) else (),
        primary_structures=_codes(item, "PrimaryAnatomicStructureSequence"),
        algorithm_version=text_of(identified[0], "AlgorithmVersion") if identified else "",
        algorithm_family=_first(_codes(identified[0], "AlgorithmFamilyCodeSequence")) if identified else None,
    )


def _codes(item: Item, keyword: str) -> tuple[Code, ...]:
    return tuple(
        Code(
            text_of(code, "CodingSchemeDesignator"),
            text_of(code, "CodeValue") or text_of(code, "LongCodeValue") or text_of(code, "URNCodeValue"),
            text_of(code, "CodeMeaning"),
        )
        for code in items_of(item, keyword)
    )


def _first(codes: tuple[Code, ...]) -> Code | None:
    return codes[0] if codes else None


def _plain_items(data: Buffer, found: Mapping[int, Element]) -> list[PlainItem]:
    """The items of a sequence that is written in the plain way, with all that is in them; none of any other."""
    sequence, said = found.get(_SEQUENCE), found.get(_CHARACTER_SET)
    if sequence is None or sequence.encoding != Encoding():
        return []
    if said is not None and bytes(data[said.start : said.end]).strip(b" ") not in _PLAIN_CHARACTER_SETS:
        return []
    value = bytes(data[sequence.start : sequence.end])
    # Without a VR that is known to be of a sequence it is something else.
    if bytes(data[sequence.begin + 4 : sequence.begin + 6]) != b"SQ" or len(value) != sequence.next - sequence.start:
        return []
    try:
        return _items(value, 0, len(value), {}, 0)
    except (ValueError, struct.error):
        return []


def _items(data: bytes, place: int, end: int, known: dict[bytes, PlainItem], depth: int) -> list[PlainItem]:
    """Items of known lengths; `known` are those that were met, as segments repeat whole codes."""
    if depth > _DEEPEST:
        raise _NotPlainError
    found = []
    while place < end:
        tag, length = _ITEM_HEADER.unpack_from(data, place)
        start, place = place + _ITEM_HEADER.size, place + _ITEM_HEADER.size + length
        if tag != _ITEM or place > end:
            raise _NotPlainError
        written = data[start:place]
        if written not in known:
            known[written] = _item(written, known, depth)
        found.append(known[written])
    return found


def _item(data: bytes, known: dict[bytes, PlainItem], depth: int) -> PlainItem:
    item: PlainItem = {}
    place = 0
    while place < len(data):
        group, number, vr, length = _HEADER.unpack_from(data, place)
        tag, start = group << 16 | number, place + _HEADER.size
        is_long = vr == b"SQ" or vr in _LONG_TEXTS
        if is_long:
            (length,) = _LENGTH.unpack_from(data, start)
            start += _LENGTH.size
        place = start + length
        if place > len(data) or tag == _CHARACTER_SET:
            raise _NotPlainError
        if vr == b"SQ":
            item[tag] = _items(data, start, place, known, depth + 1)
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
