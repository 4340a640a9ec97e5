"""DICOM JSON (PS3.18 F) of a whole data set: what is large and binary is named by its path instead of being there."""

import math
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom import DataElement, Dataset

from segnode.dicom.json import Json

# The words of what is binary, in bytes; in big endian each is the other way round.
WORDS: Final = {"OB": 1, "OW": 2, "OL": 4, "OF": 4, "OV": 8, "OD": 8, "UN": 1}
_LARGEST_INLINE: Final = 4096
_CHARACTER_SET: Final = 0x00080005
_PIXEL_DATA: Final = (0x7FE00008, 0x7FE00009, 0x7FE00010)


def dataset_json(dataset: Dataset, location: Callable[[str], str]) -> Json:
    """The document of a data set; `location` gives the URI of a value from its path, for example 00420011 or 00081115/1/….

    Items are numbered from 1. Values that are not of their VR are left out; text is UTF-8, whatever it was.
    """
    return dict(_attributes(dataset, location, "", swap=bool(dataset.original_encoding[1] is False)))


def _attributes(dataset: Dataset, location: Callable[[str], str], within: str, *, swap: bool) -> Iterator[tuple[str, Json]]:
    for tag in sorted(dataset.keys()):
        if tag.element == 0:  # the length of a group in another encoding
            continue
        try:
            element = dataset[tag]
            path = f"{within}{tag:08X}"
            yield f"{tag:08X}", _element(element, location, path, swap=swap)
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
    document: dict[str, Any] = element.to_json_dict(None, _LARGEST_INLINE)
    if element.tag == _CHARACTER_SET:
        document["Value"] = ["ISO_IR 192"]
    elif any(isinstance(value, float) and not math.isfinite(value) for value in document.get("Value", ())):
        document["Value"] = [None if isinstance(v, float) and not math.isfinite(v) else v for v in document["Value"]]
    return document


def little_endian(value: bytes, word: int) -> bytes:
    """A value whose words of so many bytes are the other way round; as it is where they are of one byte."""
    if word == 1 or len(value) % word:
        return value
    swapped: npt.NDArray[Any] = np.frombuffer(value, f"u{word}").byteswap()
    return swapped.tobytes()
