"""Where the frames of an object lie in its bytes, so that one is read without the others (PS3.5 8, A.4)."""

import struct
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom.uid import ExplicitVRBigEndian

from segnode.dicom.elements import ITEM, PIXEL_DATA, Buffer, Element, elements, read_meta
from segnode.dicom.transfer_syntaxes import NATIVE, Encoding, encoding_of
from segnode.errors import NotDicom, UnreadablePixels

_FLOAT_PIXEL_DATA: Final = 0x7FE00008
_DOUBLE_FLOAT_PIXEL_DATA: Final = 0x7FE00009
PIXELS: Final = (PIXEL_DATA, _FLOAT_PIXEL_DATA, _DOUBLE_FLOAT_PIXEL_DATA)
_EXTENDED_OFFSETS: Final = 0x7FE00001
_NUMBERS: Final = {
    0x00280002: "SamplesPerPixel",
    0x00280006: "PlanarConfiguration",
    0x00280010: "Rows",
    0x00280011: "Columns",
    0x00280100: "BitsAllocated",
    0x00280101: "BitsStored",
    0x00280103: "PixelRepresentation",
}
_NUMBER_OF_FRAMES: Final = 0x00280008
_PHOTOMETRIC_INTERPRETATION: Final = 0x00280004
_LONGEST_TEXT: Final = 64
_HEADER: Final = struct.Struct("<HHI")
_ITEM_GROUP, _ITEM_NUMBER, _SEQUENCE_END = 0xFFFE, ITEM & 0xFFFF, 0xE0DD
_UNDEFINED: Final = 0xFFFFFFFF
_LONG_HEADER: Final = 12


@dataclass(frozen=True, eq=False)
class FramePlaces:
    """What the frames of an object are, and where they begin: natively one after the other, else each at an item.

    `numbers` holds the attributes of the Image Pixel module that are numbers, by keyword, those that are there.
    """

    transfer_syntax_uid: str
    numbers: Mapping[str, int]
    photometric_interpretation: str
    number_of_frames: int
    start: int
    end: int
    starts: "array[int] | None"
    swapped_by: int = 1

    @property
    def bits(self) -> int:
        """The bits of a native frame."""
        samples = self.numbers.get("SamplesPerPixel", 1)
        if samples == 3 and self.photometric_interpretation == "YBR_FULL_422":
            samples = 2  # of two pixels next to each other the colour is there once (PS3.3 C.7.6.3.1.2)
        return self.numbers["Rows"] * self.numbers["Columns"] * samples * self.numbers["BitsAllocated"]

    def span(self, index: int) -> tuple[int, int] | None:
        """Where the bytes of a native frame begin and end in the file; None where they are shifted, or swapped."""
        if self.bits % 8 or self.swapped_by != 1:
            return None
        size = self.bits // 8
        return self.start + index * size, self.start + (index + 1) * size

    def native(self, buffer: Buffer, index: int) -> bytes:
        """A native frame, little endian, its first pixel at the first bit of a byte (PS3.5 8.1.1)."""
        first, unused = divmod(index * self.bits, 8)
        size = (self.bits + 7) // 8
        values = self._little_endian(buffer, first, first + (unused + self.bits + 7) // 8)
        if not unused and self.bits % 8 == 0:
            return values
        whole = int.from_bytes(values, "little") >> unused
        return (whole & ((1 << self.bits) - 1)).to_bytes(size, "little")

    def codestream(self, buffer: Buffer, index: int) -> bytes:
        """The codestream of a frame, its fragments put together. Raises UnreadablePixels."""
        if self.starts is None:
            raise UnreadablePixels("the frames are not compressed")
        stop = self.starts[index + 1] if index + 1 < len(self.starts) else self.end
        fragments = [buffer[start:end] for start, end in _fragments(buffer, self.starts[index], stop)]
        if not fragments:
            raise UnreadablePixels(f"PixelData holds nothing of frame {index + 1}")
        return b"".join(fragments)

    def _little_endian(self, buffer: Buffer, first: int, last: int) -> bytes:
        if self.swapped_by == 1:
            return bytes(buffer[self.start + first : self.start + last])
        before, after = first % self.swapped_by, -last % self.swapped_by
        words = bytes(buffer[self.start + first - before : self.start + last + after])
        words += b"\0" * (-len(words) % self.swapped_by)
        swapped: npt.NDArray[np.uint8] = np.frombuffer(words, f"u{self.swapped_by}").byteswap().view(np.uint8)
        return swapped[before : before + last - first].tobytes()


def frame_places(buffer: Buffer) -> FramePlaces | None:
    """Where the frames in a Part 10 file lie, None where it has no pixel data. Raises NotDicom, UnreadablePixels."""
    syntax, start = read_meta(buffer)
    return places_in_data_set(buffer, start, syntax)


def places_in_data_set(buffer: Buffer, start: int, syntax: str) -> FramePlaces | None:
    """Where the frames of a data set lie that begins there; as frame_places()."""
    encoding = encoding_of(syntax)
    found: dict[int, Element] = {}
    for element in elements(buffer, start, len(buffer), encoding, open_at=PIXEL_DATA):
        found[element.tag] = element
        if element.tag == PIXEL_DATA:
            break
    pixels = next((found[tag] for tag in PIXELS if tag in found), None)
    if pixels is None:
        return None
    numbers = {name: _number(buffer, found[tag], encoding) for tag, name in _NUMBERS.items() if tag in found}
    for name in ("Rows", "Columns", "BitsAllocated"):
        if not numbers.get(name):
            raise UnreadablePixels(f"{name} is missing or 0: its frames cannot be told apart")
    count = _text(buffer, found.get(_NUMBER_OF_FRAMES)) or "1"
    if not count.isdecimal() or int(count) < 1:
        raise UnreadablePixels("NumberOfFrames is no whole number from 1 on")
    photometric = _text(buffer, found.get(_PHOTOMETRIC_INTERPRETATION))
    known = (syntax, numbers, photometric, int(count))
    if _is_native(buffer, pixels, encoding):
        if syntax not in NATIVE:
            raise UnreadablePixels(f"PixelData is no sequence of fragments, as transfer syntax {syntax} has it")
        places = FramePlaces(
            *known, pixels.start, pixels.end, None, _swapped_by(buffer, pixels, syntax, numbers["BitsAllocated"])
        )
        if (places.bits * places.number_of_frames + 7) // 8 > pixels.end - pixels.start:
            raise UnreadablePixels(
                f"PixelData has {pixels.end - pixels.start} bytes, fewer than Rows, Columns, SamplesPerPixel,"
                " BitsAllocated and NumberOfFrames make"
            )
        return places
    return FramePlaces(*known, pixels.start, pixels.end, _starts(buffer, found, pixels, int(count)))


def _is_native(buffer: Buffer, pixels: Element, encoding: Encoding) -> bool:
    """Whether its length is defined; in implicit VR and big endian it always is."""
    if encoding.implicit_vr or not encoding.little_endian or pixels.start - pixels.begin < _LONG_HEADER:
        return True
    length: int = struct.unpack_from("<I", buffer, pixels.begin + 8)[0]
    return length != _UNDEFINED


def _swapped_by(buffer: Buffer, pixels: Element, syntax: str, bits: int) -> int:
    """How many bytes are in each other's place: in big endian OW is words of 16 bits, whatever is in them."""
    if syntax != ExplicitVRBigEndian:
        return 1
    vr = bytes(buffer[pixels.begin + 4 : pixels.begin + 6])
    return {b"OB": 1, b"OF": 4, b"OL": 4, b"OD": 8, b"OV": 8}.get(vr, max(2, bits // 8))


def _starts(buffer: Buffer, found: Mapping[int, Element], pixels: Element, count: int) -> "array[int]":
    """Where the first item of every frame begins: by a table of offsets, or else by going through all of them."""
    table = next(_fragments(buffer, pixels.start, pixels.end), None)
    if table is None:
        raise UnreadablePixels("PixelData does not start with a basic offset table")
    first, extended = table[1], found.get(_EXTENDED_OFFSETS)
    offsets: tuple[int, ...] = ()
    if extended is not None and extended.end - extended.start == 8 * count:
        offsets = struct.unpack_from(f"<{count}Q", buffer, extended.start)
    elif table[1] - table[0] == 4 * count:
        offsets = struct.unpack_from(f"<{count}I", buffer, table[0])
    starts = array("Q", (first + offset for offset in offsets if first + offset < pixels.end))
    if offsets and len(starts) == count and starts[0] == first and all(a < b for a, b in pairwise(starts)):
        return starts
    if count == 1:
        return array("Q", [first])
    starts = array("Q", (start - _HEADER.size for start, _ in _fragments(buffer, first, pixels.end)))
    if len(starts) != count:
        raise UnreadablePixels(
            f"PixelData holds {len(starts)} fragments and no table of offsets"
            f" from which the {count} frames of NumberOfFrames can be told apart"
        )
    return starts


def _fragments(buffer: Buffer, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where the bytes of each item begin and end; the delimiter behind them may be missing. Raises UnreadablePixels."""
    place = start
    while place < end:
        if place + _HEADER.size > end:
            raise UnreadablePixels("PixelData ends within the header of an item")
        group, number, length = _HEADER.unpack_from(buffer, place)
        if (group, number) == (_ITEM_GROUP, _SEQUENCE_END):
            return
        if (group, number) != (_ITEM_GROUP, _ITEM_NUMBER):
            raise UnreadablePixels("PixelData holds something else than items")
        place += _HEADER.size
        if place + length > end:
            raise UnreadablePixels("PixelData ends within an item")
        yield place, place + length
        place += length


def _number(buffer: Buffer, element: Element, encoding: Encoding) -> int:
    if element.end - element.start != 2:
        raise NotDicom(f"({element.tag >> 16:04x},{element.tag & 0xFFFF:04x}) is not one number of 16 bits")
    return int.from_bytes(buffer[element.start : element.end], "little" if encoding.little_endian else "big")


def _text(buffer: Buffer, element: Element | None) -> str:
    return "" if element is None else str(buffer[element.start : element.end][:_LONGEST_TEXT], "latin-1").strip(" \0")
