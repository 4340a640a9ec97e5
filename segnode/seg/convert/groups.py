"""Functional groups that a conversion does not make itself: they go over to the frames that stand for those they were of."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Final

import numpy as np
from pydicom.datadict import keyword_for_tag
from pydicom.tag import Tag

from segnode.dicom.elements import elements
from segnode.dicom.reencode import reencoded
from segnode.dicom.transfer_syntaxes import Encoding
from segnode.errors import CannotConvert
from segnode.seg.frame_groups import (
    FRAME_CONTENT,
    ItemElements,
    Measures,
    SourceImage,
    index_values_alone,
    item_elements,
    read_frame_groups,
)
from segnode.seg.segmentation import Segmentation

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
# Of the dimensions of the source, which are not those of the new object.
_OF_DIMENSIONS: Final = frozenset(int(Tag(k)) for k in ("DimensionIndexValues", "StackID", "InStackPositionNumber"))
GEOMETRY: Final = ("PixelMeasuresSequence", "PlaneOrientationSequence")
_GEOMETRY: Final = frozenset(int(Tag(keyword)) for keyword in GEOMETRY)
_TOLERANCE: Final = 1e-3  # of a length; of 1 where it is a cosine


@dataclass(frozen=True)
class Kept:
    """What a frame says that goes over: elements by their tag, in the encoding that they came in.

    `groups` are whole functional groups, `content` elements of FrameContentSequence.
    """

    groups: Mapping[int, bytes] = field(default_factory=dict)
    content: Mapping[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Written:
    """Elements for a frame of the new object, in its encoding: functional groups, and what is in FrameContentSequence."""

    groups: tuple[bytes, ...] = ()
    content: tuple[bytes, ...] = ()


@dataclass(frozen=True, eq=False)
class KeptGroups:
    """What each frame says that goes over, none where no frame says anything, and how it is encoded.

    `are_there` is whether the source has per-frame groups at all; `geometry` which of orientation and spacing are in them, and
    `own_geometry` which of these differ from frame to frame.
    """

    frames: Sequence[Kept]
    encoding: Encoding
    are_there: bool = False
    geometry: frozenset[str] = frozenset()
    own_geometry: frozenset[str] = frozenset()


def kept_groups(source: Segmentation) -> KeptGroups:
    """The groups of a Segmentation that go over. Raises NotDicom; CannotConvert for a geometry that only some frames have."""
    if source.per_frame is None:
        return KeptGroups((), Encoding())
    said, encoding = source.per_frame.elements, source.per_frame.sequence.encoding
    groups = {tag: of_frames for tag, of_frames in said.by_tag.items() if tag not in _MADE and tag & 0xFFFF}
    different = {tag: len({*groups[tag].values()}) for tag in _GEOMETRY & groups.keys()}
    own = frozenset(tag for tag, count in different.items() if count > 1)
    for tag in own:
        if len(groups[tag]) < said.count:
            raise CannotConvert(
                f"{_name(tag)} differs from frame to frame, and some frames have none: where they lie is not said"
            )
    # What all frames say alike is shared, as `shared_groups` writes it.
    groups = {tag: of_frames for tag, of_frames in groups.items() if tag not in _GEOMETRY - own}
    content = _contents(said.by_tag.get(FRAME_CONTENT, {}), encoding)
    frames = [
        Kept({tag: of_frames[frame] for tag, of_frames in groups.items() if frame in of_frames}, content.get(frame, {}))
        for frame in range(said.count if groups or content else 0)
    ]
    return KeptGroups(frames, encoding, said.count > 0, frozenset(map(_name, different)), frozenset(map(_name, own)))


def _contents(of_frames: Mapping[int, bytes], encoding: Encoding) -> dict[int, Mapping[int, bytes]]:
    """The elements of FrameContentSequence that go over, for each frame that has any."""
    if index_values_alone(of_frames.values()) is not None:
        return {}
    return {frame: found for frame, element in of_frames.items() if (found := _content(element, encoding))}


def _content(data: bytes, encoding: Encoding) -> Mapping[int, bytes]:
    group = next(elements(data, 0, len(data), encoding))
    by_tag = item_elements(data, group).by_tag
    return {tag: [*found.values()][-1] for tag, found in by_tag.items() if tag not in _OF_DIMENSIONS and tag & 0xFFFF}


def merge(
    kept: KeptGroups, frames_of_each: Sequence[Sequence[int]], encoding: Encoding
) -> tuple[list[Written], tuple[str, ...]]:
    """What goes over to new frames, each of which stands for `frames_of_each` of the source, in the encoding of the new object.

    Then the keywords of functional groups that are left out: frames that one stands for differ in them, and a group is of
    every frame or of none (C.7.6.16). Raises CannotConvert for frames that differ in their geometry, and for values that cannot
    be read.
    """
    if not kept.frames:
        return [Written()] * len(frames_of_each), ()
    merged = [_merged([kept.frames[frame] for frame in frames], kept.encoding) for frames in frames_of_each]
    everywhere = frozenset.intersection(*(frozenset(each.groups) for each in merged))
    somewhere = frozenset(tag for each in kept.frames for tag in each.groups)

    @cache
    def written(tag: int, element: bytes) -> bytes:
        return _written(tag, element, kept.encoding, encoding)

    new = [
        Written(
            tuple(written(tag, element) for tag, element in each.groups.items() if tag in everywhere),
            tuple(written(tag, element) for tag, element in each.content.items()),
        )
        for each in merged
    ]
    return new, tuple(_name(tag) for tag in sorted(somewhere - everywhere))


def _merged(frames: Sequence[Kept], encoding: Encoding) -> Kept:
    """What frames agree in, with the geometry of the first, which is that of all."""
    first, *others = frames
    if not others:
        return first
    for tag in _GEOMETRY & frozenset(first.groups):
        for other in others:
            _require_close(tag, first.groups[tag], other.groups[tag], encoding)
    return Kept(
        {t: v for t, v in first.groups.items() if t in _GEOMETRY or all(o.groups.get(t) == v for o in others)},
        {t: v for t, v in first.content.items() if all(o.content.get(t) == v for o in others)},
    )


def _require_close(tag: int, one: bytes, other: bytes, encoding: Encoding) -> None:
    if one == other:
        return
    ours, theirs = _numbers(tag, one, encoding), _numbers(tag, other, encoding)
    for keyword, numbers in ours.items():
        absolute = _TOLERANCE if keyword == "ImageOrientationPatient" else 0
        if len(numbers) != len(theirs[keyword]) or not np.allclose(numbers, theirs[keyword], _TOLERANCE, absolute):
            raise CannotConvert(
                f"frames of segments in one place differ in {keyword} ({_name(tag)}): one frame cannot stand for both;"
                " make a BINARY or FRACTIONAL of it, whose frames are of one segment"
            )


def _numbers(tag: int, element: bytes, encoding: Encoding) -> Mapping[str, tuple[float, ...]]:
    """What a group of the geometry says."""
    (groups,) = read_frame_groups(ItemElements(1, {tag: {0: element}}), encoding)
    measures = groups.measures or Measures(None, None, None)
    lengths = {"SliceThickness": measures.slice_thickness, "SpacingBetweenSlices": measures.spacing_between_slices}
    return {
        "PixelSpacing": measures.spacing or (),
        "ImageOrientationPatient": groups.orientation or (),
        **{keyword: () if length is None else (length,) for keyword, length in lengths.items()},
    }


def _written(tag: int, element: bytes, encoding: Encoding, wanted: Encoding) -> bytes:
    """An element in another encoding, little endian. Raises CannotConvert."""
    try:
        return reencoded(element, encoding, wanted)
    except Exception as error:
        what = f"{_name(tag)} of a frame holds values that are not of their VR"
        raise CannotConvert(f"{what} ({type(error).__name__}): they cannot be written in another transfer syntax") from error


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
