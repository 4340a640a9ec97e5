"""Codecs: what is written is read back, by us and by libraries that are not ours; hostile bytes are refused."""

import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import imagecodecs
import jpeg_ls as pyjpegls
import numpy as np
import openjpeg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom.pixels.decoders.rle import _rle_decode_frame

from segnode.errors import UnreadablePixels
from segnode.seg.codecs import CODECS, DECODERS, FrameShape, deflate_frames, jpeg_2000, jpeg_lossless, jpeg_ls, rle

SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 300))
FEW_VALUES = st.integers(0, 3)
WRITTEN = [(name, bits) for name, codec in CODECS.items() if codec.encapsulated for bits in codec.bits]
EVERY_CODEC = pytest.mark.parametrize(("name", "bits"), WRITTEN, ids=[f"{name}-{bits}" for name, bits in WRITTEN])


def frames(dtype: type[np.unsignedinteger]):
    """Frames as labels make them, with long runs, and as noise does."""
    any_value = st.integers(0, int(np.iinfo(dtype).max))
    return st.one_of(arrays(dtype, SHAPES, elements=FEW_VALUES), arrays(dtype, SHAPES, elements=any_value))


def labels(rows: int, columns: int, bits: int, seed: int, noise: bool) -> np.ndarray:
    """A frame of that many bits: noise, or blocks of a few values."""
    random = np.random.default_rng(seed)
    values = random.integers(0, 1 << bits, (rows, columns))
    if not noise:
        values = values[np.ix_(np.arange(rows) // 9, np.arange(columns) // 9)]
    return values.astype(bool if bits == 1 else f"u{bits // 8}")


@EVERY_CODEC
@settings(max_examples=40)
@given(rows=st.integers(1, 70), columns=st.integers(1, 70), seed=st.integers(0, 1 << 32), noise=st.booleans())
def test_frames_come_back(name, bits, rows, columns, seed, noise) -> None:
    """A frame of any shape and values is the same after encoding and decoding."""
    frame = labels(rows, columns, bits, seed, noise)
    decode = DECODERS[CODECS[name].transfer_syntax_uid]
    decoded = decode(CODECS[name].encode(frame), FrameShape(rows, columns, bits))
    assert decoded.dtype == (np.uint16 if bits == 16 else np.uint8)
    np.testing.assert_array_equal(decoded, frame)


@EVERY_CODEC
def test_other_shapes_and_fewer_bits_are_refused(name, bits) -> None:
    """A frame is not read as of another shape, nor as of fewer bits than it has."""
    encoded = CODECS[name].encode(labels(40, 24, bits, 1, noise=True))
    decode = DECODERS[CODECS[name].transfer_syntax_uid]
    fewer = [FrameShape(40, 24, other) for other in (1, 8) if other < bits]
    for shape in (FrameShape(41, 24, bits), FrameShape(65535, 65535, bits), FrameShape(5, 3, bits), *fewer):
        with pytest.raises(UnreadablePixels):
            decode(encoded, shape)


@pytest.mark.parametrize("name", ["jpeg-ls", "jpeg-2000", "htj2k"])
def test_header_is_read_before_the_codestream_is_decoded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A codestream that declares other dimensions never reaches the library."""
    encoded = CODECS[name].encode(labels(40, 24, 8, 1, noise=True))
    monkeypatch.setattr(imagecodecs, "jpegls_decode", None)
    monkeypatch.setattr(imagecodecs, "jpeg2k_decode", None)
    with pytest.raises(UnreadablePixels, match=r"of 40 x 24 pixels, where Rows x Columns is 24 x 40"):
        DECODERS[CODECS[name].transfer_syntax_uid](encoded, FrameShape(24, 40, 8))
    with pytest.raises(UnreadablePixels, match="8 bits a pixel, where BitsAllocated is 1"):
        DECODERS[CODECS[name].transfer_syntax_uid](encoded, FrameShape(40, 24, 1))


@given(st.one_of(frames(np.uint8), frames(np.uint16)))
def test_rle_is_read_back(frame: np.ndarray) -> None:
    """pydicom's own RLE decoder gives the frame back; segments have even length."""
    encoded = rle.encode(frame)
    rows, columns = frame.shape
    decoded = _rle_decode_frame(encoded, rows, columns, 1, frame.dtype.itemsize * 8)
    np.testing.assert_array_equal(np.frombuffer(bytes(decoded), frame.dtype).reshape(frame.shape), frame)
    count, *offsets = struct.unpack("<16I", encoded[:64])
    ends = [*offsets[1:count], len(encoded)]
    assert count == frame.dtype.itemsize
    assert all((end - start) % 2 == 0 for start, end in zip(offsets, ends, strict=False))


@given(rows=st.integers(1, 70), columns=st.integers(1, 70), seed=st.integers(0, 1 << 32), noise=st.booleans())
def test_rle_of_1_bit_is_packed_pixels(rows, columns, seed, noise) -> None:
    """pydicom's RLE decoder gives the pixels packed from the least significant bit; unpacked ones are read as well."""
    mask, shape = labels(rows, columns, 1, seed, noise), FrameShape(rows, columns, 1)
    decoded = bytes(_rle_decode_frame(rle.encode(mask), 1, shape.size, 1, 8))
    np.testing.assert_array_equal(np.unpackbits(np.frombuffer(decoded, np.uint8), bitorder="little")[: mask.size], mask.ravel())
    for one in (1, 255):
        np.testing.assert_array_equal(rle.decode(rle.encode(mask.astype(np.uint8) * np.uint8(one)), shape), mask)


def test_rle_of_1_bit_with_other_values_is_refused() -> None:
    """One byte a pixel where BitsAllocated is 1 is read only where it can be nothing else than a mask."""
    with pytest.raises(UnreadablePixels, match="other values than 0, 1 and 255"):
        rle.decode(rle.encode(np.full((9, 9), 2, np.uint8)), FrameShape(9, 9, 1))


@given(frames(np.uint8))
def test_rle_runs_stay_in_their_row(frame: np.ndarray) -> None:
    """No run crosses a row: the packets of each row end where the row ends (PS3.5 G.3.1)."""
    data = rle.encode(frame)[64:]
    position = written = 0
    while written < frame.size:
        header = data[position]
        length = header + 1 if header < 128 else 257 - header
        position += 1 + (length if header < 128 else 1)
        assert written // frame.shape[1] == (written + length - 1) // frame.shape[1]
        written += length
    assert written == frame.size
    assert len(data) - position in (0, 1)


@given(st.one_of(frames(np.uint8), frames(np.uint16)))
def test_jpeg_ls_is_read_back(frame: np.ndarray) -> None:
    """The codestream is lossless and has the precision of the frame's type, whatever its values (PS3.5 8.2.3)."""
    encoded = jpeg_ls.encode(frame)
    assert encoded[:4] == b"\xff\xd8\xff\xf7"
    assert encoded[6] == frame.dtype.itemsize * 8
    decoded = pyjpegls.decode(np.frombuffer(encoded, np.uint8))
    np.testing.assert_array_equal(decoded.reshape(frame.shape), frame)


@pytest.mark.parametrize("bits", [8, 16])
def test_jpeg_ls_writes_what_it_makes_larger(bits: int) -> None:
    """A frame of noise has a codestream, though a larger one than the frame."""
    frame = labels(512, 512, bits, 1, noise=True)
    encoded = jpeg_ls.encode(frame)
    assert len(encoded) > frame.nbytes
    np.testing.assert_array_equal(jpeg_ls.decode(encoded, FrameShape(512, 512, bits)), frame)


@pytest.mark.parametrize("bits", [1, 8, 16])
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (33, 70), (128, 100)])
def test_jpeg_2000_is_read_back(bits: int, shape: tuple[int, int]) -> None:
    """pylibjpeg-openjpeg gives the frame back: a bare reversible codestream, unsigned, of the precision of the frame."""
    frame = labels(*shape, bits, 1, noise=True)
    encoded = jpeg_2000.encode(frame)
    assert encoded[:4] == b"\xff\x4f\xff\x51"
    assert encoded[42] == bits - 1
    np.testing.assert_array_equal(openjpeg.decode(encoded), frame)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (33, 70), (128, 100)])
def test_htj2k_is_read_back(bits: int, shape: tuple[int, int]) -> None:
    """Both OpenJPH, which wrote it, and another OpenJPEG than ours give the frame back."""
    frame = labels(*shape, bits, 1, noise=True)
    encoded = CODECS["htj2k"].encode(frame)
    np.testing.assert_array_equal(imagecodecs.htj2k_decode(encoded), frame)
    np.testing.assert_array_equal(openjpeg.decode(encoded), frame)


@pytest.mark.parametrize("bits", [1, 8, 16])
def test_deflated_frame_is_raw_and_even(bits: int) -> None:
    """The zlib module inflates it without a header, and has at most one byte of padding left (PS3.5 A.4.13)."""
    frame = labels(33, 21, bits, 1, noise=False)
    encoded = deflate_frames.encode(frame)
    inflater = zlib.decompressobj(-15)
    native = inflater.decompress(encoded)
    assert inflater.eof
    assert inflater.unused_data in (b"", b"\0")
    assert len(encoded) % 2 == 0
    values = np.unpackbits(np.frombuffer(native, np.uint8), bitorder="little", count=frame.size) if bits == 1 else native
    np.testing.assert_array_equal(np.frombuffer(values, frame.dtype).reshape(frame.shape), frame)


def test_no_more_is_inflated_than_the_frame_has() -> None:
    """A stream of zeros without end is refused; so is one that is too short for the frame."""
    deflater = zlib.compressobj(9, wbits=-15)
    bomb = deflater.compress(bytes(1 << 26)) + deflater.flush()
    for shape in (FrameShape(16, 16, 8), FrameShape(60000, 60000, 16)):
        with pytest.raises(UnreadablePixels):
            deflate_frames.decode(bomb, shape)


# libjpeg-turbo writes 16 bits with a predictor above 4 wrongly; it reads what DCMTK writes with them.
@pytest.mark.parametrize(("bits", "predictor"), [*((8, n) for n in range(1, 8)), *((16, n) for n in range(1, 5))])
def test_lossless_jpeg_is_read(bits: int, predictor: int) -> None:
    """Predictors as two other encoders write them; a codestream that ends early is refused, where the library would fill it."""
    frame = labels(33, 70, bits, 1, noise=True)
    encoded = bytes(imagecodecs.ljpeg_encode(frame)) if predictor == 1 else encoded_by_turbo(frame, predictor)
    np.testing.assert_array_equal(jpeg_lossless.decode(encoded, FrameShape(33, 70, bits)), frame)
    with pytest.raises(UnreadablePixels, match="no end"):
        jpeg_lossless.decode(encoded[: len(encoded) // 2], FrameShape(33, 70, bits))


def encoded_by_turbo(frame: np.ndarray, predictor: int) -> bytes:
    """Lossless JPEG with that predictor."""
    return bytes(imagecodecs.jpeg8_encode(frame, lossless=True, predictor=predictor))


@EVERY_CODEC
def test_two_threads_encode_and_decode(name, bits) -> None:
    """Threads that are in the same codec at once give what one gives."""
    inputs = [labels(90, 70, bits, seed, noise=seed % 2 == 0) for seed in range(24)]
    encode, shape = CODECS[name].encode, FrameShape(90, 70, bits)
    decode = partial(DECODERS[CODECS[name].transfer_syntax_uid], shape=shape)
    with ThreadPoolExecutor(2) as pool:
        encoded = list(pool.map(encode, inputs))
        decoded = list(pool.map(decode, encoded))
    assert encoded == [encode(frame) for frame in inputs]
    np.testing.assert_array_equal(decoded, inputs)


@pytest.mark.parametrize("uid", sorted(DECODERS))
@settings(max_examples=40)
@given(data=st.binary(max_size=300), start=st.sampled_from([b"", b"\xff\xd8", b"\xff\x4f\xff\x51", struct.pack("<2I", 1, 64)]))
def test_random_bytes_are_refused(uid: str, data: bytes, start: bytes) -> None:
    """Random bytes end in UnreadablePixels, or in a frame of the shape that was asked for."""
    for bits in (1, 8, 16):
        try:
            decoded = DECODERS[uid](start + data, FrameShape(9, 7, bits))
        except UnreadablePixels:
            continue
        assert decoded.shape == (9, 7)


# Not JPEG-LS: CharLS 2.4 is busy for a quarter of a minute with some of them, before it refuses them.
@pytest.mark.parametrize("name", ["rle", "jpeg-2000", "htj2k", "deflate-frames", "jpeg-lossless"])
def test_damaged_codestreams_are_read_or_refused(name: str) -> None:
    """Changed and cut codestreams, in a process of their own with little memory, as a codec that breaks ends its process."""
    program = Path(__file__).parent / "damaged_codestreams.py"
    ended = subprocess.run([sys.executable, program, name], capture_output=True, text=True, timeout=100, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


_BEGIN_AT_ONCE = """
import sys, threading
import numpy as np
from segnode.seg.codecs import CODECS, DECODERS, FrameShape
codec = CODECS[sys.argv[1]]
frames = [np.random.default_rng(n).integers(0, 255, (33, 31), np.uint8) for n in range(2)]
together, found = threading.Barrier(2), [b"", b""]
def encode(n):
    together.wait()
    found[n] = codec.encode(frames[n])
threads = [threading.Thread(target=encode, args=(n,)) for n in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for n in range(2):
    decoded = DECODERS[codec.transfer_syntax_uid](found[n], FrameShape(33, 31, 8))
    assert np.array_equal(decoded, frames[n]), n
"""


@pytest.mark.parametrize("name", ["jpeg-ls", "jpeg-2000", "htj2k"])
def test_two_threads_may_be_the_first(name: str) -> None:
    """What a process encodes first, in two threads at once, is read back: OpenJPH alone fails so in one process of six."""

    def begin(_: int) -> int:
        return subprocess.run([sys.executable, "-c", _BEGIN_AT_ONCE, name], check=False, capture_output=True).returncode

    with ThreadPoolExecutor(2) as two:
        assert set(two.map(begin, range(16 if name == "htj2k" else 2))) == {0}
