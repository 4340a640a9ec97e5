"""RLE lossless (PS3.5 Annex G), whose segments are PackBits, by imagecodecs, which lets other threads run.

A frame of 1 bit is one segment of the packed pixels, eight a byte from the least significant bit (CP-2301, PS3.5 8.2.2).
"""

import struct
from typing import Final

import imagecodecs
import numpy as np
import numpy.typing as npt

from segnode.errors import UnreadablePixels
from segnode.seg.codecs import native
from segnode.seg.codecs.frame import Frame, FrameShape, FrameToEncode, decoding

# Two bytes stand for 128 at most.
_LARGEST_RATIO: Final = 64
# What a writer that does not pack its 1-bit pixels has for them.
_UNPACKED: Final = (0, 1, 255)

Plane = npt.NDArray[np.uint8]


def encode(frame: FrameToEncode) -> bytes:
    """One RLE frame of a (rows, columns) array: a header, then a segment per byte plane, most significant first."""
    segments = [_segment(plane) for plane in _planes(frame)]
    offsets = np.cumsum([64, *(len(segment) for segment in segments)])[:-1]
    header = struct.pack("<16I", len(segments), *offsets, *[0] * (15 - len(segments)))
    return header + b"".join(segments)


def decode(data: bytes, shape: FrameShape) -> Frame:
    """The (rows, columns) frame. Raises UnreadablePixels.

    A frame of 1 bit may also be written one byte a pixel, as 0 and 1 or 0 and 255.
    """
    with decoding("RLE frame"):
        size = shape.dtype.itemsize
        if shape.size > len(data) * _LARGEST_RATIO:
            raise UnreadablePixels(f"{len(data)} bytes cannot hold the {shape.size} of Rows, Columns and BitsAllocated")
        values = bytes(imagecodecs.dicomrle_decode(data, f"<u{size}", out=(shape.pixels + 1) * size))
        if shape.bits == 1 and len(values) >= shape.pixels > 1:
            return _unpacked(np.frombuffer(values, np.uint8, shape.pixels)).reshape(shape.rows, shape.columns)
        # A pixel of padding, where a writer made the frame even before it was encoded.
        return native.decode(values[: shape.size] if len(values) == shape.size + size else values, shape)


def _unpacked(values: Plane) -> Plane:
    if not np.isin(values, _UNPACKED).all():
        raise UnreadablePixels("it has one byte a pixel with other values than 0, 1 and 255, where BitsAllocated is 1")
    return np.minimum(values, 1)


def _planes(frame: FrameToEncode) -> list[Plane]:
    """What a segment is made of each; packed pixels have rows only where these start on a byte."""
    if frame.dtype == np.bool_:
        rows = frame.shape[0] if frame.shape[1] % 8 == 0 else 1
        return [np.packbits(frame, axis=None, bitorder="little").reshape(rows, -1)]
    # Of one column a view is contiguous enough for NumPy, and not for imagecodecs: that is copied.
    if frame.dtype == np.uint8 and frame.shape[1] > 1:
        return [np.ascontiguousarray(frame)]
    planes = np.ascontiguousarray(frame, frame.dtype.newbyteorder(">")).view(np.uint8).reshape(*frame.shape, -1)
    return [planes[:, :, i].copy() for i in range(planes.shape[2])]


def _segment(plane: Plane) -> bytes:
    """One segment, of even length; no run crosses a row (PS3.5 G.3.1).

    As rows are packed each on its own, blank ones above and below, which are half of most frames, are packed once.
    """
    blank = _packed(np.zeros((1, plane.shape[1]), np.uint8))
    filled = np.flatnonzero(np.bitwise_or.reduce(plane, axis=1))
    first, last = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, 0)
    inside = _packed(plane[first:last]) if len(filled) else b""
    packed = b"".join((blank * first, inside, blank * (len(plane) - last)))
    return packed + b"\0" * (len(packed) % 2)


def _packed(rows: Plane) -> bytes:
    return bytes(imagecodecs.packbits_encode(rows, axis=-1))
