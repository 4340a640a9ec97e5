"""JPEG lossless (PS3.5 A.4.1), read only, by libjpeg-turbo: of the decoders at hand the one that is attacked the most."""

from typing import Final

import imagecodecs

from segnode.errors import UnreadablePixels
from segnode.seg.codecs.frame import Frame, FrameShape, decoding, empty_frame, require_declared
from segnode.seg.codecs.jpeg_header import read_header

_SOF3: Final = 0xC3
_END: Final = b"\xff\xd9"


def decode(data: bytes, shape: FrameShape) -> Frame:
    """The (rows, columns) frame of a codestream whose header is of that shape. Raises UnreadablePixels."""
    with decoding("JPEG codestream"):
        marker, declared = read_header(data)
        if marker != _SOF3:
            raise UnreadablePixels("its frame header is not that of lossless JPEG")
        require_declared(declared, shape)
        # Where the data end before it, libjpeg-turbo makes up the rest of the frame.
        if not data.rstrip(b"\0").endswith(_END):
            raise UnreadablePixels("it has no end")
        frame: Frame = imagecodecs.jpeg8_decode(data, out=empty_frame(declared))
        return frame.astype(shape.dtype, copy=False)
