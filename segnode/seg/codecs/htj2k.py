"""High-Throughput JPEG 2000 lossless (PS3.5 A.4.4), by OpenJPH through imagecodecs, which lets other threads run."""

import imagecodecs
import numpy as np

from segnode.seg.codecs.frame import Frame, FrameShape, FrameToEncode, decoding, empty_frame, require_declared
from segnode.seg.codecs.jpeg_2000_header import read_header


def encode(frame: FrameToEncode) -> bytes:
    """One reversible codestream of a (rows, columns) frame of 8 or 16 bits; imagecodecs writes none of 1 bit."""
    return bytes(imagecodecs.htj2k_encode(np.ascontiguousarray(frame), reversible=True))


def decode(data: bytes, shape: FrameShape) -> Frame:
    """The (rows, columns) frame of a codestream whose header is of that shape. Raises UnreadablePixels."""
    with decoding("HTJ2K codestream"):
        start, declared = read_header(data)
        require_declared(declared, shape)
        frame: Frame = imagecodecs.htj2k_decode(data[start:], out=empty_frame(declared))
        return frame.astype(shape.dtype, copy=False)
