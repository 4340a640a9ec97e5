"""Stored values as a screen shows them: look-up tables, bits that are not stored, functional groups, palettes."""

from io import BytesIO

import numpy as np
import pytest
from pydicom import DataElement, Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from segnode.dicom.display import Window, eight_bits, grey, of_frame, palette_colours, picture_of, stored_values
from segnode.errors import UnreadablePixels

RAMP = np.arange(512, dtype=np.uint16).reshape(16, 32)


def attributes(*, implicit: bool = True, little: bool = True, **values: object) -> Dataset:
    """Attributes as they are read from a file of that encoding."""
    made = Dataset()
    made.PhotometricInterpretation, made.PixelRepresentation, made.BitsStored = "MONOCHROME2", 0, 16
    for keyword, value in values.items():
        setattr(made, keyword, value)
    file = DicomBytesIO()
    file.is_implicit_VR, file.is_little_endian = implicit, little
    write_dataset(file, made)
    return read_dataset(BytesIO(file.getvalue()), implicit, little)


def table(first: int, entries: np.ndarray, bits: int, *, little: bool = True) -> list[Dataset]:
    """A LUT sequence of one item."""
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [len(entries), first, bits], entries.astype("<u2" if little else ">u2").tobytes()
    item.ModalityLUTType = "US"
    return [item]


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize(("implicit", "little"), [(True, True), (False, True), (False, False)])
def test_a_voi_lut_maps_values(bits: int, implicit: bool, little: bool) -> None:
    """Of 400 entries from 50 on, of so many bits: values beside it have that of its ends; it outranks a window."""
    entries = np.linspace(0, (1 << bits) - 1, 400).astype(int)[::-1]
    said = attributes(
        implicit=implicit, little=little, VOILUTSequence=table(50, entries, bits, little=little), WindowCenter=9, WindowWidth=9
    )
    expected = entries[np.clip(RAMP.astype(int) - 50, 0, 399)] * 255 / ((1 << bits) - 1)
    assert (grey(RAMP, said) == np.rint(expected)).all()


@pytest.mark.parametrize("little", [True, False])
@pytest.mark.parametrize("count", [256, 255])
def test_a_voi_lut_may_be_of_bytes(little: bool, count: int) -> None:
    """Entries of 8 bits may lie in a byte each, in words of the order of the file (PS3.3 C.11.1.1)."""
    entries = np.arange(count, dtype=np.uint8)[::-1]
    (item,) = table(0, entries, 8)
    packed = entries.tobytes() + b"\0" * (count % 2)
    item.LUTData = packed if little else np.frombuffer(packed, "<u2").astype(">u2").tobytes()
    said = attributes(implicit=False, little=little, VOILUTSequence=[item])
    assert (grey(RAMP, said) == entries[np.minimum(RAMP, count - 1)]).all()


def test_a_voi_lut_may_be_longer_than_its_vr_holds() -> None:
    """One of 65536 entries is UN in explicit VR (PS3.5 6.2.2)."""
    (item,) = table(0, np.arange(1), 16)
    item.LUTDescriptor = [0, 0, 16]
    item.add(DataElement("LUTData", "UN", np.arange(1 << 16)[::-1].astype("<u2").tobytes()))
    said = attributes(implicit=False, VOILUTSequence=[item])
    assert (grey(RAMP, said) == np.rint((65535 - RAMP.astype(int)) / 257)).all()


@pytest.mark.parametrize("bits", [12, 16])
def test_a_modality_lut_comes_first(bits: int) -> None:
    """Its output is what the window is of; entries may be said to have fewer bits than they take."""
    entries = np.arange(1000, 1512)[::-1]
    said = attributes(ModalityLUTSequence=table(0, entries, bits), WindowCenter=1256, WindowWidth=513)
    expected = ((entries[RAMP] - 1255.5) / 512 + 0.5) * 255
    assert (grey(RAMP, said) == np.clip(np.rint(expected), 0, 255)).all()


@pytest.mark.parametrize(
    "said",
    [
        {"WindowCenter": 40, "WindowWidth": 0},
        {"WindowCenter": None, "WindowWidth": 40},
        {"RescaleSlope": None, "RescaleIntercept": 3},
        {"VOILUTSequence": [Dataset()]},
        {"VOILUTFunction": "CURVED"},
    ],
)
def test_what_says_nothing_is_passed_over(said: dict[str, object]) -> None:
    """A window that is none, half a rescale and an empty table: the picture is that of an image without them."""
    assert (grey(RAMP, attributes(**said)) == np.rint(RAMP * (255 / 511))).all()


def test_a_range_of_padding_is_black_and_does_not_count() -> None:
    """Also where MONOCHROME1 would make it white."""
    said = attributes(PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0, PixelPaddingRangeLimit=255)
    shown = grey(RAMP, said)
    assert shown[:8].max() == 0
    assert (shown[8:] == 255 - np.rint((RAMP[8:] - 256.0) * (255 / 255))).all()


def test_one_value_is_a_picture() -> None:
    """Neither a division by zero nor a white one."""
    assert grey(np.full((2, 2), 7, np.uint16), attributes()).tolist() == [[0, 0], [0, 0]]


def test_values_of_32_bits_span_their_range() -> None:
    """More of them than can be looked up one by one."""
    wide = np.array([[0, 1 << 31], [1 << 30, (1 << 32) - 1]], np.uint32)
    assert grey(wide, attributes()).tolist() == [[0, 128], [64, 255]]


@pytest.mark.parametrize(("signed", "expected"), [(0, [4095, 2048, 5]), (1, [-1, -2048, 5])])
def test_bits_that_are_not_stored_are_left_out(signed: int, expected: list[int]) -> None:
    """What lies above High Bit is an overlay or rubbish; the sign is that of the highest bit that is stored."""
    numbers = {"Rows": 1, "Columns": 3, "BitsAllocated": 16, "BitsStored": 12, "PixelRepresentation": signed}
    frame = np.array([0x7FFF, 0x1800, 0xF005], "<u2").tobytes()
    assert stored_values(frame, numbers, 11).tolist() == [expected]


def test_functional_groups_of_a_frame_outrank_the_data_set() -> None:
    """The window and rescale of a frame are in its groups, or in those that all share."""
    said = attributes(WindowCenter=1, WindowWidth=2)
    voi, shared, per_frame, values = (Dataset() for _ in range(4))
    voi.WindowCenter, voi.WindowWidth = 300, 100
    values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 2, 10, "US"
    shared.PixelValueTransformationSequence, per_frame.FrameVOILUTSequence = [values], [voi]
    said.SharedFunctionalGroupsSequence, said.PerFrameFunctionalGroupsSequence = [shared], [Dataset(), per_frame]
    expected = np.clip(np.rint(((RAMP * 2.0 + 10 - 299.5) / 99 + 0.5) * 255), 0, 255)
    assert (grey(RAMP, of_frame(said, 1)) == expected).all()


def test_a_window_of_any_number() -> None:
    """It need not fit into a DS."""
    center, width = 1e-7 / 3 + 100, 200 / 3
    shown = grey(RAMP, attributes(), Window(center, width, "LINEAR_EXACT"))
    assert (shown == np.clip(np.rint(((RAMP - center) / width + 0.5) * 255), 0, 255)).all()


@pytest.mark.parametrize("little", [True, False])
@pytest.mark.parametrize("wide", [False, True])
def test_a_palette_of_more_than_256_entries(wide: bool, little: bool) -> None:
    """Entries of 8 bits, two in a word, or of 16 bits; what lies behind the last entry has its colour."""
    entries = np.random.default_rng(1).integers(0, 256, (3, 301), np.uint16)
    said = attributes(implicit=little, little=little, PhotometricInterpretation="PALETTE COLOR")
    for colour, column in zip(("Red", "Green", "Blue"), entries, strict=True):
        setattr(said, f"{colour}PaletteColorLookupTableDescriptor", [301, 0, 16 if wide else 8])
        data = (column * 257).astype("<u2").tobytes() if wide else column.astype(np.uint8).tobytes()
        words = np.frombuffer(data + b"\0" * (len(data) % 2), "<u2").astype("<u2" if little else ">u2")
        setattr(said, f"{colour}PaletteColorLookupTableData", words.tobytes())
    assert (palette_colours(RAMP, said) == entries[:, np.minimum(RAMP, 300)].transpose(1, 2, 0)).all()


def test_a_supplemental_palette() -> None:
    """From its first value on there are colours; what lies below is grey, by the window."""
    entries = np.random.default_rng(2).integers(0, 256, (3, 100), np.uint8)
    said = attributes(PixelPresentation="MIXED", WindowCenter=100, WindowWidth=200)
    for colour, column in zip(("Red", "Green", "Blue"), entries, strict=True):
        setattr(said, f"{colour}PaletteColorLookupTableDescriptor", [100, 200, 8])
        setattr(said, f"{colour}PaletteColorLookupTableData", column.tobytes())
    shown, is_grey = picture_of(RAMP, said), RAMP < 200
    assert (shown[is_grey] == grey(RAMP, said)[is_grey][:, np.newaxis]).all()
    assert (shown[~is_grey] == entries[:, np.minimum(RAMP[~is_grey] - 200, 99)].T).all()


def test_a_palette_that_is_not_there() -> None:
    """It is named."""
    with pytest.raises(UnreadablePixels, match="palette"):
        palette_colours(RAMP, attributes(PhotometricInterpretation="PALETTE COLOR"))


def test_colours_of_more_bits() -> None:
    """The greatest that can be stored is 255."""
    assert eight_bits(np.array([0, 512, 1023], np.uint16), 10).tolist() == [0, 128, 255]
