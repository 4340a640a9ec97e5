"""The PixelData of a segmentation: its frames, decoded when they are asked for, and frames written in an encoding."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.uid import ExplicitVRBigEndian

from segnode.dicom.transfer_syntaxes import NATIVE
from segnode.errors import CannotConvert, UnreadablePixels
from segnode.seg.codecs import DECODERS, Codec, FrameShape
from segnode.seg.codecs.frame import Frame, FrameDecoder, require_decodable
from segnode.seg.fragments import encapsulated, frames_of_fragments

FrameToEncode = npt.NDArray[np.unsignedinteger] | npt.NDArray[np.bool_]

# Frames that a thread takes at once: enough that NumPy does not work on crumbs, few enough that they stay in a core's cache
# and that threads end together. Eight, as so many of 1 bit make whole bytes.
FRAMES_AT_ONCE: Final = 8
_MOST_THREADS: Final = 8
_LONGEST_NATIVE: Final = (1 << 32) - 4


class FramesToEncode(Protocol):
    """Frames (rows, columns) of bool, uint8 or uint16: an array of them, or what makes them when they are asked for."""

    @property
    def dtype(self) -> "np.dtype[Any]":
        """That of every frame."""

    def __len__(self) -> int: ...

    def __getitem__(self, places: slice, /) -> Iterable[FrameToEncode]: ...


@dataclass(frozen=True, eq=False)
class MadeFrames:
    """Frames that are made when they are asked for, so that not all of them are held; the same one may be asked for twice.

    `packed`, of frames of 1 bit whose pixels make whole bytes, gives the bytes of a frame (see Frames.packed) that are not
    zero, and where in it they begin: of most frames few are. `at_once` are made together.
    """

    dtype: "np.dtype[Any]"
    count: int
    make: Callable[[range], Iterable[FrameToEncode]]
    packed: Callable[[int], tuple[int, npt.NDArray[np.uint8]]] | None = None
    at_once: int = FRAMES_AT_ONCE

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, places: slice, /) -> Iterable[FrameToEncode]:
        return self.make(range(self.count)[places])


def one_by_one(make: Callable[[int], FrameToEncode]) -> Callable[[range], Iterable[FrameToEncode]]:
    """How MadeFrames makes frames that have nothing to do with their neighbours."""
    return lambda places: map(make, places)


@dataclass(frozen=True, eq=False, repr=False)
class _Native:
    """Frames without a codec, little endian; those of 1 bit follow each other without padding (PS3.5 8.1.1)."""

    shape: FrameShape
    number_of_frames: int
    data: npt.NDArray[np.uint8]

    def decode(self, index: int) -> Frame:
        shape = self.shape
        if shape.bits == 1:
            return np.unpackbits(self.packed(index), bitorder="little", count=shape.pixels).reshape(shape.rows, shape.columns)
        values = self.data[index * shape.size : (index + 1) * shape.size].view(shape.dtype.newbyteorder("<"))
        return values.astype(shape.dtype, copy=False).reshape(shape.rows, shape.columns)

    def packed(self, index: int) -> npt.NDArray[np.uint8]:
        first, shift = divmod(index * self.shape.pixels, 8)
        size, unused = self.shape.size, -self.shape.pixels % 8
        if not shift and not unused:
            return self.data[first : first + size]
        bits: npt.NDArray[np.uint8] = np.right_shift(self.data[first : first + size], np.uint8(shift))
        if shift:
            following = self.data[first + 1 : first + 1 + size]
            bits[: len(following)] |= following << np.uint8(8 - shift)
        bits[-1] &= 0xFF >> unused
        return bits

    def packed_run(self, first: int, count: int) -> npt.NDArray[np.uint8]:
        size = self.shape.size
        if self.shape.pixels % 8 == 0:
            return self.data[first * size : (first + count) * size].reshape(count, size)
        return np.stack([self.packed(index) for index in range(first, first + count)])

    def all(self) -> Frame:
        shape = self.shape
        whole = (self.number_of_frames, shape.rows, shape.columns)
        if shape.bits == 1:
            return np.unpackbits(self.data, bitorder="little", count=self.number_of_frames * shape.pixels).reshape(whole)
        values = self.data[: self.number_of_frames * shape.size].view(shape.dtype.newbyteorder("<"))
        return values.astype(shape.dtype, copy=False).reshape(whole)

    def some(self, indices: Sequence[int]) -> tuple[Frame, int]:
        if [*indices] == [*range(self.number_of_frames)]:
            frames = self.all()
        else:
            frames = np.zeros((len(indices), self.shape.rows, self.shape.columns), self.shape.dtype)
            for frame, index in zip(frames, indices, strict=True):
                frame[:] = self.decode(index)
        return frames, largest_value(frames)


@dataclass(frozen=True, eq=False, repr=False)
class _Encapsulated:
    """Frames as a codec wrote them, each on its own."""

    shape: FrameShape
    codestreams: Sequence[bytes | memoryview]
    decoder: FrameDecoder

    def decode(self, index: int) -> Frame:
        try:
            return self.decoder(bytes(self.codestreams[index]), self.shape)
        except UnreadablePixels as error:
            raise UnreadablePixels(f"frame {index + 1} of PixelData: {error}") from error

    def packed(self, index: int) -> npt.NDArray[np.uint8]:
        return np.packbits(self.decode(index), bitorder="little")

    def packed_run(self, first: int, count: int) -> npt.NDArray[np.uint8]:
        return np.stack([self.packed(index) for index in range(first, first + count)])

    def all(self) -> Frame:
        return self.some(range(len(self.codestreams)))[0]

    def some(self, indices: Sequence[int]) -> tuple[Frame, int]:
        frames = np.zeros((len(indices), self.shape.rows, self.shape.columns), self.shape.dtype)
        streams = [self.codestreams[index] for index in indices]
        # A codestream that is the one before it is not decoded again: see encode_frames.
        starts = [place for place, stream in enumerate(streams) if not place or not _same_bytes(stream, streams[place - 1])]
        stops = [*starts[1:], len(streams)]
        largest = np.zeros(len(starts), self.shape.dtype)

        def decode(first: int, stop: int) -> None:
            for number in range(first, stop):
                frame = self.decode(indices[starts[number]])
                frames[starts[number] : stops[number]] = frame
                largest[number] = frame.max()

        _for_some(decode, len(starts))
        return frames, int(largest.max(initial=0))


@dataclass(frozen=True, eq=False)
class Frames:
    """The frames of a PixelData element, decoded when they are asked for: uint8 (0 and 1 where of 1 bit) or uint16.

    Arrays may be views of the bytes they were read from, and then cannot be written to. Every method that decodes raises
    UnreadablePixels, naming the frame; an index that no frame has is an IndexError.
    """

    shape: FrameShape
    number_of_frames: int
    _held: _Native | _Encapsulated

    def __len__(self) -> int:
        return self.number_of_frames

    @property
    def nbytes(self) -> int:
        """Bytes of memory that all frames take when decoded: a few bytes of PixelData can stand for any number of them."""
        return self.number_of_frames * self.shape.pixels * self.shape.dtype.itemsize

    def decode(self, index: int) -> Frame:
        """A frame, (rows, columns)."""
        return self._held.decode(self._checked(index))

    def packed(self, index: int) -> npt.NDArray[np.uint8]:
        """A frame of 1 bit, eight pixels a byte from the least significant bit, padded with zeros to a byte."""
        if self.shape.bits != 1:
            raise ValueError(f"frames of {self.shape.bits} bits are not packed")
        return self._held.packed(self._checked(index))

    def packed_run(self, first: int, count: int) -> npt.NDArray[np.uint8]:
        """Neighbouring frames of 1 bit, each packed as by `packed`, as (frames, bytes)."""
        if self.shape.bits != 1:
            raise ValueError(f"frames of {self.shape.bits} bits are not packed")
        return self._held.packed_run(self._checked(first), len(range(self.number_of_frames)[first : first + count]))

    def all(self) -> Frame:
        """Every frame, (frames, rows, columns); compressed ones by several threads."""
        return self._held.all()

    def some(self, indices: Sequence[int]) -> tuple[Frame, int]:
        """The frames of these indices, in this order, (frames, rows, columns), and the largest value in them, or 0.

        Compressed ones by several threads; a value is looked for while its frame is at hand.
        """
        return self._held.some([self._checked(index) for index in indices])

    def _checked(self, index: int) -> int:
        return range(self.number_of_frames)[index]


def read_frames(
    data: bytes | memoryview, transfer_syntax_uid: str, shape: FrameShape, number_of_frames: int, vr: str
) -> Frames:
    """The frames in the value of a PixelData element, of which nothing is decoded yet.

    `vr` is that of the element: OW is written in swapped words where the data set is big endian. Raises UnreadablePixels,
    naming the transfer syntax, NumberOfFrames or PixelData.
    """
    if number_of_frames < 1:
        raise UnreadablePixels(f"NumberOfFrames is {number_of_frames}: it must be 1 or more")
    if transfer_syntax_uid in NATIVE:
        swapped = transfer_syntax_uid == ExplicitVRBigEndian and (vr == "OW" or shape.bits == 16)
        held: _Native | _Encapsulated = _native(data, shape, number_of_frames, swapped=swapped)
    elif transfer_syntax_uid in DECODERS:
        require_decodable(shape)
        codestreams = frames_of_fragments(memoryview(data), number_of_frames)
        held = _Encapsulated(shape, codestreams, DECODERS[transfer_syntax_uid])
    else:
        raise UnreadablePixels(f"frames in transfer syntax {transfer_syntax_uid} are not read: send them in a lossless one")
    return Frames(shape, number_of_frames, held)


def _native(data: bytes | memoryview, shape: FrameShape, number_of_frames: int, *, swapped: bool) -> _Native:
    needed = (number_of_frames * shape.pixels * shape.bits + 7) // 8
    values = np.frombuffer(data, np.uint8)
    if swapped:
        values = np.pad(values, (0, len(values) % 2)).view(np.uint16).byteswap().view(np.uint8)
    if len(values) < needed:
        raise UnreadablePixels(
            f"PixelData has {len(data)} bytes, where Rows, Columns, BitsAllocated and NumberOfFrames make {needed}"
        )
    return _Native(shape, number_of_frames, values[:needed])


def frames_of(dataset: Dataset) -> Frames:
    """The frames of a data set with its file meta information. Raises UnreadablePixels, naming the attribute."""
    for keyword in ("Rows", "Columns", "BitsAllocated", "PixelData"):
        if dataset.get(keyword) is None:
            raise UnreadablePixels(f"{keyword} is missing")
    if dataset.get("SamplesPerPixel", 1) != 1:
        raise UnreadablePixels(f"SamplesPerPixel is {dataset.SamplesPerPixel}: a segmentation has 1")
    shape = FrameShape(int(dataset.Rows), int(dataset.Columns), int(dataset.BitsAllocated))
    number_of_frames = 1 if dataset.get("NumberOfFrames") is None else int(dataset.NumberOfFrames)
    element = dataset["PixelData"]
    return read_frames(element.value, dataset.file_meta.TransferSyntaxUID, shape, number_of_frames, element.VR)


def largest_value(frames: Frame) -> int:
    """The largest value in (frames, rows, columns), 0 where there are none; looked for by several threads."""
    largest = np.zeros(len(frames), frames.dtype)

    def look(first: int, stop: int) -> None:
        largest[first:stop] = frames[first:stop].max()

    _for_some(look, len(frames))
    return int(largest.max(initial=0))


def encode_frames(frames: FramesToEncode, codec: Codec) -> list[bytes]:
    """The codestream of every frame, in their order, by several threads; bool is 1 bit.

    Labels of thick or coarser slices are laid onto thin ones, and blank slices lie together: a frame that is the one before
    it is not encoded again.
    """
    encode, bits = codec.encode, _bits(frames)
    if encode is None or bits not in codec.bits:
        raise ValueError(f"{codec.name} has no codestreams of {bits} bits")
    are_made, encoded = isinstance(frames, MadeFrames), [b""] * len(frames)

    def encode_some(first: int, stop: int) -> None:
        # To make a frame costs more than to encode it.
        before = None if are_made or not first else next(iter(frames[first - 1 : first]))
        for place, frame in enumerate(frames[first:stop], first):
            if before is None or not _same_pixels(frame, before):
                encoded[place] = encode(frame)
            before = frame

    _for_some(encode_some, len(frames), frames.at_once if isinstance(frames, MadeFrames) else FRAMES_AT_ONCE)
    for place, stream in enumerate(encoded):
        encoded[place] = stream or encoded[place - 1]
    return encoded


def _same_pixels(frame: FrameToEncode, other: FrameToEncode) -> bool:
    """Whether two frames are the same; eight bytes at a time where they are made of whole words."""
    if frame.nbytes % 8 == 0 and frame.flags.c_contiguous and other.flags.c_contiguous:
        return bool((frame.reshape(-1).view(np.uint64) == other.reshape(-1).view(np.uint64)).all())
    return np.array_equal(frame, other)


def _same_bytes(data: bytes | memoryview, other: bytes | memoryview) -> bool:
    return len(data) == len(other) and bytes(data) == bytes(other)


def pixel_data(frames: FramesToEncode, codec: Codec) -> bytes | memoryview:
    """The value of PixelData for frames, of even length; bool is 1 bit, packed across frames if native.

    Raises CannotConvert for more than a native one can have.
    """
    if codec.encapsulated:
        return encapsulated(encode_frames(frames, codec))
    if isinstance(frames, np.ndarray) and frames.dtype != np.bool_ and frames.nbytes % 2 == 0:
        _require_native(frames.nbytes)
        return np.ascontiguousarray(frames.astype(frames.dtype.newbyteorder("<"), copy=False)).reshape(-1).view(np.uint8).data
    return _native_data(frames).data


def _require_native(length: int) -> None:
    """Raise CannotConvert where the length of PixelData does not fit into its 32 bits."""
    if length > _LONGEST_NATIVE:
        raise CannotConvert(
            f"PixelData would have {length} bytes, where its length is written with 32 bits (PS3.5 7.1): take a codec that"
            " compresses frames, such as rle"
        )


def _native_data(frames: FramesToEncode) -> npt.NDArray[np.uint8]:
    """Frames one behind the other; as many are packed together as make whole bytes, whatever their size: eight."""
    count, bits = len(frames), _bits(frames)
    pixels = next(frame.size for frame in frames[:1])
    length = (count * pixels * bits + 7) // 8
    _require_native(length)
    out = np.zeros(length + length % 2, np.uint8)
    packed = frames.packed if isinstance(frames, MadeFrames) and pixels % 8 == 0 else None

    def write(first: int, stop: int) -> None:
        if packed is not None:
            for place in range(first, stop):
                begin, inside = packed(place)
                start = place * pixels // 8 + begin
                out[start : start + len(inside)] = inside
            return
        values = np.stack([*frames[first:stop]])
        data: npt.NDArray[Any] = (
            np.packbits(values.view(np.uint8), axis=None, bitorder="little")
            if bits == 1
            else np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"), copy=False)).reshape(-1).view(np.uint8)
        )
        start = first * pixels * bits // 8
        out[start : start + len(data)] = data

    _for_some(write, count)
    return out


def _bits(frames: FramesToEncode) -> int:
    return 1 if frames.dtype == np.bool_ else frames.dtype.itemsize * 8


def _for_some(work: Callable[[int, int], None], count: int, at_once: int = FRAMES_AT_ONCE) -> None:
    """Do the work for all places below `count`, some at a time; the codecs let threads run beside each other."""

    def take(first: int) -> None:
        work(first, min(first + at_once, count))

    threads = min(os.cpu_count() or 1, _MOST_THREADS, -(-count // at_once))
    if threads < 2:
        for first in range(0, count, at_once):
            take(first)
        return
    with ThreadPoolExecutor(threads, "frames") as pool:
        for _ in pool.map(take, range(0, count, at_once)):
            pass
