"""Combining the frames of segments into one labelmap, with every overlap found while they are packed."""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from segnode.errors import OverlappingSegments
from segnode.seg.frame_groups import Integers
from segnode.seg.pixels import Frames
from segnode.seg.planes import Planes

Labelmap = npt.NDArray[np.unsignedinteger]
Packed = npt.NDArray[np.uint8]
Pair = tuple[int, int]

# Planes that a thread combines at once: with fewer, threads wait for each other at every step of NumPy.
PLANES_AT_ONCE: Final = 16
_MOST_NAMED: Final = 8
# Pairs of segments that overlap: what is said of them takes memory, and a small file can have any number.
_MOST_PAIRS: Final = 1 << 18
# Segments of one plane that share voxels with others: each is held against each.
_MOST_SHARING: Final = 1 << 12
# Bytes of masks that are compared pair by pair, and what a pair costs at least: a file can hold pairs for days.
_MOST_COMPARED: Final = 1 << 35
_LEAST_PAIR: Final = 1 << 16


def label_type(largest: int) -> "np.dtype[np.unsignedinteger]":
    """The smallest type that holds these numbers: 8 bits wherever they do."""
    return np.dtype(np.uint8 if largest < 256 else np.uint16)


@dataclass(frozen=True, eq=False)
class PlacedFrames:
    """BINARY frames by plane: `order` and `planes` (placed frames,) are theirs, `numbers` (frames,) their labels by index."""

    frames: Frames
    order: Integers
    planes: Integers
    numbers: Integers

    def at(self, plane: int) -> list[int]:
        """The frames of a plane."""
        start, stop = np.searchsorted(self.planes, (plane, plane + 1))
        return [int(frame) for frame in self.order[start:stop]]

    def combine(self, first: int, out: Labelmap) -> bool:
        """Write the labels of neighbouring planes into `out` (planes, rows, columns), which is zero, from plane `first` on.

        Whether that went well: not where frames have voxels in common, and `out` is then of no use.
        """
        covered = np.zeros((len(out), self.frames.shape.size), np.uint8)
        flat = out.reshape(len(out), -1)
        for run in self._runs(first, first + len(out)):
            packed = self.frames.packed_run(run.first_frame, run.length)[:: run.step]
            place = slice(run.plane - first, run.plane - first + run.length)
            # Most of a slice is background: only what lies between the first and the last voxel of a segment is unpacked.
            begin, end = _extent(np.bitwise_or.reduce(packed, axis=0))
            inside, there = packed[:, begin:end], covered[place, begin:end]
            if (there & inside).any():
                return False
            there |= inside
            target = flat[place, begin * 8 : end * 8]
            labels = np.unpackbits(inside, axis=1, count=target.shape[1], bitorder="little").astype(out.dtype, copy=False)
            labels *= out.dtype.type(run.number)
            target |= labels
        return True

    def _runs(self, first: int, last: int) -> Iterator["_Run"]:
        """The frames of these planes, as many together as follow each other in both PixelData and space."""
        start, stop = np.searchsorted(self.planes, (first, last))
        frames, planes = self.order[start:stop], self.planes[start:stop]
        numbers = self.numbers[frames]
        sorting = np.lexsort((planes, numbers))
        frames, planes, numbers = frames[sorting], planes[sorting], numbers[sorting]
        # Some writers go up through the body, some down.
        step = 1 if np.count_nonzero(np.diff(frames) == 1) >= np.count_nonzero(np.diff(frames) == -1) else -1
        follows = (np.diff(frames) == step) & (np.diff(planes) == 1) & (np.diff(numbers) == 0)
        begins = [0, *(np.flatnonzero(~follows) + 1).tolist(), len(frames)]
        for begin, end in pairwise(begins if len(frames) else ()):
            first_frame = int(frames[begin if step == 1 else end - 1])
            yield _Run(int(numbers[begin]), int(planes[begin]), first_frame, end - begin, step)


class _Run(NamedTuple):
    """Frames of one segment on neighbouring planes, up from `plane`; with a step of -1 the last of them lies there."""

    number: int
    plane: int
    first_frame: int
    length: int
    step: int


def placed_frames(frames: Frames, of_frame: Integers, numbers: Sequence[int]) -> PlacedFrames:
    """BINARY frames with the plane and the label of each; negative planes and labels of 0 leave a frame out."""
    labels = np.array(numbers, np.int64)
    chosen = np.flatnonzero((of_frame >= 0) & (labels != 0))
    order = chosen[np.argsort(of_frame[chosen], kind="stable")]
    return PlacedFrames(frames, order, of_frame[order], labels)


def combine_binary(frames: Frames, planes: Planes, number_of_frame: Sequence[int], out: Labelmap) -> None:
    """Write the numbers of BINARY frames into `out` (planes, rows, columns), which is zero; 0 leaves a frame out.

    Raises OverlappingSegments when a voxel is in two segments, naming them and the number of voxels.
    """
    placed = placed_frames(frames, planes.of_frame, number_of_frame)

    def combine(first: int) -> list[int]:
        some = out[first : first + PLANES_AT_ONCE]
        if placed.combine(first, some):
            return []
        some[:] = 0
        of_planes = enumerate(some, first)
        return [
            plane for plane, to in of_planes if combine_segments(segments_in(frames, placed.at(plane), number_of_frame), to)
        ]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        overlapping = list(chain.from_iterable(pool.map(combine, range(0, len(planes), PLANES_AT_ONCE))))
    if overlapping:
        counts, are_all = count_overlaps(
            lambda plane: segments_in(frames, placed.at(plane), number_of_frame), overlapping, frames.shape.size
        )
        raise OverlappingSegments(f"segments overlap: {told(counts, are_all=are_all)}; a labelmap holds one segment a voxel")


def count_overlaps(
    segments_at: Callable[[int], Mapping[int, Packed]], planes: Iterable[int], size: int
) -> tuple[Counter[Pair], bool]:
    """How many voxels pairs of segments share on some planes, whose masks have `size` bytes; and whether all were compared."""
    counts: Counter[Pair] = Counter()
    left, are_all = _MOST_COMPARED, True
    for plane in planes:
        segments = segments_at(plane)
        most = math.isqrt(left // max(size, _LEAST_PAIR))
        if len(segments) > most:
            are_all, segments = False, dict(islice(segments.items(), most))
        counts.update(overlapping_voxels(segments))
        left -= len(segments) ** 2 * max(size, _LEAST_PAIR)
    return counts, are_all


def told(counts: Mapping[Pair, int], *, are_all: bool) -> str:
    """Which segments overlap, the largest overlap first; `are_all` unless there were too many pairs to count."""
    pairs = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return ("" if are_all else "at least ") + some_of([f"{a} and {b} in {voxels} voxels" for (a, b), voxels in pairs])


def some_of(pairs: Sequence[str]) -> str:
    """The first of many pairs, and how many others there are."""
    more = f", and {len(pairs) - _MOST_NAMED} other pairs" if len(pairs) > _MOST_NAMED else ""
    return (", ".join(pairs[:_MOST_NAMED]) or "some") + more


def overlapping_voxels(segments: Mapping[int, Packed]) -> Counter[Pair]:
    """How many voxels each pair of the packed segments of one plane shares, the lower number first.

    Raises OverlappingSegments for more than can be told.
    """
    covered: Packed = np.zeros(1, np.uint8)
    shared = covered
    for packed in segments.values():
        covered, shared = covered | packed, shared | (covered & packed)
    counts: Counter[Pair] = Counter()
    if not shared.any():
        return counts
    inside = {number: cut for number, packed in sorted(segments.items()) if (cut := packed & shared).any()}
    if len(inside) > _MOST_SHARING:
        raise OverlappingSegments(
            f"{len(inside)} segments overlap others on one plane: no more than {_MOST_SHARING} are resolved"
        )
    for place, (number, cut) in enumerate(inside.items()):
        for other in islice(inside, place):
            if voxels := int(np.bitwise_count(cut & inside[other]).sum()):
                counts[other, number] += voxels
        require_few(counts)
    return counts


def require_few(counts: Mapping[Pair, int]) -> None:
    """Raise OverlappingSegments for more pairs than can be told and kept apart."""
    if len(counts) > _MOST_PAIRS:
        raise OverlappingSegments(f"more than {_MOST_PAIRS} pairs of segments overlap: {told(counts, are_all=False)}")


def segments_in(frames: Frames, of_plane: Sequence[int], number_of_frame: Sequence[int]) -> dict[int, Packed]:
    """The voxels of each segment of a plane, packed; two frames of one segment in one place add up."""
    segments: dict[int, Packed] = {}
    for frame in of_plane:
        packed, number = frames.packed(frame), number_of_frame[frame]
        segments[number] = segments[number] | packed if number in segments else packed
    return segments


def combine_segments(segments: Mapping[int, Packed], out: Labelmap) -> bool:
    """Write the numbers of packed segments into `out` (rows, columns), which is zero.

    Whether they overlap; if so `out` is of no use.
    """
    covered = np.zeros(-(-out.size // 8), np.uint8)
    for number, packed in segments.items():
        if (covered & packed).any():
            return True
        covered |= packed
        inside = np.unpackbits(packed, count=out.size, bitorder="little").reshape(out.shape)
        out[inside.view(np.bool_)] = number
    return False


def _extent(packed: Packed) -> tuple[int, int]:
    """Where the bytes with a voxel begin and end, up to a word more.

    Of truth values the largest is the first, which argmax therefore stops at; it does not in arrays that run backwards.
    """
    inside = packed.view(np.bool_)
    first = int(inside.argmax())
    if not inside[first]:
        return 0, 0
    if packed.size < 8:
        return 0, packed.size
    words = packed[packed.size % 8 :].view(np.uint64)
    behind = int(np.ascontiguousarray(words[::-1]).view(np.bool_).argmax()) // 8
    return first, packed.size - behind * 8


def values_in(labels: npt.NDArray[Any]) -> frozenset[int]:
    """The values that occur: looked for eight bytes at a time where they are not those before them, which most are."""
    flat = np.ascontiguousarray(labels).reshape(-1)
    whole = flat.nbytes // 8 * 8 // flat.itemsize
    found = np.concatenate((_changes(_changes(flat[:whole].view(np.uint64)).view(flat.dtype)), flat[whole:]))
    if flat.dtype != np.uint8:
        return frozenset(np.unique(found).tolist())
    seen = np.zeros(256, np.bool_)
    seen[found] = True
    return frozenset(np.flatnonzero(seen).tolist())


def _changes(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The first value, and every one that is not that before it."""
    return np.concatenate((values[:1], values[1:][values[1:] != values[:-1]]))


def extents_in(labels: npt.NDArray[Any]) -> dict[int, tuple[int, int]]:
    """From which pixel up to which each value that occurs does, as indices of the flat array."""
    flat = np.ascontiguousarray(labels).reshape(-1)
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    ends = np.append(starts[1:], flat.size)
    values, first = np.unique(flat[starts], return_index=True)
    last = len(starts) - 1 - np.unique(flat[starts][::-1], return_index=True)[1]
    extents = zip(starts[first].tolist(), ends[last].tolist(), strict=True)
    return dict(zip(values.tolist(), extents, strict=True))
