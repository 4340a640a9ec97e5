"""PixelData of segmentations: real files, frames across bytes, fragments, and files that do not hold what they declare."""

import struct
from dataclasses import replace

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.pixels.utils import pixel_array
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, JPEGLSLossless, RLELossless

from segnode.dicom.transfer_syntaxes import ENCAPSULATED_UNCOMPRESSED
from segnode.errors import UnreadablePixels
from segnode.seg.codecs import CODECS, FrameShape, jpeg_ls, native, rle
from segnode.seg.pixels import MadeFrames, encode_frames, frames_of, one_by_one, pixel_data, read_frames

ITEM = struct.Struct("<HHI")


@pytest.mark.parametrize("name", ["liver_rle", "liver_deflate", "liver_j2k", "liver_expb", "liver_nonbyte_aligned"])
def test_every_encoding_of_a_file_has_the_same_frames(name: str, sample) -> None:
    """RLE, deflated frames, JPEG 2000, big endian, and frames that do not start on a byte: as in the native file."""
    dataset = dcmread(sample(f"pydicom-data/{name}.dcm"))
    expected = pixel_array(dcmread(sample("pydicom-data/liver.dcm")))[:, : dataset.Rows, : dataset.Columns]
    frames = frames_of(dataset)
    assert len(frames) == 3
    np.testing.assert_array_equal(frames.all(), expected)
    np.testing.assert_array_equal(frames.some([2, 0])[0], expected[[2, 0]])
    for index in range(3):
        np.testing.assert_array_equal(frames.decode(index), expected[index])
        np.testing.assert_array_equal(frames.packed(index), np.packbits(expected[index], bitorder="little"))


@pytest.mark.parametrize("name", ["emri_small", "emri_small_RLE", "emri_small_big_endian"])
def test_frames_of_16_bits_are_read(name: str, sample) -> None:
    """Native in both byte orders, and RLE, give what pydicom gives for the native file."""
    expected = pixel_array(dcmread(sample("pydicom-data/emri_small.dcm")))
    np.testing.assert_array_equal(frames_of(dcmread(sample(f"pydicom-data/{name}.dcm"))).all(), expected)


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
@pytest.mark.parametrize("shape", [(21, 1, 1), (20, 3, 5), (19, 16, 8)])
def test_frames_come_back(codec, shape: tuple[int, int, int]) -> None:
    """Frames of each depth that a codec writes are read from its PixelData, one by one, all, and packed."""
    random = np.random.default_rng(1)
    for bits in codec.bits:
        frames = random.integers(0, 1 << bits, shape).astype(bool if bits == 1 else f"u{bits // 8}")
        data = pixel_data(frames, codec)
        assert len(data) % 2 == 0
        read = read_frames(data, codec.transfer_syntax_uid, FrameShape(*shape[1:], bits), shape[0], "OB")
        assert read.nbytes == frames.nbytes
        np.testing.assert_array_equal(read.all(), frames)
        some, largest = read.some([5, 0, 5])
        np.testing.assert_array_equal(some, frames[[5, 0, 5]])
        assert largest == some.max()
        np.testing.assert_array_equal([read.decode(index) for index in range(shape[0])], frames)
        if bits == 1:
            packed = [np.packbits(frame, bitorder="little") for frame in frames]
            np.testing.assert_array_equal([read.packed(index) for index in range(shape[0])], packed)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(3, 5), (16, 8)])
def test_frame_that_is_the_one_before_it_is_encoded_once(dtype: type, shape: tuple[int, int]) -> None:
    """Every frame has the codestream that it has on its own, and is read; of a run all but the first are not encoded."""
    kinds = np.random.default_rng(2).integers(0, 2, (3, *shape)).astype(dtype)
    runs = [(0, 1), (1, 7), (0, 20), (2, 1), (1, 2)]
    frames = kinds[[kind for kind, length in runs for _ in range(length)]]
    encoded: list[bytes] = []

    def encode(frame: np.ndarray) -> bytes:
        encoded.append(rle.encode(frame))
        return encoded[-1]

    counting = replace(CODECS["rle"], encode=encode)
    assert encode_frames(frames, counting) == [rle.encode(frame) for frame in frames]
    assert len(encoded) == len(runs)
    bits = 1 if dtype is bool else np.dtype(dtype).itemsize * 8
    read = read_frames(pixel_data(frames, counting), RLELossless, FrameShape(*shape, bits), len(frames), "OB")
    for order in (range(31), range(30, -1, -1), [5, 5, 0, 6, 5, 28, 28]):
        some, largest = read.some(order)
        np.testing.assert_array_equal(some, frames[order])
        assert largest == some.max()
    made = MadeFrames(frames.dtype, len(frames), one_by_one(frames.__getitem__))
    assert encode_frames(made, CODECS["rle"]) == encode_frames(frames, CODECS["rle"])


def test_big_endian_words_are_swapped() -> None:
    """OW of 1 and 8 bits is in words, whose bytes are swapped; OB is not (PS3.5 8.1.1, 8.1.2)."""
    pixels = np.arange(10, dtype=np.uint8).reshape(1, 2, 5)
    swapped = pixels.ravel().view(np.uint16).byteswap().tobytes()
    for data, vr in ((pixels.tobytes(), "OB"), (swapped, "OW")):
        np.testing.assert_array_equal(read_frames(data, ExplicitVRBigEndian, FrameShape(2, 5, 8), 1, vr).all(), pixels)


def test_one_frame_in_several_fragments() -> None:
    """A frame may be in several fragments, by itself or where the basic offset table says so."""
    frames = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    shape, encoded = FrameShape(4, 5, 8), [rle.encode(frame) for frame in frames]
    many = encapsulate(encoded, fragments_per_frame=3)
    np.testing.assert_array_equal(read_frames(many, RLELossless, shape, 3, "OB").all(), frames)
    alone = encapsulate(encoded[:1], fragments_per_frame=4, has_bot=False) + ITEM.pack(0xFFFE, 0xE0DD, 0)
    np.testing.assert_array_equal(read_frames(alone, RLELossless, shape, 1, "OB").all(), frames[:1])
    with pytest.raises(UnreadablePixels, match="NumberOfFrames"):
        read_frames(encapsulate(encoded, fragments_per_frame=3, has_bot=False), RLELossless, shape, 3, "OB")


def test_encapsulated_uncompressed_is_read() -> None:
    """A fragment may hold a native frame, padded to even length (PS3.5 A.4.11)."""
    frames = np.arange(30, dtype=np.uint8).reshape(2, 3, 5)
    data = encapsulate([native.encode(frame) + b"\0" for frame in frames])
    np.testing.assert_array_equal(read_frames(data, ENCAPSULATED_UNCOMPRESSED, FrameShape(3, 5, 8), 2, "OB").all(), frames)


@pytest.mark.parametrize(
    ("data", "uid", "shape", "number_of_frames", "reason"),
    [
        (b"abc", ExplicitVRLittleEndian, (512, 512, 8), 8192, "PixelData has 3 bytes.* make 2147483648"),
        (b"abc", ExplicitVRLittleEndian, (1, 1, 8), 0, "NumberOfFrames is 0"),
        (b"", RLELossless, (9, 9, 8), 1, "does not start with a basic offset table"),
        (b"abcdefghij", RLELossless, (9, 9, 8), 1, "holds no item at byte 0"),
        (ITEM.pack(0xFFFE, 0xE000, 0) + ITEM.pack(0xFFFE, 0xE000, 99), RLELossless, (9, 9, 8), 1, "declares 99 bytes"),
        (encapsulate([b"ab", b"cd"]), RLELossless, (9, 9, 8), 3, "2 fragments.* 3 frames of NumberOfFrames"),
        (encapsulate([b"ab"]), RLELossless, (65535, 65535, 8), 1, "Rows x Columns is 65535 x 65535"),
        (encapsulate([b"ab"]), "1.2.840.10008.1.2.4.50", (9, 9, 8), 1, "1.2.840.10008.1.2.4.50 are not read"),
    ],
)
def test_what_does_not_hold_what_it_declares_is_refused(data, uid, shape, number_of_frames, reason) -> None:
    """The attribute that is wrong is named, before anything is decoded."""
    with pytest.raises(UnreadablePixels, match=reason):
        read_frames(data, uid, FrameShape(*shape), number_of_frames, "OB")


@pytest.mark.parametrize(("keyword", "value"), [("Rows", 0), ("BitsAllocated", 12), ("SamplesPerPixel", 3)])
def test_attribute_that_no_segmentation_has_is_named(keyword: str, value: int, sample) -> None:
    """Rows, BitsAllocated or SamplesPerPixel of another value is refused by name; so is a missing PixelData."""
    dataset = dcmread(sample("pydicom-data/liver.dcm"))
    setattr(dataset, keyword, value)
    with pytest.raises(UnreadablePixels, match=f"{keyword} is {value}"):
        frames_of(dataset)
    del dataset[keyword], dataset.PixelData
    with pytest.raises(UnreadablePixels, match="is missing"):
        frames_of(dataset)


def test_damaged_frame_is_named() -> None:
    """The others are still read; no index outside the frames is."""
    frames = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    data = encapsulate([jpeg_ls.encode(frames[0]), b"\xff\xd8\xff\xd9", jpeg_ls.encode(frames[2])])
    read = read_frames(data, JPEGLSLossless, FrameShape(4, 5, 8), 3, "OB")
    np.testing.assert_array_equal(read.decode(-1), frames[2])
    with pytest.raises(UnreadablePixels, match="frame 2 of PixelData: JPEG-LS codestream: it has no frame header"):
        read.all()
    with pytest.raises(IndexError):
        read.decode(3)
    with pytest.raises(ValueError, match="frames of 8 bits are not packed"):
        read.packed(0)


def test_codec_writes_no_depth_that_it_has_not() -> None:
    """JPEG-LS and HTJ2K have no frames of 1 bit."""
    with pytest.raises(ValueError, match="jpeg-ls has no codestreams of 1 bits"):
        encode_frames(np.zeros((1, 2, 2), bool), CODECS["jpeg-ls"])
