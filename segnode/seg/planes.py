"""Where the frames of a Segmentation lie: which share a place, in which order the places are, and whether they are a grid."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from segnode.dicom.geometry import Vector
from segnode.errors import NotAVolume
from segnode.seg.frame_groups import Integers
from segnode.seg.segmentation import Segmentation

_SAME_PLACE_MM: Final = 1e-2
_STEP_TOLERANCE: Final = 0.05  # of the step
_SHIFT_TOLERANCE_MM: Final = 0.1
_COSINE_TOLERANCE: Final = 1e-3


@dataclass(frozen=True, eq=False)
class Planes:
    """The distinct places of frames, in order: along the normal, row by row of a total pixel matrix, or as they come.

    `of_frame` (frames,) is the plane of each frame, -1 for none; `first_frame` (planes,) the first frame of each plane.
    """

    of_frame: Integers
    first_frame: Integers

    def __len__(self) -> int:
        return len(self.first_frame)


@dataclass(frozen=True, eq=False)
class Grid:
    """Planes on a regular grid: `slice_of_plane` (planes,) and `slices` in all, some of which may have no frame.

    `affine` is 4x4 and maps (slice, row, column) to LPS mm.
    """

    slice_of_plane: Integers
    slices: int
    affine: Vector


def planes_of(segmentation: Segmentation) -> Planes:
    """Which frames lie in one place: by their position, their tile, their source image or their dimension indices."""
    table = segmentation.table
    if segmentation.is_tiled or (table.tiles > 0).all():
        return _planes_by_key([tuple(tile) for tile in table.tiles.tolist()], in_order=True)
    if np.isfinite(table.positions).all() and len(table.orientations) <= 1:
        return _planes_by_distance(table.positions, _normal(segmentation))
    if all(table.sources):
        return _planes_by_key([sources[0] for sources in table.sources], in_order=False)
    return _planes_by_key(_indices_without_segment(segmentation), in_order=True)


def grid_of(segmentation: Segmentation, planes: Planes) -> Grid:
    """The grid that planes lie on. Raises NotAVolume, naming the attribute that is missing or not regular."""
    table = segmentation.table
    if segmentation.is_tiled:
        raise NotAVolume("the frames are tiles of a total pixel matrix (TotalPixelMatrixRows): they are no volume")
    if not np.isfinite(table.positions).all():
        raise NotAVolume("ImagePositionPatient is missing in PlanePositionSequence: the frames have no place in the patient")
    if len(table.orientations) != 1 or len(table.orientations[0]) != 6:
        what = "is missing" if not table.orientations else "differs from frame to frame"
        raise NotAVolume(f"ImageOrientationPatient {what} in PlaneOrientationSequence")
    if table.spacing is None:
        raise NotAVolume("PixelSpacing is missing in PixelMeasuresSequence")
    normal = _normal(segmentation)
    positions = table.positions[planes.first_frame]
    offsets = positions - positions[0]
    distances = offsets @ normal
    shift = float(np.linalg.norm(offsets - np.outer(distances, normal), axis=1).max())
    if shift > _SHIFT_TOLERANCE_MM:
        raise NotAVolume(f"the frames are shifted against each other by up to {shift:.2f} mm (ImagePositionPatient)")
    step = _step(distances, table.spacing_between_slices, table.slice_thickness)
    slice_of_plane = np.rint(distances / step).astype(np.int64)
    off = float(np.abs(distances - slice_of_plane * step).max())
    if off > _STEP_TOLERANCE * step or len(set(slice_of_plane.tolist())) != len(planes):
        raise NotAVolume(f"the frames lie up to {off:.2f} mm off a grid of {step:.2f} mm (ImagePositionPatient)")
    row_cosine, column_cosine = np.reshape(table.orientations[0], (2, 3))
    affine = np.eye(4)
    affine[:3, 0] = normal * step
    affine[:3, 1] = column_cosine * table.spacing[0]
    affine[:3, 2] = row_cosine * table.spacing[1]
    affine[:3, 3] = positions[0]
    return Grid(slice_of_plane, int(slice_of_plane[-1]) + 1, affine)


def _normal(segmentation: Segmentation) -> Vector:
    orientations = segmentation.table.orientations
    if not orientations or len(orientations[0]) != 6:
        return np.array([0.0, 0.0, 1.0])
    row_cosine, column_cosine = np.reshape(orientations[0], (2, 3))
    normal = np.cross(row_cosine, column_cosine)
    length = float(np.linalg.norm(normal))
    if abs(length - 1) > _COSINE_TOLERANCE:
        raise NotAVolume("ImageOrientationPatient does not hold two perpendicular unit vectors")
    return np.asarray(normal / length)


def _step(distances: Vector, between_slices: float | None, thickness: float | None) -> float:
    """The distance of neighbouring slices: as it is said where that fits, else the smallest there is."""
    gaps = np.diff(distances)
    smallest = float(gaps.min()) if len(gaps) else 0.0
    said = between_slices or (thickness if not len(gaps) else None) or smallest or 1.0
    fits = not len(gaps) or bool((np.abs(distances / said - np.rint(distances / said)) <= _STEP_TOLERANCE).all())
    return said if fits and said <= (smallest or said) * (1 + _STEP_TOLERANCE) else smallest


def _planes_by_distance(positions: Vector, normal: Vector) -> Planes:
    distances = positions @ normal
    order = np.argsort(distances, kind="stable")
    begins = np.diff(distances[order], prepend=-np.inf) > _SAME_PLACE_MM
    of_frame = np.empty(len(order), np.int64)
    of_frame[order] = np.cumsum(begins) - 1
    return Planes(of_frame, order[begins].astype(np.int64))


def _planes_by_key(keys: "list[tuple[object, ...]]", *, in_order: bool) -> Planes:
    distinct = list(dict.fromkeys(keys))
    if in_order:
        distinct.sort(key=repr if any(not isinstance(part, int) for key in distinct for part in key) else None)
    place = {key: number for number, key in enumerate(distinct)}
    of_frame = np.array([place[key] for key in keys], np.int64)
    _, first = np.unique(of_frame, return_index=True)
    return Planes(of_frame, first.astype(np.int64))


def _indices_without_segment(segmentation: Segmentation) -> "list[tuple[object, ...]]":
    """The dimension index values of each frame but for that of the segment number."""
    pointers = [int(item.get("DimensionIndexPointer", 0)) for item in segmentation.header.get("DimensionIndexSequence") or ()]
    kept = [place for place, pointer in enumerate(pointers) if pointer != 0x0062000B]
    values = segmentation.table.dimension_index_values
    if kept and all(len(value) == len(pointers) for value in values):
        return [tuple(value[place] for place in kept) for value in values]
    alone = len(set(segmentation.table.segment_numbers.tolist())) == len(values)
    return [(0,) if alone else (number,) for number in range(len(values))]
