"""The functional groups of frames (PS3.3 C.7.6.16) as one table, read in one pass over their bytes.

Ten thousand frames have ten thousand items: as data sets they cost seconds, as columns a fraction of one. Frames of one
slice or segment repeat whole groups byte by byte, which are decoded once.
"""

import math
import struct
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, compress
from operator import methodcaller, not_
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view
from pydicom.datadict import tag_for_keyword

from segnode.dicom.elements import Buffer, Element, elements, items
from segnode.dicom.transfer_syntaxes import Encoding

Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_COSINE_TOLERANCE: Final = 1e-3
_SPACING_TOLERANCE: Final = 1e-3  # of the spacing
_EXPLICIT_LITTLE: Final = Encoding()
_ITEM_TAG: Final = b"\xfe\xff\x00\xe0"
_ITEM_HEADER: Final = struct.Struct("<4sI")
_SEQUENCE_HEADER: Final = struct.Struct("<HH2s2xI")
# The headers of FrameContentSequence, its only item, and DimensionIndexValues in it.
_ALONE: Final = struct.Struct("<8sI4sI6sH")
_CONTENT_START: Final = b"\x20\x00\x11\x91SQ\0\0"
_VALUES_START: Final = b"\x20\x00\x57\x91UL"
# What is farther away is no place in a patient, and cannot be calculated with.
_FARTHEST_MM: Final = 1e9
_NOWHERE: Final = (math.nan, math.nan, math.nan)
# Items of one length whose elements lie elsewhere than in the others; of a file with more of them each is looked at.
_MOST_LAYOUTS: Final = 64


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


@dataclass(frozen=True, eq=False)
class ItemElements:
    """The elements of so many items as they are written, by tag: those of each item, from 0, that has one of this tag."""

    count: int
    by_tag: Mapping[int, Mapping[int, bytes]]


class FrameGroups(NamedTuple):
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
    """The table of frames, of which there is one at least, and what they share."""
    positions, orientations, measures, slides, numbers, index_values, sources = zip(*frames, strict=True)
    shared_slide = shared.slide or SlidePlace(None, ())
    slides = tuple(slide or shared_slide for slide in slides)
    found = [p or slide.offsets or shared.position or _NOWHERE for p, slide in zip(positions, slides, strict=True)]
    places = np.array([p if len(p) == 3 else _NOWHERE for p in found], np.float64).reshape(-1, 3)
    places[~(np.abs(places) < _FARTHEST_MM)] = np.nan
    known = [m for said in dict.fromkeys(measures) if (m := said or shared.measures)]
    return FrameTable(
        positions=places,
        tiles=np.array([slide.tile or (0, 0) for slide in slides], np.int64).reshape(-1, 2),
        segment_numbers=np.array([number or shared.segment_number or 0 for number in numbers], np.int64),
        dimension_index_values=tuple(values or shared.dimension_index_values for values in index_values),
        sources=tuple(said or shared.sources for said in sources),
        orientations=_differing((o or shared.orientation for o in dict.fromkeys(orientations)), 0, _COSINE_TOLERANCE),
        spacings=_differing((m.spacing for m in known), _SPACING_TOLERANCE, 0),
        slice_thickness=next((m.slice_thickness for m in known if m.slice_thickness is not None), None),
        spacing_between_slices=next((m.spacing_between_slices for m in known if m.spacing_between_slices is not None), None),
    )


def _differing(vectors: Iterable[tuple[float, ...] | None], relative: float, absolute: float) -> tuple[tuple[float, ...], ...]:
    """The first of the vectors that are there, and those that are not close to it."""
    first, *others = [*dict.fromkeys(vector for vector in vectors if vector)] or [()]
    if not first:
        return ()
    far = (v for v in others if len(v) != len(first) or not np.allclose(v, first, relative, absolute))
    return (first, *far)


def read_frame_groups(of_items: ItemElements, encoding: Encoding) -> list[FrameGroups]:
    """What each item of a sequence of functional groups says. Raises NotDicom."""
    columns: dict[str, list[Any]] = {field: [absent] * of_items.count for field, absent in FrameGroups()._asdict().items()}
    for tag, written in of_items.by_tag.items():
        if tag not in _READERS:
            continue
        field, read = _READERS[tag]
        said: Iterable[object] | None = None
        if tag == FRAME_CONTENT and encoding == _EXPLICIT_LITTLE:
            said = index_values_alone(written.values())
        if said is None:
            said = map(_read_each(set(written.values()), read, encoding).__getitem__, written.values())
        column = columns[field]
        for place, value in zip(written, said, strict=True):
            column[place] = value
    return [*map(FrameGroups._make, zip(*columns.values(), strict=True))]


def item_elements(buffer: Buffer, sequence: Element) -> ItemElements:
    """The elements of each item of a sequence. Raises NotDicom."""
    if sequence.encoding == _EXPLICIT_LITTLE:
        found = _of_known_lengths(bytes(buffer[sequence.start : sequence.end]))
        if found is not None:
            return found
    by_tag: dict[int, dict[int, bytes]] = {}
    count = 0
    for start, end in items(buffer, sequence):
        for element in elements(buffer, start, end, sequence.encoding):
            by_tag.setdefault(element.tag, {})[count] = bytes(buffer[element.begin : element.next])
        count += 1
    return ItemElements(count, by_tag)


def _of_known_lengths(data: bytes) -> ItemElements | None:
    """Items that nearly all writers make: of known lengths, with nothing but sequences in them. None for any other."""
    by_tag: dict[int, dict[int, bytes]] = {}
    items_of: dict[int, tuple[list[int], list[int]]] = {}
    place = count = 0
    while place < len(data):
        header = data[place : place + _ITEM_HEADER.size]
        if len(header) < _ITEM_HEADER.size:
            return None
        tag, length = _ITEM_HEADER.unpack(header)
        if tag != _ITEM_TAG:
            return None
        begin, step = place, _ITEM_HEADER.size + length
        # As long as the one before it, most items are.
        while data.startswith(header, place):
            place += step
        numbers, starts = items_of.setdefault(length, ([], []))
        starts.extend(range(begin + _ITEM_HEADER.size, place, step))
        numbers.extend(range(count, count + (place - begin) // step))
        count += (place - begin) // step
    if place != len(data):
        return None
    for length, (numbers, starts) in items_of.items():
        if length and not _cut(sliding_window_view(np.frombuffer(data, np.uint8), length)[starts], np.array(numbers), by_tag):
            return None
    return ItemElements(count, by_tag)


def _cut(written: Bytes, numbers: Integers, by_tag: dict[int, dict[int, bytes]]) -> bool:
    """Put the sequences of items of one length (items, length) where they belong; whether there is nothing else in them.

    Their elements nearly always lie in the same places, and are cut all at once.
    """
    for _ in range(_MOST_LAYOUTS):
        layout = _layout(written[0].tobytes())
        if layout is None:
            return False
        headers = np.concatenate([np.arange(begin, value) for _, begin, value, _ in layout])
        alike = (written[:, headers] == written[0, headers]).all(axis=1)
        for tag, begin, _, end in layout:
            elements_alike = np.ascontiguousarray(written[alike, begin:end]).view(f"V{end - begin}")[:, 0].tolist()
            by_tag.setdefault(tag, {}).update(zip(numbers[alike].tolist(), elements_alike, strict=True))
        if alike.all():
            return True
        written, numbers = written[~alike], numbers[~alike]
    return False


def _layout(item: bytes) -> list[tuple[int, int, int, int]] | None:
    """The tag of each sequence of an item, where it begins, and its value begins and ends. None where there is more."""
    layout, begin = [], 0
    while begin < len(item):
        value = begin + _SEQUENCE_HEADER.size
        if value > len(item):
            return None
        group, number, vr, length = _SEQUENCE_HEADER.unpack_from(item, begin)
        end = value + length
        if vr != b"SQ" or end > len(item):
            return None
        layout.append((group << 16 | number, begin, value, end))
        begin = end
    return layout


def index_values_alone(contents: Collection[bytes]) -> list[tuple[int, ...]] | None:
    """DimensionIndexValues of frame contents that hold nothing else, as nearly all do: they differ in every frame.

    None where one holds something else, has another number of values, or is not explicit little endian.
    """
    lengths = {*map(len, contents)}
    size = max(lengths, default=0) - _ALONE.size
    if len(lengths) != 1 or size % 4 or not 0 <= size < 1 << 16:
        return None
    start = _ALONE.pack(_CONTENT_START, size + 16, _ITEM_TAG, size + 8, _VALUES_START, size)
    if not all(map(methodcaller("startswith", start), contents)):
        return None
    return [*struct.iter_unpack(f"<{_ALONE.size}x{size // 4}I", b"".join(contents))]


def _read_each(groups: Collection[bytes], read: "Callable[[_Items], object]", encoding: Encoding) -> dict[bytes, object]:
    """What every group says. Those of one length nearly always differ in values alone: their elements are found once."""
    said: dict[bytes, object] = {}
    by_length: dict[int, list[bytes]] = {}
    for group in groups:
        by_length.setdefault(len(group), []).append(group)
    for of_one_length in by_length.values():
        left = of_one_length
        for _ in range(_MOST_LAYOUTS):
            if not left:
                break
            layout = _Layout()
            said[left[0]] = read(_items_in(left[0], encoding, layout))
            alike, left = layout.split(left)
            said.update((group, read(_items_in(group, encoding, layout))) for group in alike)
        said.update((group, read(_items_in(group, encoding, _Layout()))) for group in left)
    return said


class _Layout:
    """Where the items of a group and their elements begin and end; it holds for every group with the same headers."""

    def __init__(self) -> None:
        self._items: dict[int, list[tuple[int, int]]] = {}
        self._elements: dict[int, dict[int, Element]] = {}
        self._headers: list[range] = []
        self._is_fixed = True

    def items(self, group: bytes, sequence: Element) -> list[tuple[int, int]]:
        """Where the data set of each item of a sequence starts and ends. Raises NotDicom."""
        found = self._items.get(sequence.start)
        if found is None:
            found = self._items[sequence.start] = [*items(group, sequence)]
            places = [(start - _ITEM_HEADER.size, start, end) for start, end in found]
            self._add(sequence.start, sequence.end, places)
        return found

    def elements(self, group: bytes, start: int, end: int, encoding: Encoding) -> dict[int, Element]:
        """The elements of a data set by tag. Raises NotDicom."""
        found = self._elements.get(start)
        if found is None:
            each = [*elements(group, start, end, encoding)]
            found = self._elements[start] = {element.tag: element for element in each}
            # The end of an undefined length depends on what lies before it.
            self._is_fixed &= all(element.end == element.next for element in each)
            self._add(start, end, [(element.begin, element.start, element.next) for element in each])
        return found

    def _add(self, start: int, end: int, places: Sequence[tuple[int, int, int]]) -> None:
        """Keep where headers begin and end, and what they are of; nothing else may lie from start to end."""
        for begin, value, after in places:
            self._is_fixed &= begin == start
            self._headers.append(range(begin, value))
            start = after
        self._is_fixed &= start == end

    def split(self, groups: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
        """Groups of the length of the first, which was read: the others that are laid out as it is, and those that are not."""
        if not self._is_fixed or len(groups) == 1:
            return [], [*groups[1:]]
        written = np.frombuffer(b"".join(groups), np.uint8).reshape(len(groups), -1)
        headers = written[:, [*chain.from_iterable(self._headers)]]
        is_alike = (headers == headers[0]).all(axis=1).tolist()[1:]
        return [*compress(groups[1:], is_alike)], [*compress(groups[1:], map(not_, is_alike))]


def _items_in(group: bytes, encoding: Encoding, layout: _Layout) -> "Sequence[_Item]":
    (element,) = layout.elements(group, 0, len(group), encoding).values()
    return [_Item(group, *place, element.encoding, layout) for place in layout.items(group, element)]


class _Item:
    """The data set of an item, whose values are decoded when they are asked for."""

    def __init__(self, group: bytes, start: int, end: int, encoding: Encoding, layout: _Layout) -> None:
        self._buffer = group
        self._encoding = encoding
        self._layout = layout
        self._elements = layout.elements(group, start, end, encoding)

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
            for start, end in self._layout.items(self._buffer, element):
                yield _Item(self._buffer, start, end, element.encoding, self._layout)


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


FRAME_CONTENT: Final = _tag("FrameContentSequence")
_READERS: Final[Mapping[int, tuple[str, Callable[[_Items], object]]]] = {
    _tag("PlanePositionSequence"): ("position", _read_position),
    _tag("PlaneOrientationSequence"): ("orientation", _read_orientation),
    _tag("PixelMeasuresSequence"): ("measures", _read_measures),
    _tag("PlanePositionSlideSequence"): ("slide", _read_slide_place),
    _tag("SegmentIdentificationSequence"): ("segment_number", _read_segment_number),
    FRAME_CONTENT: ("dimension_index_values", _read_index_values),
    _tag("DerivationImageSequence"): ("sources", _read_sources),
}
