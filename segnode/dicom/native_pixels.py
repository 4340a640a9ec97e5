"""Stored values of images in native encoding, straight from their files: a data set and a decoder take ten times as long."""

from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from segnode.dicom.elements import PIXEL_DATA, elements, read_meta
from segnode.dicom.transfer_syntaxes import Encoding, encoding_of
from segnode.errors import NotDicom

_NATIVE: Final = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)


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
    try:
        _, start = read_meta(part10)
        found = next((e for e in elements(part10, start, len(part10), encoding) if e.tag == PIXEL_DATA), None)
    except NotDicom:
        return None
    return memoryview(part10)[found.start : found.end] if found else None
