"""DICOM JSON (PS3.18 F) of attributes that are kept as text."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cache
from typing import Any, Final

import msgspec
from pydicom.datadict import dictionary_VR, tag_for_keyword

_WHOLE: Final = ("IS", "US", "UL", "SS", "SL")
_DECIMAL: Final = ("DS", "FL", "FD")
_ESCAPED: Final = re.compile(r'["\\]')
_LONGEST_WHOLE: Final = 12
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
        texts = _texts(tag, vr, set(attributes[keyword]))
        columns.append([texts[value] for value in attributes[keyword]])
    return zip(*columns, strict=True)


def objects(attributes: Mapping[str, Sequence[str]]) -> list[bytes]:
    """The JSON of each of several objects, of these members alone."""
    parts, columns, count = [], [], 0
    for tag, vr, keyword in _by_tag(attributes):
        count, texts = len(attributes[keyword]), _texts(tag, vr, set(attributes[keyword]))
        if len(texts) == 1:  # most are alike in a series
            parts.append(next(iter(texts.values())).replace(b"%", b"%%"))
        else:
            parts.append(b"%b")
            columns.append([texts[value] for value in attributes[keyword]])
    text = b"{%b}" % b",".join(parts)
    return [text % each for each in zip(*columns, strict=True)] if columns else [text % ()] * count


def _texts(tag: str, vr: str, values: AbstractSet[str]) -> dict[str, bytes]:
    """By its value the text of a member; what can be, is said of all values at once."""
    start, together = f'"{tag}":{{"vr":"{vr}"'.encode(), "".join(values)
    filled = values - {""}
    if vr not in _NO_TEXT and together.isascii() and together.isprintable() and not _ESCAPED.search(together):
        texts = {value: b'%b,"Value":["%b"]}' % (start, value.encode()) for value in filled}
    elif vr in _WHOLE and together.isascii() and together.isdecimal() and max(map(len, filled)) <= _LONGEST_WHOLE:
        texts = {value: b'%b,"Value":[%d]}' % (start, int(value)) for value in filled}
    else:
        texts = {value: b'%b,"Value":%b}' % (start, msgspec.json.encode(_values(vr, value))) for value in filled}
    return texts | dict.fromkeys(values - filled, start + b"}")


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
