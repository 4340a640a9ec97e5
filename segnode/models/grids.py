"""Grids: a volume in the orientation and spacing that a model wants, and what it returns back where the images lie.

A grid is the shape (of three axes) and the affine of an array, 4x4, which maps an index to LPS mm. Axes that only change
their order or direction are changed exactly; everything else is interpolated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from segnode.dicom.geometry import Vector

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

# Which way in the patient an axis goes, in LPS: R is to the right, as its index grows.
_DIRECTIONS: Final = {
    "R": (-1, 0, 0),
    "L": (1, 0, 0),
    "A": (0, -1, 0),
    "P": (0, 1, 0),
    "S": (0, 0, 1),
    "I": (0, 0, -1),
}
# Of a voxel, at the corners of a grid: what is nearer lies on it, as affines in single precision do.
_SAME: Final = 0.01
_EDGE: Final = 0.5


@dataclass(frozen=True)
class Turn:
    """Another order and direction of the last three axes of an array: new axis i is old axis `axes[i]`, reversed or not."""

    axes: tuple[int, int, int]
    reversed: tuple[bool, bool, bool]

    def array(self, array: Array) -> Array:
        """A view of an array, turned."""
        ahead = array.ndim - 3
        turned: Array = array.transpose(*range(ahead), *(ahead + axis for axis in self.axes))
        first, second, third = (slice(None, None, -1 if back else 1) for back in self.reversed)
        return turned[..., first, second, third]

    def affine(self, affine: Vector, shape: Shape) -> Vector:
        """The affine of an array that had this affine and shape (of three axes), turned."""
        back = np.zeros((4, 4))
        back[3, 3] = 1
        for new, (old, is_reversed) in enumerate(zip(self.axes, self.reversed, strict=True)):
            back[old, new] = -1 if is_reversed else 1
            back[old, 3] = shape[old] - 1 if is_reversed else 0
        return np.asarray(affine @ back)


def turn_towards(affine: Vector, directions: npt.ArrayLike) -> Turn:
    """The turn after which axes run nearest to directions: three vectors in LPS, the first for the first axis."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.asarray(directions, np.float64) @ axes
    order = max(permutations(range(3)), key=lambda order: sum(abs(cosines[new, old]) for new, old in enumerate(order)))
    first, second, third = order
    along = [bool(cosines[new, old] < 0) for new, old in enumerate(order)]
    return Turn((first, second, third), (along[0], along[1], along[2]))


def turn_to_orientation(affine: Vector, orientation: str) -> Turn:
    """The turn to an orientation such as RAS: the first axis runs nearest to the patient's right, and so on."""
    return turn_towards(affine, [_DIRECTIONS[letter] for letter in orientation])


def turn_like(affine: Vector, other: Vector) -> Turn:
    """The turn after which axes run nearest to those of another affine."""
    return turn_towards(affine, other[:3, :3].T / np.linalg.norm(other[:3, :3], axis=0)[:, np.newaxis])


def with_spacing(array: Array, affine: Vector, spacing: Sequence[float]) -> tuple[Array, Vector]:
    """An array in another spacing (mm, of its axes), by linear interpolation.

    Its middle stays where it is, and its extent as it is, to half a voxel.
    """
    own = np.linalg.norm(affine[:3, :3], axis=0)
    step = np.asarray(spacing) / own
    shape = [max(1, round(size / by)) for size, by in zip(array.shape, step.tolist(), strict=True)]
    matrix = np.diag([*step, 1.0])
    matrix[:3, 3] = (np.array(array.shape) - 1 - step * (np.array(shape) - 1)) / 2
    if np.allclose(matrix, np.eye(4), atol=_SAME / max(array.shape)):
        return array, affine
    return _linear(array, matrix, tuple(shape)), np.asarray(affine @ matrix)


@dataclass(frozen=True, eq=False)
class Passage:
    """The way of arrays from one grid to another; `matrix` maps an index of the other grid to one of theirs.

    `matrix` has one entry in each row where the axes of both are parallel, and `is_same` says that both have the same voxels.
    """

    turn: Turn
    matrix: npt.NDArray[np.float64]
    origin: Shape
    target: Shape

    @property
    def is_same(self) -> bool:
        """Whether both grids have the same voxels, in whatever order."""
        return self.origin == self.target and _furthest(self.matrix - np.eye(4), self.target) <= _SAME

    @property
    def is_no_way(self) -> bool:
        """Whether an array stays as it is."""
        return self.is_same and self.turn == Turn((0, 1, 2), (False, False, False))

    @property
    def is_straight(self) -> bool:
        """Whether the axes of both grids are parallel."""
        return _furthest(self.matrix - np.diag(np.diag(self.matrix)), self.target, shift=False) <= _SAME

    def nearest(self, array: Array) -> Array:
        """An array on the other grid, each voxel as the nearest; 0 outside. A view where both grids have the same voxels."""
        array = self.turn.array(array)
        if self.is_same:
            return array
        if not self.is_straight:
            return _transformed(array, self.matrix, self.target, order=0, mode="grid-constant")
        indices, inside = zip(*(self._nearest_on(axis) for axis in range(3)), strict=True)
        moved: Array = np.zeros(self.target, array.dtype)
        moved[np.ix_(*inside)] = array[np.ix_(*(at[on] for at, on in zip(indices, inside, strict=True)))]
        return moved

    def linear(self, array: Array, outside: float) -> Array:
        """An array of floats on the other grid by linear interpolation, up to half a voxel beyond its last voxels."""
        array = self.turn.array(array)
        if self.is_same:
            return array
        moved = _linear(array, self.matrix, self.target)
        return np.where(self._inside, moved, np.asarray(outside, moved.dtype))

    @property
    def _inside(self) -> Array:
        if not self.is_straight:
            within = np.ones(self.origin, np.uint8)
            return _transformed(within, self.matrix, self.target, order=0, mode="grid-constant").astype(np.bool_)
        first, second, third = (self._nearest_on(axis)[1] for axis in range(3))
        return np.asarray(first[:, np.newaxis, np.newaxis] & second[:, np.newaxis] & third)

    def _nearest_on(self, axis: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
        """Of each voxel of the other grid along an axis: which of theirs is nearest, and whether it lies in that."""
        # Rounded, or the last bit would say which of two that are equally near is taken.
        at = np.round(self.matrix[axis, axis] * np.arange(self.target[axis]) + self.matrix[axis, 3], 6)
        indices = np.floor(at + _EDGE).astype(np.intp)
        return indices, (indices >= 0) & (indices < self.origin[axis])


def passage(origin: tuple[Shape, Vector], target: tuple[Shape, Vector]) -> Passage:
    """The way from one grid to another, both given by shape and affine."""
    shape, affine = origin
    turn = turn_like(affine, target[1])
    turned = tuple(shape[axis] for axis in turn.axes)
    matrix = np.linalg.inv(turn.affine(affine, shape)) @ target[1]
    return Passage(turn, np.asarray(matrix), turned, target[0])


def _furthest(matrix: npt.NDArray[np.float64], shape: Shape, *, shift: bool = True) -> float:
    """How far, in voxels along an axis, a matrix leads an index of a grid at most."""
    reach = np.abs(matrix[:3, :3]) @ (np.array(shape) - 1.0)
    return float((reach + (np.abs(matrix[:3, 3]) if shift else 0)).max())


def _linear(array: Array, matrix: npt.NDArray[np.float64], shape: Shape) -> Array:
    """What `matrix` finds in an array of floats for each index of another; beyond the last voxels, what they have."""
    single = array.astype(np.float32) if array.dtype == np.float16 else array
    return _transformed(single, matrix, shape, order=1, mode="nearest")


def _transformed(array: Array, matrix: npt.NDArray[np.float64], shape: Shape, *, order: int, mode: str) -> Array:
    from scipy import ndimage  # noqa: PLC0415  few models have a grid of their own

    straight, diagonal = matrix[:3, :3], np.diag(matrix)[:3]
    if _furthest(matrix - np.diag(np.diag(matrix)), shape, shift=False) <= _SAME:
        straight = diagonal  # in a fraction of the time
    moved: Array = ndimage.affine_transform(array, straight, matrix[:3, 3], shape, order=order, mode=mode, prefilter=False)
    return moved
