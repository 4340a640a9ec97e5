"""Whether segments share voxels where a SEG says that they do not (PS3.3 C.8.20.2)."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from pydicom import Dataset

from segnode.errors import SegnodeError
from segnode.seg.check.finding import UNREADABLE, Finding, error, number, text
from segnode.seg.check.frames import Groups, Says, indices_beside_place
from segnode.seg.combine import Pair, count_overlaps, told
from segnode.seg.frame_groups import FrameGroups, SlidePlace, frame_table
from segnode.seg.masks import Masks
from segnode.seg.pixels import frames_of
from segnode.seg.planes import planes_of
from segnode.seg.read import tiled_full
from segnode.seg.segmentation import DescribedSegment, Segmentation

_CLAUSE: Final = "PS3.3 C.8.20.2"


def check_overlap(dataset: Dataset, groups: Groups, described: Sequence[int]) -> Iterator[Finding]:
    """A BINARY whose SegmentsOverlap is NO has no voxel in two segments."""
    if text(dataset, "SegmentationType") != "BINARY" or text(dataset, "SegmentsOverlap") != "NO" or len(described) < 2:
        return
    try:
        counts, are_all = _overlaps(_masks(dataset, groups, described))
    except (SegnodeError, *UNREADABLE):
        what = "was not held against the pixels: where frames lie, or what they hold, cannot be read"
        yield Finding("note", "SegmentsOverlap", _CLAUSE, what)
        return
    if counts:
        yield error("SegmentsOverlap", _CLAUSE, f"is NO, but segments overlap: {told(counts, are_all=are_all)}; write YES")
    elif not are_all:
        what = "was not held against all pixels: there are too many segments in one place"
        yield Finding("note", "SegmentsOverlap", _CLAUSE, what)


def _overlaps(masks: Masks) -> tuple[Counter[Pair], bool]:
    shared = [plane for plane, frames in enumerate(masks.frames_of_plane) if len(frames) > 1]
    return count_overlaps(masks.at, shared, masks.segmentation.frames.shape.size)


def _masks(dataset: Dataset, groups: Groups, described: Sequence[int]) -> Masks:
    """The masks of a BINARY; frames that differ in time, say, or lie in another focal plane, are not in one plane."""
    segments = tuple(DescribedSegment(segment, "", None, None) for segment in described)
    frames = frames_of(dataset)
    of_frames = [_frame_groups(says) for says in groups.frames] or [FrameGroups()] * len(frames)
    table = frame_table(_frame_groups(groups.shared), of_frames)
    if text(dataset, "DimensionOrganizationType") == "TILED_FULL":
        table = tiled_full(table, dataset, "BINARY", segments)
    segmentation = Segmentation(dataset, "", "BINARY", segments, frames, table)
    planes = planes_of(segmentation)
    beside = indices_beside_place(dataset, groups) or [()] * len(frames)
    of_plane: dict[object, list[int]] = {}
    for frame, plane in enumerate(planes.of_frame.tolist()):
        depth = _depth(segmentation, frame, len(planes)) if segmentation.is_tiled else 0
        of_plane.setdefault((plane, depth, beside[frame]), []).append(frame)
    return Masks(segmentation, planes, tuple(map(tuple, of_plane.values())))


def _depth(segmentation: Segmentation, frame: int, tiles: int) -> float:
    """What tells the focal plane of a tile: its Z offset, or where that is not said its place in the order of TILED_FULL."""
    offset = float(segmentation.table.positions[frame, 2])
    focal = max(number(segmentation.header, "TotalPixelMatrixFocalPlanes") or 1, 1)
    return round(offset, 6) if math.isfinite(offset) else frame // tiles % focal


def _frame_groups(says: Says) -> FrameGroups:
    """The groups of a frame as the engine has them."""
    slide = next(iter(says.get("PlanePositionSlideSequence", ())), None)
    column, row, *offsets = slide or ((), ())
    return FrameGroups(
        position=next(iter(says.get("PlanePositionSequence", ())), None),
        orientation=next(iter(says.get("PlaneOrientationSequence", ())), None),
        measures=next(iter(says.get("PixelMeasuresSequence", ())), None),
        slide=SlidePlace((int(row[0]), int(column[0])) if row and column else None, tuple(o[0] for o in offsets if o))
        if slide
        else None,
        segment_number=next(iter(says.get("SegmentIdentificationSequence", ())), None),
        dimension_index_values=says.get("FrameContentSequence", ()),
        sources=says.get("DerivationImageSequence", ()),
    )
