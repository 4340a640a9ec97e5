"""Volumes from images."""

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from segnode.dicom.volume import Volume, order_slices, read_volume
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
