"""DICOM JSON (PS3.18 F) of attributes that are kept as text."""

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from pydicom.datadict import dictionary_VR, tag_for_keyword

_WHOLE: Final = ("IS", "US", "UL", "SS", "SL")
_DECIMAL: Final = ("DS", "FL", "FD")
_PERSON_NAME_PARTS: Final = ("Alphabetic", "Ideographic", "Phonetic")

Json = dict[str, Any]


def attribute_json(keyword: str, text: str) -> Json:
    """One attribute: `{"ggggeeee": {"vr": …, "Value": […]}}`; several values are joined by a backslash in `text`."""
    tag, vr = _tag_and_vr(keyword)
    element: Json = {"vr": vr}
    if text:
        element["Value"] = [_value(vr, single) for single in text.split("\\")]
    return {tag: element}


def attributes_json(attributes: Mapping[str, str]) -> Json:
    """Several attributes, in the order of their tags."""
    document: Json = {}
    for keyword, text in attributes.items():
        document |= attribute_json(keyword, text)
    return dict(sorted(document.items()))


def sequence_json(keyword: str, items: list[Json]) -> Json:
    """A sequence attribute of these items."""
    return {f"{tag_for_keyword(keyword):08X}": {"vr": "SQ", "Value": items}}


@cache
def _tag_and_vr(keyword: str) -> tuple[str, str]:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise ValueError(f"not a keyword: {keyword}")
    return f"{tag:08X}", dictionary_VR(tag)


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
