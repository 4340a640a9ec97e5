"""A Segmentation put together as a Part 10 file: a header as a data set, functional groups and pixels as bytes."""

import struct
import zlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from pydicom import Dataset
from pydicom.charset import default_encoding
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info

from segnode.dicom.transfer_syntaxes import Encoding, encoding_of
from segnode.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from segnode.seg.codecs import Codec
from segnode.seg.frame_groups import SourceImage
from segnode.seg.frame_items import FrameItem, frame_items, referenced_series

_REFERENCED_SERIES: Final = 0x00081115
_PER_FRAME: Final = 0x52009230
_PIXEL_DATA: Final = 0x7FE00010
_UNDEFINED: Final = 0xFFFFFFFF
_SEQUENCE_END: Final = b"\xfe\xff\xdd\xe0\0\0\0\0"


def part10(
    header: Dataset,
    items: Sequence[FrameItem],
    pixels: bytes | memoryview,
    codec: Codec,
    references: Mapping[str, Sequence[SourceImage]] = MappingProxyType({}),
) -> bytes:
    """A Part 10 file in the transfer syntax of a codec.

    `header` has neither per-frame groups, which `items` are, one a frame (none are left out altogether), nor pixel data,
    whose value `pixels` is, without the delimiter where it is encapsulated, nor, if `references` (images by series) are
    given, ReferencedSeriesSequence.
    """
    encoding = encoding_of(codec.transfer_syntax_uid)
    groups = frame_items(items, encoding)
    words = not codec.encapsulated and header.BitsAllocated == 16
    listed = referenced_series(references, encoding) if references else b""
    said = header.get("SpecificCharacterSet") or default_encoding
    charset = said if isinstance(said, str) else [str(each) for each in said]

    def data_set(part: Dataset) -> bytes:
        return _data_set(part, encoding, charset)

    body = [
        data_set(header[:_REFERENCED_SERIES]),
        *([_element(_REFERENCED_SERIES, b"SQ", len(listed), encoding), listed] if listed else []),
        data_set(header[_REFERENCED_SERIES:_PER_FRAME]),
        *([_element(_PER_FRAME, b"SQ", len(groups), encoding), groups] if groups else []),
        data_set(header[_PER_FRAME + 1 : _PIXEL_DATA]),
        _element(_PIXEL_DATA, b"OW" if words or encoding.implicit_vr else b"OB", _length(pixels, codec), encoding),
        pixels,
        *([_SEQUENCE_END] if codec.encapsulated else []),
        data_set(header[_PIXEL_DATA + 1 :]),
    ]
    if encoding.deflated:
        deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        body = [*(deflater.compress(part) for part in body), deflater.flush()]
        body.append(b"\0" * (sum(map(len, body)) % 2))
    return b"".join((_meta(header, codec), *body))


def _length(pixels: bytes | memoryview, codec: Codec) -> int:
    return _UNDEFINED if codec.encapsulated else len(pixels)


def _element(tag: int, vr: bytes, length: int, encoding: Encoding) -> bytes:
    start = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    return start + struct.pack("<I", length) if encoding.implicit_vr else start + vr + b"\0\0" + struct.pack("<I", length)


def _data_set(dataset: Dataset, encoding: Encoding, charset: str | list[str]) -> bytes:
    """Part of a data set, whose character set may be in another part."""
    file = DicomBytesIO()
    file.is_little_endian, file.is_implicit_VR = True, encoding.implicit_vr
    write_dataset(file, dataset, charset)
    return file.getvalue()


def _meta(header: Dataset, codec: Codec) -> bytes:
    """Preamble and file meta information (PS3.10 7.1)."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = header.SOPClassUID
    meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    meta.TransferSyntaxUID = codec.transfer_syntax_uid
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    file = DicomBytesIO()
    write_file_meta_info(file, meta, enforce_standard=True)
    return b"\0" * 128 + b"DICM" + file.getvalue()
