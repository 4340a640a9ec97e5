"""What a Segmentation says as arrays: labelmaps and stacked segments, by place, source or index, as volume or pixel matrix."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segnode.dicom.geometry import Vector
from segnode.errors import NotAVolume, NotFound, OverlappingSegments
from segnode.seg.combine import Labelmap, combine_binary, label_type
from segnode.seg.planes import Planes, grid_of, planes_of
from segnode.seg.segmentation import DescribedSegment, Segmentation

Array = npt.NDArray[np.unsignedinteger] | npt.NDArray[np.float32]


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


def find_segments(
    segmentation: Segmentation,
    *,
    label: str | None = None,
    category: str | None = None,
    type: str | None = None,  # noqa: A002  the attribute's name
    tracking_id: str | None = None,
    tracking_uid: str | None = None,
    algorithm_type: str | None = None,
) -> list[DescribedSegment]:
    """The segments with these properties, by number; codes are given by their value."""
    wanted = {
        "label": label,
        "category": category,
        "type": type,
        "tracking_id": tracking_id,
        "tracking_uid": tracking_uid,
        "algorithm_type": algorithm_type,
    }

    def fits(segment: DescribedSegment) -> bool:
        return all(_text(getattr(segment, name)) == value for name, value in wanted.items() if value is not None)

    return [segmentation.segment[number] for number in segmentation.numbers if fits(segmentation.segment[number])]


def select(segmentation: Segmentation, numbers: Sequence[int] | None = None, *, relabel: bool = False) -> Selection:
    """Segments in the order that they are asked for; all of them by number. Raises NotFound for one that is not described."""
    chosen = segmentation.numbers if numbers is None else tuple(numbers)
    for number in chosen:
        if number not in segmentation.segment or segmentation.is_background(number):
            described = ", ".join(map(str, segmentation.numbers))
            raise NotFound(f"there is no segment {number}: SegmentSequence describes {described}")
    return Selection(chosen, relabel)


def labelmap(segmentation: Segmentation, selection: Selection | None = None, planes: Planes | None = None) -> Labelmap:
    """The labels as (planes, rows, columns) of the smallest unsigned type; 0 where no chosen segment is.

    In a LABELMAP whose Pixel Padding Value is another, that stands there, unless the segments are relabelled.

    Raises OverlappingSegments, UnreadablePixels; NotAVolume for a FRACTIONAL segmentation, which has no labels of its own.
    """
    selection = selection or select(segmentation)
    planes = planes or planes_of(segmentation)
    if segmentation.type == "FRACTIONAL":
        raise NotAVolume("a FRACTIONAL segmentation has no labels: stack its segments, or convert it by a threshold")
    value_of = selection.value_of
    fill = background_value(segmentation, selection)
    dtype = label_type(max(fill, *value_of.values(), 0))
    shape = (len(planes), segmentation.rows, segmentation.columns)
    if segmentation.type == "BINARY":
        out: Labelmap = np.zeros(shape, dtype)
        numbers = [value_of.get(int(number), 0) for number in segmentation.table.segment_numbers]
        combine_binary(segmentation.frames, planes, numbers, out)
        return out
    return _labels_of_frames(segmentation, planes, value_of, fill, dtype)


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

    Raises UnreadablePixels.
    """
    selection = selection or select(segmentation)
    planes = planes or planes_of(segmentation)
    shape = (len(planes), segmentation.rows, segmentation.columns, len(selection.numbers))
    if segmentation.type == "LABELMAP":
        labels = labelmap(segmentation, Selection(selection.numbers), planes)
        return np.stack([labels == number for number in selection.numbers], axis=-1).astype(np.uint8)
    place = {number: index for index, number in enumerate(selection.numbers)}
    out = np.zeros(shape, np.uint8)
    for frame, (plane, number) in enumerate(zip(planes.of_frame, segmentation.table.segment_numbers, strict=True)):
        if int(number) in place and plane >= 0:
            target = out[plane, :, :, place[int(number)]]
            np.maximum(target, segmentation.frames.decode(frame), out=target)
    if segmentation.type == "FRACTIONAL" and rescale:
        return out.astype(np.float32) / np.float32(segmentation.maximum_fractional_value)
    return out


def volume(segmentation: Segmentation, selection: Selection | None = None) -> LabelVolume:
    """The labels as a volume; slices without a frame hold the padding value's background. Raises as labelmap and grid_of."""
    planes = planes_of(segmentation)
    grid = grid_of(segmentation, planes)
    labels = labelmap(segmentation, selection, planes)
    if grid.slices == len(planes):
        return LabelVolume(labels, grid.affine)
    fill = background_value(segmentation, selection or select(segmentation))
    array = np.full((grid.slices, *labels.shape[1:]), fill, labels.dtype)
    array[grid.slice_of_plane] = labels
    return LabelVolume(array, grid.affine)


def by_source_instances(segmentation: Segmentation, sop_instance_uids: Sequence[str]) -> Planes:
    """Planes that follow source images: one for each, empty where no frame was derived from it. Raises NotFound."""
    return _by_sources(segmentation, [(uid, None) for uid in sop_instance_uids])


def by_source_frames(segmentation: Segmentation, sop_instance_uid: str, frame_numbers: Sequence[int]) -> Planes:
    """Planes that follow frames (from 1) of a multi-frame source image. Raises NotFound."""
    return _by_sources(segmentation, [(sop_instance_uid, number) for number in frame_numbers])


def by_dimension_index_values(segmentation: Segmentation, values: Sequence[Sequence[int]]) -> Planes:
    """Planes that follow values for each item of DimensionIndexSequence but the segment's. Raises NotFound."""
    pointers = [int(item.get("DimensionIndexPointer", 0)) for item in segmentation.header.get("DimensionIndexSequence") or ()]
    kept = [place for place, pointer in enumerate(pointers) if pointer != 0x0062000B]
    keys = [
        [tuple(indices[place] for place in kept)] if len(indices) == len(pointers) else []
        for indices in segmentation.table.dimension_index_values
    ]
    return _follow(keys, [tuple(wanted) for wanted in values], "DimensionIndexValues")


def total_pixel_matrix(
    segmentation: Segmentation,
    selection: Selection | None = None,
    *,
    rows: tuple[int, int] | None = None,
    columns: tuple[int, int] | None = None,
) -> Labelmap:
    """The labels of the total pixel matrix, or of a region from (inclusive, from 1) to (exclusive), as (rows, columns).

    Raises NotAVolume when the frames are no tiles; OverlappingSegments, UnreadablePixels.
    """
    if not segmentation.is_tiled:
        raise NotAVolume("TotalPixelMatrixRows is missing: the frames are no tiles of a total pixel matrix")
    header = segmentation.header
    top, bottom = rows or (1, int(header.TotalPixelMatrixRows) + 1)
    left, right = columns or (1, int(header.TotalPixelMatrixColumns) + 1)
    planes = planes_of(segmentation)
    tiles = segmentation.table.tiles[planes.first_frame]
    height, width = segmentation.rows, segmentation.columns
    inside = (tiles[:, 0] < bottom) & (tiles[:, 0] + height > top) & (tiles[:, 1] < right) & (tiles[:, 1] + width > left)
    chosen = _only(planes, np.flatnonzero(inside))
    labels = labelmap(segmentation, selection, chosen)
    fill = background_value(segmentation, selection or select(segmentation))
    matrix = np.full((bottom - top, right - left), fill, labels.dtype)
    for tile, (row, column) in zip(labels, tiles[inside], strict=True):
        first_row, first_column = max(row, top), max(column, left)
        last_row, last_column = min(row + height, bottom), min(column + width, right)
        matrix[first_row - top : last_row - top, first_column - left : last_column - left] = tile[
            first_row - row : last_row - row, first_column - column : last_column - column
        ]
    return matrix


def _labels_of_frames(
    segmentation: Segmentation,
    planes: Planes,
    value_of: Mapping[int, int],
    fill: int,
    dtype: "np.dtype[np.unsignedinteger]",
) -> Labelmap:
    """LABELMAP frames with the values that are asked for, and `fill` everywhere else."""
    chosen = [int(frame) for frame in np.flatnonzero(planes.of_frame >= 0)]
    out: Labelmap = np.full((len(planes), segmentation.rows, segmentation.columns), fill, dtype)
    if len(chosen) > len({int(planes.of_frame[frame]) for frame in chosen}):
        raise OverlappingSegments(
            "two frames of a LABELMAP lie in one place (PlanePositionSequence): which one holds is not said"
        )
    table = np.full(1 << segmentation.frames.shape.bits, fill, dtype)
    for number, value in value_of.items():
        table[number] = value
    is_identity = all(number == value for number, value in value_of.items()) and set(value_of) == set(segmentation.numbers)
    frames = segmentation.frames.some(chosen)
    _require_described(frames, segmentation)
    if is_identity and fill == segmentation.padding_value and frames.dtype == dtype:
        if np.array_equal(planes.of_frame[chosen], np.arange(len(planes))):
            return frames
        out[planes.of_frame[chosen]] = frames
        return out
    out[planes.of_frame[chosen]] = table[frames]
    return out


def _require_described(frames: Labelmap, segmentation: Segmentation) -> None:
    """A value that nothing describes must not vanish (PS3.3 C.8.20.2.3)."""
    present = np.flatnonzero(np.bincount(frames.reshape(-1), minlength=1))
    unknown = [int(v) for v in present if int(v) not in segmentation.segment and v not in (segmentation.padding_value, 0)]
    if unknown:
        raise NotFound(f"PixelData holds values that SegmentSequence does not describe: {unknown[:10]}")


def _by_sources(segmentation: Segmentation, wanted: Sequence[tuple[str, int | None]]) -> Planes:
    keys: list[list[tuple[str, int | None]]] = []
    for sources in segmentation.table.sources:
        whole = [(source.sop_instance_uid, None) for source in sources]
        keys.append(whole + [(s.sop_instance_uid, number) for s in sources for number in s.frame_numbers])
    return _follow(keys, list(wanted), "SourceImageSequence")


def _follow(keys: Sequence[Iterable[object]], wanted: Sequence[object], attribute: str) -> Planes:
    """Planes in the wanted order; frames that are none of them are in no plane. Raises NotFound when all are empty."""
    place = {key: number for number, key in enumerate(wanted)}
    of_frame = np.array([next((place[key] for key in of if key in place), -1) for of in keys], np.int64)
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


def _text(value: object) -> str:
    code = getattr(value, "value", None)
    return str(code if code is not None else value or "")
