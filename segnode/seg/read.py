"""Reading: any Segmentation, in any of the transfer syntaxes that hold one, as one value."""

import mmap
import zlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Final, get_args

import numpy as np
from pydicom import Dataset
from pydicom.filereader import read_dataset

from segnode.dicom.elements import PIXEL_DATA, Buffer, Element, elements, read_meta, require_shallow
from segnode.dicom.transfer_syntaxes import Encoding, encoding_of
from segnode.dicom.uids import SEGMENTATION_CLASSES
from segnode.errors import NotASegmentation, NotDicom, UnreadablePixels
from segnode.seg.codecs import FrameShape
from segnode.seg.frame_groups import FrameGroups, FrameTable, frame_table, item_elements, read_frame_groups
from segnode.seg.pixels import Frames, read_frames
from segnode.seg.segment_sequence import read_segments
from segnode.seg.segmentation import DescribedSegment, PerFrame, Segmentation, SegmentationType
from segnode.seg.values import items_of, text_of, value_of, whole_number

_SHARED: Final = 0x52009229
_PER_FRAME: Final = 0x52009230
_BITS: Final = {"BINARY": (1,), "FRACTIONAL": (8,), "LABELMAP": (8, 16)}
# A data set inflates to no more than this: the largest that can be held without harm to its neighbours.
_LARGEST_INFLATED: Final = 2 << 30
_DEFLATED_BLOCK: Final = 1 << 20
_INFLATED_BLOCK: Final = 1 << 24
# A frame of one pixel is a bit of PixelData and some hundred bytes of memory.
_MOST_FRAMES: Final = 1 << 22
_LARGEST_VALUE: Final = 65535
_WHOLE_NUMBERS: Final = (
    "TotalPixelMatrixRows",
    "TotalPixelMatrixColumns",
    "TotalPixelMatrixFocalPlanes",
    "PixelPaddingValue",
    "MaximumFractionalValue",
)


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
    syntax, start = read_meta(data)
    encoding = encoding_of(syntax)
    if encoding.deflated:
        data, start = inflate(data[start:]), 0
    found = {element.tag: element for element in elements(data, start, len(data), encoding)}
    header = _read_header(data, found, encoding)
    kind = _require_segmentation(header)
    bits = _positive(header, "BitsAllocated")
    if bits not in _BITS[kind]:
        raise NotASegmentation(f"BitsAllocated is {bits}, which a {kind} segmentation cannot have (PS3.3 C.8.20.2)")
    shape = FrameShape(_positive(header, "Rows"), _positive(header, "Columns"), bits)
    segments = read_segments(header, kind)
    frames = _read_pixels(data, found, syntax, encoding, shape, _count(header))
    per_frame = PerFrame(data, found[_PER_FRAME]) if _PER_FRAME in found else None
    table = _read_table(data, found.get(_SHARED), per_frame, header, len(frames), kind, segments)
    return Segmentation(header, syntax, kind, segments, frames, table, per_frame)


def _read_pixels(
    data: Buffer, found: dict[int, Element], syntax: str, encoding: Encoding, shape: FrameShape, count: int
) -> Frames:
    if PIXEL_DATA not in found:
        raise UnreadablePixels("PixelData is missing")
    pixels = found[PIXEL_DATA]
    vr = "" if encoding.implicit_vr else str(data[pixels.begin + 4 : pixels.begin + 6], "latin-1")
    return read_frames(memoryview(data)[pixels.start : pixels.end], syntax, shape, count, vr)


def inflate(data: Buffer) -> bytearray:
    """A data set in the deflated transfer syntax, as it was before (PS3.5 A.5). Raises NotDicom."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = bytearray()
    try:
        for start in range(0, len(data), _DEFLATED_BLOCK):
            pending = bytes(data[start : start + _DEFLATED_BLOCK])
            while pending and not inflater.eof:
                inflated += inflater.decompress(pending, _INFLATED_BLOCK)
                pending = inflater.unconsumed_tail
                if len(inflated) > _LARGEST_INFLATED:
                    raise NotDicom(f"the deflated data set inflates to more than {_LARGEST_INFLATED >> 30} GiB")
        inflated += inflater.flush()
    except zlib.error as error:
        raise NotDicom(f"the deflated data set cannot be inflated: {error}") from error
    if not inflater.eof:
        raise NotDicom("the data ends inside the deflated data set")
    return inflated


def _read_header(data: Buffer, found: dict[int, Element], encoding: Encoding) -> Dataset:
    """The data set without what is large; values are decoded when they are asked for."""
    kept = BytesIO()
    for element in found.values():
        if element.tag not in (PIXEL_DATA, _PER_FRAME):
            _require_shallow(data, element)
            kept.write(data[element.begin : element.next])
    kept.seek(0)
    try:
        return read_dataset(kept, encoding.implicit_vr, encoding.little_endian)
    except Exception as error:
        raise NotASegmentation(f"the data set cannot be read: {type(error).__name__}") from error


def _require_shallow(data: Buffer, element: Element) -> None:
    try:
        require_shallow(data, element)
    except NotDicom as error:
        raise NotASegmentation(f"{error}: it cannot be decoded") from error


def _require_segmentation(header: Dataset) -> SegmentationType:
    sop_class = text_of(header, "SOPClassUID")
    if sop_class not in SEGMENTATION_CLASSES:
        raise NotASegmentation(f"SOPClassUID is {sop_class or 'missing'}: this is no Segmentation")
    kind = value_of(header, "SegmentationType")
    if kind not in get_args(SegmentationType):
        raise NotASegmentation(f"SegmentationType does not hold one of {', '.join(get_args(SegmentationType))}")
    if not text_of(header, "SOPInstanceUID"):
        raise NotASegmentation("SOPInstanceUID is missing")
    if whole_number(header, "SamplesPerPixel", 1) != 1 or whole_number(header, "PixelRepresentation", 0) != 0:
        raise NotASegmentation("SamplesPerPixel is not 1 or PixelRepresentation not 0: labels are one unsigned number each")
    for keyword in _WHOLE_NUMBERS:
        whole_number(header, keyword, 0)
    if whole_number(header, "PixelPaddingValue", 0) > _LARGEST_VALUE:
        raise NotASegmentation(f"PixelPaddingValue is above {_LARGEST_VALUE}: no pixel of a segmentation has that value")
    for item in items_of(header, "DimensionIndexSequence"):
        whole_number(item, "DimensionIndexPointer", 0)
    found: SegmentationType = kind
    return found


def _positive(header: Dataset, keyword: str) -> int:
    number = whole_number(header, keyword, 0)
    if number < 1:
        raise NotASegmentation(f"{keyword} is missing or 0: at least 1 is needed")
    return number


def _count(header: Dataset) -> int:
    count = _positive(header, "NumberOfFrames")
    if count > _MOST_FRAMES:
        raise NotASegmentation(f"NumberOfFrames is {count}: no more than {_MOST_FRAMES} frames are read")
    return count


def _read_table(
    data: Buffer,
    shared_groups: Element | None,
    per_frame: PerFrame | None,
    header: Dataset,
    count: int,
    kind: SegmentationType,
    segments: tuple[DescribedSegment, ...],
) -> FrameTable:
    shared = read_frame_groups(item_elements(data, shared_groups), shared_groups.encoding) if shared_groups else []
    frames = read_frame_groups(per_frame.elements, per_frame.sequence.encoding) if per_frame else []
    if frames and len(frames) != count:
        raise NotASegmentation(f"PerFrameFunctionalGroupsSequence has {len(frames)} items for {count} frames (NumberOfFrames)")
    table = frame_table(shared[0] if shared else FrameGroups(), frames or [FrameGroups()] * count)
    if value_of(header, "DimensionOrganizationType") == "TILED_FULL":
        table = tiled_full(table, header, kind, segments)
    if kind != "LABELMAP":
        _require_described(table, segments)
    return table


def _require_described(table: FrameTable, segments: tuple[DescribedSegment, ...]) -> None:
    """Refuse frames of segments that nothing is said of: they would be left out."""
    numbers = [segment.number for segment in segments]
    unknown = np.flatnonzero(~np.isin(table.segment_numbers, numbers))
    if len(unknown):
        number = int(table.segment_numbers[unknown[0]])
        what = f"is {number}, which SegmentSequence does not describe" if number else "is missing"
        raise NotASegmentation(f"ReferencedSegmentNumber of frame {unknown[0] + 1} {what}")


def tiled_full(
    table: FrameTable, header: Dataset, kind: SegmentationType, segments: tuple[DescribedSegment, ...]
) -> FrameTable:
    """What TILED_FULL leaves out: tiles row by row, for each focal plane, for each segment (PS3.3 C.7.6.17.3)."""
    rows, columns = _positive(header, "Rows"), _positive(header, "Columns")
    down = range(1, _positive(header, "TotalPixelMatrixRows") + 1, rows)
    across = range(1, _positive(header, "TotalPixelMatrixColumns") + 1, columns)
    planes = whole_number(header, "TotalPixelMatrixFocalPlanes", 1)
    numbers = [0] if kind == "LABELMAP" else [segment.number for segment in segments]
    if len(down) * len(across) * planes * len(numbers) != len(table):
        what = "which is not what TILED_FULL tiles of the total pixel matrix are"
        raise NotASegmentation(f"NumberOfFrames is {len(table)}, {what}")
    tiles = np.stack(np.meshgrid(down, across, indexing="ij"), axis=-1).reshape(-1, 2)
    return replace(
        table,
        tiles=np.where(table.tiles > 0, table.tiles, np.tile(tiles, (planes * len(numbers), 1))),
        segment_numbers=np.where(table.segment_numbers > 0, table.segment_numbers, np.repeat(numbers, len(tiles) * planes)),
    )
