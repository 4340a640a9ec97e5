"""RLE lossless (PS3.5 Annex G): PackBits on whole arrays, so that its cost is numpy's and not Python's."""

import struct

import numpy as np
import numpy.typing as npt

_LONGEST = 128
_WORTH_REPEATING = 3

Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]


def encode(frame: npt.NDArray[np.unsignedinteger]) -> bytes:
    """One RLE frame of a (rows, columns) array: a header, then a segment per byte plane, most significant first."""
    planes = np.ascontiguousarray(frame, frame.dtype.newbyteorder(">")).view(np.uint8).reshape(*frame.shape, -1)
    segments = [_pack_bits(np.ascontiguousarray(planes[:, :, i])) for i in range(planes.shape[2])]
    offsets = np.cumsum([64, *(len(segment) for segment in segments)])[:-1]
    header = struct.pack("<16I", len(segments), *offsets, *[0] * (15 - len(segments)))
    return header + b"".join(segments)


def _pack_bits(plane: Bytes) -> bytes:
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


def _packets(plane: Bytes) -> tuple[Places, Places, npt.NDArray[np.bool_]]:
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
