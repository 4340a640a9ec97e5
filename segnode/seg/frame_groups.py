"""The functional groups of frames (PS3.3 C.7.6.16) as one table, read in one pass over their bytes.

Ten thousand frames have ten thousand items: as data sets they cost seconds, as columns a fraction of one.
"""

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from pydicom.datadict import tag_for_keyword

from segnode.dicom.elements import Buffer, Element, elements, items
from segnode.dicom.transfer_syntaxes import Encoding

Numbers = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


class SourceImage(NamedTuple):
    """An image, or frames of one, that a frame was derived from; no frame numbers mean all of it."""

    sop_class_uid: str
    sop_instance_uid: str
    frame_numbers: tuple[int, ...]


@dataclass
class FrameGroups:
    """What one item of functional groups says; absent is None or empty."""

    position: tuple[float, ...] | None = None
    orientation: tuple[float, ...] | None = None
    spacing: tuple[float, ...] | None = None
    slice_thickness: float | None = None
    spacing_between_slices: float | None = None
    tile: tuple[int, int] | None = None
    slide_position: tuple[float, ...] | None = None
    segment_number: int | None = None
    dimension_index_values: tuple[int, ...] = ()
    sources: list[SourceImage] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class FrameTable:
    """Every frame in a row of each column; the shared groups stand in where a frame says nothing of its own.

    `positions` (frames, 3) are LPS mm, or X, Y, Z offsets in the slide's coordinate system, NaN where there are none;
    `tiles` (frames, 2) row and column of the frame's first pixel in the total pixel matrix from 1, 0 where there are none;
    `segment_numbers` (frames,) are 0 in a LABELMAP; `orientations` holds the distinct ones.
    """

    positions: Numbers
    tiles: Integers
    segment_numbers: Integers
    dimension_index_values: tuple[tuple[int, ...], ...]
    sources: tuple[tuple[SourceImage, ...], ...]
    orientations: tuple[tuple[float, ...], ...]
    spacing: tuple[float, float] | None
    slice_thickness: float | None
    spacing_between_slices: float | None

    def __len__(self) -> int:
        return len(self.positions)


def frame_table(shared: FrameGroups, frames: Sequence[FrameGroups]) -> FrameTable:
    """The table of frames and what they share."""
    nowhere = (np.nan, np.nan, np.nan)
    positions = [f.position or f.slide_position or shared.position or shared.slide_position or nowhere for f in frames]
    measured = next((f for f in (shared, *frames) if f.spacing), shared)
    spacing = measured.spacing
    return FrameTable(
        positions=np.array([p if len(p) == 3 else nowhere for p in positions], np.float64).reshape(-1, 3),
        tiles=np.array([f.tile or shared.tile or (0, 0) for f in frames], np.int64).reshape(-1, 2),
        segment_numbers=np.array([f.segment_number or shared.segment_number or 0 for f in frames], np.int64),
        dimension_index_values=tuple(f.dimension_index_values or shared.dimension_index_values for f in frames),
        sources=tuple(tuple(f.sources or shared.sources) for f in frames),
        orientations=tuple(dict.fromkeys(o for f in (shared, *frames) if (o := f.orientation))),
        spacing=(spacing[0], spacing[1]) if spacing and len(spacing) == 2 else None,
        slice_thickness=measured.slice_thickness,
        spacing_between_slices=measured.spacing_between_slices,
    )


def read_frame_groups(buffer: Buffer, sequence: Element, encoding: Encoding) -> list[FrameGroups]:
    """What each item of a sequence of functional groups says. Raises NotDicom."""
    known: dict[tuple[int, bytes], Mapping[str, Any]] = {}
    return [_read_item(buffer, start, end, encoding, known) for start, end in items(buffer, sequence, encoding)]


def _read_item(
    buffer: Buffer, start: int, end: int, encoding: Encoding, known: dict[tuple[int, bytes], Mapping[str, Any]]
) -> FrameGroups:
    groups = FrameGroups()
    for element in elements(buffer, start, end, encoding):
        if element.tag not in _READERS:
            continue
        # Frames of many segments say the same of their place and sources: what was read once is not read again.
        key = element.tag, bytes(buffer[element.start : element.end])
        if key not in known:
            known[key] = _read_group(buffer, element, encoding)
        groups.__dict__.update(known[key])
    return groups


def _read_group(buffer: Buffer, element: Element, encoding: Encoding) -> Mapping[str, Any]:
    """What one functional group says, by the field that it says it of."""
    groups, nothing = FrameGroups(), FrameGroups()
    for start, end in items(buffer, element, encoding):
        _READERS[element.tag](groups, _Item(buffer, start, end, encoding))
    return {name: value for name, value in vars(groups).items() if value != getattr(nothing, name)}


class _Item:
    """The data set of an item, whose values are decoded when they are asked for."""

    def __init__(self, buffer: Buffer, start: int, end: int, encoding: Encoding) -> None:
        self._buffer = buffer
        self._encoding = encoding
        self._elements = {element.tag: element for element in elements(buffer, start, end, encoding)}

    def text(self, tag: int) -> str:
        """The value as text; empty when absent."""
        element = self._elements.get(tag)
        if element is None:
            return ""
        return str(self._buffer[element.start : element.end], "latin-1").strip(" \0")

    def numbers(self, tag: int) -> tuple[float, ...] | None:
        """The decimal strings of a value; None when absent or not numbers."""
        text = self.text(tag)
        try:
            return tuple(float(number) for number in text.split("\\")) if text else None
        except ValueError:
            return None

    def integers(self, tag: int, code: str) -> tuple[int, ...]:
        """The binary integers of a value, of struct's code; none when absent."""
        element = self._elements.get(tag)
        if element is None:
            return ()
        order = "<" if self._encoding.little_endian else ">"
        count = (element.end - element.start) // struct.calcsize(code)
        return struct.unpack_from(f"{order}{count}{code}", self._buffer, element.start)

    def items(self, tag: int) -> Iterable["_Item"]:
        """The items of a sequence; none when absent."""
        element = self._elements.get(tag)
        if element is not None:
            for start, end in items(self._buffer, element, self._encoding):
                yield _Item(self._buffer, start, end, self._encoding)


def _tag(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    return tag


_POSITION: Final = _tag("ImagePositionPatient")
_ORIENTATION: Final = _tag("ImageOrientationPatient")
_ORIENTATION_SLIDE: Final = _tag("ImageOrientationSlide")
_PIXEL_SPACING: Final = _tag("PixelSpacing")
_THICKNESS: Final = _tag("SliceThickness")
_BETWEEN_SLICES: Final = _tag("SpacingBetweenSlices")
_ROW: Final = _tag("RowPositionInTotalImagePixelMatrix")
_COLUMN: Final = _tag("ColumnPositionInTotalImagePixelMatrix")
_OFFSETS: Final = tuple(_tag(f"{axis}OffsetInSlideCoordinateSystem") for axis in "XYZ")
_NUMBER: Final = _tag("ReferencedSegmentNumber")
_INDEX_VALUES: Final = _tag("DimensionIndexValues")
_SOURCES: Final = _tag("SourceImageSequence")
_CLASS: Final = _tag("ReferencedSOPClassUID")
_INSTANCE: Final = _tag("ReferencedSOPInstanceUID")
_FRAMES: Final = _tag("ReferencedFrameNumber")


def _read_position(groups: FrameGroups, item: _Item) -> None:
    groups.position = item.numbers(_POSITION)


def _read_orientation(groups: FrameGroups, item: _Item) -> None:
    groups.orientation = item.numbers(_ORIENTATION)


def _read_measures(groups: FrameGroups, item: _Item) -> None:
    groups.spacing = item.numbers(_PIXEL_SPACING)
    groups.slice_thickness = (item.numbers(_THICKNESS) or (None,))[0]
    groups.spacing_between_slices = (item.numbers(_BETWEEN_SLICES) or (None,))[0]


def _read_slide_position(groups: FrameGroups, item: _Item) -> None:
    place = (*item.integers(_ROW, "i"), *item.integers(_COLUMN, "i"))
    groups.tile = (place[0], place[1]) if len(place) == 2 else None
    offsets = [item.numbers(tag) for tag in _OFFSETS]
    groups.slide_position = tuple(o[0] for o in offsets if o)


def _read_segment(groups: FrameGroups, item: _Item) -> None:
    groups.segment_number = next(iter(item.integers(_NUMBER, "H")), None)


def _read_content(groups: FrameGroups, item: _Item) -> None:
    groups.dimension_index_values = item.integers(_INDEX_VALUES, "I")


def _read_derivation(groups: FrameGroups, item: _Item) -> None:
    for source in item.items(_SOURCES):
        numbers = tuple(int(n) for n in source.numbers(_FRAMES) or ())
        groups.sources.append(SourceImage(source.text(_CLASS), source.text(_INSTANCE), numbers))


_READERS: Final[Mapping[int, Callable[[FrameGroups, _Item], None]]] = {
    _tag("PlanePositionSequence"): _read_position,
    _tag("PlaneOrientationSequence"): _read_orientation,
    _tag("PixelMeasuresSequence"): _read_measures,
    _tag("PlanePositionSlideSequence"): _read_slide_position,
    _tag("SegmentIdentificationSequence"): _read_segment,
    _tag("FrameContentSequence"): _read_content,
    _tag("DerivationImageSequence"): _read_derivation,
}
