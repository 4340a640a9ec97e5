"""Functional groups that a conversion does not make itself: they go over to the frames that stand for those they were of."""

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from types import MappingProxyType
from typing import Final

import numpy as np
from pydicom.datadict import keyword_for_tag
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.tag import Tag

from segnode.dicom.elements import ITEM, Buffer, Element, elements, items
from segnode.dicom.transfer_syntaxes import Encoding
from segnode.errors import CannotConvert
from segnode.seg.frame_groups import Measures, SourceImage, read_frame_groups
from segnode.seg.read import per_frame_sequence

_CONTENT: Final = int(Tag("FrameContentSequence"))
# Written anew for every frame, of what the table of frames says.
_MADE: Final = frozenset(
    int(Tag(keyword))
    for keyword in (
        "DerivationImageSequence",
        "FrameContentSequence",
        "PlanePositionSequence",
        "PlanePositionSlideSequence",
        "SegmentIdentificationSequence",
    )
)
_INDEX_VALUES: Final = struct.pack("<HH2s", 0x0020, 0x9157, b"UL")
# Of the dimensions of the source, which are not those of the new object.
_OF_DIMENSIONS: Final = frozenset(int(Tag(k)) for k in ("DimensionIndexValues", "StackID", "InStackPositionNumber"))
GEOMETRY: Final = ("PixelMeasuresSequence", "PlaneOrientationSequence")
_GEOMETRY: Final = frozenset(int(Tag(keyword)) for keyword in GEOMETRY)
_TOLERANCE: Final = 1e-3  # of the number; of cosines, which may be 0, of 1
_NO_ELEMENTS: Final[Mapping[int, bytes]] = MappingProxyType({})


@dataclass(frozen=True)
class Kept:
    """What a frame says that goes over: elements by their tag, in the encoding that they came in.

    `groups` are whole functional groups, `content` elements of FrameContentSequence.
    """

    groups: Mapping[int, bytes] = field(default_factory=dict)
    content: Mapping[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class KeptGroups:
    """What each frame says that goes over, none where no frame says anything, and how it is encoded.

    `are_there` is whether the source has per-frame groups at all; `own_geometry` which of orientation and spacing differ
    from frame to frame.
    """

    frames: Sequence[Kept]
    encoding: Encoding
    are_there: bool
    own_geometry: frozenset[str] = frozenset()


def read_kept_groups(data: Buffer) -> KeptGroups:
    """The groups of a Part 10 file that go over. Raises NotDicom; CannotConvert for a geometry that only some frames have."""
    data, sequence = per_frame_sequence(data)
    if sequence is None:
        return KeptGroups((), Encoding(), are_there=False)
    frames = [_kept(data, start, end, sequence.encoding) for start, end in items(data, sequence)]
    own = frozenset(tag for tag in _GEOMETRY if len({kept.groups.get(tag) for kept in frames} - {None}) > 1)
    for tag in own:
        if any(tag not in kept.groups for kept in frames):
            raise CannotConvert(
                f"{_name(tag)} differs from frame to frame, and some frames have none: where they lie is not said"
            )
    # What all frames say alike is shared, as `shared_groups` writes it.
    dropped = _GEOMETRY - own
    kept = [Kept({t: v for t, v in k.groups.items() if t not in dropped}, k.content) if k.groups else k for k in frames]
    is_any = any(each.groups or each.content for each in kept)
    return KeptGroups(kept if is_any else (), sequence.encoding, are_there=True, own_geometry=frozenset(map(_name, own)))


def _kept(data: Buffer, start: int, end: int, encoding: Encoding) -> Kept:
    groups, content = {}, _NO_ELEMENTS
    for element in elements(data, start, end, encoding):
        if element.tag == _CONTENT:
            content = _content(data, element)
        elif element.tag not in _MADE and element.tag & 0xFFFF:
            groups[element.tag] = bytes(data[element.begin : element.next])
    return Kept(groups, content) if groups or content else _NONE


_NONE: Final = Kept()


def _content(data: Buffer, group: Element) -> Mapping[int, bytes]:
    # Mostly nothing but the index values, whose header and the item's are 8 bytes each: not worth a walk, ten thousand times.
    values = bytes(data[group.start + 8 : group.start + 14])
    if values == _INDEX_VALUES and group.end - group.start == 16 + int.from_bytes(
        data[group.start + 14 : group.start + 16], "little"
    ):
        return _NO_ELEMENTS
    found = {}
    for start, end in items(data, group):
        for element in elements(data, start, end, group.encoding):
            if element.tag not in _OF_DIMENSIONS and element.tag & 0xFFFF:
                found[element.tag] = bytes(data[element.begin : element.next])
    return found or _NO_ELEMENTS


class Merging:
    """Groups of frames of the source put together for the frames that stand for them, in the encoding of the new object.

    `left_out` are the keywords of functional groups that no frame has, as those that one frame stands for differ in them.
    """

    def __init__(self, kept: KeptGroups, frames_of_each: Sequence[Sequence[int]], encoding: Encoding) -> None:
        self._kept, self._encoding = kept, encoding
        self._written: dict[bytes, bytes] = {}
        merged = [self._merge(frames) for frames in frames_of_each] if kept.frames else []
        everywhere = frozenset.intersection(*(frozenset(each.groups) for each in merged)) if merged else frozenset()
        somewhere = frozenset(tag for each in kept.frames for tag in each.groups)
        # A functional group is of every frame, or of none (C.7.6.16).
        self.left_out = tuple(_name(tag) for tag in sorted(somewhere - everywhere))
        self._merged = [Kept({t: v for t, v in each.groups.items() if t in everywhere}, each.content) for each in merged]

    def groups(self, place: int) -> tuple[bytes, ...]:
        """The functional groups of a new frame, as elements."""
        return self._of(place, lambda kept: kept.groups)

    def content(self, place: int) -> tuple[bytes, ...]:
        """What goes into the FrameContentSequence of a new frame, as elements."""
        return self._of(place, lambda kept: kept.content)

    def _of(self, place: int, part: Callable[[Kept], Mapping[int, bytes]]) -> tuple[bytes, ...]:
        return tuple(map(self._write, part(self._merged[place]).values())) if self._merged else ()

    def _merge(self, frames: Sequence[int]) -> Kept:
        first, *others = [self._kept.frames[frame] for frame in frames] or [_NONE]
        if not others:
            return first
        for tag in _GEOMETRY & frozenset(first.groups):
            for other in others:
                self._require_close(tag, first.groups[tag], other.groups[tag])
        return Kept(
            {t: v for t, v in first.groups.items() if t in _GEOMETRY or all(o.groups.get(t) == v for o in others)},
            {t: v for t, v in first.content.items() if all(o.content.get(t) == v for o in others)},
        )

    def _require_close(self, tag: int, one: bytes, other: bytes) -> None:
        if one == other:
            return
        ours, theirs = self._numbers(one), self._numbers(other)
        for keyword, numbers in ours.items():
            if len(numbers) != len(theirs[keyword]) or not np.allclose(numbers, theirs[keyword], _TOLERANCE, _TOLERANCE):
                raise CannotConvert(
                    f"frames of segments in one place differ in {keyword} ({_name(tag)}): one frame cannot stand for both;"
                    " make a BINARY or FRACTIONAL of it, whose frames are of one segment"
                )

    def _numbers(self, element: bytes) -> Mapping[str, tuple[float, ...]]:
        """What a group of the geometry says."""
        encoding = self._kept.encoding
        item = struct.pack("<HHI" if encoding.little_endian else ">HHI", ITEM >> 16, ITEM & 0xFFFF, len(element)) + element
        (groups,) = read_frame_groups(item, Element(0, 0, 0, len(item), len(item), encoding))
        measures = groups.measures or Measures(None, None, None)
        lengths = {"SliceThickness": measures.slice_thickness, "SpacingBetweenSlices": measures.spacing_between_slices}
        return {
            "PixelSpacing": measures.spacing or (),
            "ImageOrientationPatient": groups.orientation or (),
            **{keyword: () if length is None else (length,) for keyword, length in lengths.items()},
        }

    def _write(self, element: bytes) -> bytes:
        """An element in the encoding of the new object."""
        mine, theirs = self._kept.encoding, self._encoding
        if (mine.implicit_vr, mine.little_endian) == (theirs.implicit_vr, theirs.little_endian):
            return element
        if element not in self._written:
            dataset = read_dataset(BytesIO(element), mine.implicit_vr, mine.little_endian)
            dataset.decode()
            file = DicomBytesIO()
            file.is_little_endian, file.is_implicit_VR = True, theirs.implicit_vr
            write_dataset(file, dataset)
            self._written[element] = file.getvalue()
        return self._written[element]


def merged_sources(found: Iterable[SourceImage]) -> tuple[SourceImage, ...]:
    """Each source image once; what is said of its spatial locations is what all of them say, or else that one is not preserved.

    REORIENTED_ONLY is left out: it needs a PatientOrientation (C.7.6.16.2.6), which is not kept.
    """
    said: dict[tuple[str, str, tuple[int, ...]], set[str]] = {}
    for source in found:
        said.setdefault(source[:3], set()).add(source.spatial_locations_preserved)
    return tuple(SourceImage(*source, _preserved(values)) for source, values in said.items())


def _preserved(said: set[str]) -> str:
    return "NO" if "NO" in said else "YES" if said == {"YES"} else ""


def _name(tag: int) -> str:
    return keyword_for_tag(tag) or f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
