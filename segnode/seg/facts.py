"""What a SEG holds, in a document for a person or a program; without patient data."""

from dataclasses import dataclass

import numpy as np

from segnode.dicom.uids import uid_name
from segnode.errors import NotAVolume
from segnode.seg.combine import Packed
from segnode.seg.masks import Masks, masks_of, of_each_plane
from segnode.seg.planes import grid_of
from segnode.seg.segmentation import DescribedSegment, Segmentation
from segnode.seg.values import items_of, text_of


@dataclass(frozen=True)
class SegmentFacts:
    """A segment and how large it is; `millilitres` is None where the frames are no volume."""

    number: int
    label: str
    category: str
    type: str
    regions: tuple[str, ...]
    voxels: int
    millilitres: float | None


@dataclass(frozen=True)
class Geometry:
    """Where the voxels lie: `spacing` in mm between slices, rows and columns; `problem` says why it is no volume."""

    slices: int | None
    spacing: tuple[float, ...] | None
    affine: tuple[tuple[float, ...], ...] | None
    problem: str | None


@dataclass(frozen=True)
class Facts:
    """What a SEG is. A voxel of a FRACTIONAL counts from half of its maximum on; `overlapping` voxels are in several."""

    type: str
    sop_class: str
    sop_instance_uid: str
    series_instance_uid: str
    transfer_syntax: str
    rows: int
    columns: int
    frames: int
    planes: int
    bits: int
    geometry: Geometry
    references: dict[str, int]
    overlapping: int
    segments: tuple[SegmentFacts, ...]


def facts_of(segmentation: Segmentation) -> Facts:
    """The facts of a SEG. Raises NotASegmentation, NotAVolume, NotFound, OverlappingSegments, UnreadablePixels."""
    masks = masks_of(segmentation, 0.5)
    geometry = _geometry(segmentation, masks)
    voxels, overlapping = _voxels(masks)
    millilitres = None if geometry.affine is None else abs(float(np.linalg.det(np.array(geometry.affine)[:3, :3]))) / 1000
    header = segmentation.header
    return Facts(
        segmentation.type,
        uid_name(str(header.SOPClassUID)),
        str(header.get("SOPInstanceUID") or ""),
        str(header.get("SeriesInstanceUID") or ""),
        uid_name(segmentation.transfer_syntax_uid),
        segmentation.rows,
        segmentation.columns,
        len(segmentation.frames),
        len(masks.planes),
        segmentation.frames.shape.bits,
        geometry,
        _references(segmentation),
        overlapping,
        tuple(_segment(segmentation.segment[n], voxels.get(n, 0), millilitres) for n in segmentation.numbers),
    )


def _segment(segment: DescribedSegment, voxels: int, millilitres: float | None) -> SegmentFacts:
    return SegmentFacts(
        segment.number,
        segment.label,
        segment.category.meaning if segment.category else "",
        f"{segment.type.meaning} ({segment.type.value}, {segment.type.scheme})" if segment.type else "",
        tuple(region.meaning for region in segment.regions),
        voxels,
        None if millilitres is None else round(voxels * millilitres, 6),
    )


def _geometry(segmentation: Segmentation, masks: Masks) -> Geometry:
    try:
        grid = grid_of(segmentation, masks.planes)
    except NotAVolume as error:
        return Geometry(None, None, None, str(error))
    spacing = tuple(round(float(length), 6) for length in np.linalg.norm(grid.affine[:3, :3], axis=0))
    return Geometry(grid.slices, spacing, tuple(map(tuple, grid.affine.tolist())), None)


def _voxels(masks: Masks) -> tuple[dict[int, int], int]:
    """How many voxels each segment has, and how many are in several."""

    def count(plane: int) -> tuple[dict[int, int], int]:
        counts: dict[int, int] = {}
        covered: Packed = np.zeros(1, np.uint8)
        shared = covered
        for number, packed in masks.at(plane).items():
            counts[number] = int(np.bitwise_count(packed).sum())
            covered, shared = covered | packed, shared | (covered & packed)
        return counts, int(np.bitwise_count(shared).sum())

    voxels: dict[int, int] = {}
    overlapping = 0
    for counts, shared in of_each_plane(count, len(masks.planes)):
        overlapping += shared
        for number, found in counts.items():
            voxels[number] = voxels.get(number, 0) + found
    return voxels, overlapping


def _references(segmentation: Segmentation) -> dict[str, int]:
    """How many instances of each series are referred to."""
    others = items_of(segmentation.header, "StudiesContainingOtherReferencedInstancesSequence")
    listed = [series for of in (segmentation.header, *others) for series in items_of(of, "ReferencedSeriesSequence")]
    return {text_of(series, "SeriesInstanceUID"): len(items_of(series, "ReferencedInstanceSequence")) for series in listed}
