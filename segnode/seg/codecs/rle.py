"""RLE lossless (PS3.5 Annex G): PackBits on whole arrays, so that its cost is numpy's and not Python's.

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

_LONGEST = 128
_WORTH_REPEATING = 3
# Two bytes stand for 128 at most.
_LARGEST_RATIO: Final = 64
# What a writer that does not pack its 1-bit pixels has for them.
_UNPACKED: Final = (0, 1, 255)

Plane = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]


def encode(frame: FrameToEncode) -> bytes:
    """One RLE frame of a (rows, columns) array: a header, then a segment per byte plane, most significant first."""
    segments = [_pack_bits(plane) for plane in _planes(frame)]
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
    planes = np.ascontiguousarray(frame, frame.dtype.newbyteorder(">")).view(np.uint8).reshape(*frame.shape, -1)
    return [np.ascontiguousarray(planes[:, :, i]) for i in range(planes.shape[2])]


def _pack_bits(plane: Plane) -> bytes:
    """One segment, of even length; no run crosses a row (PS3.5 G.3.1)."""
    starts, lengths, repeated = _packets(plane)
    chunk_start, chunk_length, chunk_repeated = _split(starts, lengths, repeated)
    sizes = np.where(chunk_repeated, 2, chunk_length + 1)
    ends = np.cumsum(sizes)
    places = ends - sizes
    packed = np.zeros(int(ends[-1]) + int(ends[-1]) % 2, np.uint8)
    packed[places] = np.where(chunk_repeated, 257 - chunk_length, chunk_length - 1)
    packed[places[chunk_repeated] + 1] = plane.flat[chunk_start[chunk_repeated]]
    literal = ~chunk_repeated
    source = _ranges(chunk_start[literal], chunk_length[literal])
    packed[_ranges(places[literal] + 1, chunk_length[literal])] = plane.flat[source]
    return packed.tobytes()


def _packets(plane: Plane) -> tuple[Places, Places, npt.NDArray[np.bool_]]:
    """Start, length and kind of what is written together: one repeated value, or neighbouring values that are not."""
    begins = np.ones(plane.shape, np.bool_)
    begins[:, 1:] = plane[:, 1:] != plane[:, :-1]
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=plane.size)
    repeated = lengths >= _WORTH_REPEATING
    rows = starts // plane.shape[1]
    first = np.ones(len(starts), np.bool_)
    first[1:] = repeated[1:] | repeated[:-1] | (rows[1:] != rows[:-1])
    starts, repeated = starts[first], repeated[first]
    return starts, np.diff(starts, append=plane.size), repeated


def _split(starts: Places, lengths: Places, repeated: npt.NDArray[np.bool_]) -> tuple[Places, Places, npt.NDArray[np.bool_]]:
    """Packets of at most 128 values; the last of a repeated run may be left with one value, which is written literally."""
    counts = -(-lengths // _LONGEST)
    owner = np.repeat(np.arange(len(starts)), counts)
    within = _ranges(np.zeros(len(starts), np.int64), counts) * _LONGEST
    chunk_length = np.minimum(lengths[owner] - within, _LONGEST)
    return starts[owner] + within, chunk_length, repeated[owner] & (chunk_length > 1)


def _ranges(starts: Places, lengths: Places) -> Places:
    """The numbers from start to start + length, for every pair, one after the other."""
    total = int(lengths.sum())
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(total)
