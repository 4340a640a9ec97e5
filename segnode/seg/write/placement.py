"""Where the planes of a new Segmentation lie, and what they were made from: on images, on frames, on a grid, on a slide."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.tag import BaseTag, Tag

from segnode.dicom.geometry import Vector
from segnode.dicom.multi_frame import FrameHeader
from segnode.errors import NotAVolume
from segnode.seg.frame_groups import SourceImage
from segnode.seg.planes import same_place, shift_tolerance

_COSINE_TOLERANCE: Final = 1e-3
_SPACING_TOLERANCE: Final = 1e-3  # of the spacing
_STEP_TOLERANCE: Final = 0.05  # of the step


@dataclass(frozen=True)
class Place:
    """Where one plane lies, and the images (or frames) whose pixels lie in the places of its own.

    `position` is LPS mm of the first pixel's centre, or X, Y, Z offset in the slide's coordinate system together with
    `tile`, the row and column of the first pixel in the total pixel matrix, from 1.
    """

    position: tuple[float, ...] | None = None
    tile: tuple[int, int] | None = None
    sources: tuple[SourceImage, ...] = ()


@dataclass(frozen=True)
class Matrix:
    """A total pixel matrix: its size, X, Y, Z offset of its first pixel in mm, and the rows and columns of a tile.

    `cut` says that the pixels are given as the whole matrix; `full` that the tiles are all there, in order (TILED_FULL).
    """

    rows: int
    columns: int
    origin: tuple[float, ...]
    tile_size: tuple[int, int]
    cut: bool = True
    full: bool = False


@dataclass(frozen=True, eq=False)
class Placement:
    """Where planes lie: `places` has one a plane, in the order of the pixels; `order` lists them as frames are written.

    `images` are the headers of the source images; `size` the rows and columns that planes must have, None for any;
    `orientation` holds row then column cosines; `regular` says that the planes are evenly spaced along their normal.
    """

    images: tuple[Dataset, ...]
    places: tuple[Place, ...]
    order: tuple[int, ...]
    size: tuple[int, int] | None = None
    orientation: tuple[float, ...] = ()
    spacing: tuple[float, ...] = ()
    slice_thickness: float | None = None
    spacing_between_slices: float | None = None
    regular: bool = False
    matrix: Matrix | None = None

    @property
    def has_positions(self) -> bool:
        """Whether planes have a place in a frame of reference."""
        return all(place.position is not None for place in self.places)


def on_images(images: Sequence[Dataset]) -> Placement:
    """One plane on each single-frame image, in any order; images without a position (CR, DX) have none.

    Raises NotAVolume: mixed studies, frames of reference, orientations, spacings or sizes; two images in one place.
    """
    first = _first(images)
    _require_alike(images, "Rows", 0)
    _require_alike(images, "Columns", 0)
    size = (int(first.Rows), int(first.Columns))
    sources = [(_whole(image),) for image in images]
    placed = [image for image in images if _stored(image, "ImagePositionPatient")]
    if placed and len(placed) < len(images):
        raise NotAVolume("some images have an ImagePositionPatient and some do not: leave out those of the wrong kind")
    if not placed:
        places = tuple(Place(sources=source) for source in sources)
        return Placement(tuple(images), places, tuple(range(len(places))), size)
    _require_alike(images, "ImageOrientationPatient", _COSINE_TOLERANCE)
    _require_alike(images, "PixelSpacing", _SPACING_TOLERANCE)
    return _in_patient(
        images,
        [Place(_numbers(image, "ImagePositionPatient", 3), sources=of) for image, of in zip(images, sources, strict=True)],
        size,
        _numbers(first, "ImageOrientationPatient", 6),
        _numbers(first, "PixelSpacing", 2),
        float(first.get("SliceThickness") or 0) or None,
    )


def on_volume(images: Sequence[Dataset], affine: Vector) -> Placement:
    """One plane on each of the images, or of the frames of one image, of a volume; its affine leads from slice to slice.

    On planar images slices have no place. Raises NotAVolume as on_images.
    """
    placement = on_slices(images)
    return replace(placement, spacing_between_slices=_between_slices(affine)) if placement.has_positions else placement


def on_grid_beside(images: Sequence[Dataset], affine: npt.NDArray[np.floating], slices: int) -> Placement:
    """Planes of a grid of its own, as on_grid, in the frame of reference of the images, or frames of one, of a volume."""
    frames = [image for image in images if isinstance(image, FrameHeader)]
    return on_grid([frames[0].image] if frames else images, affine, slices)


def _between_slices(affine: Vector) -> float:
    """Along their normal (PS3.3 C.7.6.16.2.1), which the step of slices that were taken with a tilted gantry is not."""
    normal = np.cross(affine[:3, 2], affine[:3, 1])
    return abs(float(affine[:3, 0] @ normal / np.linalg.norm(normal)))


def on_frames(image: Dataset) -> Placement:
    """One plane on each frame of a multi-frame image, by frame number; frames without a position have none.

    Tiles of a slide image keep their places in its total pixel matrix. Raises NotAVolume as on_images.
    """
    count, size = int(image.get("NumberOfFrames") or 1), (int(image.Rows), int(image.Columns))
    sources = [(SourceImage(str(image.SOPClassUID), str(image.SOPInstanceUID), (n,), "YES"),) for n in range(1, count + 1)]
    if _is_tiled(image):
        return _on_tiles(image, sources)
    frames = list(image.get("PerFrameFunctionalGroupsSequence") or [Dataset()] * count)
    if len(frames) != count:
        raise NotAVolume(f"PerFrameFunctionalGroupsSequence has {len(frames)} items for {count} frames (NumberOfFrames)")
    shared = next(iter(image.get("SharedFunctionalGroupsSequence") or ()), Dataset())
    positions, orientations, measures = (
        [_group(frame, shared, keyword) for frame in frames]
        for keyword in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
    )
    if not all("ImagePositionPatient" in position for position in positions):
        return Placement((image,), tuple(Place(sources=s) for s in sources), tuple(range(count)), size)
    _require_alike(orientations, "ImageOrientationPatient", _COSINE_TOLERANCE)
    _require_alike(measures, "PixelSpacing", _SPACING_TOLERANCE)
    return _in_patient(
        [image],
        [Place(_numbers(p, "ImagePositionPatient", 3), sources=s) for p, s in zip(positions, sources, strict=True)],
        size,
        _numbers(orientations[0], "ImageOrientationPatient", 6),
        _numbers(measures[0], "PixelSpacing", 2),
        float(measures[0].get("SliceThickness") or 0) or None,
    )


def on_slices(images: Sequence[Dataset]) -> Placement:
    """One plane on each single-frame image, or on each of the frames whose headers are given, in the order that these have.

    Raises NotAVolume as on_images.
    """
    frames = [image for image in images if isinstance(image, FrameHeader)]
    if not frames:
        return on_images(images)
    placement = on_frames(frames[0].image)
    places = tuple(placement.places[frame.frame_number - 1] for frame in frames)
    return replace(placement, places=places, order=tuple(range(len(places))))


def on_grid(images: Sequence[Dataset], affine: npt.NDArray[np.floating], slices: int) -> Placement:
    """Planes of a regular grid of its own in the frame of reference of the images, which need not match it.

    `affine` is 4x4 and maps (slice, row, column) to LPS mm. Raises NotAVolume for axes that are not perpendicular.
    """
    _first(images)
    matrix = np.asarray(affine, np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise NotAVolume("the affine is no 4x4 matrix of numbers")
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    if not lengths.all():
        raise NotAVolume("an axis of the affine has no length")
    axes = matrix[:3, :3] / lengths
    if np.abs(axes.T @ axes - np.eye(3)).max() > _COSINE_TOLERANCE:
        raise NotAVolume("the axes of the affine are not perpendicular: resample the labels on a grid that is")
    places = [Place(tuple(float(v) for v in matrix[:3, 3] + index * matrix[:3, 0])) for index in range(slices)]
    orientation = tuple(float(cosine) for cosine in (*axes[:, 2], *axes[:, 1]))
    step = float(lengths[0])
    return _in_patient(images, places, None, orientation, (float(lengths[1]), float(lengths[2])), step, step)


def at_positions(
    images: Sequence[Dataset],
    positions: Sequence[Sequence[float]],
    *,
    orientation: Sequence[float] | None = None,
    spacing: Sequence[float] | None = None,
    slice_thickness: float | None = None,
) -> Placement:
    """Planes at these positions (LPS mm of the first pixel's centre) in the frame of reference of the images.

    `orientation` (row then column cosines), `spacing` (mm between rows and columns) and `slice_thickness` (mm) are those of
    the first image where they are not given. Raises NotAVolume.
    """
    first = _first(images)
    if any(len(position) != 3 for position in positions) or not np.isfinite(np.asarray(positions, np.float64)).all():
        raise NotAVolume("a position does not hold three numbers (ImagePositionPatient)")
    cosines = tuple(map(float, orientation or _numbers(first, "ImageOrientationPatient", 6)))
    between = tuple(map(float, spacing or _numbers(first, "PixelSpacing", 2)))
    thickness = slice_thickness or float(first.get("SliceThickness") or 0) or None
    places = [Place(tuple(map(float, position))) for position in positions]
    return _in_patient(images, places, None, cosines, between, thickness)


def on_slide(
    image: Dataset,
    shape: tuple[int, int] | None = None,
    *,
    tile_size: tuple[int, int] | None = None,
    full: bool = False,
    origin: Sequence[float] | None = None,
    orientation: Sequence[float] | None = None,
    spacing: Sequence[float] | None = None,
) -> Placement:
    """Tiles that a total pixel matrix of `shape` (rows, columns; the image's if not given) is cut into.

    Tiles are those of the slide image in size unless `tile_size` (rows, columns) is given, and TILED_FULL where `full`. A
    matrix of another size than the image's covers the same area, unless its `spacing` (mm) is given. `origin` is X, Y
    offset in mm. Raises NotAVolume.
    """
    whole = matrix_size(image)
    rows, columns = shape or whole
    own = _slide_spacing(image)
    between = tuple(map(float, spacing or (own[0] * whole[0] / rows, own[1] * whole[1] / columns)))
    height, width = tile_size or (int(image.Rows), int(image.Columns))
    if min(rows, columns, height, width) < 1:
        raise NotAVolume("a total pixel matrix and its tiles have one row and one column at least")
    cosines = tuple(map(float, orientation or _numbers(image, "ImageOrientationSlide", 6)))
    corner = _origin(image, origin)
    tiles = [(row, column) for row in range(1, rows + 1, height) for column in range(1, columns + 1, width)]
    matched = _frames_by_tile(image) if (rows, columns, height, width) == (*whole, int(image.Rows), int(image.Columns)) else {}
    if tuple(between) != own or (origin is not None) or (orientation is not None):
        matched = {}
    places = tuple(
        Place(_offset(corner, cosines, between, tile), tile, _frames_of(image, matched[tile]) if tile in matched else ())
        for tile in tiles
    )
    matrix = Matrix(rows, columns, corner, (height, width), cut=True, full=full)
    order = tuple(range(len(places)))
    return Placement((image,), places, order, None, cosines, between, _slide_thickness(image), matrix=matrix)


def _on_tiles(image: Dataset, sources: Sequence[tuple[SourceImage, ...]]) -> Placement:
    """The frames of a slide image as they are."""
    tiles = {number: tile for tile, numbers in _frames_by_tile(image).items() for number in numbers}
    if len(set(tiles.values())) != len(sources):
        raise NotAVolume("several frames of the slide image lie in one place: it has several focal planes or optical paths")
    size = (int(image.Rows), int(image.Columns))
    cosines, spacing, corner = _numbers(image, "ImageOrientationSlide", 6), _slide_spacing(image), _origin(image, None)
    places = tuple(
        Place(_offset(corner, cosines, spacing, tiles[number]), tiles[number], source)
        for number, source in enumerate(sources, start=1)
    )
    order = tuple(sorted(range(len(places)), key=lambda place: places[place].tile or (0, 0)))
    matrix = Matrix(*matrix_size(image), corner, size, cut=False)
    return Placement((image,), places, order, size, cosines, spacing, _slide_thickness(image), matrix=matrix)


def _in_patient(
    images: Sequence[Dataset],
    places: Sequence[Place],
    size: tuple[int, int] | None,
    orientation: tuple[float, ...],
    spacing: tuple[float, ...],
    thickness: float | None,
    step: float | None = None,
) -> Placement:
    """Planes in the order along their normal; `step` is their distance where it is known."""
    if not places:
        raise NotAVolume("there is no plane: a segmentation has one frame at least")
    if len(orientation) != 6 or len(spacing) != 2 or min(spacing) <= 0:
        raise NotAVolume("an orientation has six cosines, and a spacing two numbers above 0 (PlaneOrientation, PixelMeasures)")
    normal = _normal(orientation)
    positions = np.array([place.position for place in places], np.float64)
    distances = positions @ normal
    order = np.argsort(distances, kind="stable")
    same = same_place((*spacing, thickness, step))
    _require_apart(positions[order], distances[order], same)
    found = _step(positions[order], distances[order], same, spacing) if len(places) > 1 else (step or thickness or 1.0)
    return Placement(
        images=tuple(images),
        places=tuple(places),
        order=tuple(int(place) for place in order),
        size=size,
        orientation=orientation,
        spacing=spacing,
        slice_thickness=thickness or found,
        spacing_between_slices=found,
        regular=found is not None,
    )


def _normal(orientation: Sequence[float]) -> Vector:
    row_cosine, column_cosine = np.reshape(orientation, (2, 3))
    lengths = np.linalg.norm(row_cosine), np.linalg.norm(column_cosine)
    if not np.allclose(lengths, 1, atol=_COSINE_TOLERANCE) or abs(row_cosine @ column_cosine) > _COSINE_TOLERANCE:
        raise NotAVolume("the orientation does not hold two perpendicular unit vectors")
    normal = np.cross(row_cosine, column_cosine)
    return np.asarray(normal / np.linalg.norm(normal))


def _require_apart(positions: Vector, distances: Vector, same: float) -> None:
    """Frames in one place would overlap, and could not be told apart by their position."""
    near = np.flatnonzero(np.diff(distances) <= same)
    if any(np.linalg.norm(positions[place + 1] - positions[place]) <= same for place in near):
        raise NotAVolume("two planes lie in one place (ImagePositionPatient): write a segmentation for each")


def _step(positions: Vector, distances: Vector, same: float, spacing: Sequence[float]) -> float | None:
    """The distance of neighbouring planes along their normal (PS3.3 C.7.6.16.2.1); None where they are not even.

    Planes that were taken with a tilted gantry are, each as much as the one before it.
    """
    gaps = np.diff(distances)
    if float(gaps.min()) <= same:
        return None
    step = float(np.ptp(distances) / len(gaps))
    even = bool((np.abs(gaps - np.median(gaps)) <= _STEP_TOLERANCE * np.median(gaps)).all())
    shifts = positions - positions[0] - np.outer(distances - distances[0], (positions[-1] - positions[0]) / np.ptp(distances))
    return step if even and float(np.linalg.norm(shifts, axis=1).max()) <= shift_tolerance(spacing) else None


def _first(images: Sequence[Dataset]) -> Dataset:
    if not images:
        raise NotAVolume("there is no source image: patient and study are taken from one")
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"):
        if len({text_of(image, keyword) for image in images}) > 1:
            raise NotAVolume(f"the source images differ in their {keyword}: write a segmentation for each")
    return images[0]


def _require_alike(items: Sequence[Dataset], keyword: str, tolerance: float) -> None:
    first = _stored(items[0], keyword)
    for item in items:
        if _stored(item, keyword) == first:
            continue
        value, other = item.get(keyword), items[0].get(keyword)
        if value != other and not (value and other and _close(value, other, tolerance)):
            raise NotAVolume(f"the source images differ in their {keyword}: write a segmentation for each")


def _close(value: Any, other: Any, tolerance: float) -> bool:
    a, b = np.atleast_1d(np.asarray(value, np.float64)), np.atleast_1d(np.asarray(other, np.float64))
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=tolerance, atol=tolerance))


def _stored(item: Dataset, keyword: str) -> Any:
    """A value as it is: bytes where nobody has asked for it yet, which spares a thousand images' decoding."""
    return getattr(item.get_item(_tag(keyword)), "value", None)


@cache
def _tag(keyword: str) -> BaseTag:
    return Tag(keyword)


def text_of(item: Dataset, keyword: str) -> str:
    """A value of plain characters (UI, CS) as text; empty when it is absent."""
    value = _stored(item, keyword)
    return value.decode("latin-1").strip(" \0") if isinstance(value, bytes) else str(value or "")


def _numbers(item: Dataset, keyword: str, count: int) -> tuple[float, ...]:
    value = _stored(item, keyword)
    if isinstance(value, bytes):
        value = value.decode("latin-1").strip(" \0").split("\\")
    try:
        numbers = tuple(float(number) for number in value) if isinstance(value, Sequence) and not isinstance(value, str) else ()
    except ValueError:
        numbers = ()
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise NotAVolume(f"{keyword} of the source image does not hold {count} numbers")
    return numbers


def source_of(image: Dataset) -> SourceImage:
    """A reference to an image, whose pixels lie where those of a plane do."""
    return SourceImage(text_of(image, "SOPClassUID"), text_of(image, "SOPInstanceUID"), (), "YES")


def _whole(image: Dataset) -> SourceImage:
    if int(text_of(image, "NumberOfFrames") or 1) > 1:
        raise NotAVolume(f"SOP instance {image.SOPInstanceUID} is multi-frame: give it alone, and place planes on its frames")
    return source_of(image)


def _group(frame: Dataset, shared: Dataset, keyword: str) -> Dataset:
    return next(iter(frame.get(keyword) or shared.get(keyword) or ()), Dataset())


def _is_tiled(image: Dataset) -> bool:
    return bool(image.get("TotalPixelMatrixRows")) and bool(image.get("TotalPixelMatrixColumns"))


def matrix_size(image: Dataset) -> tuple[int, int]:
    """Rows and columns of a slide image's total pixel matrix. Raises NotAVolume."""
    if not _is_tiled(image):
        raise NotAVolume(f"SOP instance {image.get('SOPInstanceUID')} has no total pixel matrix (TotalPixelMatrixRows)")
    return int(image.TotalPixelMatrixRows), int(image.TotalPixelMatrixColumns)


def _slide_measures(image: Dataset) -> Dataset:
    shared = next(iter(image.get("SharedFunctionalGroupsSequence") or ()), Dataset())
    frame = next(iter(image.get("PerFrameFunctionalGroupsSequence") or ()), Dataset())
    return _group(frame, shared, "PixelMeasuresSequence")


def _slide_spacing(image: Dataset) -> tuple[float, ...]:
    return _numbers(_slide_measures(image), "PixelSpacing", 2)


def _slide_thickness(image: Dataset) -> float | None:
    return float(_slide_measures(image).get("SliceThickness") or 0) or None


def _origin(image: Dataset, given: Sequence[float] | None) -> tuple[float, ...]:
    if given is not None:
        return (*map(float, given), 0.0)[:3]
    item = next(iter(image.get("TotalPixelMatrixOriginSequence") or ()), None)
    if item is None:
        raise NotAVolume("TotalPixelMatrixOriginSequence of the slide image is missing: where its matrix lies is not said")
    offsets = (item.get(f"{axis}OffsetInSlideCoordinateSystem") for axis in "XYZ")
    return tuple(float(offset or 0) for offset in offsets)


def _offset(
    origin: Sequence[float], orientation: Sequence[float], spacing: Sequence[float], tile: tuple[int, int]
) -> tuple[float, ...]:
    """X, Y, Z offset of a tile's first pixel in mm (PS3.3 C.8.12.14)."""
    along, down = np.reshape(np.asarray(orientation, np.float64), (2, 3))
    place = np.asarray(origin) + along * spacing[1] * (tile[1] - 1) + down * spacing[0] * (tile[0] - 1)
    return tuple(round(float(value), 9) for value in place)


def _frames_of(image: Dataset, numbers: tuple[int, ...]) -> tuple[SourceImage, ...]:
    return (SourceImage(str(image.SOPClassUID), str(image.SOPInstanceUID), numbers, "YES"),)


def _frames_by_tile(image: Dataset) -> dict[tuple[int, int], tuple[int, ...]]:
    """The frame numbers of a slide image by row and column of their first pixel (PS3.3 C.7.6.17.3)."""
    found: dict[tuple[int, int], tuple[int, ...]] = {}
    for number, tile in enumerate(_tiles(image), start=1):
        found[tile] = (*found.get(tile, ()), number)
    return found


def _tiles(image: Dataset) -> list[tuple[int, int]]:
    count = int(image.get("NumberOfFrames") or 1)
    frames = image.get("PerFrameFunctionalGroupsSequence") or ()
    if frames and all("PlanePositionSlideSequence" in frame for frame in frames):
        items = [frame.PlanePositionSlideSequence[0] for frame in frames]
        return [
            (int(item.RowPositionInTotalImagePixelMatrix), int(item.ColumnPositionInTotalImagePixelMatrix)) for item in items
        ]
    rows, columns = matrix_size(image)
    whole = [(r, c) for r in range(1, rows + 1, int(image.Rows)) for c in range(1, columns + 1, int(image.Columns))]
    return [whole[number % len(whole)] for number in range(count)]
