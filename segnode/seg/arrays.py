"""What a Segmentation says as arrays: labelmaps and stacked segments, by place, source or index, as volume or pixel matrix."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom.uid import ExplicitVRLittleEndian

from segnode.dicom.codes import Code
from segnode.dicom.geometry import Vector
from segnode.errors import NotAVolume, NotFound, OverlappingSegments, UnreadablePixels
from segnode.seg.codecs import FrameShape
from segnode.seg.combine import Labelmap, combine_binary, label_type, values_in
from segnode.seg.frame_groups import Integers
from segnode.seg.pixels import Frames, read_frames
from segnode.seg.planes import (
    REFERENCED_SEGMENT_NUMBER,
    Grid,
    Planes,
    contradiction,
    frames_twice,
    grid_of,
    matrix_affine,
    planes_of,
)
from segnode.seg.segmentation import DescribedSegment, Segmentation
from segnode.seg.values import items_of, text_of

Array = npt.NDArray[np.unsignedinteger] | npt.NDArray[np.float32]

# What a few bytes of PixelData may stand for, and no more.
_LARGEST_ARRAY: Final = 4 << 30


@dataclass(frozen=True)
class Selection:
    """Segments that are asked for, in this order; relabelled they become 1, 2, 3 … in it, in a labelmap."""

    numbers: tuple[int, ...]
    relabel: bool = False

    @property
    def value_of(self) -> Mapping[int, int]:
        """The value of each segment in a labelmap."""
        return {number: place + 1 if self.relabel else number for place, number in enumerate(self.numbers)}


@dataclass(frozen=True, eq=False)
class LabelVolume:
    """A volume of labels: `array` is (slices, rows, columns), `affine` maps (slice, row, column) to LPS mm."""

    array: Labelmap
    affine: Vector


@dataclass(frozen=True, eq=False)
class StackedVolume:
    """A volume of segments: `array` is (slices, rows, columns, segments), `affine` maps (slice, row, column) to LPS mm."""

    array: Array
    affine: Vector


def source_images(segmentation: Segmentation) -> list[tuple[str, str, str]]:
    """The study, series and instance UIDs of every image it refers to (PS3.3 C.12.2). Raises NotASegmentation."""
    header = segmentation.header
    study = text_of(header, "StudyInstanceUID")
    series = [(study, item) for item in items_of(header, "ReferencedSeriesSequence")]
    for other in items_of(header, "StudiesContainingOtherReferencedInstancesSequence"):
        study = text_of(other, "StudyInstanceUID")
        series += [(study, item) for item in items_of(other, "ReferencedSeriesSequence")]
    return [
        (study, text_of(item, "SeriesInstanceUID"), text_of(instance, "ReferencedSOPInstanceUID"))
        for study, item in series
        for instance in items_of(item, "ReferencedInstanceSequence")
    ]


def find_segments(
    segmentation: Segmentation,
    *,
    label: str | None = None,
    category: Code | str | None = None,
    type: Code | str | None = None,  # noqa: A002  the attribute's name
    tracking_id: str | None = None,
    tracking_uid: str | None = None,
    algorithm_type: str | None = None,
) -> list[DescribedSegment]:
    """The segments with all of these properties, by number; a code may be given by its value alone."""
    texts = {"label": label, "tracking_id": tracking_id, "tracking_uid": tracking_uid, "algorithm_type": algorithm_type}
    codes = {"category": category, "type": type}

    def fits(segment: DescribedSegment) -> bool:
        return all(getattr(segment, name) == text for name, text in texts.items() if text is not None) and all(
            _is_code(getattr(segment, name), code) for name, code in codes.items() if code is not None
        )

    return [segmentation.segment[number] for number in segmentation.numbers if fits(segmentation.segment[number])]


def select(segmentation: Segmentation, numbers: Sequence[int] | None = None, *, relabel: bool = False) -> Selection:
    """Segments in the order that they are asked for; all of them by number.

    Raises NotFound for one that is not described, or is asked for twice.
    """
    chosen = segmentation.numbers if numbers is None else tuple(numbers)
    if len(set(chosen)) < len(chosen):
        raise NotFound("a segment is asked for twice: each has one place")
    for number in chosen:
        if number not in segmentation.segment or segmentation.is_background(number):
            described = ", ".join(map(str, segmentation.numbers))
            raise NotFound(f"there is no segment {number}: SegmentSequence describes {described}")
    return Selection(chosen, relabel)


def labelmap(segmentation: Segmentation, selection: Selection | None = None, planes: Planes | None = None) -> Labelmap:
    """The labels as (planes, rows, columns) of the smallest unsigned type; 0 where no chosen segment is.

    In a LABELMAP whose Pixel Padding Value is another, that stands there, unless the segments are relabelled. A FRACTIONAL
    segmentation has labels where it holds nothing but 0 and its Maximum Fractional Value. The array may be a view of the
    file, and then cannot be written to.

    Raises OverlappingSegments, UnreadablePixels, NotASegmentation for values that are not described; NotAVolume for values
    between 0 and 1.
    """
    selection = selection or select(segmentation)
    planes = planes or planes_of(segmentation)
    value_of = selection.value_of
    fill = background_value(segmentation, selection)
    dtype = label_type(max(fill, *value_of.values(), 0))
    shape = (len(planes), segmentation.rows, segmentation.columns)
    if segmentation.type == "LABELMAP":
        return _labels_of_frames(segmentation, planes, value_of, fill, dtype)
    _require_one_frame_a_segment(segmentation, planes, selection)
    frames = segmentation.frames if segmentation.type == "BINARY" else _frames_of_1_bit(segmentation)
    out: Labelmap = _filled(shape, dtype)
    numbers = [value_of.get(number, 0) for number in segmentation.table.segment_numbers.tolist()]
    combine_binary(frames, planes, numbers, out)
    return out


def background_value(segmentation: Segmentation, selection: Selection) -> int:
    """What stands where no chosen segment is."""
    return 0 if selection.relabel else segmentation.padding_value


def stacked(
    segmentation: Segmentation,
    selection: Selection | None = None,
    planes: Planes | None = None,
    *,
    rescale: bool = True,
) -> Array:
    """Each segment on its own, as (planes, rows, columns, segments): 0 and 1, or for FRACTIONAL from 0 to 1 or raw.

    Raises OverlappingSegments for two frames of one segment in one place; UnreadablePixels.
    """
    selection = selection or select(segmentation)
    planes = planes or planes_of(segmentation)
    shape = (len(planes), segmentation.rows, segmentation.columns, len(selection.numbers))
    if segmentation.type == "LABELMAP":
        labels = labelmap(segmentation, Selection(selection.numbers), planes)
        out = _filled(shape, np.dtype(np.uint8))
        for index, number in enumerate(selection.numbers):
            out[..., index] = labels == number
        return out
    rescaled = segmentation.type == "FRACTIONAL" and rescale
    _require_one_frame_a_segment(segmentation, planes, selection)
    place = {number: index for index, number in enumerate(selection.numbers)}
    values = _filled(shape, np.dtype(np.float32 if rescaled else np.uint8))
    numbers = segmentation.table.segment_numbers.tolist()
    for frame, (plane, number) in enumerate(zip(planes.of_frame.tolist(), numbers, strict=True)):
        if number in place and plane >= 0:
            values[plane, :, :, place[number]] = segmentation.frames.decode(frame)
    if rescaled:
        np.divide(values, np.float32(segmentation.maximum_fractional_value), out=values)
    return values


def volume(segmentation: Segmentation, selection: Selection | None = None) -> LabelVolume:
    """The labels as a volume; slices without a frame hold the background. Raises as labelmap and grid_of.

    A total pixel matrix is a volume of one slice in the slide's coordinate system.
    """
    if segmentation.is_tiled:
        return LabelVolume(total_pixel_matrix(segmentation, selection)[np.newaxis], matrix_affine(segmentation))
    selection = selection or select(segmentation)
    planes = planes_of(segmentation)
    grid = grid_of(segmentation, planes)
    labels = labelmap(segmentation, selection, planes)
    return LabelVolume(_on_grid(labels, grid, background_value(segmentation, selection)), grid.affine)


def stacked_volume(segmentation: Segmentation, selection: Selection | None = None, *, rescale: bool = True) -> StackedVolume:
    """Each segment on its own as a volume; slices without a frame are 0. Raises as stacked and grid_of."""
    if segmentation.is_tiled:
        matrix = stacked_total_pixel_matrix(segmentation, selection, rescale=rescale)
        return StackedVolume(matrix[np.newaxis], matrix_affine(segmentation))
    planes = planes_of(segmentation)
    grid = grid_of(segmentation, planes)
    return StackedVolume(_on_grid(stacked(segmentation, selection, planes, rescale=rescale), grid, 0), grid.affine)


def by_source_instances(segmentation: Segmentation, sop_instance_uids: Sequence[str]) -> Planes:
    """Planes that follow source images: one for each, empty where no frame was derived from it. Raises NotFound."""
    return _by_sources(segmentation, [(uid, None) for uid in sop_instance_uids])


def by_source_frames(segmentation: Segmentation, sop_instance_uid: str, frame_numbers: Sequence[int]) -> Planes:
    """Planes that follow frames (from 1) of a multi-frame source image. Raises NotFound."""
    return _by_sources(segmentation, [(sop_instance_uid, number) for number in frame_numbers])


def by_dimension_index_values(segmentation: Segmentation, values: Sequence[Sequence[int]]) -> Planes:
    """Planes that follow values for each item of DimensionIndexSequence but the segment's. Raises NotFound."""
    pointers = segmentation.index_pointers
    kept = [place for place, pointer in enumerate(pointers) if pointer != REFERENCED_SEGMENT_NUMBER]
    keys = [
        [tuple(indices[place] for place in kept)] if len(indices) == len(pointers) else []
        for indices in segmentation.table.dimension_index_values
    ]
    return _follow(keys, [tuple(wanted) for wanted in values], "DimensionIndexValues")


# From, and up to but not; from 1 as DICOM counts, or negative from the end: -1 is the last. None is the edge.
Range = tuple[int | None, int | None]


def total_pixel_matrix(
    segmentation: Segmentation,
    selection: Selection | None = None,
    *,
    rows: Range = (None, None),
    columns: Range = (None, None),
) -> Labelmap:
    """The labels of the total pixel matrix, or of a region of it, as (rows, columns).

    Raises NotAVolume when the frames are no tiles, NotFound for a region outside; OverlappingSegments, UnreadablePixels.
    """
    selection = selection or select(segmentation)
    region = _region(segmentation, rows, columns)
    planes, tiles = _tiles_in(segmentation, region)
    return _joined(labelmap(segmentation, selection, planes), tiles, region, background_value(segmentation, selection))


def stacked_total_pixel_matrix(
    segmentation: Segmentation,
    selection: Selection | None = None,
    *,
    rows: Range = (None, None),
    columns: Range = (None, None),
    rescale: bool = True,
) -> Array:
    """Each segment on its own in the total pixel matrix, as (rows, columns, segments). Raises as total_pixel_matrix."""
    region = _region(segmentation, rows, columns)
    planes, tiles = _tiles_in(segmentation, region)
    return _joined(stacked(segmentation, selection, planes, rescale=rescale), tiles, region, 0)


@dataclass(frozen=True)
class _Region:
    """A part of a total pixel matrix, from 1; bottom and right are outside."""

    top: int
    bottom: int
    left: int
    right: int


def _region(segmentation: Segmentation, rows: Range, columns: Range) -> _Region:
    if not segmentation.is_tiled:
        raise NotAVolume("TotalPixelMatrixRows is missing: the frames are no tiles of a total pixel matrix")
    header = segmentation.header
    top, bottom = _range(rows, int(header.TotalPixelMatrixRows), "rows")
    left, right = _range(columns, int(header.TotalPixelMatrixColumns), "columns")
    return _Region(top, bottom, left, right)


def _range(asked: Range, length: int, what: str) -> tuple[int, int]:
    start, stop = asked
    first = 1 if start is None else start + (length + 1 if start < 0 else 0)
    end = length + 1 if stop is None else stop + (length + 1 if stop < 0 else 0)
    if not 1 <= first < end <= length + 1:
        raise NotFound(f"{what} from {start} up to {stop} are not in the total pixel matrix: it has {what} 1 to {length}")
    return first, end


def _tiles_in(segmentation: Segmentation, region: _Region) -> tuple[Planes, Integers]:
    """The planes that a region needs, and the row and column where each begins."""
    planes = planes_of(segmentation)
    tiles = segmentation.table.tiles[planes.first_frame]
    if (tiles < 1).any():
        where = "RowPositionInTotalImagePixelMatrix or ColumnPositionInTotalImagePixelMatrix is missing, or not 1 or more"
        raise NotAVolume(f"{where}: the frames have no place in the total pixel matrix")
    last = tiles + np.array([segmentation.rows, segmentation.columns])
    inside = (tiles < (region.bottom, region.right)).all(axis=1) & (last > (region.top, region.left)).all(axis=1)
    return _only(planes, np.flatnonzero(inside)), tiles[inside]


def _joined(frames: npt.NDArray[Any], tiles: Integers, region: _Region, fill: int) -> npt.NDArray[Any]:
    """Tiles (tiles, rows, columns, …) in their places. Raises OverlappingSegments where one contradicts another."""
    height, width = frames.shape[1:3]
    matrix = _filled((region.bottom - region.top, region.right - region.left, *frames.shape[3:]), frames.dtype, fill)
    aligned = bool(((tiles - tiles[:1]) % (height, width) == 0).all())
    covered = np.zeros((0, 0) if aligned else matrix.shape[:2], np.bool_)
    for frame, (row, column) in zip(frames, tiles.tolist(), strict=True):
        down = slice(max(row, region.top), min(row + height, region.bottom))
        across = slice(max(column, region.left), min(column + width, region.right))
        there = (
            slice(down.start - region.top, down.stop - region.top),
            slice(across.start - region.left, across.stop - region.left),
        )
        tile = frame[down.start - row : down.stop - row, across.start - column : across.stop - column]
        if not aligned:
            differs = matrix[there] != tile
            if (covered[there] & (differs if differs.ndim == 2 else differs.any(axis=-1))).any():
                raise OverlappingSegments(f"the tile at row {row}, column {column} contradicts one that it overlaps")
            covered[there] = True
        matrix[there] = tile
    return matrix


def _on_grid(array: npt.NDArray[Any], grid: Grid, fill: int) -> npt.NDArray[Any]:
    """Planes (planes, …) as slices; those without a frame hold `fill`."""
    if grid.slices == len(array):
        return array
    slices = _filled((grid.slices, *array.shape[1:]), array.dtype, fill)
    slices[grid.slice_of_plane] = array
    return slices


def _filled(shape: tuple[int, ...], dtype: "np.dtype[Any]", fill: int = 0) -> npt.NDArray[Any]:
    """A new array. Raises UnreadablePixels for one that is larger than any that is given back."""
    size = math.prod(shape) * dtype.itemsize
    if size > _LARGEST_ARRAY:
        ask = "ask for fewer segments, or for a part"
        raise UnreadablePixels(f"an array of {' x '.join(map(str, shape))} takes {size >> 30} GiB: {ask}")
    return np.full(shape, fill, dtype) if fill else np.zeros(shape, dtype)


def _require_one_frame_a_segment(segmentation: Segmentation, planes: Planes, selection: Selection) -> None:
    """Refuse a time series, for one: laid onto each other, its frames would say what none of them says."""
    numbers, chosen = segmentation.table.segment_numbers, frozenset(selection.numbers)
    for one, other in frames_twice(segmentation, planes):
        if int(numbers[one]) in chosen:
            raise contradiction(segmentation, one, other)


def _frames_of_1_bit(segmentation: Segmentation) -> Frames:
    """A FRACTIONAL segmentation that holds nothing but 0 and 1, as a BINARY one."""
    frames, largest = segmentation.frames, segmentation.maximum_fractional_value
    shape = (len(frames), segmentation.rows, segmentation.columns)
    masks = _filled(shape, np.dtype(np.uint8))
    for index in range(len(frames)):
        frame = frames.decode(index)
        masks[index] = frame == largest
        if ((frame != 0) & (frame != largest)).any():
            raise NotAVolume("a FRACTIONAL segmentation has no labels: stack its segments, or convert it by a threshold")
    bits = np.packbits(masks, axis=None, bitorder="little").data
    return read_frames(bits, ExplicitVRLittleEndian, FrameShape(shape[1], shape[2], 1), len(frames), "OB")


def _labels_of_frames(
    segmentation: Segmentation,
    planes: Planes,
    value_of: Mapping[int, int],
    fill: int,
    dtype: "np.dtype[np.unsignedinteger]",
) -> Labelmap:
    """LABELMAP frames with the values that are asked for, and `fill` everywhere else."""
    chosen = np.flatnonzero(planes.of_frame >= 0)
    target = planes.of_frame[chosen]
    if len(chosen) > len(np.unique(target)):
        raise OverlappingSegments(
            "two frames of a LABELMAP lie in one place (PlanePositionSequence): which one holds is not said"
        )
    out: Labelmap = _filled((len(planes), segmentation.rows, segmentation.columns), dtype, fill)
    frames, largest = segmentation.frames.some(chosen.tolist())
    if largest > segmentation.described_up_to:
        segmentation.require_described(frozenset().union(*map(values_in, frames)))
    is_identity = all(number == value for number, value in value_of.items()) and set(value_of) == set(segmentation.numbers)
    if is_identity and fill == segmentation.padding_value and frames.dtype == dtype:
        if np.array_equal(target, np.arange(len(planes))):
            return frames
        out[target] = frames
        return out
    table = np.full(1 << segmentation.frames.shape.bits, fill, dtype)
    for number, value in value_of.items():
        if number < len(table):
            table[number] = value
    for frame, plane in zip(frames, target.tolist(), strict=True):
        out[plane] = table[frame]
    return out


def _by_sources(segmentation: Segmentation, wanted: Sequence[tuple[str, int | None]]) -> Planes:
    keys: list[list[tuple[str, int | None]]] = []
    for sources in segmentation.table.sources:
        whole = [(source.sop_instance_uid, None) for source in sources]
        keys.append(whole + [(s.sop_instance_uid, number) for s in sources for number in s.frame_numbers])
    return _follow(keys, list(wanted), "SourceImageSequence")


def _follow(keys: Sequence[Iterable[object]], wanted: Sequence[object], attribute: str) -> Planes:
    """Planes in the wanted order; frames that are none of them are in no plane.

    Raises NotFound when all are empty, NotAVolume when a frame belongs to several.
    """
    place = {key: number for number, key in enumerate(wanted)}
    of_frame = np.full(len(keys), -1, np.int64)
    for frame, of in enumerate(keys):
        found = {place[key] for key in of if key in place}
        if len(found) > 1:
            raise NotAVolume(f"frame {frame + 1} belongs to several of those that are asked for ({attribute})")
        of_frame[frame] = next(iter(found), -1)
    if (of_frame < 0).all():
        raise NotFound(f"no frame was derived from what is asked for ({attribute})")
    first = np.full(len(wanted), -1, np.int64)
    for frame in range(len(of_frame) - 1, -1, -1):
        if of_frame[frame] >= 0:
            first[of_frame[frame]] = frame
    return Planes(of_frame, first)


def _only(planes: Planes, chosen: npt.NDArray[np.intp]) -> Planes:
    renumbered = np.full(len(planes), -1, np.int64)
    renumbered[chosen] = np.arange(len(chosen))
    return Planes(renumbered[planes.of_frame], planes.first_frame[chosen])


def _is_code(found: Code | None, asked: Code | str) -> bool:
    if found is None:
        return False
    return found.value == asked if isinstance(asked, str) else (found.scheme, found.value) == (asked.scheme, asked.value)
