"""The items of PerFrameFunctionalGroupsSequence (PS3.3 C.7.6.16) as bytes: ten thousand in a fraction of a second."""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from pydicom.datadict import tag_for_keyword
from pydicom.valuerep import format_number_as_ds

from segnode.dicom.codes import SEGMENTATION, SOURCE_IMAGE, Code
from segnode.dicom.elements import LONG_VRS
from segnode.dicom.transfer_syntaxes import Encoding
from segnode.seg.frame_groups import SourceImage

_ITEM = b"\xfe\xff\x00\xe0"


@dataclass(frozen=True)
class FrameItem:
    """What the functional groups of one frame say; None and empty are left out.

    `position` is LPS mm of the centre of the first pixel, or X, Y, Z offset in the slide's coordinate system together with
    `tile`, the row and column (from 1) of the first pixel in the total pixel matrix. `label` tells frames apart that have
    no place. `content` are further elements of FrameContentSequence and `groups` further functional groups, in the encoding
    that they are written in.
    """

    sources: tuple[SourceImage, ...] = ()
    dimension_index_values: tuple[int, ...] = ()
    position: tuple[float, ...] | None = None
    tile: tuple[int, int] | None = None
    segment_number: int | None = None
    label: str = ""
    content: tuple[bytes, ...] = ()
    groups: tuple[bytes, ...] = ()


def frame_items(items: Iterable[FrameItem], encoding: Encoding) -> bytes:
    """The value of PerFrameFunctionalGroupsSequence, little endian, with explicit lengths."""
    write = ElementWriter(encoding)
    return b"".join(write.item(_frame(write, item)) for item in items)


def referenced_series(references: Mapping[str, Sequence[SourceImage]], encoding: Encoding) -> bytes:
    """The value of ReferencedSeriesSequence (PS3.3 C.12.2) for images by the UID of their series."""
    write = ElementWriter(encoding)

    def instance(image: SourceImage) -> bytes:
        return write.text("ReferencedSOPClassUID", b"UI", image.sop_class_uid) + write.text(
            "ReferencedSOPInstanceUID", b"UI", image.sop_instance_uid
        )

    return b"".join(
        write.item(
            write.sequence("ReferencedInstanceSequence", *map(instance, images))
            + write.text("SeriesInstanceUID", b"UI", series_instance_uid)
        )
        for series_instance_uid, images in references.items()
    )


class ElementWriter:
    """Elements in an encoding, little endian; what is written often is written once."""

    def __init__(self, encoding: Encoding) -> None:
        self._implicit = encoding.implicit_vr
        self.derivation = lru_cache(maxsize=4096)(self._derivation)
        self.position = lru_cache(maxsize=4096)(self._position)
        self.segment = lru_cache(maxsize=1024)(self._segment)
        self.code = lru_cache(maxsize=1024)(self._code)

    def element(self, keyword: str, vr: bytes, value: bytes) -> bytes:
        """An element with its header."""
        tag = _tag(keyword)
        if self._implicit:
            return tag + struct.pack("<I", len(value)) + value
        if vr in LONG_VRS:
            return tag + vr + b"\0\0" + struct.pack("<I", len(value)) + value
        return tag + vr + struct.pack("<H", len(value)) + value

    def text(self, keyword: str, vr: bytes, value: str) -> bytes:
        """A text element of even length; what is not ASCII is UTF-8, as the data set then is."""
        encoded = value.encode()
        padding = b"\0" if vr == b"UI" else b" "
        return self.element(keyword, vr, encoded + padding * (len(encoded) % 2))

    def item(self, value: bytes) -> bytes:
        """An item of a sequence."""
        return _ITEM + struct.pack("<I", len(value)) + value

    def sequence(self, keyword: str, *items: bytes) -> bytes:
        """A sequence of items."""
        return self.element(keyword, b"SQ", b"".join(map(self.item, items)))

    def _code(self, code: Code) -> bytes:
        """The item of a code sequence (PS3.3 8.8): a value of more than 16 characters is a long one, or a URN."""
        rest = self.text("CodingSchemeDesignator", b"SH", code.scheme) + self.text("CodeMeaning", b"LO", code.meaning)
        if len(code.value) <= 16:
            return self.text("CodeValue", b"SH", code.value) + rest
        if code.value.startswith(("urn:", "http:", "https:")):
            return rest + self.text("URNCodeValue", b"UR", code.value)
        return rest + self.text("LongCodeValue", b"UC", code.value)

    def _derivation(self, sources: Sequence[SourceImage]) -> bytes:
        return self.sequence(
            "DerivationImageSequence",
            self.sequence("SourceImageSequence", *map(self._source, sources))
            + self.sequence("DerivationCodeSequence", self.code(SEGMENTATION)),
        )

    def _position(self, position: tuple[float, ...]) -> bytes:
        return self.sequence("PlanePositionSequence", self.text("ImagePositionPatient", b"DS", decimals(position)))

    def _segment(self, number: int) -> bytes:
        referenced = self.element("ReferencedSegmentNumber", b"US", struct.pack("<H", number))
        return self.sequence("SegmentIdentificationSequence", referenced)

    def _source(self, source: SourceImage) -> bytes:
        numbers, preserved = "\\".join(map(str, source.frame_numbers)), source.spatial_locations_preserved
        return (
            self.text("ReferencedSOPClassUID", b"UI", source.sop_class_uid)
            + self.text("ReferencedSOPInstanceUID", b"UI", source.sop_instance_uid)
            + (self.text("ReferencedFrameNumber", b"IS", numbers) if numbers else b"")
            + (self.text("SpatialLocationsPreserved", b"CS", preserved) if preserved else b"")
            + self.sequence("PurposeOfReferenceCodeSequence", self.code(SOURCE_IMAGE))
        )


def _frame(write: ElementWriter, item: FrameItem) -> bytes:
    parts = []
    if item.sources:
        parts.append(write.derivation(item.sources))
    indices = item.dimension_index_values
    content = [write.element("DimensionIndexValues", b"UL", struct.pack(f"<{len(indices)}I", *indices))] if indices else []
    if item.label:
        content.append(write.text("FrameLabel", b"LO", item.label))
    parts.append(write.sequence("FrameContentSequence", b"".join(_in_order(content, item.content))))
    if item.position is not None and item.tile is None:
        parts.append(write.position(item.position))
    if item.tile is not None:
        parts.append(write.sequence("PlanePositionSlideSequence", _slide_position(write, item.tile, item.position)))
    if item.segment_number is not None:
        parts.append(write.segment(item.segment_number))
    # Ascending tags, as PS3.5 7.1 wants them: 0008, 0020 9111, 0020 9113, 0048 or 0062.
    return b"".join(_in_order(parts, item.groups))


def _in_order(elements: Sequence[bytes], more: Sequence[bytes]) -> Sequence[bytes]:
    """Elements, which are in the order of their tags, with more of them."""
    return sorted((*elements, *more), key=lambda element: struct.unpack_from("<HH", element)) if more else elements


def _slide_position(write: ElementWriter, tile: tuple[int, int], offsets: tuple[float, ...] | None) -> bytes:
    row, column = tile
    axes = zip("XYZ", offsets or (), strict=False)
    return (
        b"".join(write.text(f"{axis}OffsetInSlideCoordinateSystem", b"DS", decimals((offset,))) for axis, offset in axes)
        + write.element("ColumnPositionInTotalImagePixelMatrix", b"SL", struct.pack("<i", column))
        + write.element("RowPositionInTotalImagePixelMatrix", b"SL", struct.pack("<i", row))
    )


@lru_cache(maxsize=4096)
def decimals(numbers: tuple[float, ...]) -> str:
    """Numbers as decimal strings of 16 characters at most (PS3.5 6.2)."""
    return "\\".join(repr(n) if len(repr(n)) <= 16 else format_number_as_ds(n) for n in map(_short, numbers))


def _short(number: float) -> float:
    """Whole numbers without a fraction, as most writers have them."""
    return int(number) if float(number).is_integer() else float(number)


@lru_cache(maxsize=256)
def _tag(keyword: str) -> bytes:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF)
