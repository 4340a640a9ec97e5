"""The voxels of each segment, plane by plane and packed, whichever type a Segmentation has."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from segnode.errors import OverlappingSegments, UnreadablePixels
from segnode.seg.combine import Packed, PlacedFrames, placed_frames, segments_in, values_in
from segnode.seg.planes import Planes, contradiction, frames_twice, planes_of
from segnode.seg.segmentation import Segmentation

Result = TypeVar("Result")

# A frame of a few kilobytes can hold every number there is.
_LARGEST_PLANE: Final = 1 << 30


@dataclass(frozen=True, eq=False)
class Masks:
    """The segments of a Segmentation as packed masks (PS3.5 8.1.1), padded with zeros to a byte.

    A FRACTIONAL has a voxel in a segment from `threshold` (of 1) on; where that is None, in the one segment of the greatest
    fraction, the lowest number of equal ones, unless the background has more: what the fractions leave of 1.
    """

    segmentation: Segmentation
    planes: Planes
    frames_of_plane: tuple[tuple[int, ...], ...]
    threshold: float | None = None

    def at(self, plane: int) -> dict[int, Packed]:
        """The masks of a plane by segment number, also those of empty frames. Raises UnreadablePixels, NotASegmentation."""
        frames, numbers = self.frames_of_plane[plane], self.segmentation.table.segment_numbers
        if self.segmentation.type == "BINARY":
            return segments_in(self.segmentation.frames, frames, numbers.tolist())
        if self.segmentation.type == "LABELMAP":
            return self._of_labels(frames)
        fractions = self.fractions_at(plane)
        if self.threshold is None:
            return _greatest(fractions, self.segmentation.maximum_fractional_value)
        least = self.threshold * self.segmentation.maximum_fractional_value
        return {number: _packed(values >= least) for number, values in fractions.items()}

    @cached_property
    def placed(self) -> PlacedFrames | None:
        """The frames of a BINARY by plane, None for another type."""
        table = self.segmentation.table
        if self.segmentation.type != "BINARY":
            return None
        return placed_frames(self.segmentation.frames, self.planes.of_frame, table.segment_numbers.tolist())

    def fractions_at(self, plane: int) -> dict[int, npt.NDArray[np.uint8]]:
        """The stored values of a plane of a FRACTIONAL, (rows, columns), by segment number. Raises UnreadablePixels."""
        found: dict[int, npt.NDArray[np.uint8]] = {}
        for frame in self.frames_of_plane[plane]:
            number = int(self.segmentation.table.segment_numbers[frame])
            values = self.segmentation.frames.decode(frame).astype(np.uint8, copy=False)
            found[number] = np.maximum(found[number], values) if number in found else values
        return found

    def _of_labels(self, frames: tuple[int, ...]) -> dict[int, Packed]:
        if len(frames) > 1:
            raise OverlappingSegments(
                "two frames of a LABELMAP lie in one place (PlanePositionSequence): which one holds is not said"
            )
        labels = self.segmentation.frames.decode(frames[0])
        present = values_in(labels)
        self.segmentation.require_described(present)
        size = len(present) * self.segmentation.frames.shape.pixels // 8
        if size > _LARGEST_PLANE:
            raise UnreadablePixels(f"a frame holds {len(present)} segments, whose masks take {size >> 30} GiB: too many")
        return {number: _packed(labels == number) for number in sorted(present.intersection(self.segmentation.numbers))}


def masks_of(segmentation: Segmentation, threshold: float | None = None) -> Masks:
    """The masks of a Segmentation, over its planes. Raises NotAVolume."""
    planes = planes_of(segmentation)
    frames: list[list[int]] = [[] for _ in range(len(planes))]
    for frame, plane in enumerate(planes.of_frame.tolist()):
        frames[plane].append(frame)
    return Masks(segmentation, planes, tuple(map(tuple, frames)), threshold)


def require_no_contradiction(masks: Masks) -> None:
    """Refuse two frames of one segment in one place, unless they are the same: neither says what both together would.

    Raises OverlappingSegments, UnreadablePixels.
    """
    source = masks.segmentation
    for one, other in frames_twice(source, masks.planes) if source.type != "LABELMAP" else ():
        if not np.array_equal(source.frames.decode(one), source.frames.decode(other)):
            raise contradiction(source, one, other)


def of_each_plane(work: Callable[[int], Result], count: int) -> Iterator[Result]:
    """The work done for each of so many planes, in their order, by several threads."""
    with ThreadPoolExecutor(os.cpu_count(), "planes") as pool:
        yield from pool.map(work, range(count))


def _packed(inside: npt.NDArray[np.bool_]) -> Packed:
    return np.packbits(inside, axis=None, bitorder="little")


def _greatest(fractions: dict[int, npt.NDArray[np.uint8]], maximum: int) -> dict[int, Packed]:
    numbers = sorted(fractions)
    values = np.stack([fractions[number] for number in numbers])
    greatest, winner = values.max(axis=0), values.argmax(axis=0)
    background = np.maximum(maximum - values.sum(axis=0, dtype=np.int64), 0)
    inside = (greatest > 0) & (greatest >= background)
    return {number: _packed(inside & (winner == place)) for place, number in enumerate(numbers)}
