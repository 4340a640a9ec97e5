"""Elements as bytes, of text as the index keeps it: explicit or implicit VR, little endian (PS3.5 7.1)."""

import struct
from functools import lru_cache
from typing import Final

from pydicom.charset import python_encoding

from segnode.dicom.elements import LONG_VRS

UTF_8: Final = "ISO_IR 192"
_NUMBERS: Final = {"US": "<H", "SS": "<h", "UL": "<I", "SL": "<i"}
_LONGEST: Final = 0xFFFE  # of a value whose length has two bytes
_TEXT: Final = ("LO", "LT", "PN", "SH", "ST", "UC", "UT")
_SHORT: Final = struct.Struct("<HH2sH")
_LONG: Final = struct.Struct("<HH2sHI")
_IMPLICIT: Final = struct.Struct("<HHI")


@lru_cache(maxsize=8192)
def packed(tag: int, vr: str, text: str, *, implicit: bool, character_set: str = UTF_8) -> bytes:
    """An element; several values have backslashes between them. What is no number, where there should be one, is left out.

    Raises UnicodeEncodeError for text that the character set does not have.
    """
    return header(tag, vr, value := _value(vr, text, character_set), implicit=implicit) + value


def header(tag: int, vr: str, value: bytes, *, implicit: bool) -> bytes:
    """What stands before a value; of one that is too long for its VR's two bytes of length UN (PS3.5 6.2.2)."""
    group, number = tag >> 16, tag & 0xFFFF
    if implicit:
        return _IMPLICIT.pack(group, number, len(value))
    code = vr.encode() if len(value) <= _LONGEST else b"UN"
    if code in LONG_VRS:
        return _LONG.pack(group, number, code, 0, len(value))
    return _SHORT.pack(group, number, code, len(value))


def is_character_set(name: str) -> bool:
    """Whether it is a Specific Character Set that text can be packed in: one beyond ASCII, without code extensions."""
    return name in python_encoding and not name.startswith("ISO 2022") and name not in ("", "ISO_IR 6", "ISO_IR 13")


def _value(vr: str, text: str, character_set: str) -> bytes:
    if vr in _NUMBERS:
        try:
            return b"".join(struct.pack(_NUMBERS[vr], int(number)) for number in text.split("\\") if number)
        except (ValueError, struct.error):
            return b""
    value = text.encode(python_encoding[character_set]) if vr in _TEXT else text.encode("ascii", "replace")
    return value + (b"\0" if vr == "UI" else b" ") * (len(value) % 2)
