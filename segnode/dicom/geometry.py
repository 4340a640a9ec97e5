"""Where slices lie in the patient: ordering them along their normal and proving that they are one volume.

All coordinates are millimetres in the LPS patient coordinate system (PS3.3 C.7.6.2.1.1), which NIfTI and others have as RAS.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from segnode.errors import NotAVolume

Vector = npt.NDArray[np.float64]

LPS_TO_RAS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
_COSINE_TOLERANCE: Final = 1e-3
_PIXEL_SPACING_TOLERANCE: Final = 1e-3  # of the spacing
_SLICE_SPACING_TOLERANCE: Final = 0.05  # of the spacing
_SHIFT_TOLERANCE_MM: Final = 0.1


@dataclass(frozen=True)
class Plane:
    """One slice: `position` of its first pixel's centre, `orientation` as row then column cosines."""

    sop_instance_uid: str
    frame_of_reference_uid: str
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    rows: int
    columns: int
    thickness: float


@dataclass(frozen=True)
class Stack:
    """Slices that are one volume: `order` lists the planes along the normal, `affine` maps (slice, row, column) to LPS mm."""

    order: tuple[int, ...]
    affine: Vector


def stack(planes: Sequence[Plane], *, allow_tilt: bool = False) -> Stack:
    """Order planes by their position along the normal (row x column cosines) and prove that they form a regular grid.

    With `allow_tilt` each slice may be shifted against the one before by the same (a tilted gantry): the step of slices is
    then not along the normal. Raises NotAVolume: several frames of reference, orientations, spacings or sizes; two slices
    in one place; a gap; slices that are shifted against each other otherwise.
    """
    if not planes:
        raise NotAVolume("the series has no image with a place in the patient")
    _require_one_grid(planes)
    row_cosine, column_cosine = np.reshape(planes[0].orientation, (2, 3))
    normal = unit_normal(row_cosine, column_cosine)
    positions = np.array([plane.position for plane in planes])
    distances = positions @ normal
    order = np.argsort(distances, kind="stable")
    step = _slice_step(planes, order, distances, positions, normal, allow_tilt=allow_tilt)
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = column_cosine * planes[0].spacing[0]
    affine[:3, 2] = row_cosine * planes[0].spacing[1]
    affine[:3, 3] = positions[order[0]]
    return Stack(tuple(int(i) for i in order), affine)


def unit_normal(row_cosine: Vector, column_cosine: Vector) -> Vector:
    """The direction of slices: row cosine x column cosine. Raises NotAVolume unless they are perpendicular unit vectors."""
    lengths = np.linalg.norm(row_cosine), np.linalg.norm(column_cosine)
    if not np.allclose(lengths, 1, atol=_COSINE_TOLERANCE) or abs(row_cosine @ column_cosine) > _COSINE_TOLERANCE:
        raise NotAVolume("ImageOrientationPatient does not hold two perpendicular unit vectors")
    normal = np.cross(row_cosine, column_cosine)
    return np.asarray(normal / np.linalg.norm(normal))


def _require_one_grid(planes: Sequence[Plane]) -> None:
    first = planes[0]
    turned = np.abs(np.subtract([plane.orientation for plane in planes], first.orientation)).max(axis=1) > _COSINE_TOLERANCE
    spacings = np.array([plane.spacing for plane in planes])
    stretched = (np.abs(spacings - spacings[0]) > _PIXEL_SPACING_TOLERANCE * np.abs(spacings[0])).any(axis=1)
    for plane, is_turned, is_stretched in zip(planes, turned.tolist(), stretched.tolist(), strict=True):
        where = f"SOP instance {plane.sop_instance_uid} against {first.sop_instance_uid}"
        if plane.frame_of_reference_uid != first.frame_of_reference_uid:
            raise NotAVolume(f"the series mixes frames of reference (FrameOfReferenceUID of {where})")
        if is_turned:
            raise NotAVolume(f"the series mixes orientations (ImageOrientationPatient of {where})")
        if (plane.rows, plane.columns) != (first.rows, first.columns):
            raise NotAVolume(f"the series mixes image sizes (Rows, Columns of {where})")
        if is_stretched:
            raise NotAVolume(f"the series mixes pixel spacings (PixelSpacing of {where})")


def _slice_step(
    planes: Sequence[Plane],
    order: npt.NDArray[np.intp],
    distances: Vector,
    positions: Vector,
    normal: Vector,
    *,
    allow_tilt: bool,
) -> Vector:
    if len(planes) == 1:
        return normal * (planes[0].thickness or 1.0)
    _require_even_gaps(planes, order, distances)
    offsets = positions[order] - positions[order[0]]
    along = offsets @ normal
    shifts = offsets - np.outer(along, normal)
    uneven = np.linalg.norm(shifts - np.outer(along / along[-1], shifts[-1]), axis=1).max()
    shifted = np.linalg.norm(shifts, axis=1).max()
    if shifted > _SHIFT_TOLERANCE_MM and uneven > _SHIFT_TOLERANCE_MM:
        raise NotAVolume(f"the slices are shifted against each other by up to {shifted:.2f} mm, and not evenly")
    if shifted > _SHIFT_TOLERANCE_MM and not allow_tilt:
        what = f"the slices are shifted against each other by up to {shifted:.2f} mm: the gantry was tilted"
        raise NotAVolume(f"{what}; allow_tilt in the rule lets the model have them as they are")
    return np.asarray(offsets[-1] / (len(planes) - 1))


def _require_even_gaps(planes: Sequence[Plane], order: npt.NDArray[np.intp], distances: Vector) -> None:
    """The smallest gap first: slices in one place tell more than the gaps that they leave."""
    gaps = np.diff(distances[order])
    usual = float(np.median(gaps))
    tolerance = _SLICE_SPACING_TOLERANCE * usual
    for index in np.argsort(gaps, kind="stable"):
        gap, before, after = gaps[index], planes[order[index]], planes[order[index + 1]]
        where = f"SOP instances {before.sop_instance_uid} and {after.sop_instance_uid}"
        if gap <= tolerance:
            question = "is the series a time series, or sent twice under new UIDs?"
            raise NotAVolume(f"two slices lie in one place ({where}): {question}")
        if abs(gap - usual) > tolerance:
            what = f"there is a gap of {gap:.2f} mm where {usual:.2f} mm is usual"
            raise NotAVolume(f"{what} ({where}): were all images received?")


def column_row_slice(affine: Vector) -> Vector:
    """An affine of (slice, row, column) as one of (column, row, slice), and the other way round."""
    return np.asarray(affine[:, [2, 1, 0, 3]])
