"""Combining the frames of segments into one labelmap, with every overlap found; BINARY frames stay packed until the end.

A plane of a hundred segments is a hundred packed frames, and eight bit planes of numbers: what is unpacked is eight.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import numpy.typing as npt

from segnode.errors import OverlappingSegments
from segnode.seg.pixels import Frames
from segnode.seg.planes import Planes

Labelmap = npt.NDArray[np.unsignedinteger]
Packed = npt.NDArray[np.uint8]

_MOST_NAMED: Final = 5
# Segments of a plane, and pairs in all, that are counted: a file can hold so many that counting them would take a day.
_MOST_COMPARED: Final = 1000
_MOST_PAIRS: Final = 4_000_000


def label_type(largest: int) -> "np.dtype[np.unsignedinteger]":
    """The smallest type that holds these numbers: 8 bits wherever they do."""
    return np.dtype(np.uint8 if largest < 256 else np.uint16)


def combine_binary(frames: Frames, planes: Planes, number_of_frame: Sequence[int], out: Labelmap) -> None:
    """Write the numbers of BINARY frames into `out` (planes, rows, columns), which is zero; 0 leaves a frame out.

    Raises OverlappingSegments when a voxel is in two segments, naming them and the number of voxels.
    """
    of_plane: list[list[int]] = [[] for _ in range(len(planes))]
    for frame, plane in enumerate(planes.of_frame.tolist()):
        if number_of_frame[frame] and plane >= 0:
            of_plane[plane].append(frame)

    def combine(plane: int) -> bool:
        return combine_segments(segments_in(frames, of_plane[plane], number_of_frame), out[plane])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        overlapping = [plane for plane, overlaps in enumerate(pool.map(combine, range(len(planes)))) if overlaps]
    if overlapping:
        counts: Counter[tuple[int, int]] = Counter()
        compared = 0
        for plane in overlapping:
            compared += min(len(of_plane[plane]), _MOST_COMPARED) ** 2
            if compared > _MOST_PAIRS:
                break
            counts.update(overlaps_in(frames, of_plane[plane], number_of_frame))
        are_all = compared <= _MOST_PAIRS and all(len(of_plane[plane]) <= _MOST_COMPARED for plane in overlapping)
        raise OverlappingSegments(describe_overlaps(counts, are_all=are_all))


def overlaps_in(frames: Frames, of_plane: Sequence[int], number_of_frame: Sequence[int]) -> Mapping[tuple[int, int], int]:
    """How many voxels of a plane each pair of segments shares, of the first thousand; frames of one segment do not overlap."""
    counts: Counter[tuple[int, int]] = Counter()
    packed = [(number_of_frame[frame], frames.packed(frame)) for frame in of_plane[:_MOST_COMPARED]]
    for place, (number, bits) in enumerate(packed):
        for other, other_bits in packed[:place]:
            shared = int(np.bitwise_count(bits & other_bits).sum())
            if shared and number != other:
                counts[min(number, other), max(number, other)] += shared
    return counts


def describe_overlaps(counts: Mapping[tuple[int, int], int], *, are_all: bool = True) -> str:
    """Which segments overlap, the largest overlap first; `are_all` unless there were too many pairs to count."""
    pairs = sorted(counts.items(), key=lambda pair: -pair[1])
    named = ", ".join(f"{a} and {b} in {voxels} voxels" for (a, b), voxels in pairs[:_MOST_NAMED])
    more = f", and {len(pairs) - _MOST_NAMED} other pairs" if len(pairs) > _MOST_NAMED else ""
    least = "" if are_all else "at least "
    return f"segments overlap: {least}{named or 'some'}{more}; a labelmap holds one segment a voxel"


def segments_in(frames: Frames, of_plane: Sequence[int], number_of_frame: Sequence[int]) -> dict[int, Packed]:
    """The voxels of each segment of a plane, packed; two frames of one segment in one place add up."""
    segments: dict[int, Packed] = {}
    for frame in of_plane:
        packed, number = frames.packed(frame), number_of_frame[frame]
        segments[number] = segments[number] | packed if number in segments else packed
    return segments


def combine_segments(segments: Mapping[int, Packed], out: Labelmap) -> bool:
    """Write the numbers of packed segments into `out` (rows, columns), which is zero.

    Whether they overlap; if so `out` is left as it is.
    """
    covered = np.zeros(-(-out.size // 8), np.uint8)
    for packed in segments.values():
        if (covered & packed).any():
            return True
        covered |= packed
    used = np.flatnonzero(covered)
    if not len(used):
        return False
    # Most of a slice is background: only what lies between the first and the last voxel of a segment is unpacked.
    first, last = int(used[0]), int(used[-1]) + 1
    target = out.reshape(-1)[first * 8 : last * 8]
    for bit, packed in _bit_planes(segments).items():
        digits = np.unpackbits(packed[first:last], count=target.size, bitorder="little").astype(target.dtype, copy=False)
        digits *= target.dtype.type(1 << bit)  # NumPy shifts bytes ten times slower than it multiplies them
        target |= digits
    return False


def _bit_planes(segments: Mapping[int, Packed]) -> Mapping[int, Packed]:
    """For each binary digit of the numbers, where it is 1."""
    planes: dict[int, Packed] = {}
    for number, packed in segments.items():
        for bit in range(number.bit_length()):
            if number >> bit & 1:
                planes[bit] = planes[bit] | packed if bit in planes else packed
    return planes
