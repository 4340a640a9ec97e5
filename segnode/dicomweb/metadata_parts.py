"""Objects that come as metadata and bulk data (PS3.18 10.5.1.2): DICOM JSON or XML, and the parts that its URIs name.

The parts lie on disk until the message has ended; then each object is put together as a Part 10 file, one at a time.
"""

import re
import threading
from base64 import b64decode
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, BinaryIO, Final

import msgspec
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.multival import MultiValue
from pydicom.uid import UID, ExplicitVRLittleEndian
from pydicom.valuerep import format_number_as_ds

from segnode.dicom.elements import LONG_VRS, PIXEL_DATA
from segnode.dicom.json import Json
from segnode.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, is_uid
from segnode.dicom.xml import read_native_xml
from segnode.dicomweb.media_types import JSON, OCTETS, MediaType, parse_media_type
from segnode.errors import BadRequest, NotDicom, Refusal, TooLarge
from segnode.store.objects import ObjectStore, Spool

_LONGEST_METADATA: Final = 64 << 20
# Parsed it takes more than JSON; each object has a part of its own.
_LONGEST_XML: Final = 16 << 20
# A value inside a sequence is put together in memory.
_LONGEST_NESTED: Final = 16 << 20
_BLOCK: Final = 1 << 20
_TAG: Final = re.compile("[0-9A-Fa-f]{8}")
_FIRST_OF_DATA_SET: Final = 0x00080000
_CHARACTER_SET: Final = 0x00080005
_UNDEFINED: Final = 0xFFFFFFFF
_NUMBERS_AS_TEXT: Final = ("DS", "IS")
_WHOLE: Final = ("IS", "SL", "SS", "SV", "UL", "US", "UV")
_ITEM, _SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0\0\0\0\0"
_IMAGE: Final = {0x00280010: "Rows", 0x00280011: "Columns", 0x00280100: "BitsAllocated"}
_NUMBER_OF_FRAMES: Final = "00280008"
# Decoded metadata takes many times its bytes.
_ONE_AT_A_TIME: Final = threading.Lock()

_JPEG: Final = "1.2.840.10008.1.2.4."
# The transfer syntaxes of each media type, the default first (PS3.18 table 8.7.3-5).
_COMPRESSED: Final[Mapping[str, Sequence[str]]] = {
    "image/jpeg": (_JPEG + "70", _JPEG + "50", _JPEG + "51", _JPEG + "57"),
    "image/dicom-rle": ("1.2.840.10008.1.2.5",),
    "image/jls": (_JPEG + "80", _JPEG + "81"),
    "image/jp2": (_JPEG + "90", _JPEG + "91"),
    "image/jpx": (_JPEG + "92", _JPEG + "93"),
    "image/jph": (_JPEG + "201", _JPEG + "202", _JPEG + "203"),
    "image/jphc": (_JPEG + "201", _JPEG + "202", _JPEG + "203"),
    "image/jxl": (_JPEG + "110", _JPEG + "111", _JPEG + "112"),
    "video/mpeg": (_JPEG + "100", _JPEG + "101"),
    "video/mp4": (_JPEG + "102", _JPEG + "103", _JPEG + "104", _JPEG + "105", _JPEG + "106"),
}


@dataclass(frozen=True)
class _Part:
    """A part of the message: where it lies in the file of all parts."""

    media: MediaType
    offset: int
    length: int

    @property
    def transfer_syntax_uid(self) -> str:
        """That of the pixels in it, by its media type (PS3.18 8.7.3.3). Raises NotDicom."""
        said = self.media.parameters.get("transfer-syntax", "")
        known = _COMPRESSED.get(self.media.name) or ((str(ExplicitVRLittleEndian),) if self.media.name == OCTETS else ())
        if not known or (said and said not in known):
            raise NotDicom("bulk data has a media type, or a transfer syntax, that is not known for it (PS3.18 8.7.3)")
        return said or known[0]


class MetadataParts:
    """The parts of one message, metadata of one media type; `receive` takes each object, `refuse` hears why one is not had."""

    def __init__(
        self, kind: str, objects: ObjectStore, receive: Callable[[Spool], None], refuse: Callable[[Refusal], None]
    ) -> None:
        self._kind = kind
        self._longest = _LONGEST_METADATA if kind == JSON else _LONGEST_XML
        self._objects = objects
        self._receive = receive
        self._refuse = refuse
        self._spool: Spool | None = None
        self._refusal: Refusal | None = None
        self._place = 0
        self._begun = 0
        self._media = MediaType(kind)
        self._location = ""
        self._metadata: list[_Part] = []
        self._bulk_data: defaultdict[str, list[_Part]] = defaultdict(list)

    def begin(self, headers: Mapping[str, str]) -> None:
        """A part begins; without a media type the first is metadata, and another bulk data."""
        self._media = parse_media_type(headers.get("content-type") or (OCTETS if self._metadata else self._kind))
        self._location = headers.get("content-location", "")
        self._begun = self._place

    def write(self, block: bytes | memoryview) -> None:
        """The next bytes of the part. Raises TooLarge."""
        self._place += len(block)
        if self._media.name == self._kind and self._place - self._begun > self._longest:
            raise TooLarge(f"a part of metadata is longer than {self._longest} bytes: send it in several parts")
        if self._refusal is None:
            try:
                self._spool = self._spool or self._objects.spool()
                self._spool.write(block)
            except Refusal as refusal:
                self._refusal = refusal

    def end(self) -> None:
        """The part is complete."""
        part = _Part(self._media, self._begun, self._place - self._begun)
        if part.media.name == self._kind:
            self._metadata.append(part)
        else:
            self._bulk_data[self._location].append(part)

    def finish(self) -> None:
        """Put every object together. Raises BadRequest when there is no metadata, or it cannot be read."""
        if self._refusal is not None:
            self._refuse(self._refusal)
        elif self._spool is None or not self._metadata:
            raise BadRequest(f"the message has no part of {self._kind}")
        else:
            try:
                self._spool.complete()
            except Refusal as refusal:  # what is small is written only now
                self._refuse(refusal)
                return
            with self._spool.path.open("rb") as file:
                for part in self._metadata:
                    with _ONE_AT_A_TIME:
                        self._store(file, part)

    def close(self) -> None:
        """Drop the parts."""
        if self._spool is not None:
            self._spool.discard()

    def _store(self, file: BinaryIO, part: _Part) -> None:
        metadata = _bytes(file, part)
        for one in _objects_in(metadata) if self._kind == JSON else [_parsed(metadata)]:
            identity = None
            try:
                document = _decoded(one) if isinstance(one, msgspec.Raw) else one
                identity = _identity(document)
                with self._objects.spool() as spool:
                    for block in _Composition(file, self._bulk_data, document).blocks():
                        spool.write(block)
                    self._receive(spool)
            except Refusal as refusal:
                refusal.identity = refusal.identity or identity
                self._refuse(refusal)


@dataclass(frozen=True)
class _Composition:
    """An object that is put together from its metadata, a file of parts, and where they lie by Content-Location."""

    file: BinaryIO
    bulk_data: Mapping[str, Sequence[_Part]]
    document: Json

    def blocks(self) -> Iterator[bytes]:
        """The bytes of its Part 10 file. Raises NotDicom."""
        attributes = dict(sorted(_attributes(self.document), key=itemgetter(0)))
        pixels = attributes.get(PIXEL_DATA, {})
        parts = self._named(pixels["BulkDataURI"]) if "BulkDataURI" in pixels else []
        syntaxes = {part.transfer_syntax_uid for part in parts} or {str(ExplicitVRLittleEndian)}
        if len(syntaxes) > 1:
            raise NotDicom("PixelData has parts of several transfer syntaxes", "PixelData")
        syntax = syntaxes.pop()
        if syntax != ExplicitVRLittleEndian:
            self._require_frames(attributes, parts)
        yield _file_meta(self.document, syntax)
        for tag, content in attributes.items():
            if tag == PIXEL_DATA and syntax != ExplicitVRLittleEndian:
                yield from self._encapsulated(parts)
            elif "BulkDataURI" in content:
                yield from self._native(tag, content)
            else:
                yield self._encoded(tag, content)

    def _named(self, uri: Any) -> Sequence[_Part]:
        """The parts of this message that a BulkDataURI names; nothing else is ever looked at. Raises NotDicom."""
        uri = uri[0] if isinstance(uri, list) and uri else uri
        parts = self.bulk_data.get(uri, ()) if isinstance(uri, str) else ()
        if not parts:
            raise NotDicom("a BulkDataURI is the Content-Location of no part of this message, and is not followed elsewhere")
        return parts

    def _only(self, uri: Any) -> _Part:
        parts = self._named(uri)
        if len(parts) > 1 or parts[0].media.name != OCTETS:
            raise NotDicom(f"bulk data that is no compressed PixelData is one part of {OCTETS}")
        return parts[0]

    def _require_frames(self, attributes: Mapping[int, Json], parts: Sequence[_Part]) -> None:
        """What says how to read compressed pixels is not taken from them, and each frame is a part. Raises NotDicom."""
        for tag, keyword in _IMAGE.items():
            if not attributes.get(tag, {}).get("Value"):
                raise NotDicom(f"{keyword} is missing: it is not taken from compressed PixelData", keyword)
        said = self.document.get(_NUMBER_OF_FRAMES, {}).get("Value", [1])
        is_video = parts[0].media.name.startswith("video/")
        if not is_video and str(len(parts)) != str(said[0] if isinstance(said, list) and said else 1):
            raise NotDicom("compressed PixelData is one part for each of NumberOfFrames", "NumberOfFrames")

    def _encapsulated(self, parts: Sequence[_Part]) -> Iterator[bytes]:
        """PixelData with an empty offset table and an item for each part (PS3.5 A.4)."""
        yield _header(PIXEL_DATA, b"OB", _UNDEFINED) + _ITEM + bytes(4)
        for part in parts:
            yield _ITEM + _length(part.length).to_bytes(4, "little")
            yield from _padded(self.file, part)
        yield _SEQUENCE_END

    def _native(self, tag: int, content: Json) -> Iterator[bytes]:
        part, vr = self._only(content["BulkDataURI"]), str(content.get("vr", "")).encode()
        longest = _UNDEFINED - 1 if vr in LONG_VRS else 0xFFFE
        if len(vr) != 2 or not vr.isupper() or vr == b"SQ" or part.length > longest:
            raise NotDicom("bulk data does not fit its value representation")
        yield _header(tag, vr, _length(part.length))
        yield from _padded(self.file, part)

    def _nested(self, _tag: str, vr: str, uri: str) -> Any:
        part = self._only(uri)
        if part.length > _LONGEST_NESTED:
            raise NotDicom(f"bulk data inside a sequence is longer than {_LONGEST_NESTED} bytes")
        found = _bytes(self.file, part)
        return found if vr.encode() in LONG_VRS - {b"UC", b"UR", b"UT"} else found.decode("utf-8", "replace")

    def _encoded(self, tag: int, content: Json) -> bytes:
        """An element whose value is in the metadata. Raises NotDicom."""
        encoded = DicomBytesIO()
        encoded.is_little_endian, encoded.is_implicit_VR = True, False
        try:
            dataset = Dataset.from_json({f"{tag:08X}": _writable(content)}, self._nested)
            _empty_numbers(dataset)
            write_dataset(encoded, dataset, "ISO_IR 192")
        except NotDicom:
            raise
        except Exception as error:  # whatever pydicom raises for a value that is not of its VR; it may repeat the value
            raise NotDicom(f"({tag >> 16:04x},{tag & 0xFFFF:04x}) has no value that DICOM JSON gives its VR") from error
        return encoded.getvalue()


def _objects_in(metadata: bytes) -> Iterable[msgspec.Raw]:
    """Each object of an array, undecoded; one that stands alone is let pass. Raises BadRequest."""
    try:
        found = msgspec.json.decode(metadata, type=list[msgspec.Raw] | dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest("the metadata is not JSON: an array of data sets (PS3.18 F.2)") from error
    return found if isinstance(found, list) else [msgspec.Raw(metadata)]


def _parsed(metadata: bytes) -> Json:
    try:
        return read_native_xml(metadata)
    except ValueError as error:
        raise BadRequest("the metadata is not XML without DTD: a Native DICOM Model (PS3.19 A.1) in each part") from error


def _decoded(raw: msgspec.Raw) -> Json:
    try:
        return msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise NotDicom("the metadata of an object is not a DICOM JSON object") from error


def _attributes(document: Json) -> Iterator[tuple[int, Json]]:
    """By tag, without file meta information and group lengths, and in the one character set of JSON. Raises NotDicom."""
    yield _CHARACTER_SET, {"vr": "CS", "Value": ["ISO_IR 192"]}
    for name, content in document.items():
        if not _TAG.fullmatch(name) or not isinstance(content, dict):
            raise NotDicom("an attribute in the metadata is not a tag of eight hexadecimal digits with its content")
        tag = int(name, 16)
        if tag >= _FIRST_OF_DATA_SET and tag & 0xFFFF and tag != _CHARACTER_SET:
            yield tag, content


def _identity(document: Json) -> tuple[str, str] | None:
    """The SOP class and instance UIDs, where they are UIDs."""
    sop_class, instance = _uid(document, "00080016"), _uid(document, "00080018")
    return (sop_class, instance) if sop_class and instance else None


def _uid(document: Json, tag: str) -> str:
    content = document.get(tag)
    values = content.get("Value") if isinstance(content, dict) else None
    uid = values[0] if isinstance(values, list) and values else None
    return uid if isinstance(uid, str) and is_uid(uid) else ""


def _file_meta(document: Json, transfer_syntax_uid: str) -> bytes:
    sop_class, instance = _identity(document) or ("", "")
    if not instance:
        raise NotDicom("SOPClassUID or SOPInstanceUID is missing in the metadata, or holds no UID")
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(sop_class), UID(instance)
    meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    meta.ImplementationClassUID, meta.ImplementationVersionName = IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
    file = DicomBytesIO()
    file.write(bytes(128) + b"DICM")
    write_file_meta_info(file, meta)
    return file.getvalue()


def _writable(content: Any) -> Any:
    """Content of which pydicom writes all that it says, and nothing else. Raises ValueError for what is none of its VR.

    Of base64 pydicom passes over what is none, of a whole number over what is behind the point, and over tags that are none;
    and items it writes in the character set that they name, where JSON has one.
    """
    if not isinstance(content, dict):
        return content
    inline = content.get("InlineBinary") or []
    for text in [inline] if isinstance(inline, str) else inline:
        b64decode("".join(text.split()), validate=True)
    values, vr = content.get("Value"), content.get("vr")
    return {**content, "Value": [_writable_value(vr, value) for value in values]} if isinstance(values, list) else content


def _writable_value(vr: Any, value: Any) -> Any:
    if vr == "SQ" and isinstance(value, dict):
        return {tag: _writable(content) for tag, content in value.items() if tag != f"{_CHARACTER_SET:08X}"}
    if isinstance(value, float) and vr in _WHOLE and not value.is_integer():
        raise ValueError("a whole number has a fraction")
    if vr == "AT" and not (isinstance(value, str) and _TAG.fullmatch(value)):
        raise ValueError("a tag is none")
    # As a number JSON writes it with more digits than the 16 characters of the VR hold.
    return format_number_as_ds(value) if isinstance(value, float) and vr == "DS" else value


def _empty_numbers(dataset: Dataset) -> None:
    """Have numbers that are empty (null, PS3.18 F.2.5) written as empty: beside others pydicom writes the word None."""
    for element in dataset.iterall():
        if element.VR in _NUMBERS_AS_TEXT and isinstance(element.value, MultiValue):
            element.value = ["" if value is None else value for value in element.value]


def _header(tag: int, vr: bytes, length: int) -> bytes:
    """Of an element, explicit little endian."""
    start = (tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little") + vr
    return start + (bytes(2) + length.to_bytes(4, "little") if vr in LONG_VRS else length.to_bytes(2, "little"))


def _length(size: int) -> int:
    """The even length of a value. Raises NotDicom."""
    if size >= _UNDEFINED - 1:
        raise NotDicom("a part of bulk data is longer than a value of DICOM may be")
    return size + size % 2


def _padded(file: BinaryIO, part: _Part) -> Iterator[bytes]:
    file.seek(part.offset)
    left = part.length
    while left:
        block = file.read(min(left, _BLOCK))
        left -= len(block)
        yield block
    yield b"\0" * (part.length % 2)


def _bytes(file: BinaryIO, part: _Part) -> bytes:
    file.seek(part.offset)
    return file.read(part.length)
