"""JPEG-LS lossless (PS3.5 A.4.3), by CharLS through imagecodecs, which lets other threads run.

pyjpegls 1.5 is not used for encoding: it takes the precision of a frame from its largest value, so that frames of one
object differ from each other and from BitsStored, and it cannot write a frame of one pixel.
"""

from typing import Final

import imagecodecs
import numpy as np

from segnode.errors import UnreadablePixels
from segnode.seg.codecs.frame import Frame, FrameShape, FrameToEncode, decoding, empty_frame, require_declared
from segnode.seg.codecs.jpeg_header import read_header

_SPIFF: Final = b"\xff\xd8\xff\xe8\x00\x20SPIFF"
_SPIFF_LENGTH: Final = 44
_SOF55: Final = 0xF7


def encode(frame: FrameToEncode) -> bytes:
    """One lossless codestream of a (rows, columns) frame of 8 or 16 bits, of that precision; JPEG-LS has none of 1 bit."""
    # imagecodecs' own buffer is too small for some frames of noise.
    room = 2 * frame.nbytes + 1024
    stream = bytes(imagecodecs.jpegls_encode(np.ascontiguousarray(frame), level=0, out=room))
    # A SPIFF header (ISO 14495-1 Annex F) is no part of what PS3.5 puts into a fragment.
    return stream[_SPIFF_LENGTH:] if stream.startswith(_SPIFF) else stream


def decode(data: bytes, shape: FrameShape) -> Frame:
    """The (rows, columns) frame of a codestream whose header is of that shape. Raises UnreadablePixels."""
    with decoding("JPEG-LS codestream"):
        marker, declared = read_header(data)
        if marker != _SOF55:
            raise UnreadablePixels("its frame header is not that of JPEG-LS")
        require_declared(declared, shape)
        frame: Frame = imagecodecs.jpegls_decode(data, out=empty_frame(declared))
        return frame.astype(shape.dtype, copy=False)
