"""Where frames lie: every one as pydicom cuts it, whatever its size; and what is damaged is refused."""

import struct
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless, SegmentationStorage

from segnode.dicom.frame_places import frame_places
from segnode.errors import NotDicom, UnreadablePixels
from segnode.testing.part10 import encode_part10

NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)


def image(rows: int, columns: int, bits: int, frames: int, data: bytes) -> Dataset:
    """A data set with these pixels."""
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = SegmentationStorage, "1.2.3"
    made.SamplesPerPixel, made.PhotometricInterpretation, made.NumberOfFrames = 1, "MONOCHROME2", frames
    made.Rows, made.Columns, made.BitsAllocated, made.BitsStored, made.HighBit = rows, columns, bits, bits, bits - 1
    made.PixelRepresentation = 0
    made.PixelData = data + b"\0" * (len(data) % 2)
    made["PixelData"].VR = "OW" if bits == 16 else "OB"
    return made


@given(
    st.integers(1, 13),
    st.integers(1, 13),
    st.integers(1, 11),
    st.sampled_from((1, 8, 16)),
    st.sampled_from(NATIVE),
    st.randoms(),
)
def test_native_frames_are_cut_as_pydicom_cuts_them(rows, columns, frames, bits, syntax, chance) -> None:
    """Frames of 1 bit too, which begin within a byte: each is had from the first bit of a byte on, padded with zeros."""
    noise = np.frombuffer(chance.randbytes(rows * columns * frames * 2), np.uint16) >> (16 - bits)
    if bits == 1:
        data = np.packbits(noise.astype(np.uint8), bitorder="little").tobytes()
    else:
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        data = noise.astype(f"{order}u{bits // 8}").tobytes()
    part10 = encode_part10(image(rows, columns, bits, frames, data), syntax)
    expected = dcmread(BytesIO(part10)).pixel_array.reshape(frames, rows, columns)
    places = frame_places(part10)
    assert places is not None
    for index, frame in enumerate(expected):
        packed = np.packbits(frame, bitorder="little") if bits == 1 else frame.astype(f"<u{bits // 8}")
        assert places.native(part10, index) == packed.tobytes()


def fragments_of(codestreams: list[bytes], table: str) -> tuple[bytes, dict[str, bytes]]:
    """PixelData of these, a frame in two fragments where a table says where each begins; and the attributes beside it."""
    if table == "extended":
        data, offsets, lengths = encapsulate_extended(codestreams)
        return data, {"ExtendedOffsetTable": offsets, "ExtendedOffsetTableLengths": lengths}
    return encapsulate(codestreams, fragments_per_frame=2 if table == "basic" else 1, has_bot=table == "basic"), {}


@given(st.lists(st.binary(min_size=3, max_size=40), min_size=1, max_size=8), st.sampled_from(("none", "basic", "extended")))
def test_codestreams_are_found_by_a_table_or_without(codestreams: list[bytes], table: str) -> None:
    """Each frame's bytes come back, but for the byte of padding."""
    data, beside = fragments_of(codestreams, table)
    dataset = image(4, 4, 8, len(codestreams), b"")
    for keyword, value in beside.items():
        setattr(dataset, keyword, value)
    dataset.PixelData = data
    dataset["PixelData"].is_undefined_length = True
    part10 = encode_part10(dataset, JPEGLSLossless)
    places = frame_places(part10)
    assert places is not None
    found = [places.codestream(part10, index) for index in range(places.number_of_frames)]
    assert [stream[: len(sent)] for stream, sent in zip(found, codestreams, strict=True)] == codestreams
    assert all(len(stream) - len(sent) <= 2 for stream, sent in zip(found, codestreams, strict=True))


def whole(syntax: str) -> bytes:
    """A small file in native or encapsulated encoding."""
    if syntax == ExplicitVRLittleEndian:
        return encode_part10(image(5, 3, 1, 3, bytes(6)), syntax)
    dataset = image(4, 4, 8, 3, b"")
    dataset.PixelData = encapsulate([b"abcd", b"efgh", b"ij"])
    dataset["PixelData"].is_undefined_length = True
    return encode_part10(dataset, syntax)


@given(st.sampled_from((ExplicitVRLittleEndian, JPEGLSLossless)), st.data())
def test_damaged_files_are_refused_or_read(syntax: str, data: st.DataObject) -> None:
    """Whatever a few bytes are changed to, and wherever the file ends: frames, or an error of the tree."""
    damaged = bytearray(whole(syntax))
    for _ in range(data.draw(st.integers(0, 4))):
        damaged[data.draw(st.integers(132, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(damaged[: data.draw(st.integers(132, len(damaged)))])
    try:
        places = frame_places(cut)
        if places is None:
            return
        for index in range(min(places.number_of_frames, 4)):
            if places.starts is None:
                assert len(places.native(cut, index)) == (places.bits + 7) // 8
            else:
                assert len(places.codestream(cut, index)) <= len(cut)
    except (NotDicom, UnreadablePixels):
        return


@pytest.mark.parametrize("offset", [0, 7, 1 << 31])
def test_a_table_of_offsets_that_is_wrong_is_not_used(offset: int) -> None:
    """Where an offset leads to no item, or backwards, the fragments are counted instead."""
    part10 = bytearray(whole(JPEGLSLossless))
    place = part10.index(struct.pack("<HHI", 0xFFFE, 0xE000, 12)) + 8
    struct.pack_into("<I", part10, place + 4, offset)
    places = frame_places(bytes(part10))
    assert places is not None
    if offset == 7:  # forwards, so that only looking there shows it
        with pytest.raises(UnreadablePixels):
            places.codestream(bytes(part10), 1)
    else:
        assert [places.codestream(bytes(part10), index) for index in range(3)] == [b"abcd", b"efgh", b"ij"]
