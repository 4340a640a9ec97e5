"""Where the frames of a Segmentation lie: which share a place, in which order the places are, and whether they are a grid."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from segnode.dicom.geometry import Vector, unit_normal
from segnode.errors import NotAVolume, OverlappingSegments
from segnode.seg.frame_groups import FrameTable, Integers
from segnode.seg.segmentation import Segmentation

REFERENCED_SEGMENT_NUMBER: Final = 0x0062000B
_SAME_PLACE_MM: Final = 1e-2
_SAME_PLACE: Final = 0.05  # of the smallest spacing that is said, where that is less
_STEP_TOLERANCE: Final = 0.05  # of the step
_SAID_TOLERANCE: Final = 0.01  # of SpacingBetweenSlices
_SHIFT_TOLERANCE_MM: Final = 0.1
# Slices nearer to each other than this, of the pixel spacing, are no grid, unless SpacingBetweenSlices says so.
_SMALLEST_STEP: Final = 0.05
_MOST_SLICES: Final = 1 << 20


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
    """Which frames lie in one place: by their position, their tile, their source image or their dimension indices.

    Raises NotAVolume when ImageOrientationPatient is no orientation.
    """
    table = segmentation.table
    if segmentation.is_tiled or (table.tiles > 0).all():
        return _planes_by_key([tuple(tile) for tile in table.tiles.tolist()], in_order=True)
    if np.isfinite(table.positions).all() and len(table.orientations) <= 1:
        axes = _axes(table.orientations[0]) if table.orientations else np.eye(3)[::-1]
        return _planes_by_position(table.positions @ axes.T, same_place_in(table))
    if all(table.sources):
        return _planes_by_key([sources[0][:3] for sources in table.sources], in_order=False)
    return _planes_by_key(_indices_without_segment(segmentation), in_order=True)


def frames_twice(segmentation: Segmentation, planes: Planes) -> list[tuple[int, int]]:
    """Pairs of frames that are of one segment and in one plane, as those of a time series are."""
    placed = np.flatnonzero(planes.of_frame >= 0)
    places = planes.of_frame[placed] << 16 | segmentation.table.segment_numbers[placed]
    order = np.argsort(places, kind="stable")
    twice = np.flatnonzero(np.diff(places[order]) == 0)
    return [*zip(placed[order[twice]].tolist(), placed[order[twice + 1]].tolist(), strict=True)]


def contradiction(segmentation: Segmentation, one: int, other: int) -> OverlappingSegments:
    """The error for two such frames."""
    return OverlappingSegments(
        f"frames {one + 1} and {other + 1} are both of segment {segmentation.table.segment_numbers[one]} in one place"
        " (PlanePositionSequence): which one holds is not said"
    )


def grid_of(segmentation: Segmentation, planes: Planes) -> Grid:
    """The grid that planes lie on. Raises NotAVolume, naming the attribute that is missing or not regular."""
    table = segmentation.table
    if segmentation.is_tiled:
        raise NotAVolume("the frames are tiles of a total pixel matrix (TotalPixelMatrixRows): they are no stack of slices")
    missing = np.flatnonzero(~np.isfinite(table.positions).all(axis=1))
    if len(missing):
        what = f"of frame {missing[0] + 1} is missing or not three numbers: it has no place in the patient"
        raise NotAVolume(f"ImagePositionPatient (PlanePositionSequence) {what}")
    if len(table.orientations) != 1:
        what = "is missing" if not table.orientations else "differs from frame to frame"
        raise NotAVolume(f"ImageOrientationPatient {what} in PlaneOrientationSequence")
    spacing = pixel_spacing(segmentation)
    normal, column_cosine, row_cosine = _axes(table.orientations[0])
    positions = table.positions[planes.first_frame]
    offsets = positions - positions[0]
    distances = offsets @ normal
    shift = float(np.linalg.norm(offsets - np.outer(distances, normal), axis=1).max())
    if shift > shift_tolerance(spacing):
        raise NotAVolume(f"the frames are shifted against each other by up to {shift:.2f} mm (ImagePositionPatient)")
    step, slice_of_plane = _steps(distances, table, min(spacing))
    affine = np.eye(4)
    affine[:3, 0] = normal * step
    affine[:3, 1] = column_cosine * spacing[0]
    affine[:3, 2] = row_cosine * spacing[1]
    affine[:3, 3] = positions[0]
    return Grid(slice_of_plane, int(slice_of_plane[-1]) + 1, affine)


def matrix_affine(segmentation: Segmentation) -> Vector:
    """Where a total pixel matrix lies: (0, row, column), from 0, to mm in the slide's coordinate system, as 4x4.

    Raises NotAVolume, naming the attribute that is missing.
    """
    header = segmentation.header
    try:
        origin = header.TotalPixelMatrixOriginSequence[0]
        position = [float(origin.get(f"{axis}OffsetInSlideCoordinateSystem") or 0) for axis in "XYZ"]
        orientation = tuple(float(cosine) for cosine in header.ImageOrientationSlide)
    except Exception as error:
        missing = "TotalPixelMatrixOriginSequence or ImageOrientationSlide is missing or not numbers"
        raise NotAVolume(f"{missing}: the total pixel matrix has no place on the slide") from error
    spacing = pixel_spacing(segmentation)
    normal, column_cosine, row_cosine = _axes(orientation)
    affine = np.eye(4)
    affine[:3, 0] = normal * (_positive(segmentation.table.slice_thickness) or 1)
    affine[:3, 1] = column_cosine * spacing[0]
    affine[:3, 2] = row_cosine * spacing[1]
    affine[:3, 3] = position
    return affine


def pixel_spacing(segmentation: Segmentation) -> tuple[float, float]:
    """The distance of rows and that of columns in mm. Raises NotAVolume when frames have none, or not the same."""
    spacings = segmentation.table.spacings
    if len(spacings) > 1:
        raise NotAVolume("PixelSpacing differs from frame to frame in PixelMeasuresSequence")
    spacing = spacings[0] if spacings else ()
    if len(spacing) != 2 or not all(map(_positive, spacing)):
        raise NotAVolume("PixelSpacing is missing in PixelMeasuresSequence, or is not two positive numbers")
    return spacing[0], spacing[1]


def _positive(number: float | None) -> float | None:
    return number if number is not None and 0 < number < np.inf else None


def _axes(orientation: tuple[float, ...]) -> Vector:
    """Unit vectors along slices, rows and columns, as (3, 3). Raises NotAVolume."""
    if len(orientation) != 6:
        raise NotAVolume(f"ImageOrientationPatient holds {len(orientation)} numbers: it has six")
    row_cosine, column_cosine = np.reshape(orientation, (2, 3))
    return np.stack([unit_normal(row_cosine, column_cosine), column_cosine, row_cosine])


def same_place_in(table: FrameTable) -> float:
    """The distance in mm up to which two positions of frames are one."""
    return same_place((table.spacing_between_slices, table.slice_thickness, *(table.spacings[0] if table.spacings else ())))


def same_place(lengths: Iterable[float | None]) -> float:
    """The distance in mm up to which two positions are one, where planes have these spacings and thicknesses.

    It is what writers round away, and not a slice of a microscope.
    """
    said = [abs(length) for length in lengths if length is not None and _positive(abs(length))]
    return min(_SAME_PLACE_MM, *(length * _SAME_PLACE for length in said), np.inf)


def shift_tolerance(spacing: Iterable[float]) -> float:
    """How far in mm slices of a volume with this pixel spacing may lie beside each other: half a pixel at most."""
    return min(_SHIFT_TOLERANCE_MM, min(spacing) / 2)


def _planes_by_position(places: Vector, same: float) -> Planes:
    """Planes along the normal; `places` (frames, 3) are positions along normal, rows and columns.

    Frames at one distance that do not begin in one point cannot be laid onto each other: they are planes of their own.
    """
    of_frame = np.zeros(len(places), np.int64)
    for along in places.T:
        groups = _groups(along, same)
        _, first, of_frame = np.unique(of_frame * len(places) + groups, return_index=True, return_inverse=True)
    return Planes(of_frame.astype(np.int64), first.astype(np.int64))


def _groups(values: Vector, same: float) -> Integers:
    """For each value the number of its group, by size; neighbours up to `same` apart are in one."""
    order = np.argsort(values, kind="stable")
    groups = np.empty(len(order), np.int64)
    groups[order] = np.cumsum(np.diff(values[order], prepend=-np.inf) > same) - 1
    return groups


def _steps(distances: Vector, table: FrameTable, smallest_spacing: float) -> tuple[float, Integers]:
    """The distance of neighbouring slices in mm, and the slice of each plane: as it is said, where that fits.

    The sign of SpacingBetweenSlices says how frames follow each other, not where they lie. Raises NotAVolume.
    """
    said = _positive(abs(table.spacing_between_slices or 0))
    if len(distances) == 1:
        return said or _positive(table.slice_thickness) or 1.0, np.zeros(1, np.int64)
    gaps, span = np.diff(distances), float(distances[-1])
    smallest = float(gaps.min())
    for step in (said, smallest):
        if step is None or step > smallest * (1 + _STEP_TOLERANCE) or span / step >= _MOST_SLICES:
            continue
        # Each gap on its own: over many slices, what was rounded away from the step would add up to slices.
        slice_of_plane = np.concatenate([[0], np.cumsum(np.rint(gaps / step))]).astype(np.int64)
        refined = span / int(slice_of_plane[-1])
        off = float(np.abs(distances - slice_of_plane * refined).max())
        is_step = abs(refined - step) <= _SAID_TOLERANCE * step if step == said else refined > _SMALLEST_STEP * smallest_spacing
        if is_step and off <= _STEP_TOLERANCE * refined:
            return refined, slice_of_plane
    where = f"two are {smallest:.3g} mm apart, all of them {span:.6g} mm"
    raise NotAVolume(f"the frames lie on no regular grid along their normal: {where} (ImagePositionPatient)")


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
    pointers = segmentation.index_pointers
    kept = [place for place, pointer in enumerate(pointers) if pointer != REFERENCED_SEGMENT_NUMBER]
    values = segmentation.table.dimension_index_values
    if kept and all(len(value) == len(pointers) for value in values):
        return [tuple(value[place] for place in kept) for value in values]
    alone = len(set(segmentation.table.segment_numbers.tolist())) == len(values)
    return [(0,) if alone else (number,) for number in range(len(values))]
