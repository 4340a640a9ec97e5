"""Stored values of images in native encoding, straight from their files: a data set and a decoder take ten times as long."""

from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from segnode.dicom.elements import PIXEL_DATA, elements
from segnode.dicom.transfer_syntaxes import Encoding, encoding_of
from segnode.errors import NotDicom

_NATIVE: Final = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
_DATA_SET: Final = 132
_META_GROUP: Final = b"\x02\x00"


def native_values(part10: bytes, header: Dataset) -> npt.NDArray[np.integer] | None:
    """The stored values (rows, columns) of a single-frame grey image, `header` being that of the file.

    None for what is encoded otherwise, is no such image, or lacks pixels: a decoder reads it, or says what is wrong.
    """
    syntax, bits = header.file_meta.TransferSyntaxUID, header.get("BitsAllocated")
    if syntax not in _NATIVE or bits not in (8, 16) or header.get("SamplesPerPixel", 1) != 1:
        return None
    if int(header.get("NumberOfFrames") or 1) != 1 or header.get("PixelRepresentation") not in (0, 1):
        return None
    dtype = np.dtype(f"<{'ui'[header.PixelRepresentation]}{bits // 8}")
    count = header.Rows * header.Columns
    found = _pixel_data(part10, encoding_of(syntax))
    if found is None or len(found) < count * dtype.itemsize:
        return None
    values: npt.NDArray[np.integer] = np.frombuffer(found, dtype, count).reshape(header.Rows, header.Columns)
    return values


def _pixel_data(part10: bytes, encoding: Encoding) -> memoryview | None:
    start = _DATA_SET
    try:
        while part10[start : start + 2] == _META_GROUP:
            start = next(elements(part10, start, len(part10), Encoding())).next
        for element in elements(part10, start, len(part10), encoding):
            if element.tag == PIXEL_DATA:
                return memoryview(part10)[element.start : element.end]
    except NotDicom:
        return None
    return None
