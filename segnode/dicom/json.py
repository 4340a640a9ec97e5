"""DICOM JSON (PS3.18 F) of attributes that are kept as text."""

from collections.abc import Callable, Iterable, Mapping
from functools import cache, lru_cache
from typing import Any, Final

from pydicom.datadict import dictionary_VR, tag_for_keyword

_WHOLE: Final = ("IS", "US", "UL", "SS", "SL")
_DECIMAL: Final = ("DS", "FL", "FD")
_PERSON_NAME_PARTS: Final = ("Alphabetic", "Ideographic", "Phonetic")

Json = dict[str, Any]


def attributes_json(attributes: Mapping[str, str]) -> Json:
    """Several attributes, in the order of their tags."""
    return attributes_as_json(attributes)(attributes)


def attributes_as_json(keywords: Iterable[str]) -> Callable[[Mapping[str, str]], Json]:
    """A function that makes `attributes_json` of many objects, of each these attributes."""
    named = sorted((*_tag_and_vr(keyword), keyword) for keyword in keywords)
    return lambda attributes: {tag: _element(vr, attributes[keyword]) for tag, vr, keyword in named}


def sequence_json(keyword: str, items: list[Json]) -> Json:
    """A sequence attribute of these items."""
    return {f"{tag_for_keyword(keyword):08X}": {"vr": "SQ", "Value": items}}


@cache
def _tag_and_vr(keyword: str) -> tuple[str, str]:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise ValueError(f"not a keyword: {keyword}")
    return f"{tag:08X}", dictionary_VR(tag)


@lru_cache(maxsize=4096)
def _element(vr: str, text: str) -> Json:
    """An element that is not to be changed: many objects have the same."""
    return {"vr": vr, "Value": [_value(vr, single) for single in text.split("\\")]} if text else {"vr": vr}


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
