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
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRLittleEndian

from segnode.dicom.transfer_syntaxes import Encoding, encoding_of
from segnode.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from segnode.seg.codecs import Codec
from segnode.seg.frame_items import FrameItem, frame_items

_PER_FRAME: Final = 0x52009230
_PIXEL_DATA: Final = 0x7FE00010
_UNDEFINED: Final = 0xFFFFFFFF
_SEQUENCE_END: Final = b"\xfe\xff\xdd\xe0\0\0\0\0"


def part10(
    header: Dataset,
    items: Sequence[FrameItem],
    pixels: bytes | memoryview,
    codec: Codec,
    sequences: Mapping[str, bytes] = MappingProxyType({}),
) -> bytes:
    """A Part 10 file in the transfer syntax of a codec.

    `header` has neither per-frame groups, which `items` are, one a frame (none are left out altogether), nor pixel data,
    whose value `pixels` is, without the delimiter where it is encapsulated, nor `sequences`, by keyword, whose values are
    bytes in the same encoding.
    """
    values = {int(Tag(keyword)): value for keyword, value in sequences.items()}
    if items:
        values[_PER_FRAME] = frame_items(items, encoding_of(codec.transfer_syntax_uid))
    return _assembled(header, values, pixels, codec)


def part10_of_groups(header: Dataset, groups: bytes, pixels: bytes | memoryview, codec: Codec) -> bytes:
    """As part10, with per-frame groups that are the value of their sequence in the codec's transfer syntax, or empty."""
    return _assembled(header, {_PER_FRAME: groups} if groups else {}, pixels, codec)


def part10_without_pixels(dataset: Dataset) -> bytes:
    """A Part 10 file of an object that has no pixels, explicit little endian."""
    encoding = encoding_of(ExplicitVRLittleEndian)
    return _meta(dataset, ExplicitVRLittleEndian) + _data_set(dataset, encoding, _charset(dataset))


def _assembled(header: Dataset, values: Mapping[int, bytes], pixels: bytes | memoryview, codec: Codec) -> bytes:
    """The file, with sequences whose values are bytes by their tag."""
    encoding = encoding_of(codec.transfer_syntax_uid)
    words = not codec.encapsulated and header.BitsAllocated == 16
    charset = _charset(header)
    body: list[bytes | memoryview] = []
    begin = 0
    for tag, value in sorted(values.items()):
        body += [_data_set(header[begin:tag], encoding, charset), _element(tag, b"SQ", len(value), encoding), value]
        begin = tag + 1
    body += [
        _data_set(header[begin:_PIXEL_DATA], encoding, charset),
        _element(_PIXEL_DATA, b"OW" if words or encoding.implicit_vr else b"OB", _length(pixels, codec), encoding),
        pixels,
        *([_SEQUENCE_END] if codec.encapsulated else []),
        _data_set(header[_PIXEL_DATA + 1 :], encoding, charset),
    ]
    if encoding.deflated:
        deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        body = [*(deflater.compress(part) for part in body), deflater.flush()]
        body.append(b"\0" * (sum(map(len, body)) % 2))
    return b"".join((_meta(header, codec.transfer_syntax_uid), *body))


def _charset(header: Dataset) -> str | list[str]:
    said = header.get("SpecificCharacterSet") or default_encoding
    return said if isinstance(said, str) else [str(each) for each in said]


def _length(pixels: bytes | memoryview, codec: Codec) -> int:
    return _UNDEFINED if codec.encapsulated else len(pixels)


def sequence_value(items: Sequence[Dataset]) -> bytes:
    """The value of a sequence of items whose text is ASCII, whichever it is, in explicit VR little endian."""
    dataset = Dataset()
    dataset.SegmentSequence = items
    return _data_set(dataset, Encoding(), default_encoding)[len(_element(0, b"SQ", 0, Encoding())) :]


def _element(tag: int, vr: bytes, length: int, encoding: Encoding) -> bytes:
    start = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    return start + struct.pack("<I", length) if encoding.implicit_vr else start + vr + b"\0\0" + struct.pack("<I", length)


def _data_set(dataset: Dataset, encoding: Encoding, charset: str | list[str]) -> bytes:
    """Part of a data set, whose character set may be in another part."""
    file = DicomBytesIO()
    file.is_little_endian, file.is_implicit_VR = True, encoding.implicit_vr
    write_dataset(file, dataset, charset)
    return file.getvalue()


def _meta(header: Dataset, transfer_syntax_uid: str) -> bytes:
    """Preamble and file meta information (PS3.10 7.1)."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = header.SOPClassUID
    meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    file = DicomBytesIO()
    write_file_meta_info(file, meta, enforce_standard=True)
    return b"\0" * 128 + b"DICM" + file.getvalue()
