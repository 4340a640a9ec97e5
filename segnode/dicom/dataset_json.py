"""DICOM JSON (PS3.18 F) of a whole data set: what is large and binary is named by its path instead of being there."""

import math
import re
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.multival import MultiValue
from pydicom.valuerep import PersonName

from segnode.dicom.json import Json

# The words of what is binary, in bytes; in big endian each is the other way round.
WORDS: Final = {"OB": 1, "OW": 2, "OL": 4, "OF": 4, "OV": 8, "OD": 8, "UN": 1}
_LARGEST_INLINE: Final = 4096
_CHARACTER_SET: Final = 0x00080005
_PIXEL_DATA: Final = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_NAME_GROUPS: Final = ("Alphabetic", "Ideographic", "Phonetic")
_NUMBERS_AS_TEXT: Final = ("DS", "IS")
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_LONGEST_NUMBER: Final = 64


def dataset_json(dataset: Dataset, location: Callable[[str], str]) -> Json:
    """The document of a data set; `location` gives the URI of a value from its path, for example 00420011 or 00081115/1/….

    Items are numbered from 1. Binary values that are not of their VR are left out; text is UTF-8, whatever it was.
    """
    return dict(_attributes(dataset, location, "", swap=bool(dataset.original_encoding[1] is False)))


def _attributes(dataset: Dataset, location: Callable[[str], str], within: str, *, swap: bool) -> Iterator[tuple[str, Json]]:
    for tag in sorted(dataset.keys()):
        if tag.element == 0:  # the length of a group in another encoding
            continue
        try:
            numbers = _numbers(dataset.get_item(tag))
            yield f"{tag:08X}", numbers or _element(dataset[tag], location, f"{within}{tag:08X}", swap=swap)
        except Exception:  # noqa: BLE001,S112  pydicom raises of all kinds for values that are not what they should be
            continue


def _element(element: DataElement, location: Callable[[str], str], path: str, *, swap: bool) -> Json:
    if element.VR == "SQ":
        items = [
            dict(_attributes(item, location, f"{path}/{number}/", swap=swap)) for number, item in enumerate(element.value, 1)
        ]
        return {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}
    if element.VR in WORDS:
        value = bytes(element.value or b"")
        if len(value) > _LARGEST_INLINE or (element.tag in _PIXEL_DATA and value):
            return {"vr": element.VR, "BulkDataURI": location(path)}
        inline = b64encode(little_endian(value, WORDS[element.VR] if swap else 1)).decode()
        return {"vr": element.VR, "InlineBinary": inline} if value else {"vr": element.VR}
    if element.VR == "PN" and not element.is_empty:
        names = element.value if isinstance(element.value, MultiValue) else [element.value]
        return {"vr": "PN", "Value": [_name(name) for name in names]}
    document: dict[str, Any] = element.to_json_dict(None, _LARGEST_INLINE)
    if element.tag == _CHARACTER_SET:
        document["Value"] = ["ISO_IR 192"]
    elif any(isinstance(value, float) and not math.isfinite(value) for value in document.get("Value", ())):
        document["Value"] = [None if isinstance(v, float) and not math.isfinite(v) else v for v in document["Value"]]
    return document


def _numbers(element: object) -> Json | None:
    """Numbers that are written as text, if it holds such; None of any other element, and of one that was decoded before.

    pydicom tells none of them where one is empty, and the whole number beside 5.5 for 5.5.
    """
    if not isinstance(element, RawDataElement) or not isinstance(element.value, bytes):
        return None
    vr = element.VR or (dictionary_VR(element.tag) if dictionary_has_tag(element.tag) else "")
    if vr not in _NUMBERS_AS_TEXT:
        return None
    texts = [text.strip(" \0") for text in element.value.decode("latin-1").split("\\")]
    return {"vr": vr, "Value": [_number(vr, text) for text in texts]} if len(texts) > 1 or texts[0] else {"vr": vr}


def _number(vr: str, text: str) -> float | str | None:
    """As a number where it is one that JSON has and the VR too, else as it is (PS3.18 F.2.3); None where it is empty."""
    if not _NUMBER.fullmatch(text) or len(text) > _LONGEST_NUMBER:
        return text or None
    number = float(text)
    if vr == "IS" and text.lstrip("+-").isdecimal():
        return int(text)
    if not math.isfinite(number) or (vr == "IS" and not number.is_integer()):
        return text
    return number if vr == "DS" else int(number)


def _name(name: PersonName | str) -> Json | None:
    """A person's name without the component groups that are empty; None where all are (PS3.18 F.2.5)."""
    groups = zip(_NAME_GROUPS, str(name).split("="), strict=False)
    return {group: text for group, text in groups if text} or None


def little_endian(value: bytes, word: int) -> bytes:
    """A value whose words of so many bytes are the other way round; as it is where they are of one byte."""
    if word == 1 or len(value) % word:
        return value
    swapped: npt.NDArray[Any] = np.frombuffer(value, f"u{word}").byteswap()
    return swapped.tobytes()
