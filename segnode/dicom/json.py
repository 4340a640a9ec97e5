"""DICOM JSON (PS3.18 F) of attributes that are kept as text."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final

import msgspec
from pydicom.datadict import dictionary_VR, tag_for_keyword

_WHOLE: Final = ("IS", "US", "UL", "SS", "SL")
_DECIMAL: Final = ("DS", "FL", "FD")
_LONGEST_WHOLE: Final = 12
# Characters that stand for themselves in a string of JSON, and not between values.
_PLAIN: Final = bytes(set(range(0x20, 0x7F)) - set(b'"\\'))
_NO_TEXT: Final = frozenset((*_WHOLE, *_DECIMAL, "PN"))
_PERSON_NAME_PARTS: Final = ("Alphabetic", "Ideographic", "Phonetic")

Json = dict[str, Any]


def attributes_json(attributes: Mapping[str, str]) -> Json:
    """Several attributes, in the order of their tags."""
    return {tag: _element(vr, attributes[keyword]) for tag, vr, keyword in _by_tag(attributes)}


def member(tag: str, element: Json) -> bytes:
    """An element as the text of a member of a JSON object; such texts are in the order of their tags."""
    return b'"%b":%b' % (tag.encode(), msgspec.json.encode(element))


def members(attributes: Mapping[str, Sequence[str]]) -> Iterator[tuple[bytes, ...]]:
    """Of each of several objects the members of its JSON, by tag; of each attribute the values in all of them are given."""
    columns = []
    for tag, vr, keyword in _by_tag(attributes):
        before, values, after = _member(tag, vr, attributes[keyword])
        columns.append([f"{before}{value}{after}".encode() for value in values])
    return zip(*columns, strict=True)


def objects(attributes: Mapping[str, Sequence[str]]) -> list[bytes]:
    """The JSON of each of several objects, of these members alone."""
    columns, alike, count = list[Iterable[str]](), "{", 0
    for tag, vr, keyword in _by_tag(attributes):
        count = len(attributes[keyword])
        before, values, after = _member(tag, vr, attributes[keyword])
        alike += before
        if len(set(values)) > 1:
            columns += [[alike] * count, values]
            alike = ""
        else:
            alike += values[0] if values else ""
        alike += f"{after},"
    last = [f"{alike.removesuffix(',')}}}"] * count
    return [text.encode() for text in map("".join, zip(*columns, last, strict=True))]


def _member(tag: str, vr: str, values: Sequence[str]) -> tuple[str, Sequence[str], str]:
    """A member in each of several objects: what it is in each, between what is before and behind that in all of them."""
    distinct = set(values)
    start, together = f'"{tag}":{{"vr":"{vr}"', "".join(distinct)
    if vr not in _NO_TEXT and "" not in distinct and not together.encode().translate(None, _PLAIN):
        return f'{start},"Value":["', values, '"]}'  # so are UIDs, of which each object has its own
    if vr in _WHOLE and together.isascii() and together.isdecimal() and max(map(len, distinct)) <= _LONGEST_WHOLE:
        texts = {value: f',"Value":[{int(value)}]' for value in distinct - {""}}
    else:
        texts = {value: f',"Value":{msgspec.json.encode(_values(vr, value)).decode()}' for value in distinct - {""}}
    return start, [texts.get(value, "") for value in values], "}"


def _by_tag(keywords: Iterable[str]) -> list[tuple[str, str, str]]:
    return sorted((*_tag_and_vr(keyword), keyword) for keyword in keywords)


def sequence_json(keyword: str, items: list[Json]) -> Json:
    """A sequence attribute of these items."""
    return {f"{tag_for_keyword(keyword):08X}": {"vr": "SQ", "Value": items}}


@cache
def _tag_and_vr(keyword: str) -> tuple[str, str]:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise ValueError(f"not a keyword: {keyword}")
    return f"{tag:08X}", dictionary_VR(tag)


def _element(vr: str, text: str) -> Json:
    return {"vr": vr, "Value": _values(vr, text)} if text else {"vr": vr}


def _values(vr: str, text: str) -> list[Any]:
    return [_value(vr, single) for single in text.split("\\")]


def _value(vr: str, text: str) -> Any:
    if vr == "PN":
        return {part: group for part, group in zip(_PERSON_NAME_PARTS, text.split("="), strict=False) if group}
    try:
        if vr in _WHOLE:
            return int(text)
        if vr in _DECIMAL:
            return float(text)
    except ValueError:
        return text
    return text
