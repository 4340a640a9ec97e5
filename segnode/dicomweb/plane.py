"""Where a frame lies, in the patient or in a total pixel matrix: to draw segments on the image that is in the same place."""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.multival import MultiValue

from segnode.dicom.geometry import Vector, unit_normal
from segnode.errors import NotAVolume
from segnode.seg.segmentation import Segmentation

_NEAR_MM: Final = 0.1
_PARALLEL: Final = 1e-3


class Tile(NamedTuple):
    """The first pixel of a frame in a total pixel matrix, from 1, and the size of that."""

    row: int
    column: int
    rows: int
    columns: int


@dataclass(frozen=True, eq=False)
class Plane:
    """A frame in the patient: `position` of its first pixel's centre, and the steps `down` a row and `across` a column.

    Millimetres in LPS; `shape` is rows and columns, `thickness` that of what it stands for, 0 where it is not said.
    """

    frame_of_reference_uid: str
    position: Vector
    down: Vector
    across: Vector
    shape: tuple[int, int]
    thickness: float

    @property
    def normal(self) -> Vector:
        """The unit vector along which slices follow each other."""
        return unit_normal(_unit(self.across), _unit(self.down))

    def distance(self, other: "Plane") -> float | None:
        """How far off another plane is; None where it is not parallel, of another frame of reference, or another slice."""
        uids = {self.frame_of_reference_uid, other.frame_of_reference_uid} - {""}
        if len(uids) > 1 or 1 - abs(float(self.normal @ other.normal)) > _PARALLEL:
            return None
        distance = abs(float((other.position - self.position) @ self.normal))
        return distance if distance <= max(_NEAR_MM, self.thickness / 2) else None

    def places(self, other: "Plane") -> npt.NDArray[np.intp]:
        """The row and column here of each pixel of another plane, (rows, columns, 2), the nearest; some lie outside."""
        offset, (rows, columns) = other.position - self.position, other.shape
        found = []
        for step in (self.down, self.across):
            first, by_row, by_column = (float(vector @ step / (step @ step)) for vector in (offset, other.down, other.across))
            found.append(first + by_row * np.arange(rows)[:, np.newaxis] + by_column * np.arange(columns))
        nearest: npt.NDArray[np.intp] = np.rint(np.stack(found, axis=-1)).astype(np.intp)
        return nearest


def image_plane(attributes: Dataset) -> Plane | None:
    """Where a frame of an image lies, by its attributes; None where these do not say it."""
    return _plane(
        str(attributes.get("FrameOfReferenceUID") or ""),
        _numbers(attributes.get("ImagePositionPatient")),
        _numbers(attributes.get("ImageOrientationPatient")),
        _numbers(attributes.get("PixelSpacing")),
        (int(attributes.get("Rows") or 0), int(attributes.get("Columns") or 0)),
        0.0,
    )


def segmentation_plane(segmentation: Segmentation, frame: int) -> Plane | None:
    """Where a frame (from 0) of a segmentation lies; None where it does not say it."""
    table = segmentation.table
    if segmentation.is_tiled or len(table.orientations) != 1 or len(table.spacings) != 1:
        return None
    return _plane(
        str(segmentation.header.get("FrameOfReferenceUID") or ""),
        tuple(float(number) for number in table.positions[frame]),
        table.orientations[0],
        table.spacings[0],
        (segmentation.rows, segmentation.columns),
        abs(table.spacing_between_slices or table.slice_thickness or 0.0),
    )


def image_tile(attributes: Dataset, index: int) -> Tile | None:
    """Which tile a frame (from 0) of an image is; None where it is none, or one of several in that place."""
    matrix = tuple(int(attributes.get(f"TotalPixelMatrix{side}") or 0) for side in ("Rows", "Columns"))
    size = tuple(int(attributes.get(side) or 0) for side in ("Rows", "Columns"))
    if not all(matrix) or not all(size):
        return None
    row, column = (attributes.get(f"{side}PositionInTotalImagePixelMatrix") for side in ("Row", "Column"))
    if row is not None and column is not None:
        return Tile(int(row), int(column), *matrix)
    down, across = (-(-whole // part) for whole, part in zip(matrix, size, strict=True))
    if int(attributes.get("NumberOfFrames") or 1) != down * across:
        return None
    return Tile(index // across * size[0] + 1, index % across * size[1] + 1, *matrix)


def segmentation_tile(segmentation: Segmentation, frame: int) -> Tile | None:
    """Which tile a frame (from 0) of a segmentation is; None where it is none."""
    if not segmentation.is_tiled:
        return None
    matrix = (int(segmentation.header.get(f"TotalPixelMatrix{side}")) for side in ("Rows", "Columns"))
    row, column = (int(number) for number in segmentation.table.tiles[frame])
    return Tile(row, column, *matrix)


def _plane(
    uid: str,
    position: tuple[float, ...],
    orientation: tuple[float, ...],
    spacing: tuple[float, ...],
    shape: tuple[int, int],
    thickness: float,
) -> Plane | None:
    lengths = (len(position), len(orientation), len(spacing))
    if lengths != (3, 6, 2) or not np.isfinite([*position, *orientation, *spacing]).all() or min(spacing) <= 0:
        return None
    row_cosine, column_cosine = np.reshape(orientation, (2, 3)).astype(np.float64)
    plane = Plane(uid, np.array(position), column_cosine * spacing[0], row_cosine * spacing[1], shape, thickness)
    try:
        plane.normal  # noqa: B018  it is asked whether there is one
    except NotAVolume:
        return None
    return plane


def _numbers(value: object) -> tuple[float, ...]:
    return tuple(float(number) for number in value) if isinstance(value, MultiValue) else ()


def _unit(vector: Vector) -> Vector:
    return np.asarray(vector / np.linalg.norm(vector))
