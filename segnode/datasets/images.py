"""The images of a series as one array with its grid, in the modality's units."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from segnode.datasets.grid import Grid
from segnode.dicom.multi_frame import FrameHeader, frames_without_groups, is_multi_frame, with_pixels
from segnode.dicom.native_pixels import native_values
from segnode.dicom.slices import order_slices, stored_values
from segnode.errors import BadDataset
from segnode.seg.write.placement import on_frames

_TYPES: Final = (np.int16, np.uint16, np.int32)
_AHEAD: Final = 2
_Made = TypeVar("_Made")


@dataclass(frozen=True, eq=False)
class Images:
    """A series of images: headers and files in slice order, along row x column direction.

    The slices are single-frame images, or the frames of one image, of which each has the file. `starts` is where the elements
    begin in each file that the header lacks: its pixels.
    """

    headers: tuple[Dataset, ...]
    files: tuple[Path, ...]
    starts: tuple[int, ...]
    grid: Grid

    @cached_property
    def _types(self) -> tuple["np.dtype[Any]", ...]:
        """Types for the values in the modality's units (HU for CT): all that the headers allow is in the last.

        A CT of 16 stored bits may reach beyond int16, and seldom does: that is the first then.
        """
        low, high = 0.0, 0.0
        for header in self.headers:
            slope, intercept = _rescale(header)
            if slope % 1 or intercept % 1:
                return (np.dtype(np.float32),)
            bits = int(header.get("BitsStored") or header.get("BitsAllocated") or 16)
            signed = bool(header.get("PixelRepresentation") or 0)
            for stored in (-(1 << bits - 1) if signed else 0, (1 << bits - (1 if signed else 0)) - 1):
                low, high = min(low, stored * slope + intercept), max(high, stored * slope + intercept)
        fitting = [kind for kind in _TYPES if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max]
        widest = np.dtype(fitting[0] if fitting else np.float32)
        return (widest,) if widest.itemsize <= 2 else (np.dtype(np.int16), widest)

    def written(self, write: Callable[["np.dtype[Any]"], _Made]) -> _Made:
        """What `write` makes of the planes, given the smallest type that holds them all.

        It is called once more where a plane has raised OverflowError in it, as the first type was too small.
        """
        *narrow, widest = self._types
        for dtype in narrow:
            with suppress(OverflowError):
                return write(dtype)
        return write(widest)

    @cached_property
    def _multi_frame(self) -> Dataset | None:
        """The image that all slices are frames of, with its pixels."""
        return dcmread(self.files[0]) if isinstance(self.headers[0], FrameHeader) else None

    def planes(self, dtype: "np.dtype[Any]") -> Iterator[npt.NDArray[Any]]:
        """The values of each slice, (rows, columns), in a type of `written`; a few are read ahead.

        Raises UnreadablePixels, and OverflowError where the type does not hold them.
        """
        with ThreadPoolExecutor(_AHEAD, "planes") as pool:
            ahead: deque[Future[npt.NDArray[Any]]] = deque()
            for index in range(len(self.headers)):
                ahead.append(pool.submit(self._plane, index, dtype))
                if len(ahead) > _AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _plane(self, index: int, dtype: "np.dtype[Any]") -> npt.NDArray[Any]:
        stored = self._stored(index)
        slope, intercept = _rescale(self.headers[index])
        if dtype != self._types[-1]:
            _require_room(dtype, [float(value) * slope + intercept for value in (stored.min(), stored.max())])
        if slope == 1 and intercept == 0:
            return stored.astype(dtype, copy=False)
        # What a step of whole numbers carries beyond the type, the next brings back: the result is in its range.
        scaled = stored.astype(dtype)
        number = float if dtype.kind == "f" else int
        if slope != 1:
            scaled *= np.asarray(number(slope)).astype(dtype)
        scaled += np.asarray(number(intercept)).astype(dtype)
        return scaled

    def _stored(self, index: int) -> npt.NDArray[Any]:
        header = self.headers[index]
        if self._multi_frame is not None:
            return stored_values(with_pixels(header, self._multi_frame))
        native = native_values(self.files[index].read_bytes(), header, self.starts[index])
        return native if native is not None else stored_values(dcmread(self.files[index]))

    def array(self) -> npt.NDArray[Any]:
        """All slices, (slices, rows, columns). Raises UnreadablePixels."""
        return self.written(self._array)

    def _array(self, dtype: "np.dtype[Any]") -> npt.NDArray[Any]:
        out = np.empty(self.grid.shape, dtype)
        for plane, values in zip(out, self.planes(dtype), strict=True):
            plane[:] = values
        return out


def read_images(files: Sequence[Path]) -> Images:
    """The images in the files of a series, which may lie in any order. Raises NotAVolume, BadDataset.

    They are a volume, or one image (radiograph, clip) without a place in the patient.
    """
    read: dict[str, tuple[Dataset, Path, int]] = {}
    for file in files:
        try:
            with file.open("rb") as opened:
                header = dcmread(opened, stop_before_pixels=True)
                read[str(header.SOPInstanceUID)] = header, file, opened.tell()
        except (InvalidDicomError, OSError) as error:
            raise BadDataset(f"{file} cannot be read: {type(error).__name__}") from error
    if len(read) == 1:
        ((image, file, start),) = read.values()
        frames = _frames_without_place(image)
        if frames:
            count = len(frames)
            return Images(tuple(frames), (file,) * count, (start,) * count, _grid_without_place(image, count))
    slices = order_slices([header for header, _, _ in read.values()])
    first = slices.images[0]
    grid = Grid((len(slices.images), int(first.Rows), int(first.Columns)), slices.affine)
    _, in_order, starts = zip(*(read[str(header.SOPInstanceUID)] for header in slices.images), strict=True)
    return Images(slices.images, in_order, starts, grid)


def _frames_without_place(image: Dataset) -> Sequence[Dataset]:
    """An image, or its frames, where these have no position; none where they have. Raises NotAVolume."""
    if not is_multi_frame(image):
        return [] if image.get("ImagePositionPatient") else [image]
    return [] if on_frames(image).has_positions else frames_without_groups(image)


def _grid_without_place(image: Dataset, count: int) -> Grid:
    rows, columns = image.get("PixelSpacing") or image.get("ImagerPixelSpacing") or (1, 1)
    return Grid((count, int(image.Rows), int(image.Columns)), np.diag([1.0, float(rows), float(columns), 1.0]), placed=False)


def _require_room(dtype: "np.dtype[Any]", values: Sequence[float]) -> None:
    room = np.iinfo(dtype)
    if min(values) < room.min or max(values) > room.max:
        raise OverflowError


def _rescale(header: Dataset) -> tuple[float, float]:
    slope = header.get("RescaleSlope")
    return float(1 if slope in (None, "") else slope), float(header.get("RescaleIntercept") or 0)
