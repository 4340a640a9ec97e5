"""Stored values of images read without pydicom's decoders, held against these."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGLSLossless, RLELossless

from segnode.dicom.native_pixels import native_values
from segnode.pipeline.compressed_pixels import compressed_values

_SYNTAXES = {ExplicitVRLittleEndian: native_values, RLELossless: compressed_values, JPEGLSLossless: compressed_values}


def written(image: Dataset, stored: int, representation: int, syntax: UID) -> bytes:
    """The image with values of so many bits."""
    low, high = (-(1 << stored - 1), 1 << stored - 1) if representation else (0, 1 << stored)
    values = np.random.default_rng(1).integers(low, high, (image.Rows, image.Columns)).astype("<i4")
    values[0, :2] = low, high - 1
    image.PixelRepresentation, image.BitsStored, image.HighBit = representation, stored, stored - 1
    image.PixelData = values.astype("<i2" if representation else "<u2").tobytes()
    if syntax != ExplicitVRLittleEndian:
        image.compress(syntax, generate_instance_uid=False)
    file = BytesIO()
    image.save_as(file, enforce_file_format=True)
    return file.getvalue()


@pytest.mark.parametrize("syntax", _SYNTAXES)
@pytest.mark.parametrize(("stored", "representation"), [(16, 0), (16, 1), (12, 0), (12, 1)])
def test_same_as_pydicom(image: Dataset, syntax: UID, stored: int, representation: int) -> None:
    """Signed or not, of all bits or fewer."""
    part10 = written(image, stored, representation, syntax)
    read = dcmread(BytesIO(part10))
    found = _SYNTAXES[syntax](part10, read)
    assert found is not None
    np.testing.assert_array_equal(found, pixel_array(read, raw=True))


def test_bits_above_those_stored_are_no_values(image: Dataset, tmp_path: Path) -> None:
    """An overlay that is kept above the pixels, as PS3.5 8.1.1 once let it be, changes none of them."""
    image.PixelRepresentation, image.BitsStored, image.HighBit = 0, 12, 11
    image.PixelData = np.full((image.Rows, image.Columns), 0xF123, "<u2").tobytes()
    image.save_as(tmp_path / "overlay.dcm")
    found = native_values((tmp_path / "overlay.dcm").read_bytes(), dcmread(tmp_path / "overlay.dcm"))
    assert found is not None
    assert (found == 0x123).all()


def test_damaged_codestream_is_left_to_pydicom(image: Dataset) -> None:
    """What is wrong is for pydicom to say."""
    part10 = written(image, 16, 0, RLELossless)
    read = dcmread(BytesIO(part10))
    assert compressed_values(part10[: len(part10) // 2], read) is None
