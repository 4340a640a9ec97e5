"""Stored values of images in RLE and JPEG-LS, by codecs that let other threads run, which pydicom's own do not."""

from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.uid import JPEGLSLossless, RLELossless

from segnode.dicom.frame_places import frame_places
from segnode.dicom.native_pixels import of_stored_bits
from segnode.errors import NotDicom, UnreadablePixels
from segnode.seg.codecs import DECODERS, FrameShape
from segnode.seg.codecs.jpeg_header import read_header

_READ: Final = (RLELossless, JPEGLSLossless)


def compressed_values(part10: bytes, header: Dataset) -> npt.NDArray[np.integer] | None:
    """The stored values (rows, columns) of a single-frame grey image, `header` being that of the file.

    None for what is encoded otherwise, is no such image, or is damaged: pydicom reads it, or says what is wrong. The proof
    of placement has pydicom read it in any case, so that a fault of these codecs is found.
    """
    syntax, bits = header.file_meta.TransferSyntaxUID, header.get("BitsAllocated")
    if syntax not in _READ or bits not in (8, 16) or header.get("SamplesPerPixel", 1) != 1:
        return None
    signed = header.get("PixelRepresentation", 0)
    try:
        places = frame_places(part10)
        if places is None or places.number_of_frames != 1:
            return None
        codestream = places.codestream(part10, 0)
        # JPEG-LS knows no sign: it is that of the bits that are stored, if the codestream is of these.
        if signed and syntax == JPEGLSLossless and read_header(codestream)[1].precision != header.get("BitsStored"):
            return None
        frame = DECODERS[syntax](codestream, FrameShape(header.Rows, header.Columns, bits))
    except (NotDicom, UnreadablePixels):
        return None
    return of_stored_bits(frame.view(f"i{frame.itemsize}") if signed else frame, header)
