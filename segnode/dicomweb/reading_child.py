"""What a decoding process reads of a file: its data set without pixels, and the frames, one at a time."""

from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import DataElement, Dataset
from pydicom.encaps import encapsulate
from pydicom.filereader import read_dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, ExplicitVRLittleEndian

from segnode.dicom.elements import PIXEL_DATA, Buffer, elements, read_meta
from segnode.dicom.frame_places import PIXELS, FramePlaces, places_in_data_set
from segnode.dicom.transfer_syntaxes import encoding_of
from segnode.dicom.values import vr_of
from segnode.errors import NotFound
from segnode.seg.codecs import DECODERS, FrameShape, native
from segnode.seg.read import inflate, map_file


@dataclass(frozen=True, eq=False)
class OpenFile:
    """A Part 10 file: its bytes, inflated no further than is bounded, and where its data set begins in them."""

    data: Buffer
    start: int
    transfer_syntax_uid: str

    @cached_property
    def header(self) -> Dataset:
        """The data set up to the pixel data, of which there is only that it is there."""
        encoding = encoding_of(self.transfer_syntax_uid)
        kept, pixels = BytesIO(), None
        for element in elements(self.data, self.start, len(self.data), encoding, open_at=PIXEL_DATA):
            if element.tag in PIXELS:
                pixels = element
                break
            kept.write(self.data[element.begin : element.next])
        kept.seek(0)
        dataset = read_dataset(kept, encoding.implicit_vr, encoding.little_endian)
        if pixels is not None and pixels.end > pixels.start:
            vr = vr_of(self.data, pixels, implicit_vr=encoding.implicit_vr)
            dataset[pixels.tag] = DataElement(pixels.tag, vr, b"\0\0")
        return dataset

    @cached_property
    def places(self) -> FramePlaces:
        """Where its frames lie. Raises NotFound where it has none, UnreadablePixels."""
        places = places_in_data_set(self.data, self.start, self.transfer_syntax_uid)
        if places is None:
            raise NotFound("it has no pixel data, and so no frames")
        return places

    def frame(self, index: int) -> bytes:
        """A frame, native little endian. Raises NotFound, UnreadablePixels."""
        places = self._with_frame(index)
        if places.starts is None:
            return places.native(self.data, index)
        return decoded(places, places.codestream(self.data, index))

    def colours(self, index: int) -> npt.NDArray[np.number[Any]]:
        """A frame of three samples a pixel as RGB (rows, columns, 3). Raises as frame() does, and whatever pydicom does."""
        places = self._with_frame(index)
        if places.starts is None:
            decoder, source = get_decoder(ExplicitVRLittleEndian), places.native(self.data, index)
        else:
            decoder = get_decoder(UID(places.transfer_syntax_uid))
            source = encapsulate([places.codestream(self.data, index)], has_bot=False)
        array, _ = decoder.as_array(source, index=0, **_image_pixel(places))
        return array

    def _with_frame(self, index: int) -> FramePlaces:
        if index >= self.places.number_of_frames:
            raise NotFound(f"it has {self.places.number_of_frames} frames")
        return self.places


class LastFile:
    """The file that was asked for last: several frames of one are asked for in a row."""

    def __init__(self) -> None:
        self._path = Path()
        self._file = OpenFile(b"", 0, "")

    def open(self, path: Path) -> OpenFile:
        """A file. Raises NotDicom, OSError."""
        if path != self._path:
            self._path, self._file = Path(), OpenFile(b"", 0, "")  # no two are held at a time
            self._path, self._file = path, open_file(path)
        return self._file


def open_file(path: Path) -> OpenFile:
    """A file, mapped, or inflated where it is deflated. Raises NotDicom, OSError."""
    data = map_file(path)
    syntax, start = read_meta(data)
    return OpenFile(inflate(data[start:]), 0, syntax) if encoding_of(syntax).deflated else OpenFile(data, start, syntax)


def decoded(places: FramePlaces, codestream: bytes) -> bytes:
    """A native frame of a codestream, little endian. Raises UnreadablePixels, and whatever pydicom's decoders do."""
    numbers, syntax = places.numbers, places.transfer_syntax_uid
    is_plain = numbers.get("SamplesPerPixel", 1) == 1 and not numbers.get("PixelRepresentation", 0)
    if is_plain and syntax in DECODERS and numbers["BitsAllocated"] in (1, 8, 16):
        shape = FrameShape(numbers["Rows"], numbers["Columns"], numbers["BitsAllocated"])
        frame = DECODERS[syntax](codestream, shape)
        return native.encode(frame.view(np.bool_) if shape.bits == 1 else frame)
    source = encapsulate([codestream], has_bot=False)
    array, _ = get_decoder(UID(syntax)).as_array(source, index=0, raw=True, **_image_pixel(places))
    if array.ndim == 3 and numbers.get("PlanarConfiguration") == 1:  # as metadata say that it is
        array = np.moveaxis(array, -1, 0)
    values: bytes = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return values


def _image_pixel(places: FramePlaces) -> dict[str, Any]:
    """What a decoder of pydicom has to know of one frame."""
    numbers = places.numbers
    return {
        "rows": numbers["Rows"],
        "columns": numbers["Columns"],
        "samples_per_pixel": numbers.get("SamplesPerPixel", 1),
        "bits_allocated": numbers["BitsAllocated"],
        "bits_stored": numbers.get("BitsStored", numbers["BitsAllocated"]),
        "pixel_representation": numbers.get("PixelRepresentation", 0),
        # That of a codestream is its own, whatever is said (PS3.5 8.2), and pydicom believes it.
        "planar_configuration": numbers.get("PlanarConfiguration", 0) if places.starts is None else 0,
        "photometric_interpretation": places.photometric_interpretation,
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
    }
