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


def native_values(part10: bytes, header: Dataset, start: int | None = None) -> npt.NDArray[np.integer] | None:
    """The stored values (rows, columns) of a single-frame grey image, `header` being that of the file.

    `start` is where an element begins that is not behind the pixels, so that those before it need not be walked through.

    None for what is encoded otherwise, is no such image, or lacks pixels: a decoder reads it, or says what is wrong.
    """
    syntax, bits = header.file_meta.TransferSyntaxUID, header.get("BitsAllocated")
    if syntax not in _NATIVE or bits not in (8, 16) or header.get("SamplesPerPixel", 1) != 1:
        return None
    if int(header.get("NumberOfFrames") or 1) != 1 or header.get("PixelRepresentation") not in (0, 1):
        return None
    dtype = np.dtype(f"<{'ui'[header.PixelRepresentation]}{bits // 8}")
    count = header.Rows * header.Columns
    found = _pixel_data(part10, encoding_of(syntax), start)
    if found is None or len(found) < count * dtype.itemsize:
        return None
    return of_stored_bits(np.frombuffer(found, dtype, count).reshape(header.Rows, header.Columns), header)


def of_stored_bits(values: npt.NDArray[np.integer], header: Dataset) -> npt.NDArray[np.integer]:
    """Values of BitsAllocated without what is above BitsStored: that may be an overlay, or not be the sign (PS3.5 8.1.1)."""
    unused = values.itemsize * 8 - int(header.get("BitsStored") or 0)
    return values if not 0 < unused < values.itemsize * 8 else (values << unused) >> unused


def _pixel_data(part10: bytes, encoding: Encoding, start: int | None) -> memoryview | None:
    try:
        if start is None:
            _, start = read_meta(part10)
        found = next((e for e in elements(part10, start, len(part10), encoding) if e.tag == PIXEL_DATA), None)
    except NotDicom:
        return None
    return memoryview(part10)[found.start : found.end] if found else None
