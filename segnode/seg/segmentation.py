"""A Segmentation as one frozen value: its type, its segments, where its frames lie, and their pixels."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Literal

from pydicom import Dataset

from segnode.dicom.codes import Code
from segnode.dicom.elements import Buffer, Element
from segnode.errors import NotASegmentation
from segnode.seg.frame_groups import FrameTable, ItemElements, item_elements
from segnode.seg.pixels import Frames

SegmentationType = Literal["BINARY", "FRACTIONAL", "LABELMAP"]


@dataclass(frozen=True)
class DescribedSegment:
    """An item of SegmentSequence (PS3.3 C.8.20.4), read or to be written; absent text is empty.

    `modifiers` are those of the type; `region_modifiers` has a tuple a region, or is empty. `cielab` are the three values of
    RecommendedDisplayCIELabValue (colour.recommended_cielab makes them of sRGB).
    """

    number: int
    label: str
    category: Code | None
    type: Code | None
    modifiers: tuple[Code, ...] = ()
    regions: tuple[Code, ...] = ()
    algorithm_type: str = ""
    algorithm_name: str = ""
    tracking_id: str = ""
    tracking_uid: str = ""
    cielab: tuple[int, int, int] | None = None
    algorithm_version: str = ""
    algorithm_family: Code | None = None
    region_modifiers: tuple[tuple[Code, ...], ...] = ()
    primary_structures: tuple[Code, ...] = ()
    description: str = ""


@dataclass(frozen=True, eq=False)
class PerFrame:
    """PerFrameFunctionalGroupsSequence as it is written: where it lies, in the bytes of the file or in those inflated."""

    data: Buffer
    sequence: Element

    @cached_property
    def elements(self) -> ItemElements:
        """The elements of each item. Raises NotDicom."""
        return item_elements(self.data, self.sequence)


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A Segmentation object as it was read.

    `header` is its data set without pixel data and per-frame functional groups, which are in `frames` and `table`; what
    segmentations need of it was looked at, other attributes are decoded when they are asked for. `segments` are in the
    order of SegmentSequence. `per_frame` is None where the file has no per-frame groups.
    """

    header: Dataset
    transfer_syntax_uid: str
    type: SegmentationType
    segments: tuple[DescribedSegment, ...]
    frames: Frames
    table: FrameTable
    per_frame: PerFrame | None = None

    @property
    def sop_instance_uid(self) -> str:
        """Its SOP instance UID."""
        return str(self.header.SOPInstanceUID)

    @property
    def rows(self) -> int:
        """Rows of a frame."""
        return self.frames.shape.rows

    @property
    def columns(self) -> int:
        """Columns of a frame."""
        return self.frames.shape.columns

    @cached_property
    def segment(self) -> dict[int, DescribedSegment]:
        """Its segments by number."""
        return {segment.number: segment for segment in self.segments}

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of its segments in ascending order, without the background of a LABELMAP."""
        return tuple(sorted(number for number in self.segment if not self.is_background(number)))

    @property
    def padding_value(self) -> int:
        """What stands where a LABELMAP has no frame: its Pixel Padding Value, which designates the background (C.8.20.2.3)."""
        return int(self.header.get("PixelPaddingValue") or 0) if self.type == "LABELMAP" else 0

    def is_background(self, number: int) -> bool:
        """Whether a number of a LABELMAP means that there is no segment."""
        return self.type == "LABELMAP" and number == self.padding_value

    @cached_property
    def described_up_to(self) -> int:
        """The largest value of a LABELMAP below which there is none that nothing describes."""
        return up_to_a_gap({*self.segment, self.padding_value})

    def require_described(self, values: Iterable[int]) -> None:
        """Raise NotASegmentation for pixel values of a LABELMAP that nothing describes: none may vanish (C.8.20.2.3)."""
        unknown = set(values) - {*self.segment, self.padding_value, 0}
        if unknown:
            raise NotASegmentation(f"PixelData holds values that SegmentSequence does not describe: {sorted(unknown)[:10]}")

    @property
    def is_tiled(self) -> bool:
        """Whether its frames are tiles of a total pixel matrix."""
        return bool(self.header.get("TotalPixelMatrixRows")) and bool(self.header.get("TotalPixelMatrixColumns"))

    @cached_property
    def index_pointers(self) -> tuple[int, ...]:
        """The tag of the attribute that each dimension index stands for (DimensionIndexSequence)."""
        return tuple(int(item.get("DimensionIndexPointer") or 0) for item in self.header.get("DimensionIndexSequence") or ())

    @property
    def maximum_fractional_value(self) -> int:
        """The stored value that means 1 in a FRACTIONAL segmentation."""
        return int(self.header.get("MaximumFractionalValue") or 255)


def up_to_a_gap(numbers: Collection[int]) -> int:
    """The largest number up to which all from 1 are among these: most people number without a gap, and a maximum is quick."""
    return next(number for number in count() if number + 1 not in numbers)
