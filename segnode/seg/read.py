"""Reading: any Segmentation, in any of the transfer syntaxes that hold one, as one value."""

import mmap
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any, Final, get_args

from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from segnode.dicom.codes import Code
from segnode.dicom.elements import PIXEL_DATA, Buffer, Element, elements
from segnode.dicom.transfer_syntaxes import Encoding, encoding_of
from segnode.dicom.uids import LABEL_MAP_SEGMENTATION_STORAGE
from segnode.errors import NotASegmentation, NotDicom, UnreadablePixels
from segnode.seg.codecs import FrameShape
from segnode.seg.frame_groups import FrameGroups, FrameTable, frame_table, read_frame_groups
from segnode.seg.pixels import read_frames
from segnode.seg.segmentation import DescribedSegment, Segmentation, SegmentationType

SEGMENTATION_STORAGE: Final = "1.2.840.10008.5.1.4.1.1.66.4"

_PREAMBLE: Final = 128
_SHARED: Final = 0x52009229
_PER_FRAME: Final = 0x52009230
_META_LENGTH: Final = 0x00020000
_TRANSFER_SYNTAX: Final = 0x00020010
_DATA_SET: Final = 0x00030000
_BITS: Final = {"BINARY": (1,), "FRACTIONAL": (8,), "LABELMAP": (8, 16)}
# A data set inflates to no more than this: the largest that can be held without harm to its neighbours.
_LARGEST_INFLATED: Final = 2 << 30
_INFLATE_BLOCK: Final = 1 << 24


def open_segmentation(path: Path) -> Segmentation:
    """Read the Segmentation in a file, which is mapped. Raises NotDicom, NotASegmentation, UnreadablePixels, OSError."""
    return read_segmentation(map_file(path))


def map_file(path: Path) -> Buffer:
    """The bytes of a file, which is mapped. Raises OSError."""
    with path.open("rb") as file:
        try:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except ValueError:  # an empty file cannot be mapped
            return b""


def read_segmentation(data: Buffer) -> Segmentation:
    """Read the Segmentation in a Part 10 file.

    Raises NotDicom, NotASegmentation (naming the attribute that is missing or wrong), UnreadablePixels.
    """
    syntax, start = _read_meta(data)
    encoding = encoding_of(syntax)
    if encoding.deflated:
        data, start = _inflated(data[start:]), 0
    found = {element.tag: element for element in elements(data, start, len(data), encoding)}
    header = _read_header(data, start, found, encoding)
    kind = _require_segmentation(header)
    bits = _positive(header, "BitsAllocated")
    if bits not in _BITS[kind]:
        raise NotASegmentation(f"BitsAllocated is {bits}, which a {kind} segmentation cannot have (PS3.3 C.8.20.2)")
    shape = FrameShape(_positive(header, "Rows"), _positive(header, "Columns"), bits)
    count = _positive(header, "NumberOfFrames")
    segments = _read_segments(header)
    table = _read_table(data, found, header, encoding, count, segments)
    if PIXEL_DATA not in found:
        raise UnreadablePixels("PixelData is missing")
    pixels = found[PIXEL_DATA]
    vr = "" if encoding.implicit_vr else str(data[pixels.begin + 4 : pixels.begin + 6], "latin-1")
    value = memoryview(data)[pixels.start : pixels.end]
    frames = read_frames(value, syntax, shape, count, vr)
    return Segmentation(header, syntax, kind, segments, frames, table)


def read_per_frame_groups(data: Buffer, encoding: Encoding) -> bytes:
    """The value of PerFrameFunctionalGroupsSequence of a Part 10 file, written in an encoding; empty where it is absent."""
    syntax, start = _read_meta(data)
    written = encoding_of(syntax)
    if written.deflated:
        data, start = _inflated(data[start:]), 0
    found = next((e for e in elements(data, start, len(data), written) if e.tag == _PER_FRAME), None)
    if found is None:
        return b""
    if (written.implicit_vr, written.little_endian) == (encoding.implicit_vr, encoding.little_endian):
        return bytes(data[found.start : found.end])
    source = BytesIO(bytes(data[found.begin : found.next]))
    groups = read_dataset(source, written.implicit_vr, written.little_endian)
    groups.decode()
    file = DicomBytesIO()
    file.is_little_endian, file.is_implicit_VR = True, encoding.implicit_vr
    groups[_PER_FRAME].is_undefined_length = False
    write_dataset(file, groups)
    return file.getvalue()[8 if encoding.implicit_vr else 12 :]


def _read_meta(data: Buffer) -> tuple[str, int]:
    """The transfer syntax of a Part 10 file, and where its data set begins (PS3.10 7.1)."""
    if bytes(data[_PREAMBLE : _PREAMBLE + 4]) != b"DICM":
        raise NotDicom("not a DICOM file: there is no DICM prefix after 128 bytes")
    syntax, start, end = "", _PREAMBLE + 4, len(data)
    for element in elements(data, start, end, Encoding(), stop=_DATA_SET):
        start = element.next
        if element.tag == _META_LENGTH and element.end - element.start == 4:
            # What follows may be deflated, and look like anything.
            end = min(end, element.next + int.from_bytes(data[element.start : element.end], "little"))
        if element.tag == _TRANSFER_SYNTAX:
            syntax = str(data[element.start : element.end], "latin-1").strip(" \0")
        if start >= end:
            break
    if not syntax:
        raise NotDicom("TransferSyntaxUID is missing in the file meta information")
    return syntax, start


def _inflated(data: Buffer) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = bytearray()
    try:
        block = inflater.decompress(data, _INFLATE_BLOCK)
        while block:
            inflated += block
            if len(inflated) > _LARGEST_INFLATED:
                raise NotDicom(f"the deflated data set inflates to more than {_LARGEST_INFLATED >> 30} GiB")
            block = inflater.decompress(inflater.unconsumed_tail, _INFLATE_BLOCK)
    except zlib.error as error:
        raise NotDicom(f"the deflated data set cannot be inflated: {error}") from error
    return bytes(inflated)


def _read_header(data: Buffer, start: int, found: dict[int, Element], encoding: Encoding) -> Dataset:
    """The data set without what is large."""
    kept = BytesIO()
    for element in found.values():
        if element.tag not in (PIXEL_DATA, _PER_FRAME) and element.begin >= start:
            kept.write(data[element.begin : element.next])
    kept.seek(0)
    try:
        header = read_dataset(kept, encoding.implicit_vr, encoding.little_endian)
        header.decode()
    except Exception as error:
        raise NotASegmentation(f"the data set cannot be read: {type(error).__name__}: {error}") from error
    return header


def _require_segmentation(header: Dataset) -> SegmentationType:
    sop_class = str(header.get("SOPClassUID", ""))
    if sop_class not in (SEGMENTATION_STORAGE, str(LABEL_MAP_SEGMENTATION_STORAGE)):
        raise NotASegmentation(f"SOPClassUID is {sop_class or 'missing'}: this is no Segmentation")
    kind = header.get("SegmentationType")
    if kind not in get_args(SegmentationType):
        raise NotASegmentation(f"SegmentationType does not hold one of {', '.join(get_args(SegmentationType))}")
    found: SegmentationType = kind
    return found


def _positive(header: Dataset, keyword: str) -> int:
    value = header.get(keyword)
    try:
        number = int(value)
    except (TypeError, ValueError) as error:
        raise NotASegmentation(f"{keyword} is missing or not a number") from error
    if number < 1:
        raise NotASegmentation(f"{keyword} is {number}: at least 1 is needed")
    return number


def _read_segments(header: Dataset) -> tuple[DescribedSegment, ...]:
    items = header.get("SegmentSequence")
    if not items:
        raise NotASegmentation("SegmentSequence is missing or empty: nothing says what the values mean")
    segments = tuple(_read_segment(item) for item in items)
    numbers = [segment.number for segment in segments]
    twice = next((number for number in numbers if numbers.count(number) > 1), None)
    if twice is not None:
        raise NotASegmentation(f"SegmentSequence describes SegmentNumber {twice} twice")
    return segments


def _read_segment(item: Dataset) -> DescribedSegment:
    number = item.get("SegmentNumber")
    if not isinstance(number, int):
        raise NotASegmentation("SegmentNumber is missing in an item of SegmentSequence")
    types = item.get("SegmentedPropertyTypeCodeSequence") or ()
    modifiers = types[0].get("SegmentedPropertyTypeModifierCodeSequence") or () if types else ()
    cielab = item.get("RecommendedDisplayCIELabValue")
    return DescribedSegment(
        number=number,
        label=str(item.get("SegmentLabel") or ""),
        category=_first(_codes(item.get("SegmentedPropertyCategoryCodeSequence"))),
        type=_first(_codes(types)),
        modifiers=_codes(modifiers),
        regions=_codes(item.get("AnatomicRegionSequence")),
        algorithm_type=str(item.get("SegmentAlgorithmType") or ""),
        algorithm_name=str(item.get("SegmentAlgorithmName") or ""),
        tracking_id=str(item.get("TrackingID") or ""),
        tracking_uid=str(item.get("TrackingUID") or ""),
        cielab=(cielab[0], cielab[1], cielab[2]) if cielab is not None and len(cielab) == 3 else None,
    )


def _codes(sequence: Any) -> tuple[Code, ...]:
    return tuple(
        Code(
            str(item.get("CodingSchemeDesignator") or ""),
            str(item.get("CodeValue") or item.get("LongCodeValue") or item.get("URNCodeValue") or ""),
            str(item.get("CodeMeaning") or ""),
        )
        for item in sequence or ()
    )


def _first(codes: tuple[Code, ...]) -> Code | None:
    return codes[0] if codes else None


def _read_table(
    data: Buffer,
    found: dict[int, Element],
    header: Dataset,
    encoding: Encoding,
    count: int,
    segments: tuple[DescribedSegment, ...],
) -> FrameTable:
    shared = read_frame_groups(data, found[_SHARED], encoding) if _SHARED in found else []
    if _PER_FRAME in found and (frames := read_frame_groups(data, found[_PER_FRAME], encoding)):
        if len(frames) != count:
            raise NotASegmentation(
                f"PerFrameFunctionalGroupsSequence has {len(frames)} items for {count} frames (NumberOfFrames)"
            )
    elif header.get("DimensionOrganizationType") == "TILED_FULL":
        frames = _tiled_full(header, count, segments)
    else:
        frames = [FrameGroups() for _ in range(count)]
    return frame_table(shared[0] if shared else FrameGroups(), frames)


def _tiled_full(header: Dataset, count: int, segments: tuple[DescribedSegment, ...]) -> list[FrameGroups]:
    """What TILED_FULL leaves out: tiles row by row, for each focal plane, for each segment (PS3.3 C.7.6.17.3)."""
    rows, columns = _positive(header, "Rows"), _positive(header, "Columns")
    down = range(1, _positive(header, "TotalPixelMatrixRows") + 1, rows)
    across = range(1, _positive(header, "TotalPixelMatrixColumns") + 1, columns)
    planes = int(header.get("TotalPixelMatrixFocalPlanes") or 1)
    numbers = [None] if header.SegmentationType == "LABELMAP" else [segment.number for segment in segments]
    if len(down) * len(across) * planes * len(numbers) != count:
        raise NotASegmentation(f"NumberOfFrames is {count}, which is not what TILED_FULL tiles of the total pixel matrix are")
    return [
        FrameGroups(tile=(row, column), segment_number=number)
        for number in numbers
        for _ in range(planes)
        for row in down
        for column in across
    ]
