"""Volumes from images."""

import subprocess
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import ExplicitVRLittleEndian, JPEGLossless, JPEGLosslessSV1

from segnode.dicom.native import in_native
from segnode.dicom.slices import order_slices, read_volume, stored_values
from segnode.dicom.volume import Volume
from segnode.errors import NotAVolume, UnreadablePixels
from segnode.testing.phantom import Phantom


def images(phantom: Phantom) -> list[Dataset]:
    """The images of the phantom, by file name: against their positions."""
    return [dcmread(file) for file in sorted(phantom.folder.iterdir())]


def volume_of(given: list[Dataset]) -> Volume:
    """The volume of these images."""
    slices = order_slices(given)
    return read_volume(slices, slices.images)


def test_slices_are_ordered_by_position_not_by_instance_number(phantom: Phantom) -> None:
    """Instance numbers that run against the positions change nothing."""
    slices = order_slices(images(phantom))
    assert [int(image.InstanceNumber) for image in slices.images] == list(range(24, 0, -1))
    np.testing.assert_allclose(slices.affine, phantom.affine, atol=1e-4)


def test_values_are_in_hounsfield_units(phantom: Phantom) -> None:
    """Slope and intercept of each image are applied: air is about -1000, the body about 40."""
    volume = volume_of(images(phantom))
    assert volume.array.dtype == np.float32
    assert abs(volume.array[:, 0, 0].mean() + 1000) < 30
    assert abs(volume.array[phantom.labelmap == 1].mean() - 40) < 30
    assert volume.spacing == pytest.approx((2.5, 3.125, 3.125))


def test_each_image_has_its_own_rescale(phantom: Phantom) -> None:
    """A slope that differs from image to image, as PET has it, is applied to its own image."""
    given = images(phantom)
    expected = volume_of(images(phantom)).array
    given[0].RescaleSlope = "2"
    array = volume_of(given).array
    np.testing.assert_allclose(array[-1], (expected[-1] + 1024) * 2 - 1024)
    np.testing.assert_array_equal(array[:-1], expected[:-1])


def test_localizer_is_left_out_and_named(phantom: Phantom) -> None:
    """A localizer among the slices, of another orientation and size, does not matter; it is named."""
    given = images(phantom)
    scout = dcmread(phantom.folder / "0001.dcm")
    scout.ImageType, scout.SOPInstanceUID = ["ORIGINAL", "PRIMARY", "LOCALIZER"], "1.2.3"
    scout.ImageOrientationPatient = ["1", "0", "0", "0", "0", "-1"]
    slices = order_slices([*given, scout])
    assert slices.left_out == ("1.2.3",)
    assert len(slices.images) == len(given)


def test_only_localizers_are_no_volume(image: Dataset) -> None:
    """A series of localizers has nothing to segment."""
    image.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    with pytest.raises(NotAVolume, match="nothing but localizers"):
        order_slices([image])


@pytest.mark.parametrize(
    ("keyword", "value", "reason"),
    [
        ("ImagePositionPatient", None, "ImagePositionPatient of SOP instance"),
        ("ImageOrientationPatient", ["1", "0", "0"], "does not hold 6 numbers"),
        ("PixelSpacing", None, "PixelSpacing"),
        ("Rows", None, "Rows"),
        ("NumberOfFrames", "3", "multi-frame"),
    ],
)
def test_missing_geometry_is_named(image: Dataset, keyword: str, value, reason: str) -> None:
    """An attribute that geometry needs is named with its image."""
    setattr(image, keyword, value)
    with pytest.raises(NotAVolume, match=reason):
        order_slices([image])


def test_pixels_that_cannot_be_decoded_are_named(image: Dataset) -> None:
    """Pixel data that is too short is an error that names the image."""
    image.PixelData = image.PixelData[:1000]
    with pytest.raises(UnreadablePixels, match=image.SOPInstanceUID):
        volume_of([image])


@pytest.mark.parametrize("option", ["+e1", "+el"])
@pytest.mark.parametrize("change", [{}, {"BitsStored": 12, "HighBit": 11}, {"PixelRepresentation": 0}])
def test_jpeg_lossless_is_read(
    phantom: Phantom, dcmtk: Callable[[str], str], tmp_path: Path, option: str, change: dict[str, int]
) -> None:
    """What DCMTK has compressed (SV1, and any predictor) has the pixels that it had, signed and of fewer bits as well."""
    image = dcmread(phantom.folder / "0005.dcm")
    stored = np.clip(image.pixel_array, -1024, 1500) + (1024 if "PixelRepresentation" in change else 0)
    image.PixelData = stored.astype("<i2").tobytes()
    for keyword, value in change.items():
        setattr(image, keyword, value)
    if "BitsStored" in change:
        image.PixelData = (stored.astype("<i2").view("<u2") & 0xFFF).tobytes()
    image.save_as(tmp_path / "native.dcm")
    command = [dcmtk("dcmcjpeg"), option, "+un", tmp_path / "native.dcm", tmp_path / "jpeg.dcm"]
    subprocess.run(command, check=True, capture_output=True)
    read = dcmread(tmp_path / "jpeg.dcm")
    assert read.file_meta.TransferSyntaxUID in (JPEGLossless, JPEGLosslessSV1)
    np.testing.assert_array_equal(stored_values(read), stored)
    native = dcmread(BytesIO(in_native(tmp_path / "jpeg.dcm", ExplicitVRLittleEndian)))
    np.testing.assert_array_equal(native.pixel_array, stored)


def test_jpeg_lossless_that_was_cut_off_is_refused(phantom: Phantom, dcmtk: Callable[[str], str], tmp_path: Path) -> None:
    """No pixels are made up."""
    command = [dcmtk("dcmcjpeg"), "+un", phantom.folder / "0005.dcm", tmp_path / "jpeg.dcm"]
    subprocess.run(command, check=True, capture_output=True)
    image = dcmread(tmp_path / "jpeg.dcm")
    (frame,) = generate_frames(image.PixelData, number_of_frames=1)
    image.PixelData = encapsulate([frame[: len(frame) // 2]])
    with pytest.raises(UnreadablePixels, match="has no end"):
        stored_values(image)
