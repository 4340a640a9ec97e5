"""The rules for the frames of a SEG: functional groups and dimensions (PS3.3 C.7.6.16, C.7.6.17, A.51.5)."""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from io import BytesIO
from typing import Any, Final

from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.filereader import read_sequence
from pydicom.tag import BaseTag

from segnode.seg.check.finding import (
    UNREADABLE,
    Finding,
    Known,
    content_of,
    elements,
    error,
    has,
    items,
    keyword_of,
    number,
    numbers,
    text,
    value_of,
    values_of,
    walk_sequence,
    warning,
)
from segnode.seg.check.tiles import check_tiles
from segnode.seg.frame_groups import Measures, SourceImage

SHARED: Final = "SharedFunctionalGroupsSequence"
PER_FRAME: Final = "PerFrameFunctionalGroupsSequence"
_DERIVATION: Final = "DerivationImageSequence"
_CONTENT: Final = "FrameContentSequence"
_IDENTIFICATION: Final = "SegmentIdentificationSequence"
_POSITION: Final = "PlanePositionSequence"
_SLIDE_POSITION: Final = "PlanePositionSlideSequence"
_ORIENTATION: Final = "PlaneOrientationSequence"
_MEASURES: Final = "PixelMeasuresSequence"
_GEOMETRY: Final = (_MEASURES, _POSITION, _ORIENTATION, _SLIDE_POSITION)
_SLIDE: Final = (
    "ColumnPositionInTotalImagePixelMatrix",
    "RowPositionInTotalImagePixelMatrix",
    "XOffsetInSlideCoordinateSystem",
    "YOffsetInSlideCoordinateSystem",
    "ZOffsetInSlideCoordinateSystem",
)
# Dimensions that say where a frame lies or what it is of; two frames that differ in others (time, say) may lie in one place.
_PLACES: Final = frozenset(
    {"ImagePositionPatient", "StackID", "InStackPositionNumber", "ReferencedSegmentNumber", "SourceImageSequence", *_SLIDE}
)


@dataclass(frozen=True)
class _Macro:
    """One functional group of a frame: what it says, and what is wrong with it, under paths relative to its item."""

    says: tuple[Any, ...]
    findings: tuple[Finding, ...]


Says = Mapping[str, tuple[Any, ...]]


@dataclass
class _Frames:
    """What the items of functional groups say, by keyword, one entry an item.

    `macros` keeps what was read of equal bytes, as most frames repeat others.
    """

    present: Counter[str] = field(default_factory=Counter)
    says: list[Says] = field(default_factory=list)
    sources: set[str] = field(default_factory=set)
    macros: dict[tuple[BaseTag, Hashable], _Macro] = field(default_factory=dict)
    known: Known = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Groups:
    """The functional groups of a SEG: what all frames share, and what each frame says of its own."""

    shared: Says
    frames: Sequence[Says]
    in_all: frozenset[str]
    present: Mapping[str, int]
    sources: frozenset[str]
    findings: tuple[Finding, ...]

    def of_frames(self, keyword: str) -> list[tuple[Any, ...]]:
        """What each frame says in a group, or what all share; empty where neither says anything."""
        shared = self.shared.get(keyword, ())
        return [says.get(keyword) or shared for says in self.frames]

    def places(self) -> list[tuple[Any, ...]]:
        """Where each frame lies."""
        pairs = zip(self.of_frames(_POSITION), self.of_frames(_SLIDE_POSITION), strict=True)
        return [position or slide for position, slide in pairs]


def read_groups(dataset: Dataset) -> Groups:
    """What the functional groups say, each content read once, and what is wrong within them; never raises."""
    common = _Frames()
    for item in items(dataset, SHARED)[:1]:
        _read(item, f"{SHARED}[0].", common)
    found = _Frames(sources=common.sources, macros=common.macros, known=common.known, findings=common.findings)
    for index, item in enumerate(items(dataset, PER_FRAME)):
        _read(item, f"{PER_FRAME}[{index}].", found)
    return Groups(
        common.says[0] if common.says else {},
        found.says,
        frozenset(common.present),
        found.present,
        frozenset(found.sources),
        tuple(found.findings),
    )


def check_frames(dataset: Dataset, groups: Groups, described: Sequence[int]) -> Iterator[Finding]:
    """The rules for functional groups and dimensions; `described` are the numbers of the SegmentSequence."""
    kind, tiled_full = text(dataset, "SegmentationType"), text(dataset, "DimensionOrganizationType") == "TILED_FULL"
    frames, count, shared = number(dataset, "NumberOfFrames"), len(groups.frames), len(items(dataset, SHARED))
    if shared > 1:
        yield error(SHARED, "PS3.3 C.7.6.16", f"holds {shared} items; what all frames share is one item")
    if frames is not None and frames < 1:
        yield error("NumberOfFrames", "PS3.3 C.7.6.16", f"is {frames}; a SEG has one frame at least")
    if frames is not None and count != frames and not (tiled_full and not count):
        yield error(PER_FRAME, "PS3.3 C.7.6.16", f"holds {count} items for {frames} frames; write one a frame")
    yield from groups.findings
    for keyword in (_CONTENT, _IDENTIFICATION):
        if keyword in groups.in_all and (keyword == _CONTENT or kind == "LABELMAP"):
            yield error(f"{SHARED}[0].{keyword}", "PS3.3 A.51.5", "may not be shared: what it says is of one frame")
    yield from _presence(dataset, groups, tiled_full=tiled_full)
    yield from _identified(groups, frozenset(described), kind, tiled_full=tiled_full)
    yield from _dimensions(dataset, groups, tiled_full=tiled_full)
    yield from check_tiles(dataset, groups.of_frames(_SLIDE_POSITION), groups.of_frames(_IDENTIFICATION), described)
    if kind == "LABELMAP" and not tiled_full:
        yield from _places(dataset, groups)
    yield from _references(dataset, groups.sources)


def _read(item: Dataset, path: str, found: _Frames) -> None:
    """Read the functional groups of one item."""
    says: dict[str, tuple[Any, ...]] = {}
    for tag, element in elements(item):
        keyword = keyword_of(tag)
        if not keyword:
            continue
        content = content_of(element)
        macro = found.macros.get((tag, content)) if content is not None else None
        if macro is None:
            macro = _macro(item, tag, keyword, found.known)
            if content is not None:
                found.macros[tag, content] = macro
            if keyword == _DERIVATION:
                found.sources.update(source.sop_instance_uid for source in macro.says)
        found.present[keyword] += 1
        says[keyword] = macro.says
        for finding in macro.findings:
            found.findings.append(replace(finding, attribute=f"{path}{finding.attribute}"))
    found.says.append(says)


def _macro(group: Dataset, tag: BaseTag, keyword: str, known: Known) -> _Macro:
    read, sequence = _READERS.get(keyword), items(group, keyword)
    try:
        element = group[tag]
    except UNREADABLE:
        return _Macro((), (error(keyword, "PS3.5 7.5", "cannot be read as a sequence of items; write it anew"),))
    findings = [*walk_sequence(group, tag, element, known)]
    if read is None:
        return _Macro((), tuple(findings))
    if len(sequence) != 1 and keyword != _DERIVATION:
        findings.append(error(keyword, "PS3.3 C.7.6.16.2", f"holds {len(sequence)} items; this group has one"))
    says: list[Any] = []
    for index, item in enumerate(sequence):
        for said in read(item, f"{keyword}[{index}]."):
            if isinstance(said, Finding):
                findings.append(said)
            else:
                says.append(said)
    return _Macro(tuple(says), tuple(findings))


def _read_content(item: Dataset, path: str) -> Iterator[Any]:
    values = values_of(item, "DimensionIndexValues")
    try:
        yield from (int(value) for value in values)
    except (OverflowError, TypeError, ValueError):
        return
    if any(int(value) < 1 for value in values):
        yield error(f"{path}DimensionIndexValues", "PS3.3 C.7.6.17.1", "dimension index values are counted from 1")


def _read_identification(item: Dataset, path: str) -> Iterator[Any]:
    segment = number(item, "ReferencedSegmentNumber")
    if segment is None:
        yield error(f"{path}ReferencedSegmentNumber", "PS3.3 C.8.20.3.1", "the frame does not say which segment it is of")
    else:
        yield segment


def _read_position(item: Dataset, path: str) -> Iterator[Any]:
    position = numbers(item, "ImagePositionPatient")
    if len(position) != 3:
        yield error(f"{path}ImagePositionPatient", "PS3.3 C.7.6.16.2.3", "the frame's position needs three numbers")
    else:
        yield position


def _read_slide_position(item: Dataset, path: str) -> Iterator[Any]:
    for keyword in _SLIDE:
        if value_of(item, keyword) is None:
            yield error(f"{path}{keyword}", "PS3.3 C.8.12.6.1", "the frame's position on the slide is not complete")
    yield tuple(numbers(item, keyword) for keyword in _SLIDE)


def _read_orientation(item: Dataset, path: str) -> Iterator[Any]:
    clause = "PS3.3 C.7.6.16.2.4"
    cosines = numbers(item, "ImageOrientationPatient")
    if len(cosines) != 6:
        yield error(f"{path}ImageOrientationPatient", clause, "the frame's orientation needs six cosines")
        return
    lengths = [sum(c * c for c in cosines[:3]), sum(c * c for c in cosines[3:])]
    product = sum(a * b for a, b in zip(cosines[:3], cosines[3:], strict=True))
    if any(not 0.99 < length < 1.01 for length in lengths) or not abs(product) < 0.01:
        yield error(f"{path}ImageOrientationPatient", clause, "holds no two perpendicular unit vectors")
    yield cosines


def _read_measures(item: Dataset, path: str) -> Iterator[Any]:
    spacing = numbers(item, "PixelSpacing")
    if len(spacing) != 2 or not all(value > 0 for value in spacing):
        yield error(f"{path}PixelSpacing", "PS3.3 C.7.6.16.2.1", "the spacing of pixels needs two numbers above 0")
    if has(item, "SliceThickness") and not all(value > 0 for value in numbers(item, "SliceThickness")):
        yield error(f"{path}SliceThickness", "PS3.3 C.7.6.16.2.1", "a slice has a thickness above 0")
    thickness, between = (next(iter(numbers(item, k)), None) for k in ("SliceThickness", "SpacingBetweenSlices"))
    yield Measures(spacing or None, thickness, between)


def _read_derivation(item: Dataset, path: str) -> Iterator[Any]:
    """The instances that a frame was made from; the codes are fixed for a SEG (PS3.3 A.51.5.1)."""
    yield from _fixed_code(item, path, "DerivationCodeSequence", "113076", "Segmentation")
    if not has(item, "SourceImageSequence"):
        yield error(f"{path}SourceImageSequence", "PS3.3 C.7.6.16.2.6", "is absent; name the source images, or write it empty")
    for index, source in enumerate(items(item, "SourceImageSequence")):
        here = f"{path}SourceImageSequence[{index}]."
        purpose = "Source Image for Image Processing Operation"
        yield from _fixed_code(source, here, "PurposeOfReferenceCodeSequence", "121322", purpose)
        for keyword in ("ReferencedSOPClassUID", "ReferencedSOPInstanceUID"):
            if value_of(source, keyword) is None:
                yield error(f"{here}{keyword}", "PS3.3 Table 10-3", "the reference to the source image is not complete")
        if text(source, "ReferencedSOPInstanceUID"):
            frames = tuple(int(frame) for frame in numbers(source, "ReferencedFrameNumber") if math.isfinite(frame))
            yield SourceImage(text(source, "ReferencedSOPClassUID"), text(source, "ReferencedSOPInstanceUID"), frames)


def _fixed_code(item: Dataset, path: str, keyword: str, value: str, meaning: str) -> Iterator[Finding]:
    if (value, "DCM") not in _codes(item, keyword):
        yield error(f"{path}{keyword}", "PS3.3 A.51.5.1", f"is not ({value}, DCM, {meaning}), which is the code in a SEG")


def _codes(item: Dataset, keyword: str) -> frozenset[tuple[str, str]]:
    """The value and the scheme of each code; what is raw is read once, as every frame has the same."""
    raw: Any = item.get_item(keyword, keep_deferred=True)
    if isinstance(raw, RawDataElement) and raw.VR == "SQ" and isinstance(raw.value, bytes):
        return _codes_in(raw.value, implicit_vr=raw.is_implicit_VR, little_endian=raw.is_little_endian)
    return _values_and_schemes(items(item, keyword))


@lru_cache(maxsize=16)
def _codes_in(sequence: bytes, *, implicit_vr: bool, little_endian: bool) -> frozenset[tuple[str, str]]:
    try:
        return _values_and_schemes(read_sequence(BytesIO(sequence), implicit_vr, little_endian, len(sequence), ["iso8859"]))
    except UNREADABLE:
        return frozenset()


def _values_and_schemes(codes: Iterable[Dataset]) -> frozenset[tuple[str, str]]:
    return frozenset((text(code, "CodeValue"), text(code, "CodingSchemeDesignator")) for code in codes)


_READERS: Final = {
    _CONTENT: _read_content,
    _IDENTIFICATION: _read_identification,
    _POSITION: _read_position,
    _SLIDE_POSITION: _read_slide_position,
    _ORIENTATION: _read_orientation,
    _MEASURES: _read_measures,
    _DERIVATION: _read_derivation,
}


def _presence(dataset: Dataset, groups: Groups, *, tiled_full: bool) -> Iterator[Finding]:
    """Which functional groups a frame needs, and which it shall not have (PS3.3 Table A.51-2, A.51.3)."""
    in_all, present, count = groups.in_all, groups.present, len(groups.frames)
    for keyword in sorted(in_all & set(present)):
        yield error(f"{SHARED}[0].{keyword}", "PS3.3 C.7.6.16", "is shared and in frames as well; it is one or the other")

    def of_all(keyword: str) -> bool:
        return keyword in in_all or (count > 0 and present[keyword] == count)

    def of_any(keyword: str) -> bool:
        return keyword in in_all or present[keyword] > 0

    if count and present[_CONTENT] != count and not tiled_full:
        yield error(f"{PER_FRAME}.{_CONTENT}", "PS3.3 A.51.5", "a frame without FrameContentSequence; write one for each frame")
    place = "FrameOfReferenceUID"
    if value_of(dataset, place) is None:
        if not of_all(_DERIVATION):
            yield error(place, "PS3.3 A.51.3", "is required unless each frame names its source in DerivationImageSequence")
        if any(of_any(keyword) for keyword in _GEOMETRY):
            yield error(place, "PS3.3 A.51.3", "frames have positions or spacings, which mean nothing without it")
    else:
        if not has(dataset, "PositionReferenceIndicator"):
            yield error("PositionReferenceIndicator", "PS3.3 C.7.4.1", "is absent; write it, empty if need be (type 2)")
        tiled = value_of(dataset, "TotalPixelMatrixRows") is not None
        yield from _geometry(of_all, tiled=tiled, tiled_full=tiled_full)


def _geometry(of_all: Callable[[str], bool], *, tiled: bool, tiled_full: bool) -> Iterator[Finding]:
    clause, what = "PS3.3 A.51.5.1", "is needed for every frame, shared or not, where there is a frame of reference"
    if not of_all(_MEASURES):
        yield error(_MEASURES, clause, what)
    if tiled_full or of_all(_SLIDE_POSITION):
        return
    for keyword in (_SLIDE_POSITION,) if tiled else (_POSITION, _ORIENTATION):
        if not of_all(keyword):
            yield error(keyword, clause, what)


def _identified(groups: Groups, described: frozenset[int], kind: str, *, tiled_full: bool) -> Iterator[Finding]:
    """A frame of a BINARY or FRACTIONAL says which segment it is of; in a LABELMAP its pixels do (PS3.3 A.51.5)."""
    for index, says in enumerate(groups.of_frames(_IDENTIFICATION)):
        path = f"{PER_FRAME}[{index}].{_IDENTIFICATION}"
        if kind == "LABELMAP" and groups.frames[index].get(_IDENTIFICATION):
            yield error(path, "PS3.3 A.51.5", "shall not be in a LABELMAP, whose pixels say the segment: remove it")
        elif kind in ("BINARY", "FRACTIONAL") and not says and not tiled_full:
            yield error(path, "PS3.3 A.51.5", f"is absent; a frame of a {kind} says which segment it is of")
        elif kind in ("BINARY", "FRACTIONAL") and says and says[0] not in described:
            what = f"is {says[0]}, which SegmentSequence does not describe"
            yield error(f"{path}[0].ReferencedSegmentNumber", "PS3.3 C.8.20.3.1", what)


def _dimensions(dataset: Dataset, groups: Groups, *, tiled_full: bool) -> Iterator[Finding]:
    """The dimension index: its pointers lead to something, and each frame has one index value a pointer (PS3.3 C.7.6.17)."""
    clause, sequence = "PS3.3 C.7.6.17", "DimensionIndexSequence"
    dimensions = items(dataset, sequence)
    known = {text(item, "DimensionOrganizationUID") for item in items(dataset, "DimensionOrganizationSequence")}
    if not dimensions and not tiled_full:
        yield error(sequence, clause, "is absent or empty; say which attributes tell the frames apart")
    for index, dimension in enumerate(dimensions):
        if text(dimension, "DimensionOrganizationUID") not in known:
            path = f"{sequence}[{index}].DimensionOrganizationUID"
            yield error(path, clause, "names no item of DimensionOrganizationSequence")
        if not tiled_full:
            first = [*items(dataset, SHARED)[:1], *items(dataset, PER_FRAME)[:1]]
            yield from _pointer(dimension, f"{sequence}[{index}].", first)
    if tiled_full:
        return
    for index, says in enumerate(groups.frames):
        values = says.get(_CONTENT, ())
        if dimensions and len(values) != len(dimensions) and groups.present[_CONTENT]:
            what = f"holds {len(values)} values for {len(dimensions)} dimensions"
            yield error(f"{PER_FRAME}[{index}].{_CONTENT}[0].DimensionIndexValues", "PS3.3 C.7.6.16.2.2", what)
    yield from _order(dimensions, groups)


def _pointer(dimension: Dataset, path: str, groups: Sequence[Dataset]) -> Iterator[Finding]:
    """A dimension index pointer leads to an attribute that the frames have."""
    clause = "PS3.3 C.7.6.17"
    pointer, group = (number(dimension, keyword) for keyword in ("DimensionIndexPointer", "FunctionalGroupPointer"))
    if pointer is None:
        return
    name = keyword_of(pointer) or f"{pointer:08X}"
    if group is None:
        if not any(pointer in item for item in groups):
            yield error(f"{path}FunctionalGroupPointer", clause, f"does not say which functional group {name} is in")
        return
    sequence = keyword_of(group)
    found = [item for group_item in groups for item in items(group_item, sequence)] if sequence else []
    if not any(pointer in item for item in found):
        what = f"points to {name} in {sequence or 'no sequence'}, which the frames do not have"
        yield error(f"{path}DimensionIndexPointer", clause, what)


def _order(dimensions: Sequence[Dataset], groups: Groups) -> Iterator[Finding]:
    """Index values name values: one for one (PS3.3 C.7.6.17.1); and frames with the same ones have no order (C.7.6.17)."""
    pointers = [number(dimension, "DimensionIndexPointer") for dimension in dimensions]
    position = tag_for_keyword("ImagePositionPatient")
    column = pointers.index(position) if position in pointers else None
    by_value: dict[Any, Any] = {}
    by_place: dict[Any, Any] = {}
    seen: dict[Any, int] = {}
    for index, (says, place) in enumerate(zip(groups.frames, groups.places(), strict=True)):
        path, values = f"{PER_FRAME}[{index}].{_CONTENT}[0].DimensionIndexValues", says.get(_CONTENT, ())
        if len(values) != len(dimensions) or not values:
            continue
        if seen.setdefault(values, index) != index:
            yield warning(path, "PS3.3 C.7.6.17", "is that of an earlier frame, so that nothing tells which comes first")
        if column is not None and place:
            value = values[column]
            if by_value.setdefault(value, place) != place or by_place.setdefault(place, value) != value:
                what = "does not go one for one with ImagePositionPatient; number the positions anew"
                yield warning(path, "PS3.3 C.7.6.17.1", what)


def _places(dataset: Dataset, groups: Groups) -> Iterator[Finding]:
    """Frames of a LABELMAP in one place would overlap."""
    seen: dict[Any, int] = {}
    in_patient = groups.of_frames(_POSITION)
    for index, (place, others) in enumerate(zip(groups.places(), indices_beside_place(dataset, groups), strict=True)):
        if place and seen.setdefault((place, others), index) != index:
            group = _POSITION if in_patient[index] else _SLIDE_POSITION
            what = "lies in the place of an earlier frame, so that its segments overlap: merge the two"
            yield error(f"{PER_FRAME}[{index}].{group}", "PS3.3 C.8.20.2.3", what)


def indices_beside_place(dataset: Dataset, groups: Groups) -> list[tuple[Any, ...]]:
    """The dimension index values of each frame that tell neither of its place nor of its segment, but of time, say."""
    pointers = [number(dimension, "DimensionIndexPointer") or 0 for dimension in items(dataset, "DimensionIndexSequence")]
    others = [column for column, pointer in enumerate(pointers) if keyword_of(pointer) not in _PLACES]
    values = [says.get(_CONTENT, ()) for says in groups.frames]
    return [tuple(value[column] for column in others if column < len(value)) for value in values]


def _references(dataset: Dataset, sources: frozenset[str]) -> Iterator[Finding]:
    """Every image that a frame was made from is in the Common Instance Reference (PS3.3 C.12.2)."""
    other = items(dataset, "StudiesContainingOtherReferencedInstancesSequence")
    series = [*items(dataset, "ReferencedSeriesSequence"), *(s for o in other for s in items(o, "ReferencedSeriesSequence"))]
    listed = [reference for item in series for reference in items(item, "ReferencedInstanceSequence")]
    missing = sources - {text(reference, "ReferencedSOPInstanceUID") for reference in listed}
    if sources and not listed:
        yield error("ReferencedSeriesSequence", "PS3.3 C.12.2", "is absent; list the images that frames refer to")
    elif missing:
        what = f"lacks {len(missing)} of the {len(sources)} images that frames refer to: list them all"
        yield error("ReferencedSeriesSequence", "PS3.3 C.12.2", what)
    own = text(dataset, "SeriesInstanceUID")
    for index, item in enumerate(items(dataset, "ReferencedSeriesSequence")):
        classes = {text(r, "ReferencedSOPClassUID") for r in items(item, "ReferencedInstanceSequence")}
        if own and text(item, "SeriesInstanceUID") == own and classes - {text(dataset, "SOPClassUID"), ""}:
            what = f"is that of the source (ReferencedSeriesSequence[{index}]); a SEG is in a series of its own"
            yield error("SeriesInstanceUID", "PS3.3 C.7.3.1", what)
