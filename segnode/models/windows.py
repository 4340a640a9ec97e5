"""Sliding windows: where they lie in a volume, and one labelmap of what a model says of each."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Place = tuple[int, int, int]


class Windows:
    """Windows of one size that cover a volume; the next has at least a share of each, the last ends where the volume does."""

    def __init__(self, shape: Sequence[int], size: Sequence[int], overlap: float) -> None:
        self.shape = tuple(shape)
        self.size = tuple(size)
        self.starts = [_starts(length, window, overlap) for length, window in zip(shape, size, strict=True)]

    def __len__(self) -> int:
        return math.prod(map(len, self.starts))

    def __iter__(self) -> Iterator[Place]:
        """The first voxel of each; slices go up."""
        slices, rows, columns = self.starts
        return product(slices, rows, columns)

    def cut(self, array: Array, place: Place, padding: float) -> Array:
        """What is in a window; one that is larger than the array is filled up at the end."""
        part = array[self.inside(place)]
        missing = [(0, window - length) for window, length in zip(self.size, part.shape, strict=True)]
        return np.pad(part, missing, constant_values=padding) if any(after for _, after in missing) else part

    def inside(self, place: Place) -> tuple[slice, ...]:
        """The voxels of a window that the volume has."""
        return tuple(
            slice(start, min(start + window, length))
            for start, window, length in zip(place, self.size, self.shape, strict=True)
        )

    def own(self, place: Place) -> tuple[slice, ...]:
        """The voxels that lie nearer to the middle of a window than to that of any other."""
        return tuple(map(_own, self.starts, self.size, self.shape, place))


class LabelParts:
    """The labelmap of labels by window: where windows overlap, that one is asked in whose middle a voxel rather lies."""

    def __init__(self, windows: Windows) -> None:
        self._windows = windows
        self._labelmap = np.zeros(windows.shape, np.uint8)

    def add(self, place: Place, labels: Array) -> None:
        """Take the labels of a window. Raises ValueError where one cannot be the value of a segment."""
        if labels.size and not (labels.min() >= 0 and labels.max() <= np.iinfo(np.uint16).max):
            raise ValueError(f"labels from {labels.min()} to {labels.max()}: they must be from 0 to 65535")
        if labels.size and labels.max() > np.iinfo(self._labelmap.dtype).max:
            self._labelmap = self._labelmap.astype(np.uint16)
        own = self._windows.own(place)
        self._labelmap[own] = labels[tuple(slice(of.start - at, of.stop - at) for of, at in zip(own, place, strict=True))]

    def labelmap(self) -> Array:
        """The labels of all windows."""
        return self._labelmap


class ScoreParts:
    """The labelmap of scores by window: the channel whose mean over the windows that hold a voxel is greatest.

    Windows come slices up, so sums are held for as many slices as a window has: what lies below is labelled already.
    """

    def __init__(self, windows: Windows) -> None:
        self._windows = windows
        self._labelmap = np.zeros(windows.shape, np.uint8)
        self._sums: npt.NDArray[np.float32] | None = None
        self._first = 0

    def add(self, place: Place, scores: Array) -> None:
        """Take the scores (channels, slices, rows, columns) of a window. Raises ValueError for what are no scores."""
        if not np.isfinite(scores).all():
            raise ValueError("scores that are not finite (NaN or infinite)")
        if self._sums is None:
            depth = min(self._windows.size[0], self._windows.shape[0])
            self._sums = np.zeros((len(scores), depth, *self._windows.shape[1:]), np.float32)
            self._labelmap = self._labelmap.astype(np.min_scalar_type(len(scores) - 1))
        if len(scores) != len(self._sums):
            raise ValueError(f"{len(scores)} channels, and {len(self._sums)} for another window")
        if place[0] > self._first:
            self._settle(place[0])
        slices, rows, columns = self._windows.inside(place)
        held = slice(slices.start - self._first, slices.stop - self._first)
        given = scores[:, : slices.stop - slices.start, : rows.stop - rows.start, : columns.stop - columns.start]
        self._sums[:, held, rows, columns] += given

    def labelmap(self) -> Array:
        """The labels of all windows."""
        self._settle(self._windows.shape[0])
        return self._labelmap

    def _settle(self, end: int) -> None:
        """Label the slices below one that no later window holds. A sum is greatest where the mean is."""
        if self._sums is None:
            return
        count = end - self._first
        for index in range(count):
            self._labelmap[self._first + index] = self._sums[:, index].argmax(axis=0)
        left = self._sums.shape[1] - count
        self._sums[:, :left] = self._sums[:, count:]
        self._sums[:, left:] = 0
        self._first = end


def _starts(length: int, window: int, overlap: float) -> list[int]:
    last = max(length - window, 0)
    return [*range(0, last, max(1, int(window * (1 - overlap)))), last]


def _own(starts: Sequence[int], window: int, length: int, start: int) -> slice:
    edges = [0, *((one + window + other) // 2 for one, other in pairwise(starts)), length]
    index = starts.index(start)
    return slice(edges[index], edges[index + 1])
