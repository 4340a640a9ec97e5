"""One value of a data set by its path: 00420011, or 54000100/1/54001010 for what is in an item, which count from 1."""

import re
from typing import Final

from pydicom.datadict import dictionary_VR
from pydicom.uid import ExplicitVRBigEndian

from segnode.dicom.dataset_json import WORDS
from segnode.dicom.elements import PIXEL_DATA, Buffer, Element, elements, items
from segnode.dicom.transfer_syntaxes import Encoding, encoding_of
from segnode.errors import NotFound

_PATH: Final = re.compile(r"[0-9A-Fa-f]{8}(/[1-9][0-9]{0,8}/[0-9A-Fa-f]{8}){0,64}")


def value_at(buffer: Buffer, start: int, syntax: str, path: str) -> tuple[int, int, int]:
    """Where the value begins and ends in a data set that begins there, and of how many bytes a word is that is to be swapped.

    Raises NotFound, NotDicom.
    """
    if not _PATH.fullmatch(path):
        raise NotFound("the path of a value is made of tags (8 hexadecimal digits), and numbers of items between them")
    *within, tag = path.split("/")
    begin, end, encoding = start, len(buffer), encoding_of(syntax)
    for sequence, number in zip(within[::2], within[1::2], strict=True):
        found = _find(buffer, begin, end, int(sequence, 16), encoding)
        place = next((item for count, item in enumerate(items(buffer, found), 1) if count == int(number)), None)
        if place is None:
            raise NotFound(f"there is no item {number} in {sequence}")
        (begin, end), encoding = place, found.encoding
    element = _find(buffer, begin, end, int(tag, 16), encoding)
    word = WORDS.get(vr_of(buffer, element, implicit_vr=encoding.implicit_vr), 1) if syntax == ExplicitVRBigEndian else 1
    return element.start, element.end, word


def vr_of(buffer: Buffer, element: Element, *, implicit_vr: bool) -> str:
    """The VR of an element, as it is written, or else as PS3.6 has it; UN where neither says so."""
    if not implicit_vr:
        return str(buffer[element.begin + 4 : element.begin + 6], "latin-1")
    try:
        return "OW" if element.tag == PIXEL_DATA else dictionary_VR(element.tag)
    except KeyError:
        return "UN"


def _find(buffer: Buffer, start: int, end: int, tag: int, encoding: Encoding) -> Element:
    for element in elements(buffer, start, end, encoding, open_at=PIXEL_DATA):
        if element.tag == tag:
            return element
    raise NotFound(f"there is no value at {tag:08X}")
