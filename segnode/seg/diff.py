"""Comparing two Segmentations: whether they say the same labels in the same places, whatever their types and encodings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from segnode.seg.combine import Packed
from segnode.seg.masks import Masks, masks_of, require_no_contradiction
from segnode.seg.planes import same_place_in
from segnode.seg.segmentation import DescribedSegment, Segmentation
from segnode.seg.values import decimals_of, items_of

_SAME_COSINE: Final = 1e-4
_SAME_SPACING: Final = 1e-4  # of the spacing
_SAME_ORIGIN: Final = 0.1  # of the spacing

# Of each voxel of a plane how much is in the segment, from 0 to 1; None where nothing is.
_Inside = npt.NDArray[np.float32] | None


@dataclass(frozen=True)
class Place:
    """Where voxels differ: the box of all, as first and last plane (in order of place), row and column, from 0.

    `first_plane` is the position of the first plane that has some: LPS mm, or row and column of the tile.
    """

    first_plane: tuple[float, ...]
    planes: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]


@dataclass(frozen=True)
class SegmentDifference:
    """A segment of both, or of one of them where the number in the other is None; `dice` is 1 where both are empty."""

    number: int | None
    other_number: int | None
    label: str
    voxels: int
    other_voxels: int
    differing: int
    dice: float
    where: Place | None

    @property
    def is_equal(self) -> bool:
        """Whether every voxel is the same."""
        return not self.differing


@dataclass(frozen=True)
class Difference:
    """What tells two Segmentations apart: `geometry` in words, and each segment; equal where there is nothing."""

    geometry: tuple[str, ...]
    segments: tuple[SegmentDifference, ...] = ()

    @property
    def is_equal(self) -> bool:
        """Whether both say the same labels in the same places; a segment of one only must be empty."""
        return not self.geometry and all(segment.is_equal for segment in self.segments)


@dataclass
class _Tally:
    """What was counted of a pair of segments so far."""

    voxels: int = 0
    other_voxels: int = 0
    both: int = 0
    differing: int = 0
    boxes: list[tuple[int, int, int, int, int]] = field(default_factory=list)


def diff(a: Segmentation, b: Segmentation) -> Difference:
    """Compare two Segmentations in the patient's space (or in the total pixel matrix, or by source image).

    Planes are matched by their place; a plane that one does not have is background there. Segments are matched by number
    and meaning, then by meaning (label and type), then by number. A FRACTIONAL's voxel counts from half of its maximum on,
    and is compared as a fraction. Raises UnreadablePixels, NotAVolume, NotFound, NotASegmentation, OverlappingSegments.
    """
    geometry = tuple(_geometry(a, b))
    if geometry:
        return Difference(geometry)
    masks, other = masks_of(a, 0.5), masks_of(b, 0.5)
    require_no_contradiction(masks)
    require_no_contradiction(other)
    pairs = _matched(a, b)
    tallies = [_Tally() for _ in pairs]
    places = _places(masks, other)
    for place, (plane, other_plane) in enumerate(places):
        if "FRACTIONAL" in (a.type, b.type):
            inside, other_inside = _inside(masks, plane), _inside(other, other_plane)
            for tally, (number, other_number) in zip(tallies, pairs, strict=True):
                _count(tally, place, inside.get(number), other_inside.get(other_number))
            continue
        packed, other_packed = _masks_at(masks, plane), _masks_at(other, other_plane)
        for tally, (number, other_number) in zip(tallies, pairs, strict=True):
            _count_packed(tally, place, packed.get(number), other_packed.get(other_number), (a.rows, a.columns))
    return Difference(
        (),
        tuple(
            _told(tally, number, other_number, a, b, lambda place: _position(masks, other, *places[place]))
            for tally, (number, other_number) in zip(tallies, pairs, strict=True)
        ),
    )


def _geometry(a: Segmentation, b: Segmentation) -> Iterator[str]:
    """What keeps the voxels of two Segmentations from being compared."""
    for keyword in ("Rows", "Columns", "FrameOfReferenceUID", "TotalPixelMatrixRows", "TotalPixelMatrixColumns"):
        value, other = a.header.get(keyword), b.header.get(keyword)
        if value != other and (keyword != "FrameOfReferenceUID" or (value and other)):
            yield f"{keyword} is {value} in one and {other} in the other"
    spacing = max(_spacing(a) or (0.0,))
    for keyword, values, others, tolerance in (
        ("PixelSpacing", _spacing(a), _spacing(b), _SAME_SPACING * spacing),
        ("ImageOrientationPatient", _orientation(a), _orientation(b), _SAME_COSINE),
        ("ImageOrientationSlide", _slide_orientation(a), _slide_orientation(b), _SAME_COSINE),
        ("TotalPixelMatrixOriginSequence", _origin(a), _origin(b), _SAME_ORIGIN * spacing),
    ):
        if len(values) != len(others) or not np.allclose(values, others, rtol=0, atol=tolerance):
            yield f"{keyword} is {values or None} in one and {others or None} in the other"
    if _kind_of_place(a) != _kind_of_place(b):
        yield f"frames lie by {_kind_of_place(a)} in one and by {_kind_of_place(b)} in the other"


def _spacing(segmentation: Segmentation) -> tuple[float, ...]:
    return next(iter(segmentation.table.spacings), ())


def _orientation(segmentation: Segmentation) -> tuple[float, ...]:
    return next(iter(segmentation.table.orientations), ())


def _slide_orientation(segmentation: Segmentation) -> tuple[float, ...]:
    return decimals_of(segmentation.header, "ImageOrientationSlide") if segmentation.is_tiled else ()


def _origin(segmentation: Segmentation) -> tuple[float, ...]:
    """X and Y of the first pixel of a total pixel matrix in mm."""
    if not segmentation.is_tiled:
        return ()
    item = next(iter(items_of(segmentation.header, "TotalPixelMatrixOriginSequence")), Dataset())
    return (
        *decimals_of(item, "XOffsetInSlideCoordinateSystem"),
        *decimals_of(item, "YOffsetInSlideCoordinateSystem"),
    )


def _kind_of_place(segmentation: Segmentation) -> str:
    table = segmentation.table
    if segmentation.is_tiled or (table.tiles > 0).all():
        return "tile (PlanePositionSlideSequence)"
    if np.isfinite(table.positions).all():
        return "position (PlanePositionSequence)"
    return "source image (DerivationImageSequence)"


def _matched(a: Segmentation, b: Segmentation) -> list[tuple[int | None, int | None]]:
    """Pairs of segment numbers; None where the other has no such segment."""
    left, right = list(a.numbers), list(b.numbers)
    pairs: list[tuple[int | None, int | None]] = []

    def take(found: Mapping[int, int]) -> None:
        for number, other in found.items():
            pairs.append((number, other))
            left.remove(number)
            right.remove(other)

    take({n: n for n in left if n in right and _meaning(a.segment[n]) == _meaning(b.segment[n])})
    take(_by_meaning(a, b, left, right))
    take({n: n for n in left if n in right})
    pairs += [(number, None) for number in left] + [(None, number) for number in right]
    return sorted(pairs, key=lambda pair: (pair[0] is None, pair[0] or 0, pair[1] or 0))


def _by_meaning(a: Segmentation, b: Segmentation, left: Sequence[int], right: Sequence[int]) -> dict[int, int]:
    """The segments of which both have one of that meaning."""
    found: dict[int, int] = {}
    for number in left:
        meaning = _meaning(a.segment[number])
        alike = [n for n in left if _meaning(a.segment[n]) == meaning]
        others = [n for n in right if _meaning(b.segment[n]) == meaning]
        if len(alike) == len(others) == 1:
            found[number] = others[0]
    return found


def _meaning(segment: DescribedSegment) -> tuple[str, str, str]:
    code = segment.type
    return segment.label, code.scheme if code else "", code.value if code else ""


def _places(masks: Masks, other: Masks) -> list[tuple[int | None, int | None]]:
    """Pairs of planes in one place, in order; None where one has no plane there."""
    keys, other_keys = _keys(masks, masks.segmentation), _keys(other, masks.segmentation)
    if _kind_of_place(masks.segmentation).startswith("position"):
        same = min(same_place_in(each.segmentation.table) for each in (masks, other))
        return _by_position(keys, other_keys, same)
    planes, other_planes = ({key: plane for plane, key in enumerate(k)} for k in (keys, other_keys))
    return [(planes.get(key), other_planes.get(key)) for key in dict.fromkeys((*keys, *other_keys))]


def _keys(masks: Masks, reference: Segmentation) -> list[Any]:
    table, first = masks.segmentation.table, masks.planes.first_frame
    kind = _kind_of_place(reference)
    if kind.startswith("tile"):
        return [tuple(tile) for tile in table.tiles[first].tolist()]
    if kind.startswith("position"):
        return [tuple(position) for position in table.positions[first].tolist()]
    return [tuple(sorted({(s.sop_instance_uid, s.frame_numbers) for s in table.sources[frame]})) for frame in first]


def _by_position(positions: Sequence[Any], others: Sequence[Any], same: float) -> list[tuple[int | None, int | None]]:
    """Pair what lies in one place, up to the `same` distance in mm."""
    pairs: list[tuple[int | None, int | None]] = []
    points, other_points = np.array(positions), np.array(others)
    free = set(range(len(other_points)))
    for plane, point in enumerate(points):
        distances = np.linalg.norm(other_points - point, axis=1)
        nearest = int(distances.argmin())
        pairs.append((plane, nearest if distances[nearest] <= same else None))
        free.discard(nearest if distances[nearest] <= same else -1)
    return pairs + [(None, plane) for plane in sorted(free)]


def _masks_at(masks: Masks, plane: int | None) -> dict[Any, Packed]:
    return {} if plane is None else masks.at(plane)


def _inside(masks: Masks, plane: int | None) -> dict[int | None, Any]:
    if plane is None:
        return {}
    segmentation = masks.segmentation
    if segmentation.type == "FRACTIONAL":
        maximum = np.float32(segmentation.maximum_fractional_value)
        return {number: values / maximum for number, values in masks.fractions_at(plane).items()}
    shape, count = (segmentation.rows, segmentation.columns), segmentation.frames.shape.pixels
    return {
        number: np.unpackbits(packed, count=count, bitorder="little").reshape(shape)
        for number, packed in masks.at(plane).items()
    }


def _count(tally: _Tally, place: int, inside: _Inside, other: _Inside) -> None:
    if inside is None and other is None:
        return
    present = np.zeros_like(other, np.bool_) if inside is None else inside >= 0.5
    other_present = np.zeros_like(inside, np.bool_) if other is None else other >= 0.5
    tally.voxels += int(np.count_nonzero(present))
    tally.other_voxels += int(np.count_nonzero(other_present))
    tally.both += int(np.count_nonzero(present & other_present))
    differs = np.asarray((0 if inside is None else inside) != (0 if other is None else other))
    if differs.any():
        _add_differing(tally, place, differs)


def _count_packed(tally: _Tally, place: int, packed: Packed | None, other: Packed | None, shape: tuple[int, int]) -> None:
    """Count without unpacking, unless something differs."""
    if packed is None and other is None:
        return
    inside = np.zeros_like(other) if packed is None else packed
    other_inside = np.zeros_like(inside) if other is None else other
    tally.voxels += int(np.bitwise_count(inside).sum())
    tally.other_voxels += int(np.bitwise_count(other_inside).sum())
    tally.both += int(np.bitwise_count(inside & other_inside).sum())
    differs = inside ^ other_inside
    if differs.any():
        _add_differing(tally, place, np.unpackbits(differs, count=shape[0] * shape[1], bitorder="little").reshape(shape))


def _add_differing(tally: _Tally, place: int, differs: npt.NDArray[np.uint8] | npt.NDArray[np.bool_]) -> None:
    rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
    tally.differing += int(np.count_nonzero(differs))
    tally.boxes.append((place, int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])))


def _told(
    tally: _Tally, number: int | None, other_number: int | None, a: Segmentation, b: Segmentation, position: Any
) -> SegmentDifference:
    segment = b.segment[other_number or 0] if number is None else a.segment[number]
    total = tally.voxels + tally.other_voxels
    where = None
    if tally.boxes:
        places, top, bottom, left, right = zip(*tally.boxes, strict=True)
        where = Place(position(places[0]), (min(places), max(places)), (min(top), max(bottom)), (min(left), max(right)))
    return SegmentDifference(
        number,
        other_number,
        segment.label,
        tally.voxels,
        tally.other_voxels,
        tally.differing,
        2 * tally.both / total if total else 1.0,
        where,
    )


def _position(masks: Masks, other: Masks, plane: int | None, other_plane: int | None) -> tuple[float, ...]:
    chosen, index = (masks, plane) if plane is not None else (other, other_plane)
    table, frame = chosen.segmentation.table, int(chosen.planes.first_frame[index or 0])
    if _kind_of_place(chosen.segmentation).startswith("tile"):
        return tuple(float(value) for value in table.tiles[frame])
    position = table.positions[frame]
    return tuple(float(value) for value in position) if np.isfinite(position).all() else ()
