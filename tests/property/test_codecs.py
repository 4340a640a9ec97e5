"""Codecs: what is written is read back by libraries that are not ours."""

import struct

import jpeg_ls as pyjpegls
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom.pixels.decoders.rle import _rle_decode_frame

from segnode.seg.codecs import jpeg_ls, rle

SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 300))
FEW_VALUES = st.integers(0, 3)


def frames(dtype: type[np.unsignedinteger]):
    """Frames as labels make them, with long runs, and as noise does."""
    any_value = st.integers(0, int(np.iinfo(dtype).max))
    return st.one_of(arrays(dtype, SHAPES, elements=FEW_VALUES), arrays(dtype, SHAPES, elements=any_value))


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
