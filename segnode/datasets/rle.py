"""Run lengths of masks in a volume, as H2O Hydrogen Torch has them for 3-D image semantic segmentation.

A mask is a text of starts and lengths. A voxel's number, from 1, has the slice index fastest:
1 + column x rows x slices + row x slices + slice.
"""

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from segnode.seg.combine import Labelmap

# A key is a voxel's number above its value.
_BITS_OF_A_VALUE: Final = 16


def runs_of(labels: Labelmap) -> Mapping[int, str]:
    """The runs of every value but 0 in a labelmap (slices, rows, columns), by value."""
    keys = np.concatenate([*_changes(labels)])
    # The changes are found as the voxels lie in memory, and only they are put in order: the labelmap is never turned.
    keys.sort()
    starts, values = keys >> _BITS_OF_A_VALUE, (keys & (1 << _BITS_OF_A_VALUE) - 1).astype(np.uint16)
    ends = np.append(starts[1:], labels.size)
    inside = values != 0
    return _texts(starts[inside], ends[inside], values[inside])


def _changes(labels: Labelmap) -> Iterator[npt.NDArray[np.int64]]:
    """The keys of the voxels whose value is not that of the voxel before them, slice by slice."""
    slices, rows, columns = labels.shape
    numbers = (np.arange(rows)[:, np.newaxis] + np.arange(columns) * rows).reshape(-1) * slices
    # Before a voxel of the first slice comes one of the last slice, of the row before; before row 0 the column before.
    by_column = labels[-1].T.reshape(-1)
    before = np.append(np.zeros(1, labels.dtype), by_column[:-1]).reshape(columns, rows).T.reshape(-1)
    for place, plane in enumerate(labels):
        here = plane.reshape(-1)
        changed = np.flatnonzero(here != before)
        yield ((numbers[changed] + place) << _BITS_OF_A_VALUE) | here[changed]
        before = here


def _texts(starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], values: npt.NDArray[np.uint16]) -> dict[int, str]:
    order = np.argsort(values, kind="stable")
    pairs = np.stack((starts + 1, ends - starts), axis=1)[order]
    present, first = np.unique(values[order], return_index=True)
    bounds = [*first.tolist(), len(pairs)]
    return {
        int(value): _spaced(pairs[begin:end].reshape(-1))
        for value, begin, end in zip(present, bounds[:-1], bounds[1:], strict=True)
    }


def _spaced(numbers: npt.NDArray[np.int64]) -> str:
    # What Python makes of a whole list takes half the time of a text for each number.
    return str(numbers.tolist())[1:-1].replace(",", "")


def mask_of(text: str, shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """The mask (slices, rows, columns) of runs. Raises ValueError for what are no runs of a volume of this shape."""
    slices, rows, columns = shape
    words = text.split()
    if len(words) % 2 or not all(word.isascii() and word.isdigit() for word in words):
        raise ValueError("the runs are not pairs of a start and a length")
    if any(len(word) > 18 for word in words):
        raise ValueError("the runs reach beyond the image")
    numbers = np.array(words, np.int64).reshape(-1, 2)
    starts, lengths = numbers[:, 0] - 1, numbers[:, 1]
    ends = starts + lengths
    size = slices * rows * columns
    if len(numbers) and (starts.min() < 0 or lengths.min() < 1 or ends.max() > size):
        raise ValueError("the runs reach beyond the image, begin before 1 or are empty")
    if (starts[1:] < ends[:-1]).any():
        raise ValueError("the runs are not in order, or overlap")
    steps = np.zeros(size + 1, np.int8)
    # Runs that touch end and begin at one voxel: both count.
    np.add.at(steps, starts, np.int8(1))
    np.add.at(steps, ends, np.int8(-1))
    flat = np.cumsum(steps[:-1], dtype=np.int8).view(np.uint8)
    return flat.reshape(columns, rows, slices).transpose(2, 1, 0)
