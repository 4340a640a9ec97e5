"""Slices: the single-frame images of a series, or the frames of its multi-frame image, in order, and made into a volume."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from mmap import ACCESS_READ, mmap
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels.utils import pixel_array

from segnode.dicom.attributes import RULE_ATTRIBUTES
from segnode.dicom.geometry import Plane, Vector, stack
from segnode.dicom.jpeg_lossless import use_jpeg_lossless
from segnode.dicom.multi_frame import FrameHeader, frame_headers, is_multi_frame
from segnode.dicom.volume import ArrayFile, MappedVolume, Volume
from segnode.errors import NotAVolume, OutOfResources, UnreadablePixels

# What says where the pixels of an image lie.
GEOMETRY_ATTRIBUTES: Final = (
    "ImageType",
    "SOPInstanceUID",
    "FrameOfReferenceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "SliceThickness",
)
_MOST_THREADS: Final = 8


@dataclass(frozen=True, eq=False)
class MappedArray:
    """An array that is mapped from a file."""

    array: npt.NDArray[np.float32]
    file: ArrayFile


@dataclass(frozen=True, eq=False)
class Slices:
    """The images of a series in slice order with their geometry, and the SOP instance UIDs that are no slices.

    Of a multi-frame image `images` holds a FrameHeader for each slice.
    """

    images: tuple[Dataset, ...]
    affine: Vector
    left_out: tuple[str, ...]


def order_slices(images: Sequence[Dataset], *, allow_tilt: bool = False) -> Slices:
    """Put the images of a series (headers suffice, any order) in slice order; localizers are left out.

    They are single-frame images, or the frames of one multi-frame image. A tilted gantry is in the way unless `allow_tilt`.
    Raises NotAVolume, naming what is in the way.
    """
    slices = _frames([image for image in images if not _is_localizer(image)])
    if not slices:
        raise NotAVolume("the series holds nothing but localizers")
    geometry = stack([_plane(image) for image in slices], allow_tilt=allow_tilt)
    left_out = tuple(str(image.SOPInstanceUID) for image in images if _is_localizer(image))
    return Slices(tuple(slices[i] for i in geometry.order), geometry.affine, left_out)


def read_volume(slices: Slices, images: Iterable[Dataset]) -> Volume:
    """Decode images, given with their pixels in slice order, into a volume; one image is held at a time.

    Raises UnreadablePixels, naming the image.
    """
    array = np.empty(_shape(slices), np.float32)
    for plane, image, header in zip(array, images, slices.images, strict=True):
        _fill(plane, stored_values(image), header)
    return _volume(slices, array)


def map_array(slices: Slices, stored: Callable[[Dataset], npt.NDArray[np.number]], folder: Path) -> MappedArray:
    """The array of a volume, in a file on the disk of a folder.

    Stored values (rows, columns) are asked for by header from several threads: as many images are held at a time. Raises
    what that does, and OutOfResources.
    """
    shape, head = _shape(slices), BytesIO()
    np.lib.format.write_array_header_2_0(head, {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": shape})
    start = head.tell()
    file = _array_file(folder)
    _write_at(file.descriptor, head.getvalue(), 0)

    def write(number: int) -> None:
        plane, header = np.empty(shape[1:], np.float32), slices.images[number]
        _fill(plane, stored(header), header)
        # Not through the map: a full disk would end the process.
        _write_at(file.descriptor, plane.tobytes(), start + number * plane.nbytes)

    with ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS), "slices") as pool:
        for _ in pool.map(write, range(len(slices.images))):
            pass
    array = np.frombuffer(mmap(file.descriptor, 0, access=ACCESS_READ), np.float32, offset=start).reshape(shape)
    return MappedArray(array, file)


def mapped_volume(slices: Slices, mapped: MappedArray) -> MappedVolume:
    """The volume of slices and their array."""
    return MappedVolume(**vars(_volume(slices, mapped.array)), file=mapped.file)


def _array_file(folder: Path) -> ArrayFile:
    with _room(), TemporaryFile(dir=folder) as file:
        return ArrayFile(os.dup(file.fileno()))


def _write_at(descriptor: int, data: bytes, place: int) -> None:
    left = memoryview(data)
    while left:
        with _room():
            written = os.pwrite(descriptor, left, place)
        left, place = left[written:], place + written


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutOfResources(f"a volume cannot be written to disk: {error.strerror or error}") from error


def _shape(slices: Slices) -> tuple[int, int, int]:
    first = slices.images[0]
    return len(slices.images), int(first.Rows), int(first.Columns)


def _fill(plane: npt.NDArray[np.float32], values: npt.NDArray[np.number], header: Dataset) -> None:
    """Write stored values in modality units."""
    slope, intercept = float(header.get("RescaleSlope") or 1), float(header.get("RescaleIntercept") or 0)
    np.multiply(values, np.float32(slope), out=plane, dtype=np.float32, casting="unsafe")
    np.add(plane, np.float32(intercept), out=plane)


def _volume(slices: Slices, array: npt.NDArray[np.float32]) -> Volume:
    first = slices.images[0]
    series = {keyword: as_text(first.get(keyword)) for keyword in RULE_ATTRIBUTES if first.get(keyword) not in (None, "")}
    files = dict.fromkeys(str(getattr(_whole(image), "filename", None) or "") for image in slices.images)
    known = () if "" in files else tuple(map(Path, files))
    frames = tuple(image.frame_number for image in slices.images if isinstance(image, FrameHeader))
    uids = tuple(str(image.SOPInstanceUID) for image in slices.images)
    return Volume(array, slices.affine, series, uids, known, frame_numbers=frames)


def _is_localizer(image: Dataset) -> bool:
    return "LOCALIZER" in (image.get("ImageType") or ())


def _frames(images: Sequence[Dataset]) -> Sequence[Dataset]:
    """The images, or the frames of the one multi-frame image. Raises NotAVolume for several, of which a SEG cannot be made."""
    multi_frame = [image for image in images if is_multi_frame(image)]
    if not multi_frame:
        return images
    if len(images) > 1:
        what = f"one of {len(images)} images, SOP instance {multi_frame[0].SOPInstanceUID}, is multi-frame"
        raise NotAVolume(f"{what}: a volume is of single-frame images, or of the frames of one image")
    return frame_headers(images[0])


def _plane(image: Dataset) -> Plane:
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
    """The stored values (rows, columns) of an image, or frame, with its pixels. Raises UnreadablePixels."""
    use_jpeg_lossless()
    index = image.frame_number - 1 if isinstance(image, FrameHeader) else None
    try:
        stored: npt.NDArray[np.number] = pixel_array(_whole(image), raw=True, index=index)
    except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise UnreadablePixels(f"the pixels of SOP instance {image.SOPInstanceUID} cannot be decoded: {error}") from error
    if stored.shape != (image.Rows, image.Columns):
        raise UnreadablePixels(f"SOP instance {image.SOPInstanceUID} does not decode to Rows x Columns of one sample")
    return stored


def _whole(image: Dataset) -> Dataset:
    """The image itself, or that which a frame is of."""
    return image.image if isinstance(image, FrameHeader) else image


def as_text(value: object) -> str:
    """A value of an attribute as DICOM text, several joined by a backslash; empty where there is none."""
    if value is None:
        return ""
    return "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value)
