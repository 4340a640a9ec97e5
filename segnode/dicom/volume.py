"""Volumes: a series of single-frame images as one array with its geometry."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels.utils import pixel_array

from segnode.dicom.attributes import RULE_ATTRIBUTES
from segnode.dicom.geometry import Plane, Vector, stack
from segnode.dicom.jpeg_lossless import use_jpeg_lossless
from segnode.errors import NotAVolume, UnreadablePixels


@dataclass(frozen=True, eq=False)
class Volume:
    """What a model is given.

    `array` is (slices, rows, columns), float32, in modality units (HU for CT). `affine` is 4x4 and maps (slice, row,
    column) to millimetres in the LPS patient coordinate system; where a rule allows a tilted gantry, its first column may
    not be along the normal of the slices. `series` holds attributes by keyword as DICOM text. `sop_instance_uids` names the
    image of each slice.
    """

    array: npt.NDArray[np.float32]
    affine: Vector
    series: Mapping[str, str]
    sop_instance_uids: tuple[str, ...]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between slices, rows and columns."""
        slices, rows, columns = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(slices), float(rows), float(columns)


@dataclass(frozen=True, eq=False)
class Slices:
    """The images of a series in slice order with their geometry, and the SOP instance UIDs that are no slices."""

    images: tuple[Dataset, ...]
    affine: Vector
    left_out: tuple[str, ...]


def order_slices(images: Sequence[Dataset], *, allow_tilt: bool = False) -> Slices:
    """Put the images of a series (headers suffice, any order) in slice order; localizers are left out.

    A tilted gantry is in the way unless `allow_tilt`. Raises NotAVolume, naming what is in the way.
    """
    slices = [image for image in images if not _is_localizer(image)]
    if not slices:
        raise NotAVolume("the series holds nothing but localizers")
    geometry = stack([_plane(image) for image in slices], allow_tilt=allow_tilt)
    left_out = tuple(str(image.SOPInstanceUID) for image in images if _is_localizer(image))
    return Slices(tuple(slices[i] for i in geometry.order), geometry.affine, left_out)


def read_volume(slices: Slices, images: Iterable[Dataset]) -> Volume:
    """Decode images, given with their pixels in slice order, into a volume; one image is held at a time.

    Raises UnreadablePixels, naming the image.
    """
    return volume_of(slices, map(stored_values, images))


def volume_of(slices: Slices, stored: Iterable[npt.NDArray[np.number]]) -> Volume:
    """The volume of stored values (rows, columns), given in slice order."""
    first = slices.images[0]
    array = np.empty((len(slices.images), first.Rows, first.Columns), np.float32)
    for plane, values, image in zip(array, stored, slices.images, strict=True):
        slope, intercept = float(image.get("RescaleSlope") or 1), float(image.get("RescaleIntercept") or 0)
        np.multiply(values, np.float32(slope), out=plane, dtype=np.float32, casting="unsafe")
        np.add(plane, np.float32(intercept), out=plane)
    series = {keyword: as_text(first.get(keyword)) for keyword in RULE_ATTRIBUTES if first.get(keyword) not in (None, "")}
    return Volume(array, slices.affine, series, tuple(str(image.SOPInstanceUID) for image in slices.images))


def _is_localizer(image: Dataset) -> bool:
    return "LOCALIZER" in (image.get("ImageType") or ())


def _plane(image: Dataset) -> Plane:
    if int(image.get("NumberOfFrames") or 1) > 1:
        raise NotAVolume(f"SOP instance {image.SOPInstanceUID} is multi-frame: only series of single-frame images are read")
    return Plane(
        sop_instance_uid=str(image.SOPInstanceUID),
        frame_of_reference_uid=str(image.get("FrameOfReferenceUID") or ""),
        position=_numbers(image, "ImagePositionPatient", 3),
        orientation=_numbers(image, "ImageOrientationPatient", 6),
        spacing=_numbers(image, "PixelSpacing", 2),
        rows=_positive(image, "Rows"),
        columns=_positive(image, "Columns"),
        thickness=float(image.get("SliceThickness") or 0),
    )


def _numbers(image: Dataset, keyword: str, count: int) -> tuple[float, ...]:
    value = image.get(keyword)
    if value is None or not isinstance(value, MultiValue) or len(value) != count:
        raise NotAVolume(f"{keyword} of SOP instance {image.SOPInstanceUID} does not hold {count} numbers")
    numbers = tuple(float(number) for number in value)
    if not np.isfinite(numbers).all():
        raise NotAVolume(f"{keyword} of SOP instance {image.SOPInstanceUID} holds something that is not a number")
    return numbers


def _positive(image: Dataset, keyword: str) -> int:
    value = image.get(keyword)
    if not isinstance(value, int) or value < 1:
        raise NotAVolume(f"{keyword} of SOP instance {image.SOPInstanceUID} is missing or not positive")
    return value


def stored_values(image: Dataset) -> npt.NDArray[np.number]:
    """The stored values (rows, columns) of an image with its pixels. Raises UnreadablePixels."""
    use_jpeg_lossless()
    try:
        stored: npt.NDArray[np.number] = pixel_array(image, raw=True)
    except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise UnreadablePixels(f"the pixels of SOP instance {image.SOPInstanceUID} cannot be decoded: {error}") from error
    if stored.shape != (image.Rows, image.Columns):
        raise UnreadablePixels(f"SOP instance {image.SOPInstanceUID} does not decode to Rows x Columns of one sample")
    return stored


def as_text(value: object) -> str:
    """A value of an attribute as DICOM text, several joined by a backslash; empty where there is none."""
    if value is None:
        return ""
    return "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value)
