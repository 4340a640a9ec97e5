"""Proof of settling: what a model was given, and the labels that its result came to, lie in the patient where they lay.

Nothing here comes from what turns and resamples: each voxel is looked up by its millimetres. Labelmaps are compared voxel by
voxel; of what is interpolated, and of masks, thousands of voxels are.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from segnode.dicom.geometry import Vector
from segnode.dicom.volume import Volume
from segnode.errors import Misplaced

Array = npt.NDArray[Any]
Points = npt.NDArray[np.float64]

_LOOKED_AT: Final = 4096
# Of a voxel: nearer to the border of two, either may be taken.
_BORDER: Final = 0.01
_HALF: Final = 0.5
_TILE: Final = 32
# Of a voxel, for each step along another axis.
_PARALLEL: Final = 1e-9
# Of what is interpolated in single precision.
_EQUAL: Final = 2e-3


def require_given(source: Volume, given: Volume) -> None:
    """Prove that what a model was given has the values of the source where its affine says. Raises Misplaced."""
    looked_at = _some(given.array.shape)
    at = _indices(looked_at, given.affine, source.affine)
    expected = _interpolated(source.array[np.newaxis], at)[0]
    found = given.array[tuple(looked_at.T)]
    scale = max(1.0, float(np.abs(expected).max()))
    if not np.allclose(found, expected, rtol=0, atol=_EQUAL * scale, equal_nan=True):
        raise Misplaced("what the model was given is not what the series has in that place")


def require_labels(returned: Array, affine: Vector, labels: Array, target: Vector) -> None:
    """Prove of labels (slices, rows, columns) that each voxel has the label of the nearest that was returned."""
    to = np.linalg.inv(affine) @ target
    slices, rows, columns = np.ogrid[tuple(slice(size) for size in labels.shape)]
    # Tile by tile: where the axes of the two are in another order, that takes a fraction of the time.
    for down, across in np.ndindex(-(-labels.shape[1] // _TILE), -(-labels.shape[2] // _TILE)):
        of_rows, of_columns = slice(down * _TILE, (down + 1) * _TILE), slice(across * _TILE, (across + 1) * _TILE)
        along = slices, rows[:, of_rows], columns[:, :, of_columns]
        # Not more than it takes: where axes are parallel, an index depends on one of them.
        at = [
            np.asarray(sum((step * axis for step, axis in zip(row, along, strict=False) if abs(step) > _PARALLEL), row[3]))
            for row in to[:3]
        ]
        found, clear = _nearest(returned, [axis.reshape((1,) * (3 - axis.ndim) + axis.shape) for axis in at])
        differs = found != labels[:, of_rows, of_columns]
        if differs.any() and (differs & clear).any():
            raise Misplaced("labels are not in the patient where the model put them")


def require_mask(returned: Array, affine: Vector, mask: Array, target: Vector, value: int) -> None:
    """Prove of a mask (slices, rows, columns) that voxels are in it where the nearest that was returned is."""
    looked_at = np.concatenate([_some(mask.shape), _some_of(mask)])
    found, clear = _nearest(returned, list(_indices(looked_at, target, affine).T))
    if ((found != mask[tuple(looked_at.T)]) & clear).any():
        raise Misplaced(f"the mask of value {value} is not where the model put it")


def require_probabilities(returned: Array, affine: Vector, layers: Array, target: Vector, threshold: float | None) -> None:
    """Prove of labels (layers, slices, rows, columns) that they are of the greatest probability, or reach the threshold."""
    looked_at = np.concatenate([_some(layers.shape[1:]), _some_of(layers[0] > 0)])
    at = _indices(looked_at, target, affine)
    beyond = np.maximum(-at, at - (np.array(returned.shape[1:]) - 1)).max(axis=1)
    of = np.where(beyond <= _HALF, _interpolated(returned, at), 0)
    of[0] = np.where(beyond <= _HALF, of[0], 1)
    found = layers[(slice(None), *looked_at.T)]
    if threshold is None:
        first, second = np.sort(of, axis=0)[[-1, -2]] if len(of) > 1 else (of[0], of[0] - 1)
        clear = first - second > _EQUAL
        wrong = found[0] != of.argmax(axis=0)
    else:
        values = np.arange(1, len(of))[:, np.newaxis]
        clear = (np.abs(of[1:] - threshold) > _EQUAL).all(axis=0)
        wrong = ((found[:, np.newaxis] == values).any(axis=0) != (of[1:] >= threshold)).any(axis=0)
    if (wrong & clear & (np.abs(beyond - _HALF) > _BORDER)).any():
        raise Misplaced("labels are not where the model has the probabilities that they are made of")


def _some(shape: tuple[int, ...]) -> npt.NDArray[np.intp]:
    """Voxels (number, axis) of an array, always the same."""
    chosen = np.random.default_rng(0).integers(0, int(np.prod(shape)), _LOOKED_AT)
    return np.stack(np.unravel_index(chosen, shape), axis=1)


def _some_of(mask: Array) -> npt.NDArray[np.intp]:
    """Voxels (number, axis) of a mask, always the same."""
    inside = np.flatnonzero(mask)
    chosen = inside[np.random.default_rng(0).integers(0, len(inside), _LOOKED_AT)] if len(inside) else inside
    return np.stack(np.unravel_index(chosen, mask.shape), axis=1)


def _indices(looked_at: npt.NDArray[np.intp], affine: Vector, other: Vector) -> Points:
    """The indices (number, axis) of voxels of one grid on another, between its voxels or outside too."""
    mm = looked_at @ affine[:3, :3].T + affine[:3, 3]
    return np.asarray(np.linalg.solve(other[:3, :3], (mm - other[:3, 3]).T).T)


def _nearest(array: Array, at: list[Points]) -> tuple[Array, npt.NDArray[np.bool_]]:
    """What an array has at indices, given for each axis, 0 outside; and where no other voxel is as near."""
    nearest = [np.rint(axis).astype(np.intp) for axis in at]
    inside = [(axis >= 0) & (axis < size) for axis, size in zip(nearest, array.shape, strict=True)]
    clear = [np.abs(np.abs(axis - of) - _HALF) > _BORDER for axis, of in zip(at, nearest, strict=True)]
    found = array[tuple(axis.clip(0, size - 1) for axis, size in zip(nearest, array.shape, strict=True))]
    return np.where(inside[0] & inside[1] & inside[2], found, 0), clear[0] & clear[1] & clear[2]


def _interpolated(arrays: Array, at: Points) -> npt.NDArray[np.float64]:
    """What arrays (number, slices, rows, columns) have at indices by linear interpolation; beyond the last, what that has."""
    last = np.array(arrays.shape[1:]) - 1
    at = at.clip(0, last)
    low = np.floor(at).astype(np.intp)
    total = np.zeros((len(arrays), len(at)))
    for corner in np.ndindex(2, 2, 2):
        share = np.where(corner, at - low, 1 - (at - low)).prod(axis=1)
        total += share * arrays[(slice(None), *np.minimum(low + corner, last).T)]
    return total
