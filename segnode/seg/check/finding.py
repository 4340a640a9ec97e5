"""What is wrong with a SEG, and reading one that may be wrong everywhere: nothing here raises."""

import math
import struct
import zlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final, Literal

from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_has_tag, dictionary_keyword, dictionary_VM, dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as Items
from pydicom.tag import BaseTag, Tag

from segnode.dicom.attributes import COPIED_ATTRIBUTES
from segnode.dicom.uids import is_uid
from segnode.errors import UnreadablePixels

Severity = Literal["error", "warning", "note"]

# What pydicom raises on values that are not what their VR says.
UNREADABLE: Final = (
    ArithmeticError,
    AttributeError,
    BytesLengthException,
    EOFError,
    InvalidDicomError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    UnreadablePixels,
    ValueError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class Finding:
    """A rule that a SEG does not keep.

    `attribute` is a path of keywords, items counted from 0: SegmentSequence[3].SegmentLabel; `clause` is the rule's in
    DICOM; `message` says what is wrong and what to do. An error breaks a "shall"; a warning is likely to do harm, or came
    with the source; a note says what was not checked.
    """

    severity: Severity
    attribute: str
    clause: str
    message: str


def error(attribute: str, clause: str, message: str) -> Finding:
    """A finding that breaks a "shall"."""
    return Finding("error", attribute, clause, message)


def warning(attribute: str, clause: str, message: str) -> Finding:
    """A finding that is likely to do harm."""
    return Finding("warning", attribute, clause, message)


@cache
def _tag(keyword: str) -> BaseTag:
    return Tag(keyword)


def value_of(item: Dataset, keyword: str) -> Any:
    """The value of an attribute; None where it is absent, empty or cannot be read."""
    tag = _tag(keyword)
    try:
        element: Any = item.get_item(tag, keep_deferred=True)
        if isinstance(element, RawDataElement) and isinstance(element.value, bytes):
            vr = element.VR or dictionary_VR(tag)
            value = _plain(element.value) if vr in _PLAIN else item[tag].value
        else:
            value = None if element is None else item[tag].value
        return None if value is None or (hasattr(value, "__len__") and len(value) == 0) else value
    except UNREADABLE:
        return None


# Text without a character set: read here, as a SEG has tens of thousands of UIDs and pydicom takes its time for each.
_PLAIN: Final = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI"})


def _plain(value: bytes) -> str | tuple[str, ...]:
    parts = tuple(part.strip(" ") for part in value.decode("latin-1").rstrip(" \0").split("\\"))
    return parts if len(parts) > 1 else parts[0]


def values_of(item: Dataset, keyword: str) -> tuple[Any, ...]:
    """The values of an attribute; none where it is absent, empty, cannot be read, or is a sequence."""
    value = value_of(item, keyword)
    if value is None or isinstance(value, Items):
        return ()
    return tuple(value) if not isinstance(value, str | bytes) and isinstance(value, Sequence) else (value,)


def text(item: Dataset, keyword: str) -> str:
    """The first value of an attribute as text."""
    values = values_of(item, keyword)
    return str(values[0]).strip() if values else ""


def number(item: Dataset, keyword: str) -> int | None:
    """The first value of an attribute as a whole number."""
    values = values_of(item, keyword)
    try:
        return int(values[0]) if values else None
    except UNREADABLE:
        return None


def numbers(item: Dataset, keyword: str) -> tuple[float, ...]:
    """The values of an attribute as numbers; none where one of them is no number."""
    try:
        return tuple(float(value) for value in values_of(item, keyword))
    except UNREADABLE:
        return ()


def items(item: Dataset, keyword: str) -> Sequence[Dataset]:
    """The items of a sequence; none where it is absent, or no sequence."""
    value = value_of(item, keyword)
    return value if isinstance(value, Items) else ()


def elements(item: Dataset) -> Iterator[tuple[BaseTag, DataElement | RawDataElement]]:
    """The standard elements of an item as they came: those that nobody has read are raw."""
    for tag in sorted(item.keys(), key=int):
        if not tag >> 16 & 1 and tag & 0xFFFF:  # neither private nor the length of a group
            found = item.get_item(tag, keep_deferred=True)
            if found is not None:
                yield tag, found


def walk(item: Dataset, skip: frozenset[str] = frozenset(), known: "Known | None" = None, depth: int = 0) -> Iterator[Finding]:
    """What is wrong with the elements of an item and of the items below it, whatever they mean (PS3.5 6.2, PS3.3 8.8).

    `known` keeps what was found in sequences of equal bytes: codes above all are written again and again.
    """
    known = {} if known is None else known
    for tag, element in elements(item):
        keyword = keyword_of(tag)
        if not keyword or keyword in skip:
            continue
        if dictionary_VR(tag) != "SQ":
            yield from _element(item, tag, element, keyword)
            continue
        content = content_of(element)
        found = known.get((tag, content)) if content is not None else None
        if found is None:
            found = walk_sequence(item, tag, element, known, depth)
            if content is not None:
                known[tag, content] = found
        yield from found


def walk_sequence(
    item: Dataset, tag: BaseTag, element: DataElement | RawDataElement, known: "Known", depth: int = 0
) -> tuple[Finding, ...]:
    """What is wrong with one element of an item that is a sequence, and with what is below it; as walk."""
    keyword = keyword_of(tag)
    return (*_element(item, tag, element, keyword), *_below(item, keyword, known, depth))


Known = dict[tuple[BaseTag, Hashable], tuple[Finding, ...]]


def content_of(element: DataElement | RawDataElement, depth: int = 0) -> Hashable | None:
    """What tells whether two elements hold the same; None where that is not worth the trouble, as nobody left them raw."""
    if isinstance(element, RawDataElement):
        return None if element.value is None else (element.VR, element.value)
    if depth > _DEEPEST or not isinstance(element.value, Items):
        return None
    content = []
    for item in element.value:
        below = [(int(tag), content_of(found, depth + 1)) for tag, found in elements(item)]
        if any(part is None for _, part in below):
            return None
        content.append(tuple(below))
    return tuple(content)


def _below(item: Dataset, keyword: str, known: Known, depth: int) -> Iterator[Finding]:
    if depth > _DEEPEST:
        return
    for index, below in enumerate(items(item, keyword)):
        path = f"{keyword}[{index}]"
        if keyword.endswith("CodeSequence") or keyword in _ANATOMY:
            yield from _code(below, path)
        for finding in walk(below, known=known, depth=depth + 1):
            yield replace(finding, attribute=f"{path}.{finding.attribute}")


@cache
def keyword_of(tag: int) -> str:
    """The keyword of an attribute of the standard; empty for any other."""
    return dictionary_keyword(tag) if dictionary_has_tag(tag) else ""


_DEEPEST: Final = 8
_ANATOMY: Final = (
    "AnatomicRegionSequence",
    "AnatomicRegionModifierSequence",
    "PrimaryAnatomicStructureSequence",
    "PrimaryAnatomicStructureModifierSequence",
)


def _code(item: Dataset, path: str) -> Iterator[Finding]:
    """A coded concept has a value, the scheme it is from, and its meaning (PS3.3 8.8)."""
    clause = "PS3.3 8.8"
    value = [k for k in ("CodeValue", "LongCodeValue", "URNCodeValue") if value_of(item, k) is not None]
    if len(value) != 1:
        yield error(f"{path}.CodeValue", clause, "the code needs one of CodeValue, LongCodeValue and URNCodeValue")
    if value != ["URNCodeValue"] and value_of(item, "CodingSchemeDesignator") is None:
        yield error(f"{path}.CodingSchemeDesignator", clause, "the code does not say which scheme it is from")
    if value_of(item, "CodeMeaning") is None:
        yield error(f"{path}.CodeMeaning", clause, "the code does not say what it means")


_LENGTHS: Final = {"AE": 16, "AS": 4, "CS": 16, "DA": 8, "DS": 16, "DT": 26, "IS": 12, "LO": 64, "SH": 16, "TM": 16, "UI": 64}
_ONE_VALUE_LENGTHS: Final = {"ST": 1024, "LT": 10240}
_SIZES: Final = {"US": 2, "SS": 2, "UL": 4, "SL": 4, "FL": 4, "FD": 8, "AT": 4}
_CODE_STRING: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 _")
_FROM_THE_SOURCE: Final = frozenset(COPIED_ATTRIBUTES) - {"SpecificCharacterSet", "StudyInstanceUID"} | {
    "PositionReferenceIndicator",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
}


def _element(item: Dataset, tag: BaseTag, element: DataElement | RawDataElement, path: str) -> Iterator[Finding]:
    """Whether an element has the VR that PS3.6 gives it, and values that this VR can hold (PS3.5 6.2)."""
    allowed = dictionary_VR(tag).split(" or ")
    vr = str(element.VR or allowed[0])
    if vr == "UN":
        yield warning(path, "PS3.5 6.2.2", f"is written as UN; PS3.6 gives it the VR {' or '.join(allowed)}")
    elif vr not in allowed:
        yield error(path, "PS3.6 6", f"is written as {vr}; PS3.6 gives it the VR {' or '.join(allowed)}")
    else:
        problem = _problem(item, element, vr, tag)
        if problem:
            came_along = path in _FROM_THE_SOURCE
            found = f"{problem}; it came with the source: mend it there" if came_along else problem
            yield Finding("warning" if came_along else "error", path, "PS3.5 9.1" if vr == "UI" else "PS3.5 6.2", found)


def _problem(item: Dataset, element: DataElement | RawDataElement, vr: str, tag: BaseTag) -> str:
    """What is wrong with the values of an element; empty where they are well."""
    if vr == "SQ":
        return "" if _reads(item, tag) and isinstance(item[tag].value, Items) else "is no sequence of items; write it anew"
    if vr in _SIZES:
        return _number_problem(element, vr)
    if vr not in _LENGTHS and vr not in _ONE_VALUE_LENGTHS:
        return ""
    longest = _LENGTHS.get(vr) or _ONE_VALUE_LENGTHS[vr]
    values = _texts(element, one=vr in _ONE_VALUE_LENGTHS)
    if len(values) > 1 and dictionary_VM(tag) == "1" and (not _reads(item, tag) or isinstance(item[tag].value, MultiValue)):
        return f"holds {len(values)} values, where PS3.6 gives it one: a backslash parts them"
    if any(len(value) > longest for value in values):
        # Bytes were counted so far: in some character sets a character has several.
        read = _reads(item, tag)
        values = _texts(item[tag], one=vr in _ONE_VALUE_LENGTHS) if read and vr in ("LO", "SH", "ST", "LT") else values
        length = max(len(value) for value in values)
        if length > longest:
            return f"holds {length} characters; a value of {vr} has {longest} at most: shorten it"
    return next(filter(None, (_text_problem(value, vr) for value in values)), "")


def _text_problem(value: str, vr: str) -> str:
    holds, otherwise = _FORMS.get(vr, (bool, ""))
    return "" if not value or holds(value) else otherwise


def _is_decimal(value: str) -> bool:
    try:
        return math.isfinite(float(value)) and "_" not in value
    except ValueError:
        return False


def _is_time(value: str) -> bool:
    return value[:2].isdecimal() and value.replace(".", "", 1).isdecimal()


_FORMS: Final[dict[str, tuple[Callable[[str], bool], str]]] = {
    "UI": (is_uid, "holds a value that is no UID: digits and single dots, 64 characters at most"),
    "CS": (_CODE_STRING.issuperset, "holds characters that a CS cannot: use A to Z, 0 to 9, space and underscore"),
    "IS": (lambda value: value.lstrip("+-").isdecimal(), "holds a value that is no whole number"),
    "DS": (_is_decimal, "holds a value that is no decimal number"),
    "DA": (lambda value: len(value) == 8 and value.isdecimal(), "holds a value that is no date: write YYYYMMDD"),
    "TM": (_is_time, "holds a value that is no time: write HHMMSS.FFFFFF"),
}


def _number_problem(element: DataElement | RawDataElement, vr: str) -> str:
    value = element.value
    if isinstance(element, RawDataElement):
        length = len(value or b"")
        return f"holds {length} bytes, which are no values of {vr}" if length % _SIZES[vr] else ""
    if value is None or value == "":
        return ""
    values = list(value) if not isinstance(value, str | bytes) and isinstance(value, Sequence) else [value]
    return "" if all(isinstance(v, int | float) for v in values) else f"holds something that is no {vr}: write a number"


def _reads(item: Dataset, tag: BaseTag) -> bool:
    try:
        return item[tag] is not None
    except UNREADABLE:
        return False


def _texts(element: DataElement | RawDataElement, *, one: bool) -> list[str]:
    value = element.value
    if value is None:
        return []
    if isinstance(value, bytes):
        whole = value.decode("latin-1").rstrip(" \0")
        return [whole] if one else [part.strip(" ") for part in whole.split("\\")]
    if not isinstance(value, str) and isinstance(value, Sequence) and not one:
        return [str(part).strip(" ") for part in value]
    return [str(value).strip(" ")]


def has(item: Dataset, keyword: str) -> bool:
    """Whether an attribute is present, with a value or without."""
    return _tag(keyword) in item


def quoted(value: object) -> str:
    """A value that a message may show: short, and of no patient."""
    shown = str(value)
    return repr(shown if len(shown) <= 40 else f"{shown[:40]}...")
