"""Checking a SEG against the rules of the standard (PS3.3 A.51 and C.8.20): what is wrong, where, and what to do."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmread
from pydicom.charset import python_encoding
from pydicom.encaps import generate_fragments, parse_basic_offsets

from segnode.dicom import transfer_syntaxes as syntaxes
from segnode.dicom.uids import SEGMENTATION_CLASSES, is_uid, segmentation_class, uid_name
from segnode.errors import NotASegmentation, NotDicom
from segnode.seg.check.finding import (
    UNREADABLE,
    Finding,
    error,
    has,
    items,
    number,
    numbers,
    quoted,
    text,
    value_of,
    values_of,
    walk,
    warning,
)
from segnode.seg.check.frames import PER_FRAME, SHARED, Groups, check_frames, read_groups
from segnode.seg.check.overlap import check_overlap
from segnode.seg.check.required import REQUIRED, Required
from segnode.seg.codecs import DECODERS
from segnode.seg.pixels import frames_of

_SEGMENTS: Final = "SegmentSequence"
_RLE: Final = "1.2.840.10008.1.2.5"
_JPEG_2000_LOSSLESS: Final = "1.2.840.10008.1.2.4.90"
_COMPRESSED_BITS: Final = {_RLE, _JPEG_2000_LOSSLESS, syntaxes.DEFLATED_IMAGE_FRAME, syntaxes.ENCAPSULATED_UNCOMPRESSED}
_FOR_BITS: Final = syntaxes.NATIVE | _COMPRESSED_BITS
_LOSSLESS: Final = _FOR_BITS | {f"1.2.840.10008.1.2.4.{number}" for number in (57, 70, 80, 110, 201, 202)}
_ALWAYS_LOSSY: Final = frozenset({"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"})
_LARGEST_FRAME: Final = 1 << 28
_PALETTE: Final = tuple(f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue"))


def read_to_check(path: Path) -> Dataset:
    """The SEG in a file. Raises NotDicom, NotASegmentation."""
    try:
        dataset = dcmread(path)
        sop_class_uid = text(dataset, "SOPClassUID")
    except UNREADABLE as failure:
        reason = getattr(failure, "strerror", None) or "it is no DICOM file, or ends in the middle of one"
        raise NotDicom(f"{path} cannot be read: {reason}") from failure
    if sop_class_uid not in SEGMENTATION_CLASSES and text(dataset, "Modality") != "SEG":
        raise NotASegmentation(f"{path} is no SEG: its SOP class is {uid_name(sop_class_uid) or 'not given'}")
    return dataset


def check(dataset: Dataset) -> tuple[Finding, ...]:
    """Everything that is wrong with a SEG; never raises."""
    groups = read_groups(dataset)
    return (*_attributes(dataset, groups), *_pixels(dataset, groups))


def check_attributes(dataset: Dataset) -> tuple[Finding, ...]:
    """What is wrong with a SEG's attributes, whether it has its pixel data or not; never raises."""
    return _attributes(dataset, read_groups(dataset))


def _attributes(dataset: Dataset, groups: Groups) -> tuple[Finding, ...]:
    kind = text(dataset, "SegmentationType")
    found: list[Finding] = []
    for rule_of_a_type in _RULES_OF_A_TYPE:
        found.extend(rule_of_a_type(dataset, kind))
    for rule in _RULES:
        found.extend(rule(dataset))
    found.extend(walk(dataset, skip=frozenset({PER_FRAME, SHARED, "PixelData"})))
    found.extend(check_frames(dataset, groups, _segment_numbers(dataset)))
    return _merged(found)


def _pixels(dataset: Dataset, groups: Groups) -> tuple[Finding, ...]:
    """What is wrong with pixel data: its length, its frames, values that nobody described, overlaps that are denied."""
    try:
        value = dataset.get_item("PixelData").value if has(dataset, "PixelData") else None
        if not isinstance(value, bytes) or not value:
            return (error("PixelData", "PS3.3 C.7.6.3", "is absent or empty; a SEG has one frame at least"),)
        transfer_syntax_uid = _transfer_syntax(dataset)
        found = [*(_native(dataset, value) if transfer_syntax_uid in syntaxes.NATIVE else _encapsulated(dataset, value))]
        if found:
            return tuple(found)
        return (*_values(dataset, transfer_syntax_uid), *check_overlap(dataset, groups, _segment_numbers(dataset)))
    except UNREADABLE:
        return (error("PixelData", "PS3.5 8", "cannot be read as the frames that the attributes announce"),)


def _merged(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """What is wrong with many frames in one way is told once, with the first of them."""
    first: dict[tuple[str, str, str], Finding] = {}
    counts: dict[tuple[str, str, str], int] = {}
    for finding in found:
        attribute = finding.attribute
        if attribute.startswith(PER_FRAME):
            attribute = _ITEM.sub("[]", attribute)
        key = (finding.severity, attribute, finding.clause)
        first.setdefault(key, finding)
        counts[key] = counts.get(key, 0) + 1
    return tuple(
        finding if counts[key] == 1 else replace(finding, message=f"{finding.message} (and {counts[key] - 1} more like it)")
        for key, finding in first.items()
    )


_ITEM: Final = re.compile(r"\[\d+\]")


def _file_meta(dataset: Dataset, kind: str) -> Iterator[Finding]:
    """The file meta information says what the data set says (PS3.10 7.1), in a transfer syntax that fits the type."""
    meta = getattr(dataset, "file_meta", None)
    if not isinstance(meta, Dataset):
        yield error("TransferSyntaxUID", "PS3.10 7.1", "there is no file meta information; write a Part 10 file")
        return
    for name, keyword in (("MediaStorageSOPClassUID", "SOPClassUID"), ("MediaStorageSOPInstanceUID", "SOPInstanceUID")):
        if text(meta, name) != text(dataset, keyword):
            yield error(name, "PS3.10 7.1", f"is not the {keyword} of the data set; write that")
    uid = _transfer_syntax(dataset)
    if not uid:
        yield error("TransferSyntaxUID", "PS3.10 7.1", "is absent; say how the data set is encoded")
    elif uid not in _LOSSLESS:
        what = f"is {uid_name(uid)}, which is lossy or not for images: labels would change; use a lossless one"
        found = error("TransferSyntaxUID", "PS3.5 8.2", what)
        yield replace(found, severity="warning") if kind == "FRACTIONAL" else found
    elif kind == "BINARY" and uid not in _FOR_BITS:
        what = f"is {uid_name(uid)}, which holds no frames of 1 bit; use native, RLE or JPEG 2000 lossless"
        yield error("TransferSyntaxUID", "PS3.5 8.2", what)


def _transfer_syntax(dataset: Dataset) -> str:
    meta = getattr(dataset, "file_meta", None)
    return text(meta, "TransferSyntaxUID") if isinstance(meta, Dataset) else ""


def _required(dataset: Dataset) -> Iterator[Finding]:
    """Type 1 attributes have a value, type 2 attributes are present."""
    for required in REQUIRED:
        yield from _required_at(dataset, "", required.path, required)
    if text(dataset, "DimensionOrganizationType") != "TILED_FULL" and not items(dataset, PER_FRAME):
        yield error(PER_FRAME, "PS3.3 C.7.6.16", "is absent or empty; it has an item for each frame")


def _required_at(item: Dataset, prefix: str, path: tuple[str, ...], required: Required) -> Iterator[Finding]:
    if path:
        for index, below in enumerate(items(item, path[0])):
            yield from _required_at(below, f"{prefix}{path[0]}[{index}].", path[1:], required)
        return
    for keyword in required.filled:
        if value_of(item, keyword) is None:
            yield error(f"{prefix}{keyword}", required.clause, "is absent or has no value; it is required (type 1)")
    for keyword in required.present:
        if not has(item, keyword):
            yield error(f"{prefix}{keyword}", required.clause, "is absent; write it, empty if need be (type 2)")


def _kind(dataset: Dataset, kind: str) -> Iterator[Finding]:
    """The SOP class and the type of segmentation belong together (PS3.3 A.51, C.8.20.2.3)."""
    sop_class_uid = text(dataset, "SOPClassUID")
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        yield error("SegmentationType", "PS3.3 C.8.20.2.3", f"is {quoted(kind)}; it is BINARY, FRACTIONAL or LABELMAP")
        return
    wanted = segmentation_class(kind)
    if sop_class_uid != wanted:
        what = f"is {uid_name(sop_class_uid) or 'not given'}; a {kind} segmentation is {uid_name(wanted)}"
        yield error("SOPClassUID", "PS3.3 C.8.20.2.3", what)


def _fixed(dataset: Dataset, kind: str) -> Iterator[Finding]:
    """Attributes that have one value in every SEG, or one of a few."""
    clause = "PS3.3 C.8.20.2"
    for keyword, allowed, where in (
        ("Modality", ("SEG",), "PS3.3 C.8.20.1"),
        ("SamplesPerPixel", ("1",), clause),
        ("PixelRepresentation", ("0",), clause),
        ("LossyImageCompression", ("00", "01"), clause),
        ("SegmentsOverlap", ("NO",) if kind == "LABELMAP" else ("YES", "NO", "UNDEFINED"), clause),
        ("PhotometricInterpretation", _photometric(kind), clause),
        ("ImageType", ("DERIVED\\PRIMARY",), clause),
        ("PatientSex", ("M", "F", "O"), "PS3.3 C.7.1.1"),
    ):
        value = "\\".join(str(value) for value in values_of(dataset, keyword))
        if value and value not in allowed:
            found = error(keyword, where, f"is {quoted(value)}; it is {' or '.join(allowed)}")
            yield replace(found, severity="warning") if keyword == "PatientSex" else found
    if _transfer_syntax(dataset) in _ALWAYS_LOSSY and text(dataset, "LossyImageCompression") == "00":
        yield error("LossyImageCompression", "PS3.3 C.8.20.2.2", "is 00, and the frames are compressed lossily; write 01")
    if text(dataset, "LossyImageCompression") == "01":
        for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            if value_of(dataset, keyword) is None:
                yield warning(keyword, "PS3.3 C.7.6.1.1.5", "is absent although a source was compressed lossily; copy it")


def _photometric(kind: str) -> tuple[str, ...]:
    return ("MONOCHROME2", "PALETTE COLOR") if kind == "LABELMAP" else ("MONOCHROME2",)


def _bits(dataset: Dataset, kind: str) -> Iterator[Finding]:
    """A BINARY has 1 bit, a FRACTIONAL 8, a LABELMAP 8 or 16, all of them used (PS3.3 C.8.20.2)."""
    allowed = {"BINARY": (1,), "FRACTIONAL": (8,), "LABELMAP": (8, 16)}.get(kind)
    allocated = number(dataset, "BitsAllocated")
    if allowed is None or allocated is None:
        return
    clause = "PS3.3 C.8.20.2"
    if allocated not in allowed:
        yield error("BitsAllocated", clause, f"is {allocated}; a {kind} has {' or '.join(map(str, allowed))}")
    if number(dataset, "BitsStored") not in (allocated, None):
        yield error("BitsStored", clause, f"is {number(dataset, 'BitsStored')}; it is BitsAllocated, {allocated}")
    if number(dataset, "HighBit") not in (allocated - 1, None):
        yield error("HighBit", clause, f"is {number(dataset, 'HighBit')}; it is one below BitsStored, {allocated - 1}")


def _of_the_type(dataset: Dataset, kind: str) -> Iterator[Finding]:
    """Attributes that one type of segmentation has and the others do not (PS3.3 C.8.20.2, A.51.4)."""
    for keyword in ("MaximumFractionalValue", "SegmentationFractionalType"):
        if kind == "FRACTIONAL" and value_of(dataset, keyword) is None:
            yield error(keyword, "PS3.3 C.8.20.2", "is absent; a FRACTIONAL segmentation has it")
        elif kind in ("BINARY", "LABELMAP") and has(dataset, keyword):
            yield error(keyword, "PS3.3 C.8.20.2", f"belongs to FRACTIONAL segmentations; remove it from this {kind}")
    maximum = number(dataset, "MaximumFractionalValue")
    if kind == "FRACTIONAL" and maximum is not None and not 1 <= maximum <= 255:
        yield error("MaximumFractionalValue", "PS3.3 C.8.20.2", f"is {maximum}; values of 8 bits reach 255")
    fractional = text(dataset, "SegmentationFractionalType")
    if kind == "FRACTIONAL" and fractional not in ("PROBABILITY", "OCCUPANCY", ""):
        yield error("SegmentationFractionalType", "PS3.3 C.8.20.2.3", "is neither PROBABILITY nor OCCUPANCY")


def _padding(dataset: Dataset, kind: str) -> Iterator[Finding]:
    """The padding value is the number of the background segment, in a LABELMAP only (PS3.3 A.51.4)."""
    padding = number(dataset, "PixelPaddingValue")
    if has(dataset, "PixelPaddingValue") and kind in ("BINARY", "FRACTIONAL"):
        yield error("PixelPaddingValue", "PS3.3 A.51.4", f"shall not be in a {kind}; remove it")
    elif padding is not None and padding not in _segment_numbers(dataset):
        what = f"is {padding}, which SegmentSequence does not describe; describe it as the background, or remove it"
        yield error("PixelPaddingValue", "PS3.3 A.51.4", what)
    if has(dataset, "PixelPaddingRangeLimit"):
        yield error("PixelPaddingRangeLimit", "PS3.3 A.51.4", "a range of padding has no meaning in a SEG; remove it")


def _lookup(dataset: Dataset) -> Iterator[Finding]:
    """Labels are not transformed on their way to the screen (PS3.3 A.51.3, A.51.4)."""
    for keyword in ("WindowCenter", "WindowWidth", "VOILUTSequence", "VOILUTFunction"):
        if has(dataset, keyword):
            yield error(keyword, "PS3.3 A.51.4", "labels have no VOI LUT; remove it")
    for keyword in ("RescaleIntercept", "RescaleSlope", "ModalityLUTSequence"):
        if has(dataset, keyword):
            yield warning(keyword, "PS3.3 A.51.3", "labels have no Modality LUT; remove it")


def _palette(dataset: Dataset) -> Iterator[Finding]:
    """PALETTE COLOR has lookup tables and a profile, and everything else has neither (PS3.3 Table A.51-1)."""
    if text(dataset, "PhotometricInterpretation") == "PALETTE COLOR":
        yield from _palette_color(dataset)
        return
    tables = [f"{colour}{part}" for colour in _PALETTE for part in ("Descriptor", "Data")]
    for keyword in (*tables, "ICCProfile"):
        if has(dataset, keyword):
            yield error(keyword, "PS3.3 A.51.3", "is for PALETTE COLOR only; remove it")


def _palette_color(dataset: Dataset) -> Iterator[Finding]:
    if value_of(dataset, "ICCProfile") is None:
        yield error("ICCProfile", "PS3.3 A.51.3", "is absent; a SEG in PALETTE COLOR says what its colours mean")
    else:
        yield from _profile(value_of(dataset, "ICCProfile"))
    for colour in _PALETTE:
        descriptor = numbers(dataset, f"{colour}Descriptor")
        if len(descriptor) != 3:
            yield error(f"{colour}Descriptor", "PS3.3 C.7.6.3.1.5", "is absent or has not three values")
        elif descriptor[2] not in (8, 16):
            yield error(f"{colour}Descriptor", "PS3.3 C.7.6.3.1.5", "says entries of neither 8 nor 16 bits")
        if value_of(dataset, f"{colour}Data") is None and value_of(dataset, f"Segmented{colour}Data") is None:
            yield error(f"{colour}Data", "PS3.3 C.7.9", "is absent; PALETTE COLOR needs the three lookup tables")
    for index, segment in enumerate(items(dataset, _SEGMENTS)):
        if has(segment, "RecommendedDisplayCIELabValue"):
            path = f"{_SEGMENTS}[{index}].RecommendedDisplayCIELabValue"
            yield error(path, "PS3.3 Table C.8.20-4", "shall not be in a LABELMAP in PALETTE COLOR: remove it")


def _profile(profile: object) -> Iterator[Finding]:
    """The profile is that of an input device, of RGB, and connects to CIELab or CIEXYZ."""
    header = profile if isinstance(profile, bytes) else b""
    if header[12:20] != b"scnrRGB " or header[20:24] not in (b"Lab ", b"XYZ "):
        what = "is no profile of an input device (scnr) for RGB that connects to Lab or XYZ; write one"
        yield error("ICCProfile", "PS3.3 C.11.15.1.1", what)


def _segment_numbers(dataset: Dataset) -> list[int]:
    found = (number(segment, "SegmentNumber") for segment in items(dataset, _SEGMENTS))
    return [segment for segment in found if segment is not None]


def _numbering(dataset: Dataset, kind: str) -> Iterator[Finding]:
    """Segment numbers are unique; but in a LABELMAP they are 1, 2, 3 and so on (PS3.3 C.8.20.2.4)."""
    clause, seen = "PS3.3 C.8.20.2.4", set[int]()
    for index, segment in enumerate(items(dataset, _SEGMENTS)):
        found, path = number(segment, "SegmentNumber"), f"{_SEGMENTS}[{index}].SegmentNumber"
        if found is None:
            continue
        if found in seen:
            yield error(path, clause, f"is {found}, which an earlier segment has; numbers are unique")
        elif kind in ("BINARY", "FRACTIONAL") and found != index + 1:
            yield error(path, clause, f"is {found} where {index + 1} is expected; a {kind} counts its segments from 1")
        elif kind == "LABELMAP" and number(dataset, "BitsAllocated") == 8 and not 0 <= found <= 255:
            yield warning(path, clause, f"is {found}, which pixels of 8 bits cannot hold")
        seen.add(found)


def _segments(dataset: Dataset) -> Iterator[Finding]:
    """What a segment says of itself (PS3.3 Table C.8.20-4)."""
    clause, tracked = "PS3.3 Table C.8.20-4", set[str]()
    for index, segment in enumerate(items(dataset, _SEGMENTS)):
        path = f"{_SEGMENTS}[{index}]."
        algorithm = text(segment, "SegmentAlgorithmType")
        if algorithm not in ("AUTOMATIC", "SEMIAUTOMATIC", "MANUAL", ""):
            yield error(f"{path}SegmentAlgorithmType", clause, "is none of AUTOMATIC, SEMIAUTOMATIC and MANUAL")
        if algorithm != "MANUAL" and value_of(segment, "SegmentAlgorithmName") is None:
            yield error(f"{path}SegmentAlgorithmName", clause, "is absent; a segment that is not MANUAL names its algorithm")
        for keyword in ("SegmentedPropertyCategoryCodeSequence", "SegmentedPropertyTypeCodeSequence"):
            if len(items(segment, keyword)) > 1:
                yield error(f"{path}{keyword}", clause, "holds several codes; it has one")
        if has(segment, "RecommendedDisplayCIELabValue") and len(numbers(segment, "RecommendedDisplayCIELabValue")) != 3:
            yield error(f"{path}RecommendedDisplayCIELabValue", clause, "has not three values (L, a, b)")
        identifier, uid = text(segment, "TrackingID"), text(segment, "TrackingUID")
        if bool(identifier) != bool(uid):
            missing = "TrackingUID" if identifier else "TrackingID"
            yield error(f"{path}{missing}", clause, "is absent; TrackingID and TrackingUID stand together")
        if uid and uid in tracked:
            yield warning(f"{path}TrackingUID", clause, "is that of an earlier segment; what is tracked has its own")
        tracked.add(uid)


def _character_set(dataset: Dataset) -> Iterator[Finding]:
    """Text can be read: its character set is one of the standard's (PS3.3 C.12.1.1.2)."""
    unknown = [value for value in values_of(dataset, "SpecificCharacterSet") if str(value) not in python_encoding]
    if unknown:
        what = f"is {quoted(unknown[0])}, which is none of the standard's"
        yield warning("SpecificCharacterSet", "PS3.3 C.12.1.1.2", what)


def _identity(dataset: Dataset) -> Iterator[Finding]:
    """Study, series and instance are three things (PS3.3 C.12.1)."""
    uids = [text(dataset, keyword) for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]
    if len(set(filter(None, uids))) < len([uid for uid in uids if uid and is_uid(uid)]):
        yield error("SOPInstanceUID", "PS3.5 9", "study, series and instance share a UID; each has its own")


_RULES: Final[tuple[Callable[[Dataset], Iterator[Finding]], ...]] = (
    _required,
    _lookup,
    _palette,
    _segments,
    _character_set,
    _identity,
)
_RULES_OF_A_TYPE: Final[tuple[Callable[[Dataset, str], Iterator[Finding]], ...]] = (
    _file_meta,
    _kind,
    _fixed,
    _bits,
    _of_the_type,
    _padding,
    _numbering,
)


def _expected(dataset: Dataset) -> tuple[int, int, int, int] | None:
    """Frames, rows, columns and bits; None where one is missing, which is a finding of its own."""
    keywords = ("NumberOfFrames", "Rows", "Columns", "BitsAllocated")
    found = [number(dataset, keyword) for keyword in keywords]
    frames, rows, columns, bits = (value or 0 for value in found)
    return (frames, rows, columns, bits) if min(frames, rows, columns, bits) > 0 else None


def _native(dataset: Dataset, data: bytes) -> Iterator[Finding]:
    """Native frames follow each other without a gap, in 1-bit frames not even to the next byte (PS3.5 8.1.1, 8.2)."""
    expected = _expected(dataset)
    if expected is None:
        return
    frames, rows, columns, bits = expected
    length = (frames * rows * columns * bits + 7) // 8
    if len(data) not in (length, length + length % 2):
        what = f"holds {len(data)} bytes; {frames} frames of {rows} x {columns} pixels of {bits} bits are {length + length % 2}"
        yield error("PixelData", "PS3.5 8.2", what)


def _encapsulated(dataset: Dataset, data: bytes) -> Iterator[Finding]:
    """There are fragments for each frame (PS3.5 A.4)."""
    expected = _expected(dataset)
    if expected is None:
        return
    frames = expected[0]
    fragments = sum(1 for _ in generate_fragments(data))
    offsets = len(values_of(dataset, "ExtendedOffsetTable") and value_of(dataset, "ExtendedOffsetTable")) // 8
    table = offsets or len(parse_basic_offsets(data))
    fragments -= 1  # the basic offset table is the first item
    if fragments < frames or (table and table != frames):
        what = f"holds {fragments} fragments and {table or 'no'} offsets for {frames} frames"
        yield error("PixelData", "PS3.5 A.4", what)
    elif fragments > frames and (not table or _transfer_syntax(dataset) == _RLE):
        what = f"holds {fragments} fragments for {frames} frames, and does not say where frames start"
        yield error("PixelData", "PS3.5 A.4", what)


def _values(dataset: Dataset, transfer_syntax_uid: str) -> Iterator[Finding]:
    """Every value of a LABELMAP is described, none of a FRACTIONAL exceeds its maximum (PS3.3 C.8.20.2.3)."""
    kind, expected = text(dataset, "SegmentationType"), _expected(dataset)
    if kind not in ("LABELMAP", "FRACTIONAL") or expected is None or expected[3] not in (8, 16):
        return
    if not _decodes(transfer_syntax_uid) or expected[1] * expected[2] > _LARGEST_FRAME:
        what = "the frames were not looked at: this transfer syntax cannot be decoded here, or they are too large"
        yield Finding("note", "PixelData", "PS3.5 8.2", what)
        return
    used = np.zeros(1 << expected[3], np.bool_)
    try:
        for frame in _frames(dataset):
            used[frame] = True
    except UNREADABLE:
        yield error("PixelData", "PS3.5 8.2", "holds a frame that cannot be decoded in its transfer syntax")
        return
    values = [int(value) for value in np.flatnonzero(used)]
    maximum = number(dataset, "MaximumFractionalValue")
    if kind == "FRACTIONAL" and maximum is not None and values and values[-1] > maximum:
        yield error("PixelData", "PS3.3 C.8.20.2", f"holds {values[-1]}; MaximumFractionalValue is {maximum}")
    undescribed = sorted(set(values) - set(_segment_numbers(dataset)))
    if kind == "LABELMAP" and undescribed:
        what = f"holds values that SegmentSequence does not describe: {', '.join(map(str, undescribed[:10]))}"
        yield error("PixelData", "PS3.3 C.8.20.2.3", what)


def _decodes(transfer_syntax_uid: str) -> bool:
    return transfer_syntax_uid in syntaxes.NATIVE or transfer_syntax_uid in DECODERS


def _frames(dataset: Dataset) -> Iterator[npt.NDArray[np.unsignedinteger]]:
    """The frames as they are stored, one after the other."""
    frames = frames_of(dataset)
    yield from (frames.decode(index) for index in range(len(frames)))
