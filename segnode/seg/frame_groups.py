"""The functional groups of frames (PS3.3 C.7.6.16) as one table, read in one pass over their bytes.

Ten thousand frames have ten thousand items: as data sets they cost seconds, as columns a fraction of one. Frames of one
slice or segment repeat whole groups byte by byte, which are decoded once.
"""

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from pydicom.datadict import tag_for_keyword

from segnode.dicom.elements import Buffer, Element, elements, items
from segnode.dicom.transfer_syntaxes import Encoding

Numbers = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_COSINE_TOLERANCE: Final = 1e-3
_SPACING_TOLERANCE: Final = 1e-3  # of the spacing
_EXPLICIT_LITTLE: Final = Encoding()
_ITEM_TAG: Final = b"\xfe\xff\x00\xe0"
_ITEM_HEADER: Final = struct.Struct("<4sI")
_SEQUENCE_HEADER: Final = struct.Struct("<4x2s2xI")
# The headers of FrameContentSequence, its only item, and DimensionIndexValues in it.
_ALONE: Final = struct.Struct("<8sI4sI6sH")
_CONTENT_START: Final = b"\x20\x00\x11\x91SQ\0\0"
_VALUES_START: Final = b"\x20\x00\x57\x91UL"
# What is farther away is no place in a patient, and cannot be calculated with.
_FARTHEST_MM: Final = 1e9
_NOWHERE: Final = (math.nan, math.nan, math.nan)


class SourceImage(NamedTuple):
    """An image, or frames of one, that a frame was derived from; no frame numbers mean all of it.

    `spatial_locations_preserved` is YES where its pixels lie in the places of the frame's, and empty where that is not said.
    """

    sop_class_uid: str
    sop_instance_uid: str
    frame_numbers: tuple[int, ...]
    spatial_locations_preserved: str = ""


class Measures(NamedTuple):
    """Pixel Measures in mm (C.7.6.16.2.1): spacing is that of rows, then that of columns."""

    spacing: tuple[float, ...] | None
    slice_thickness: float | None
    spacing_between_slices: float | None


class SlidePlace(NamedTuple):
    """Plane Position (Slide): row and column in the total pixel matrix from 1, and X, Y, Z offsets in mm."""

    tile: tuple[int, int] | None
    offsets: tuple[float, ...]


@dataclass(slots=True)
class FrameGroups:
    """What one item of functional groups says; absent is None or empty, and what is no number is NaN."""

    position: tuple[float, ...] | None = None
    orientation: tuple[float, ...] | None = None
    measures: Measures | None = None
    slide: SlidePlace | None = None
    segment_number: int | None = None
    dimension_index_values: tuple[int, ...] = ()
    sources: tuple[SourceImage, ...] = ()


@dataclass(frozen=True, eq=False)
class FrameTable:
    """Every frame in a row of each column; the shared groups stand in where a frame says nothing of its own.

    `positions` (frames, 3) are LPS mm, or X, Y, Z offsets in the slide's coordinate system, NaN where there are none;
    `tiles` (frames, 2) row and column of the frame's first pixel in the total pixel matrix from 1, 0 where there are none;
    `segment_numbers` (frames,) are 0 where there are none, as in a LABELMAP; `orientations` and `spacings` hold those
    that differ.
    """

    positions: Numbers
    tiles: Integers
    segment_numbers: Integers
    dimension_index_values: tuple[tuple[int, ...], ...]
    sources: tuple[tuple[SourceImage, ...], ...]
    orientations: tuple[tuple[float, ...], ...]
    spacings: tuple[tuple[float, ...], ...]
    slice_thickness: float | None
    spacing_between_slices: float | None

    def __len__(self) -> int:
        return len(self.positions)


def frame_table(shared: FrameGroups, frames: Sequence[FrameGroups]) -> FrameTable:
    """The table of frames and what they share."""
    nothing = SlidePlace(None, ())
    shared_slide = shared.slide or nothing
    slides = [f.slide or shared_slide for f in frames]
    positions = [f.position or slide.offsets or shared.position or _NOWHERE for f, slide in zip(frames, slides, strict=True)]
    places = np.array([p if len(p) == 3 else _NOWHERE for p in positions], np.float64).reshape(-1, 3)
    places[~(np.abs(places) < _FARTHEST_MM)] = np.nan
    orientations = dict.fromkeys(o for f in frames if (o := f.orientation or shared.orientation))
    measures = dict.fromkeys(m for f in frames if (m := f.measures or shared.measures))
    spacings = dict.fromkeys(m.spacing for m in measures if m.spacing)
    return FrameTable(
        positions=places,
        tiles=np.array([slide.tile or (0, 0) for slide in slides], np.int64).reshape(-1, 2),
        segment_numbers=np.array([f.segment_number or shared.segment_number or 0 for f in frames], np.int64),
        dimension_index_values=tuple(f.dimension_index_values or shared.dimension_index_values for f in frames),
        sources=tuple(f.sources or shared.sources for f in frames),
        orientations=_differing(orientations, 0, _COSINE_TOLERANCE),
        spacings=_differing(spacings, _SPACING_TOLERANCE, 0),
        slice_thickness=next((m.slice_thickness for m in measures if m.slice_thickness is not None), None),
        spacing_between_slices=next((m.spacing_between_slices for m in measures if m.spacing_between_slices is not None), None),
    )


def _differing(vectors: Iterable[tuple[float, ...]], relative: float, absolute: float) -> tuple[tuple[float, ...], ...]:
    """The first of the vectors, and those that are not close to it."""
    first, *others = [*vectors] or [()]
    if not first:
        return ()
    far = (v for v in others if len(v) != len(first) or not np.allclose(v, first, relative, absolute))
    return (first, *far)


def read_frame_groups(buffer: Buffer, sequence: Element) -> list[FrameGroups]:
    """What each item of a sequence of functional groups says. Raises NotDicom."""
    decoded: dict[bytes, tuple[str, object] | None] = {}
    found = []
    for elements_of_item in item_elements(buffer, sequence):
        groups = FrameGroups()
        for element in elements_of_item:
            if element not in decoded:
                decoded[element] = _decoded(element, sequence.encoding)
            said = decoded[element]
            if said is not None:
                setattr(groups, *said)
        found.append(groups)
    return found


def item_elements(buffer: Buffer, sequence: Element) -> list[list[bytes]]:
    """The elements of each item of a sequence, as they are written. Raises NotDicom."""
    if sequence.encoding == _EXPLICIT_LITTLE:
        found = _of_known_lengths(bytes(buffer[sequence.start : sequence.end]))
        if found is not None:
            return found
    return [
        [bytes(buffer[element.begin : element.next]) for element in elements(buffer, start, end, sequence.encoding)]
        for start, end in items(buffer, sequence)
    ]


def _of_known_lengths(data: bytes) -> list[list[bytes]] | None:
    """Items that nearly all writers make: of known lengths, with nothing but sequences in them. None for any other."""
    found, place = [], 0
    while place < len(data):
        if len(data) - place < _ITEM_HEADER.size:
            return None
        tag, length = _ITEM_HEADER.unpack_from(data, place)
        place += _ITEM_HEADER.size
        end = place + length
        if tag != _ITEM_TAG or end > len(data):
            return None
        item = []
        while place < end:
            if end - place < _SEQUENCE_HEADER.size:
                return None
            vr, length = _SEQUENCE_HEADER.unpack_from(data, place)
            after = place + _SEQUENCE_HEADER.size + length
            if vr != b"SQ" or after > end:
                return None
            item.append(data[place:after])
            place = after
        found.append(item)
    return found


def index_values_alone(element: bytes) -> tuple[int, ...] | None:
    """DimensionIndexValues of a frame content that holds nothing else: it differs in every frame, and nearly always does.

    None for any other element, and any that is not explicit little endian.
    """
    size = len(element) - _ALONE.size
    if size < 0 or not element.startswith(_alone(size)):
        return None
    return struct.unpack_from(f"<{size // 4}I", element, _ALONE.size)


@lru_cache(maxsize=64)
def _alone(size: int) -> bytes:
    """How a frame content starts that holds nothing but DimensionIndexValues of so many bytes."""
    return _ALONE.pack(_CONTENT_START, size + 16, _ITEM_TAG, size + 8, _VALUES_START, size & 0xFFFF)


def _decoded(data: bytes, encoding: Encoding) -> tuple[str, object] | None:
    """The field of FrameGroups that an element says something of, and what; None where it is of no interest."""
    alone = index_values_alone(data) if encoding == _EXPLICIT_LITTLE else None
    if alone is not None:
        return "dimension_index_values", alone
    element = next(elements(data, 0, len(data), encoding))
    reader = _READERS.get(element.tag)
    if reader is None:
        return None
    name, read = reader
    return name, read([_Item(data, *place, element.encoding) for place in items(data, element)])


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
        """The decimal strings of a value; None when absent, and NaN for what is no number."""
        text = self.text(tag)
        return tuple(_number(part) for part in text.split("\\")) if text else None

    def integers(self, tag: int, code: str) -> tuple[int, ...]:
        """The binary integers of a value, of struct's code; none when absent."""
        element = self._elements.get(tag)
        if element is None:
            return ()
        order = "<" if self._encoding.little_endian else ">"
        count = (element.end - element.start) // struct.calcsize(code)
        return struct.unpack_from(f"{order}{count}{code}", self._buffer, element.start)

    def items(self, tag: int) -> "Iterable[_Item]":
        """The items of a sequence; none when absent."""
        element = self._elements.get(tag)
        if element is not None:
            for start, end in items(self._buffer, element):
                yield _Item(self._buffer, start, end, element.encoding)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _tag(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    return tag


_POSITION: Final = _tag("ImagePositionPatient")
_ORIENTATION: Final = _tag("ImageOrientationPatient")
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
_PRESERVED: Final = _tag("SpatialLocationsPreserved")

_Items = Sequence[_Item]


def _read_position(group: _Items) -> tuple[float, ...] | None:
    return group[0].numbers(_POSITION) if group else None


def _read_orientation(group: _Items) -> tuple[float, ...] | None:
    return group[0].numbers(_ORIENTATION) if group else None


def _read_measures(group: _Items) -> Measures | None:
    if not group:
        return None
    (thickness, *_), (between, *_) = (group[0].numbers(tag) or (None,) for tag in (_THICKNESS, _BETWEEN_SLICES))
    return Measures(group[0].numbers(_PIXEL_SPACING), thickness, between)


def _read_slide_place(group: _Items) -> SlidePlace | None:
    if not group:
        return None
    place = (*group[0].integers(_ROW, "i"), *group[0].integers(_COLUMN, "i"))
    offsets = [group[0].numbers(tag) for tag in _OFFSETS]
    return SlidePlace((place[0], place[1]) if len(place) == 2 else None, tuple(o[0] for o in offsets if o))


def _read_segment_number(group: _Items) -> int | None:
    return next(iter(group[0].integers(_NUMBER, "H")), None) if group else None


def _read_index_values(group: _Items) -> tuple[int, ...]:
    return group[0].integers(_INDEX_VALUES, "I") if group else ()


def _read_sources(group: _Items) -> tuple[SourceImage, ...]:
    return tuple(
        SourceImage(
            source.text(_CLASS),
            source.text(_INSTANCE),
            tuple(int(number) for number in source.numbers(_FRAMES) or () if math.isfinite(number)),
            source.text(_PRESERVED),
        )
        for item in group
        for source in item.items(_SOURCES)
    )


_READERS: Final[Mapping[int, tuple[str, Callable[[_Items], object]]]] = {
    _tag("PlanePositionSequence"): ("position", _read_position),
    _tag("PlaneOrientationSequence"): ("orientation", _read_orientation),
    _tag("PixelMeasuresSequence"): ("measures", _read_measures),
    _tag("PlanePositionSlideSequence"): ("slide", _read_slide_place),
    _tag("SegmentIdentificationSequence"): ("segment_number", _read_segment_number),
    _tag("FrameContentSequence"): ("dimension_index_values", _read_index_values),
    _tag("DerivationImageSequence"): ("sources", _read_sources),
}
