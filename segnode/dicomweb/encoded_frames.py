"""Images whose frames are encoded one by one, in codecs that pydicom does not write; what is not lossless is not written."""

from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Final

import imagecodecs
import numpy as np
import numpy.typing as npt
from pydicom import dcmread

from segnode.dicom.elements import PIXEL_DATA, elements, read_meta
from segnode.dicom.frame_places import FramePlaces, frame_places
from segnode.dicom.transfer_syntaxes import Encoding
from segnode.errors import UnreadablePixels
from segnode.seg.codecs import Codec, deflate_frames, htj2k
from segnode.seg.fragments import encapsulated
from segnode.seg.part10 import part10_of_groups

_FrameEncoder = Callable[[bytes, FramePlaces], bytes]


def in_encoded_frames(native: bytes, codec: Codec) -> bytes:
    """A Part 10 file in explicit little endian in the transfer syntax of a codec. Raises NotDicom, UnreadablePixels."""
    places = frame_places(native)
    tags = (element.tag for element in elements(native, read_meta(native)[1], len(native), Encoding()))
    if places is None or PIXEL_DATA not in tags:  # what is float has no compressed form (PS3.5 A.4)
        raise UnreadablePixels("it has no PixelData that could be compressed")
    encode = FRAME_ENCODERS[codec.name]
    codestreams = [encode(places.native(native, index), places) for index in range(places.number_of_frames)]
    header = dcmread(BytesIO(native), stop_before_pixels=True)
    return part10_of_groups(header, b"", encapsulated(codestreams), codec)


def _in_htj2k(frame: bytes, places: FramePlaces) -> bytes:
    """A frame of one sample whose bits are all stored: else the codestream would say otherwise. Raises UnreadablePixels."""
    numbers = places.numbers
    bits, stored = numbers["BitsAllocated"], numbers.get("BitsStored", numbers["BitsAllocated"])
    if numbers.get("SamplesPerPixel", 1) != 1 or bits not in (8, 16) or stored != bits:
        raise UnreadablePixels("HTJ2K is written of one sample a pixel, with BitsAllocated and BitsStored both 8 or both 16")
    dtype = np.dtype(f"<{'ui'[numbers.get('PixelRepresentation', 0)]}{bits // 8}")
    values: npt.NDArray[np.integer] = np.frombuffer(frame, dtype).reshape(numbers["Rows"], numbers["Columns"])
    codestream = htj2k.encode(values)
    if not np.array_equal(imagecodecs.jpeg2k_decode(codestream), values):
        raise UnreadablePixels("its frame in HTJ2K is not read as the frame that it was")
    return codestream + b"\0" * (len(codestream) % 2)


def _deflated(frame: bytes, _places: FramePlaces) -> bytes:
    return deflate_frames.encode(np.frombuffer(frame, np.uint8))


FRAME_ENCODERS: Final[Mapping[str, _FrameEncoder]] = {"htj2k": _in_htj2k, "deflate-frames": _deflated}
