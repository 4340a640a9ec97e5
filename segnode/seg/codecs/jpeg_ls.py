"""JPEG-LS lossless (PS3.5 A.4.3), by CharLS through imagecodecs, which lets other threads run.

pyjpegls 1.5 is not used for encoding: it takes the precision of a frame from its largest value, so that frames of one
object differ from each other and from BitsStored, and it cannot write a frame of one pixel.
"""

from typing import Final

import imagecodecs
import numpy as np
import numpy.typing as npt

_SPIFF: Final = b"\xff\xd8\xff\xe8\x00\x20SPIFF"
_SPIFF_LENGTH: Final = 44


def encode(frame: npt.NDArray[np.unsignedinteger]) -> bytes:
    """One lossless codestream of a (rows, columns) frame of 8 or 16 bits, of that precision."""
    stream = bytes(imagecodecs.jpegls_encode(np.ascontiguousarray(frame), level=0))
    # A SPIFF header (ISO 14495-1 Annex F) is no part of what PS3.5 puts into a fragment.
    return stream[_SPIFF_LENGTH:] if stream.startswith(_SPIFF) else stream
