"""SegmentSequence (PS3.3 C.8.20.4) of segments that are described, and the colours of a PALETTE COLOR labelmap (C.7.9)."""

import re
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

import numpy as np
from PIL import ImageCms
from pydicom import Dataset

from segnode.dicom.codes import BACKGROUND, Code
from segnode.dicom.transfer_syntaxes import Encoding
from segnode.errors import LabelError
from segnode.seg.colour import recommended_cielab, srgb
from segnode.seg.frame_items import ElementWriter
from segnode.seg.segmentation import DescribedSegment, SegmentationType
from segnode.seg.segments import LabelDictionary

_ALGORITHM_TYPES: Final = ("AUTOMATIC", "SEMIAUTOMATIC", "MANUAL")
_ONE_LINE: Final = re.compile(r"[^\\\x00-\x1f\x7f]*")
_LONGEST_DESCRIPTION: Final = 1024
_GREY: Final = (128, 128, 128)


@dataclass(frozen=True)
class Algorithm:
    """What made the labels: its name and version, and its family as coded in CID 7162."""

    name: str
    version: str
    family: Code


def described_segments(
    dictionary: LabelDictionary, algorithm: Algorithm, tracking_uids: Mapping[int, str]
) -> tuple[DescribedSegment, ...]:
    """The segments of a label dictionary by number, as an algorithm made them; tracked are those that have a UID."""
    ordered = sorted(dictionary.segment, key=lambda segment: segment.segment_number)
    return tuple(
        DescribedSegment(
            number=(number := segment.segment_number),
            label=segment.label,
            category=segment.category,
            type=segment.type,
            modifiers=(segment.modifier,) if segment.modifier is not None else (),
            regions=(segment.region,) if segment.region is not None else (),
            algorithm_type="AUTOMATIC",
            algorithm_name=algorithm.name,
            algorithm_version=algorithm.version,
            algorithm_family=algorithm.family,
            tracking_id=segment.label if number in tracking_uids else "",
            tracking_uid=tracking_uids.get(number, ""),
            cielab=recommended_cielab(segment.colour) if segment.colour is not None else None,
        )
        for segment in ordered
    )


def require_described(segments: Sequence[DescribedSegment], kind: SegmentationType) -> None:
    """Segments say what the standard wants of them. Raises LabelError, naming the segment and the attribute."""
    numbers = [segment.number for segment in segments]
    if not numbers:
        raise LabelError("no segment is described: a segmentation has one at least (SegmentSequence)")
    if kind != "LABELMAP" and numbers != list(range(1, len(numbers) + 1)):
        raise LabelError(
            f"a {kind} segmentation counts its segments 1, 2, 3 … in their order (PS3.3 C.8.20.2.4), and these are"
            f" {numbers[:10]}: renumber them, or write a LABELMAP"
        )
    number, times = Counter(numbers).most_common(1)[0]
    if times > 1:
        raise LabelError(f"segment {number} is described twice (SegmentNumber)")
    if min(numbers) < 0 or max(numbers) > 0xFFFF:
        raise LabelError("a SegmentNumber is below 0 or above 65535: renumber the segments")
    for segment in segments:
        _require_complete(segment)


def _require_complete(segment: DescribedSegment) -> None:
    here = f"segment {segment.number}:"
    _require_writable(segment, here)
    if not segment.label.strip() or segment.category is None or segment.type is None:
        raise LabelError(f"{here} it needs a label, a category and a type (SegmentLabel, SegmentedProperty…CodeSequence)")
    if len(segment.label) > 64:
        raise LabelError(f"{here} SegmentLabel has {len(segment.label)} characters, where 64 are allowed: shorten it")
    if segment.algorithm_type not in _ALGORITHM_TYPES:
        raise LabelError(f"{here} SegmentAlgorithmType is none of {', '.join(_ALGORITHM_TYPES)}")
    if segment.algorithm_type != "MANUAL" and not segment.algorithm_name:
        raise LabelError(f"{here} SegmentAlgorithmName is missing, which a segment that is not MANUAL needs")
    if bool(segment.tracking_id) != bool(segment.tracking_uid):
        raise LabelError(f"{here} TrackingID and TrackingUID stand together: give both or neither")
    if len(segment.region_modifiers) > len(segment.regions):
        raise LabelError(f"{here} there are more tuples of region modifiers than regions (AnatomicRegionSequence)")


def _require_writable(segment: DescribedSegment, here: str) -> None:
    """What is read again is what was written."""
    for keyword, values in _one_line_texts(segment).items():
        if not all(map(_ONE_LINE.fullmatch, values)):
            raise LabelError(f"{here} {keyword} holds a backslash, which parts values, or a control character: leave it out")
    if len(segment.description) > _LONGEST_DESCRIPTION:
        raise LabelError(
            f"{here} SegmentDescription has {len(segment.description)} characters, where 1024 are allowed: shorten it"
        )
    if segment.cielab is not None and not all(0 <= part <= 0xFFFF for part in segment.cielab):
        raise LabelError(f"{here} RecommendedDisplayCIELabValue holds something else than numbers of 0 to 65535")


def _one_line_texts(segment: DescribedSegment) -> Mapping[str, Sequence[str]]:
    """Texts of VRs in which a backslash parts values (PS3.5 6.2), by keyword."""
    codes = _codes_of(segment)
    return {
        "SegmentLabel": (segment.label,),
        "SegmentAlgorithmName": (segment.algorithm_name,),
        "AlgorithmVersion": (segment.algorithm_version,),
        "CodingSchemeDesignator": [code.scheme for code in codes],
        "CodeValue": [code.value for code in codes],
        "CodeMeaning": [code.meaning for code in codes],
    }


def with_background(segments: Sequence[DescribedSegment]) -> tuple[DescribedSegment, ...]:
    """Segments of a LABELMAP and behind them the background, 0: viewers that colour by position expect number 1 first."""
    if any(segment.number == 0 for segment in segments):
        return tuple(segments)
    first = segments[0]
    algorithm = DescribedSegment(
        number=0,
        label="Background",
        category=BACKGROUND,
        type=BACKGROUND,
        algorithm_type=first.algorithm_type,
        algorithm_name=first.algorithm_name,
        algorithm_version=first.algorithm_version,
        algorithm_family=first.algorithm_family,
    )
    return (*segments, algorithm)


def segment_items(segments: Sequence[DescribedSegment], encoding: Encoding) -> bytes:
    """The value of SegmentSequence."""
    write = ElementWriter(encoding)
    return b"".join(write.item(_segment(write, segment)) for segment in segments)


def _segment(write: ElementWriter, segment: DescribedSegment) -> bytes:
    """An item, its elements in the order of their tags (PS3.5 7.1)."""
    cielab = struct.pack("<3H", *segment.cielab) if segment.cielab is not None else b""
    return b"".join(
        (
            _anatomy(write, segment),
            _codes(write, "SegmentedPropertyCategoryCodeSequence", [segment.category]),
            write.element("SegmentNumber", b"US", struct.pack("<H", segment.number)),
            write.text("SegmentLabel", b"LO", segment.label),
            write.text("SegmentDescription", b"ST", segment.description) if segment.description else b"",
            _identification(write, segment),
            write.text("SegmentAlgorithmType", b"CS", segment.algorithm_type),
            write.text("SegmentAlgorithmName", b"LO", segment.algorithm_name) if segment.algorithm_name else b"",
            write.element("RecommendedDisplayCIELabValue", b"US", cielab) if cielab else b"",
            _property_type(write, segment),
            _tracking(write, segment),
        )
    )


def _anatomy(write: ElementWriter, segment: DescribedSegment) -> bytes:
    modifiers = [*segment.region_modifiers, *[()] * len(segment.regions)]
    regions = [
        write.code(region) + _codes(write, "AnatomicRegionModifierSequence", of)
        for region, of in zip(segment.regions, modifiers, strict=False)
    ]
    written = write.sequence("AnatomicRegionSequence", *regions) if regions else b""
    return written + _codes(write, "PrimaryAnatomicStructureSequence", segment.primary_structures)


def _identification(write: ElementWriter, segment: DescribedSegment) -> bytes:
    """Where it is whole: PS3.3 10.16 wants name, version and family."""
    if segment.algorithm_family is None or not segment.algorithm_name or not segment.algorithm_version:
        return b""
    item = (
        _codes(write, "AlgorithmFamilyCodeSequence", [segment.algorithm_family])
        + write.text("AlgorithmVersion", b"LO", segment.algorithm_version)
        + write.text("AlgorithmName", b"LO", segment.algorithm_name)
    )
    return write.sequence("SegmentationAlgorithmIdentificationSequence", item)


def _property_type(write: ElementWriter, segment: DescribedSegment) -> bytes:
    code = write.code(segment.type) if segment.type is not None else b""
    modifiers = _codes(write, "SegmentedPropertyTypeModifierCodeSequence", segment.modifiers)
    return write.sequence("SegmentedPropertyTypeCodeSequence", code + modifiers)


def _tracking(write: ElementWriter, segment: DescribedSegment) -> bytes:
    if not segment.tracking_uid:
        return b""
    return write.text("TrackingID", b"UT", segment.tracking_id) + write.text("TrackingUID", b"UI", segment.tracking_uid)


def _codes(write: ElementWriter, keyword: str, codes: Sequence[Code | None]) -> bytes:
    items = [write.code(code) for code in codes if code is not None]
    return write.sequence(keyword, *items) if items else b""


def texts(segments: Sequence[DescribedSegment]) -> list[str]:
    """Every text of segments that may need a character set."""
    found = []
    for s in segments:
        found += [s.label, s.description, s.algorithm_name, s.algorithm_version, s.tracking_id]
        found += [code.meaning for code in _codes_of(s)]
    return found


def _codes_of(s: DescribedSegment) -> list[Code]:
    codes = (s.category, s.type, s.algorithm_family, *s.modifiers, *s.regions, *s.primary_structures)
    return [code for code in (*codes, *(m for of in s.region_modifiers for m in of)) if code is not None]


def without_colours(segments: Sequence[DescribedSegment]) -> tuple[DescribedSegment, ...]:
    """Segments of a labelmap in PALETTE COLOR, whose colours are in the palette alone (PS3.3 C.8.20.4)."""
    return tuple(replace(segment, cielab=None) for segment in segments)


def set_palette(header: Dataset, segments: Sequence[DescribedSegment]) -> None:
    """The colours of segments as a palette of 8 bits from value 0 on, and the profile they mean (PS3.3 C.7.9, C.11.15)."""
    colours = {s.number: srgb(s.cielab) if s.cielab is not None else (0, 0, 0) if s.number == 0 else _GREY for s in segments}
    entries = max(colours) + 1
    table = np.zeros((3, entries + entries % 2), np.uint8)
    for number, colour in colours.items():
        table[:, number] = colour
    header.PhotometricInterpretation = "PALETTE COLOR"
    for name, values in zip(("Red", "Green", "Blue"), table, strict=True):
        # 65536 entries are written as 0 (C.7.6.3.1.5).
        setattr(header, f"{name}PaletteColorLookupTableDescriptor", [(entries + entries % 2) & 0xFFFF, 0, 8])
        setattr(header, f"{name}PaletteColorLookupTableData", values.tobytes())
        header[f"{name}PaletteColorLookupTableDescriptor"].VR = "US"
    header.ICCProfile = _srgb_profile()


@cache
def _srgb_profile() -> bytes:
    """An ICC profile of sRGB, of the class of input devices (C.11.15.1.1), the same at every time."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[12:16] = b"scnr"
    profile[24:36] = bytes((7, 234, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0))
    profile[84:100] = bytes(16)
    return bytes(profile) + b"\0" * (len(profile) % 2)
