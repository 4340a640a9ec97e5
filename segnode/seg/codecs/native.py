"""A native frame on its own: the pixels, little endian, 1-bit pixels packed from the least significant bit (PS3.5 8.1.1)."""

import numpy as np

from segnode.errors import UnreadablePixels
from segnode.seg.codecs.frame import Frame, FrameShape, FrameToEncode


def encode(frame: FrameToEncode) -> bytes:
    """The bytes of a (rows, columns) frame that starts on a byte."""
    if frame.dtype == np.bool_:
        return np.packbits(frame, axis=None, bitorder="little").tobytes()
    return frame.astype(frame.dtype.newbyteorder("<"), copy=False).tobytes()


def decode(data: bytes, shape: FrameShape) -> Frame:
    """The (rows, columns) frame in these bytes, of which one may be padding. Raises UnreadablePixels."""
    if len(data) not in {shape.size, shape.size + 1}:
        raise UnreadablePixels(f"the frame has {len(data)} bytes, where Rows, Columns and BitsAllocated make {shape.size}")
    values = np.frombuffer(data, np.uint8, shape.size)
    if shape.bits == 1:
        return np.unpackbits(values, bitorder="little", count=shape.pixels).reshape(shape.rows, shape.columns)
    return values.view(shape.dtype.newbyteorder("<")).astype(shape.dtype, copy=False).reshape(shape.rows, shape.columns)
