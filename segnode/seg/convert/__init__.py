"""Converting: a Segmentation in another transfer syntax, which is the same object, or of another type, which is a new one."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Final, Literal

import numpy as np
from pydicom import Dataset

from segnode.dicom.elements import Buffer
from segnode.dicom.transfer_syntaxes import encoding_of
from segnode.dicom.uids import UUID_ROOT, derived_uid, is_uid
from segnode.errors import CannotConvert, NotAVolume, OverlappingSegments
from segnode.seg.codecs import Codec
from segnode.seg.combine import (
    PLANES_AT_ONCE,
    Labelmap,
    Packed,
    Pair,
    combine_segments,
    label_type,
    overlapping_voxels,
    require_few,
    some_of,
)
from segnode.seg.convert.groups import KeptGroups, Written, kept_groups, merge, merged_sources
from segnode.seg.convert.header import Dimensions, Part, header_of, shared_groups
from segnode.seg.convert.overlap import Grouping, fewest_groups
from segnode.seg.frame_items import FrameItem
from segnode.seg.masks import Masks, masks_of, of_each_plane, require_no_contradiction
from segnode.seg.part10 import part10
from segnode.seg.pixels import FrameToEncode, MadeFrames, one_by_one, pixel_data
from segnode.seg.planes import Planes, grid_of
from segnode.seg.read import read_segmentation
from segnode.seg.recode import recode, require_bits
from segnode.seg.segmentation import Segmentation, SegmentationType
from segnode.seg.values import naming_what_is_wrong

# Part of every derived UID: raise it when the same source becomes another object.
CONVERTER_REVISION: Final = "2"

OverlapPolicy = Literal["error", "split", "priority"]

_FULL_FRACTION: Final = 255
# What a few megabytes of labels may become.
_LARGEST_STACK: Final = 4 << 30
_SAME_PLACE_MM: Final = 0.1
_PLACES: Final = frozenset(
    (
        0x00200032,  # ImagePositionPatient
        0x00209056,  # StackID
        0x00209057,  # InStackPositionNumber
        0x0048021E,  # ColumnPositionInTotalImagePixelMatrix
        0x0048021F,  # RowPositionInTotalImagePixelMatrix
        0x0040072A,  # XOffsetInSlideCoordinateSystem
        0x0040073A,  # YOffsetInSlideCoordinateSystem
        0x0040074A,  # ZOffsetInSlideCoordinateSystem
        0x0062000B,  # ReferencedSegmentNumber
    )
)


@dataclass(frozen=True)
class Target:
    """What a Segmentation is to become.

    `overlap` is what happens where a LABELMAP cannot hold two segments: `priority` gives a voxel to the first of its
    numbers. `threshold` (of 1) makes segments of a FRACTIONAL; without it a voxel is in that of the greatest fraction.
    `station_name` is of the node that makes it, which knows its own again by that; new UIDs are derived under `uid_root`.
    """

    type: SegmentationType
    codec: Codec
    overlap: OverlapPolicy = "error"
    priority: tuple[int, ...] = ()
    threshold: float | None = None
    station_name: str = ""
    uid_root: str = UUID_ROOT


@dataclass(frozen=True)
class Overlap:
    """Two segments of the source that share voxels."""

    numbers: tuple[int, int]
    labels: tuple[str, str]
    voxels: int

    def __str__(self) -> str:
        (a, b), (label, other) = self.numbers, self.labels
        return f"{a} ({label}) and {b} ({other}) in {self.voxels} voxels"


@dataclass(frozen=True, eq=False)
class Converted:
    """An object and how it came about: `numbers` maps segment numbers of the source to its own.

    It is number `part` of `parts`, which are the fewest there can be if `lower_bound` is as many. `overlaps` are those of
    the source that were resolved. `left_out` are keywords of functional groups that frames had in which those differ that one
    frame now stands for.
    """

    part10: bytes
    sop_instance_uid: str
    series_instance_uid: str
    numbers: Mapping[int, int]
    part: int = 1
    parts: int = 1
    lower_bound: int = 1
    overlaps: tuple[Overlap, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Source:
    """What is converted: its masks, and what its frames say that goes over."""

    masks: Masks
    kept: KeptGroups

    @property
    def segmentation(self) -> Segmentation:
        """The Segmentation itself."""
        return self.masks.segmentation


@dataclass(frozen=True, eq=False)
class _Labels:
    """The value of PixelData of a LABELMAP, with a frame for each of `planes`."""

    planes: Sequence[int]
    pixels: bytes | memoryview


Resolve = Callable[[dict[int, Packed]], dict[int, Packed]]


def convert(data: Buffer, target: Target, now: datetime) -> list[Converted]:
    """A Part 10 file in the form that is asked for: one object, or several where its segments are split.

    Of the same type it is the same object, only encoded anew; of another it is a new one, whose UIDs derive from the source
    and the target, so that a repeat is the same object; `now` is its creation. Raises CannotConvert, OverlappingSegments,
    NotAVolume, and what read_segmentation raises.
    """
    source = read_segmentation(data)
    with naming_what_is_wrong(source.header):
        return _converted(data, source, target, now)


def _converted(data: Buffer, source: Segmentation, target: Target, now: datetime) -> list[Converted]:
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        if not is_uid(str(source.header.get(keyword) or "")):
            raise CannotConvert(f"{keyword} is missing, or does not hold a UID: nothing can be derived from this object")
    if source.type == target.type:
        same = {number: number for number in source.numbers}
        return [Converted(recode(data, target.codec), source.sop_instance_uid, str(source.header.SeriesInstanceUID), same)]
    if not source.numbers:
        raise CannotConvert("SegmentSequence describes nothing but the background: there is no segment to convert")
    masks = masks_of(source, target.threshold)
    _require_one_dimension(masks)
    require_no_contradiction(masks)
    whole = _Source(masks, kept_groups(source))
    if target.type == "LABELMAP":
        return _labelmaps(whole, target, now)
    return [_stack_of_segments(whole, target, now)]


def _labelmaps(converting: _Source, target: Target, now: datetime) -> list[Converted]:
    """LABELMAPs, one unless overlapping segments are split."""
    masks, source = converting.masks, converting.segmentation
    dtype = label_type(max(source.numbers))
    require_bits(target.codec, "LABELMAP", dtype.itemsize * 8)
    counts: Counter[Pair] = Counter()
    everything = range(len(masks.planes))
    whole = _encode_labels(masks, everything, target.codec, dtype, None, counts)
    overlaps = tuple(_overlap(source, pair, voxels) for pair, voxels in counts.most_common())
    if not overlaps:
        return [_labelmap(converting, target, whole, source.numbers, now)]
    if target.overlap == "error":
        raise OverlappingSegments(
            f"segments overlap: {some_of([*map(str, overlaps)])}; a LABELMAP holds one segment a voxel: have them split into"
            " several objects (split), or say which segment comes first (priority)"
        )
    if target.overlap == "priority":
        order = _order(source, target.priority, overlaps)
        whole = _encode_labels(masks, everything, target.codec, dtype, lambda segments: _by_priority(segments, order), counts)
        return [_labelmap(converting, target, whole, source.numbers, now, overlaps=overlaps)]
    grouping = fewest_groups(source.numbers, counts)
    return [
        _labelmap(converting, target, _part_of(masks, group, target.codec, dtype), group, now, grouping, place, overlaps)
        for place, group in enumerate(grouping.groups, 1)
    ]


def _overlap(source: Segmentation, pair: Pair, voxels: int) -> Overlap:
    return Overlap(pair, (source.segment[pair[0]].label, source.segment[pair[1]].label), voxels)


def _encode_labels(
    masks: Masks,
    planes: Sequence[int],
    codec: Codec,
    dtype: "np.dtype[np.unsignedinteger]",
    resolve: Resolve | None,
    counts: Counter[Pair],
) -> _Labels:
    """Planes combined and encoded some at a time, so that no volume is held; overlaps that are left are counted.

    Without `resolve` all segments of all planes are meant.
    """
    shape = masks.segmentation.rows, masks.segmentation.columns
    placed = masks.placed if resolve is None else None
    overlapping: set[int] = set()

    def make(places: range) -> Labelmap:
        labels: Labelmap = np.zeros((len(places), *shape), dtype)
        if placed is not None and placed.combine(places.start, labels):
            return labels
        labels[:] = 0
        for place, out in zip(places, labels, strict=True):
            found = masks.at(planes[place])
            segments = found if resolve is None else resolve(found)
            if combine_segments(segments, out):
                overlapping.add(planes[place])
        return labels

    pixels = pixel_data(MadeFrames(dtype, len(planes), make, at_once=PLANES_AT_ONCE), codec)
    counts.update(_overlaps_of(masks, sorted(overlapping), resolve))
    return _Labels(planes, pixels)


def _overlaps_of(masks: Masks, planes: Sequence[int], resolve: Resolve | None) -> Counter[Pair]:
    """The voxels that pairs of segments share on these planes. Raises OverlappingSegments for more pairs than can be told."""

    def count(place: int) -> Counter[Pair]:
        found = masks.at(planes[place])
        return overlapping_voxels(found if resolve is None else resolve(found))

    counts: Counter[Pair] = Counter()
    for found in of_each_plane(count, len(planes)):
        counts.update(found)
        require_few(counts)
    return counts


def _part_of(masks: Masks, group: Sequence[int], codec: Codec, dtype: "np.dtype[np.unsignedinteger]") -> _Labels:
    """The labels of some segments, on the planes that they have frames on."""
    chosen = frozenset(group)

    def only(segments: dict[int, Packed]) -> dict[int, Packed]:
        return {number: packed for number, packed in segments.items() if number in chosen}

    numbers = masks.segmentation.table.segment_numbers.tolist()
    planes = [
        plane
        for plane, frames in enumerate(masks.frames_of_plane)
        if _is_tiled_full(masks.segmentation) or any(numbers[frame] in chosen for frame in frames)
    ]
    return _encode_labels(masks, planes, codec, dtype, only, Counter())


def _order(source: Segmentation, priority: Sequence[int], overlaps: Iterable[Overlap]) -> Mapping[int, int]:
    """The rank of each number. Raises CannotConvert for a number that is none, or a pair of which neither has one."""
    unknown = sorted(set(priority) - set(source.numbers))
    if unknown:
        raise CannotConvert(f"priority names segments that SegmentSequence does not describe: {unknown}")
    rank = {number: place for place, number in reversed(list(enumerate(priority)))}
    open_pairs = [overlap for overlap in overlaps if not set(overlap.numbers) & rank.keys()]
    if open_pairs:
        raise OverlappingSegments(f"segments overlap, and priority names neither of them: {some_of([*map(str, open_pairs)])}")
    return rank


def _by_priority(segments: dict[int, Packed], rank: Mapping[int, int]) -> dict[int, Packed]:
    """Each voxel is left to the first of its segments."""
    resolved: dict[int, Packed] = {}
    covered: Packed = np.zeros(1, np.uint8)
    for number in sorted(segments, key=lambda n: (rank.get(n, len(rank)), n)):
        resolved[number] = segments[number] & ~covered
        covered = covered | segments[number]
    return resolved


def _labelmap(
    converting: _Source,
    target: Target,
    labels: _Labels,
    numbers: Sequence[int],
    now: datetime,
    grouping: Grouping | None = None,
    place: int = 1,
    overlaps: tuple[Overlap, ...] = (),
) -> Converted:
    masks, source = converting.masks, converting.segmentation
    parts = len(grouping.groups) if grouping else 1
    bits = label_type(max(source.numbers)).itemsize * 8
    part = Part("LABELMAP", {number: number for number in numbers}, place, parts, bits, len(labels.planes))
    dimensions = _dimensions(converting, labels.planes, part)
    index, inside = _index_values(masks, labels.planes), frozenset(numbers)
    items, left_out = _frame_items(
        converting,
        target.codec,
        [
            _Standing(plane, _frames_in(masks, inside, plane), values)
            for plane, values in zip(labels.planes, index, strict=True)
        ],
    )
    how = (*_choices(source, target), *((f"priority {target.priority}",) if overlaps and not grouping else ()))
    uids = _uids(source, target, how, part)
    encoding = encoding_of(target.codec.transfer_syntax_uid)
    header, sequences = header_of(source, part, dimensions, uids, now, target.station_name, encoding)
    made = part10(header, items, labels.pixels, target.codec, sequences)
    return Converted(made, *uids, part.numbers, place, parts, grouping.lower_bound if grouping else 1, overlaps, left_out)


def _choices(source: Segmentation, target: Target) -> tuple[str, ...]:
    """What else than the types decides about the labels."""
    return (f"threshold {target.threshold}",) if source.type == "FRACTIONAL" else ()


def labelmap_uids(sop_instance_uid: str, place: int = 1, parts: int = 1) -> tuple[str, str]:
    """SOP instance and series instance UID of the LABELMAP, or part of several, that the BINARY of a UID becomes.

    Without a priority; all parts are in one series.
    """
    return _derived(sop_instance_uid, "LABELMAP", (), place, parts)


def _uids(source: Segmentation, target: Target, how: Sequence[str], part: Part) -> tuple[str, str]:
    return _derived(source.sop_instance_uid, target.type, how, part.place, part.parts, target.uid_root)


def _derived(
    source: str, kind: SegmentationType, how: Sequence[str], place: int, parts: int, root: str = UUID_ROOT
) -> tuple[str, str]:
    origin = (source, kind, how, CONVERTER_REVISION)
    instance = derived_uid("converted", *origin, f"{place} of {parts}", root=root)
    return str(instance), str(derived_uid("converted series", *origin, root=root))


def _stack_of_segments(converting: _Source, target: Target, now: datetime) -> Converted:
    """A BINARY, or a FRACTIONAL of nothing and all: a frame for each segment and plane, numbered from 1 (C.8.20.2.4)."""
    masks, source, codec = converting.masks, converting.segmentation, target.codec
    bits = 1 if target.type == "BINARY" else 8
    require_bits(codec, target.type, bits)
    numbers = {number: place for place, number in enumerate(source.numbers, 1)}
    found = _segment_frames(masks, numbers)
    keys = sorted(found)
    shape, pixel_count = (source.rows, source.columns), source.frames.shape.pixels

    def make(place: int) -> FrameToEncode:
        inside = np.unpackbits(found[keys[place]], count=pixel_count, bitorder="little").reshape(shape)
        return inside.view(np.bool_) if bits == 1 else inside * np.uint8(_FULL_FRACTION)

    def packed(place: int) -> tuple[int, Packed]:
        return 0, found[keys[place]]

    dtype = np.dtype(np.bool_ if bits == 1 else np.uint8)
    frames = MadeFrames(dtype, len(keys), one_by_one(make), packed if bits == 1 else None)
    pixels = pixel_data(frames, codec)
    part = Part(target.type, numbers, bits=bits, frames=len(keys))
    planes = sorted({plane for _, plane in keys})
    index = dict(zip(planes, _index_values(masks, planes), strict=True))
    items, left_out = _frame_items(
        converting,
        codec,
        [
            _Standing(plane, _frames_in(masks, [source.numbers[number - 1]], plane), (number, *index[plane]), number)
            for number, plane in keys
        ],
    )
    uids = _uids(source, target, _choices(source, target), part)
    dimensions, encoding = _dimensions(converting, planes, part), encoding_of(codec.transfer_syntax_uid)
    header, sequences = header_of(source, part, dimensions, uids, now, target.station_name, encoding)
    return Converted(part10(header, items, pixels, codec, sequences), *uids, numbers, left_out=left_out)


def _segment_frames(masks: Masks, numbers: Mapping[int, int]) -> dict[tuple[int, int], Packed]:
    """Masks by new number and plane: those that the source has frames of, or of a LABELMAP those that are not empty."""
    found: dict[tuple[int, int], Packed] = {}
    nothing: Packed = np.zeros(-(-masks.segmentation.frames.shape.pixels // 8), np.uint8)
    size = 0
    for plane, segments in enumerate(of_each_plane(masks.at, len(masks.planes))):
        found.update({(numbers[number], plane): packed for number, packed in segments.items()})
        size += sum(packed.nbytes for packed in segments.values())
        if size > _LARGEST_STACK:
            raise CannotConvert(
                f"its segments stacked take more than {_LARGEST_STACK >> 30} GiB: keep it a LABELMAP, or take fewer planes"
            )
    if _is_tiled_full(masks.segmentation):
        return {(n, plane): found.get((n, plane), nothing) for n in numbers.values() for plane in range(len(masks.planes))}
    return found or {(1, 0): nothing}


def _frames_in(masks: Masks, numbers: Collection[int], plane: int) -> Sequence[int]:
    """The frames of some segments in a plane; all of them where a plane has none of these."""
    frames = masks.frames_of_plane[plane]
    if masks.segmentation.type == "LABELMAP":
        return frames
    of_frames = masks.segmentation.table.segment_numbers[list(frames)].tolist()
    return [frame for frame, number in zip(frames, of_frames, strict=True) if number in numbers] or frames


def _is_tiled_full(source: Segmentation) -> bool:
    """Whether frames have no groups of their own because their order says where they lie (PS3.3 C.7.6.17.3)."""
    return source.header.get("DimensionOrganizationType") == "TILED_FULL" and not np.isfinite(source.table.positions).all()


def _dimensions(converting: _Source, planes: Sequence[int], part: Part) -> Dimensions:
    """What tells the planes apart. Raises CannotConvert when nothing does."""
    masks, source, own = converting.masks, converting.segmentation, converting.kept.own_geometry
    tiled_full = _is_tiled_full(source)
    shared = shared_groups(source, converting.kept, keep_places=tiled_full)
    if _is_tiled(source):
        slide = "PlanePositionSlideSequence"
        pointers = (("RowPositionInTotalImagePixelMatrix", slide), ("ColumnPositionInTotalImagePixelMatrix", slide))
        return Dimensions(pointers, "TILED_FULL" if tiled_full else "TILED_SPARSE", shared, own)
    if _has_positions(source):
        evenly = part.type == "LABELMAP" and _is_grid(source, masks.planes, planes)
        return Dimensions((("ImagePositionPatient", "PlanePositionSequence"),), "3D" if evenly else None, shared, own)
    if all(source.table.sources):
        return Dimensions((("SourceImageSequence", "DerivationImageSequence"),), None, shared, own)
    raise CannotConvert(
        "the frames have neither a position (PlanePositionSequence) nor a source image (DerivationImageSequence): nothing"
        " would say where they lie"
    )


def _is_tiled(source: Segmentation) -> bool:
    return source.is_tiled or bool((source.table.tiles > 0).all())


def _has_positions(source: Segmentation) -> bool:
    return bool(np.isfinite(source.table.positions).all())


def _is_grid(source: Segmentation, planes: Planes, chosen: Sequence[int]) -> bool:
    try:
        slices = grid_of(source, planes).slice_of_plane[list(chosen)]
    except NotAVolume:
        return False
    return bool((np.diff(slices) == 1).all())


def _index_values(masks: Masks, planes: Sequence[int]) -> list[tuple[int, ...]]:
    """The dimension index values of planes, without that of a segment: ranks from 1."""
    source = masks.segmentation
    if not _is_tiled(source):
        return [(rank,) for rank in range(1, len(planes) + 1)]
    tiles = source.table.tiles[masks.planes.first_frame[list(planes)]]
    ranks = [np.unique(tiles[:, axis], return_inverse=True)[1] + 1 for axis in (0, 1)]
    return [(int(row), int(column)) for row, column in zip(*ranks, strict=True)]


@dataclass(frozen=True)
class _Standing:
    """A frame of the new object, the plane it lies in, and the frames of the source that it stands for."""

    plane: int
    frames: Sequence[int]
    index_values: tuple[int, ...]
    number: int | None = None


def _frame_items(converting: _Source, codec: Codec, new: Sequence[_Standing]) -> tuple[list[FrameItem], tuple[str, ...]]:
    """The functional groups of frames, and the keywords of those that are left out. Raises CannotConvert.

    There are none where the source has none, as TILED_FULL need not.
    """
    source, kept = converting.segmentation, converting.kept
    tiled_full = _is_tiled_full(source)
    if tiled_full and not kept.are_there:
        return [], ()
    more, left_out = merge(kept, [standing.frames for standing in new], encoding_of(codec.transfer_syntax_uid))
    table = source.table
    shared = next(iter(source.header.get("SharedFunctionalGroupsSequence") or ()), Dataset())
    sources_are_shared = "DerivationImageSequence" in shared

    def item(standing: _Standing, written: Written) -> FrameItem:
        first = int(converting.masks.planes.first_frame[standing.plane])
        position = tuple(map(float, table.positions[first]))
        row, column = map(int, table.tiles[first])
        found = chain.from_iterable(table.sources[frame] for frame in standing.frames)
        return FrameItem(
            sources=() if sources_are_shared else merged_sources(found),
            dimension_index_values=standing.index_values,
            position=position if np.isfinite(position).all() else None,
            tile=(row, column) if row > 0 and column > 0 and not tiled_full else None,
            segment_number=standing.number,
            content=written.content,
            groups=written.groups,
        )

    return list(map(item, new, more)), left_out


def _require_one_dimension(masks: Masks) -> None:
    """Frames of a plane differ in their segment only: not in time, focal plane or anything else that would be lost."""
    source = masks.segmentation
    if int(source.header.get("TotalPixelMatrixFocalPlanes") or 1) > 1:
        raise CannotConvert("TotalPixelMatrixFocalPlanes is more than 1: tiles of several focal planes are not converted")
    pointers = source.index_pointers
    others = [place for place, pointer in enumerate(pointers) if pointer not in _PLACES]
    values, positions = source.table.dimension_index_values, source.table.positions
    for frames in masks.frames_of_plane if others else ():
        complete = [values[frame] for frame in frames if len(values[frame]) == len(pointers)]
        differing = next((place for place in others if len({value[place] for value in complete}) > 1), None)
        if differing is not None and _has_positions(source):
            tag = pointers[differing]
            raise CannotConvert(
                f"frames in one place differ in dimension ({tag >> 16:04X},{tag & 0xFFFF:04X}) of DimensionIndexSequence,"
                " which would be lost: take a segmentation without it"
            )
    planes = masks.planes
    apart = np.abs(positions - positions[planes.first_frame[planes.of_frame]])
    spread = float(np.max(apart, initial=0, where=np.isfinite(apart)))
    if spread > _SAME_PLACE_MM:
        raise CannotConvert(
            f"frames that share a plane lie up to {spread:.2f} mm apart (PlanePositionSequence or"
            " PlanePositionSlideSequence): one of them would be moved"
        )
