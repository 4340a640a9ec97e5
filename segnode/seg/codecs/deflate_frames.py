"""Deflated Image Frame Compression (PS3.5 A.4.13): every native frame a raw RFC 1951 stream of its own, by libdeflate."""

from typing import Final

import imagecodecs

from segnode.errors import UnreadablePixels
from segnode.seg.codecs import native
from segnode.seg.codecs.frame import Frame, FrameShape, FrameToEncode, decoding

_LEVEL: Final = 7
# No byte of RFC 1951 stands for more: a match of 258 bytes takes two bits at least.
_LARGEST_RATIO: Final = 1032


def encode(frame: FrameToEncode) -> bytes:
    """One deflated (rows, columns) frame, padded to even length."""
    deflated = bytes(imagecodecs.deflate_encode(native.encode(frame), _LEVEL, raw=True))
    return deflated + b"\0" * (len(deflated) % 2)


def decode(data: bytes, shape: FrameShape) -> Frame:
    """The (rows, columns) frame; no more is inflated than it has bytes, and one of padding. Raises UnreadablePixels."""
    with decoding("deflated frame"):
        if shape.size > len(data) * _LARGEST_RATIO:
            raise UnreadablePixels(f"{len(data)} bytes cannot hold the {shape.size} of Rows, Columns and BitsAllocated")
        return native.decode(bytes(imagecodecs.deflate_decode(data, raw=True, out=shape.size + 1)), shape)
