"""Grids in the patient's space: whether labels lie on that of the images, in whatever order their axes are.

An affine is 4x4 and maps (slice, row, column), or three axes in another order, to LPS mm.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from segnode.dicom.geometry import Vector
from segnode.errors import GridMismatch

# Of a voxel, at every corner: what formats round away, and far from a shift.
_TOLERANCE: Final = 0.05


@dataclass(frozen=True, eq=False)
class Grid:
    """Where voxels lie: `shape` is (slices, rows, columns), `affine` maps (slice, row, column) to LPS mm.

    What is not `placed` has no place in the patient: slices are frames, and the affine has but the spacing.
    """

    shape: tuple[int, int, int]
    affine: Vector
    placed: bool = True

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between slices, rows and columns."""
        slices, rows, columns = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(slices), float(rows), float(columns)


@dataclass(frozen=True)
class Fit:
    """How an array lies on a grid: its `axes` become slices, rows, columns, `flipped` run backwards; `start` is its corner."""

    axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]
    start: tuple[int, int, int]
    shape: tuple[int, int, int]

    def place(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The array on the whole grid, (slices, rows, columns): itself where it fills it, else with zeros around it."""
        turned = array.transpose(self.axes)[tuple(slice(None, None, -1 if f else 1) for f in self.flipped)]
        if turned.shape == self.shape:
            return turned
        out = np.zeros(self.shape, array.dtype)
        out[tuple(slice(s, s + n) for s, n in zip(self.start, turned.shape, strict=True))] = turned
        return out


def fit(shape: Sequence[int], affine: Vector, grid: Grid, where: str) -> Fit:
    """How an array of this shape and affine lies on a grid. Raises GridMismatch, which shows both affines."""
    problem = ""
    try:
        found = _fit(shape, affine, grid)
    except ValueError as error:
        problem = str(error)
    if problem:
        raise GridMismatch(
            f"{where}: {problem}; the labels are {_size(shape)} at\n{affine_text(affine)}\nand the images (slices, rows,"
            f" columns) {_size(grid.shape)} at\n{affine_text(grid.affine)}"
        )
    return found


def _fit(shape: Sequence[int], affine: Vector, grid: Grid) -> Fit:
    if len(shape) != 3 or affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise ValueError("the labels have no three axes with an affine of numbers")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not lengths.all():
        raise ValueError("an axis of the affine has no length")
    matrix = np.linalg.inv(grid.affine) @ affine
    steps = matrix[:3, :3]
    nearest = np.abs(steps).argmax(axis=0)
    if sorted(nearest.tolist()) != [0, 1, 2]:
        raise ValueError("the axes of the labels are not those of the images")
    exact = np.zeros((3, 3))
    exact[nearest, range(3)] = np.sign(steps[nearest, range(3)])
    last = np.array(shape, np.float64) - 1
    start = np.rint(matrix[:3, 3])
    off = np.abs(matrix[:3, 3] - start) + np.abs(steps - exact) @ last
    if off.max() > _TOLERANCE:
        raise ValueError(f"the voxels of the labels lie up to {off.max():.3g} voxels beside those of the images")
    end = start + exact @ last
    low = np.minimum(start, end).astype(int)
    high = np.maximum(start, end).astype(int)
    if (low < 0).any() or (high >= grid.shape).any():
        raise ValueError("the labels reach beyond the images")
    axes = tuple(int(np.flatnonzero(nearest == axis)[0]) for axis in range(3))
    flipped = tuple(bool(exact[axis, axes[axis]] < 0) for axis in range(3))
    return Fit((axes[0], axes[1], axes[2]), (flipped[0], flipped[1], flipped[2]), (low[0], low[1], low[2]), grid.shape)


def fits(shape: Sequence[int], affine: Vector, grid: Grid) -> bool:
    """Whether an array of this shape and affine lies on a grid."""
    if not grid.placed:
        return False
    try:
        _fit(shape, affine, grid)
    except (ValueError, np.linalg.LinAlgError):
        return False
    return True


def require_shape(shape: Sequence[int], grid: Grid, where: str) -> None:
    """Raise GridMismatch unless an array has the shape of a grid."""
    if tuple(shape) != grid.shape:
        raise GridMismatch(
            f"{where}: the labels are {_size(shape)} (slices, rows, columns), and the images {_size(grid.shape)} at\n"
            f"{affine_text(grid.affine)}"
        )


def affine_text(affine: Vector) -> str:
    """An affine as four lines."""
    return "\n".join("  " + " ".join(f"{value:10.4f}" for value in row) for row in np.asarray(affine))


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
