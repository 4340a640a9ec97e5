"""Pictures of frames, made in a decoding process: images as they are displayed, segments in colour, or these over those."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import (
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from segnode.dicom.display import Window, eight_bits, of_frame, picture_of, stored_values
from segnode.dicomweb.plane import Plane, image_plane, image_tile, segmentation_plane, segmentation_tile
from segnode.dicomweb.reading_child import LastFile, OpenFile, open_file
from segnode.dicomweb.rendering import GIF, JPEG, PNG, Rendering, Viewport
from segnode.errors import BadRequest, NotASegmentation, NotFound, UnreadablePixels
from segnode.seg.paint import Paint, frames_of_plane, fullest_frame, paint
from segnode.seg.read import open_segmentation
from segnode.seg.segmentation import Segmentation

Bytes = npt.NDArray[np.uint8]

_LOSSLESS: Final = (
    RLELossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEG2000Lossless,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
)
_MOST_PIXELS: Final = 1 << 26
_LARGEST_PICTURE: Final = 64 << 20
_SPACINGS: Final = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")
_MOST_OBLONG: Final = 100.0
_FORMATS: Final[Mapping[str, tuple[str, Callable[[Rendering], dict[str, Any]]]]] = {
    # A segment's edge is one of colour: with chrominance of every other pixel it would be blurred.
    JPEG: ("JPEG", lambda how: {"quality": how.quality, "subsampling": 0}),
    PNG: ("PNG", lambda _: {"compress_level": 4}),
    GIF: ("GIF", lambda _: {}),
}


class Renderer:
    """Makes pictures; the file and the segmentation that were asked for last are kept."""

    def __init__(self, last: LastFile) -> None:
        self._last = last
        self._path = Path()
        self._segmentation: Segmentation | None = None

    def render(
        self,
        path: Path,
        how: dict[str, Any],
        media_type: str,
        frame: int | None,
        *,
        is_segmentation: bool,
        over: Sequence[tuple[str, Sequence[int]]] | None = None,
    ) -> bytes:
        """The picture of a frame (from 0), or of the one that stands for all of them, in a media type.

        `over` are the files, and frames of them (from 1, none for all), of which one is the image that segments are drawn on.
        Raises BadRequest, NotFound, UnreadablePixels, and whatever decoders do.
        """
        rendering = msgspec.convert(how, Rendering)
        if not is_segmentation:
            file = self._last.open(path)
            index = file.places.number_of_frames // 2 if frame is None else frame
            attributes = of_frame(file.header, index)
            picture, aspect = displayed(file, index, attributes, rendering.window), _aspect(attributes)
        elif over is not None:
            picture, aspect = self._over(path, self._frame(path, frame), over, rendering.window)
        else:
            segmentation = self._segments(path)
            frames = frames_of_plane(segmentation, fullest_frame(segmentation)) if frame is None else [self._frame(path, frame)]
            picture, aspect = paint(segmentation, frames).alone(), _ratio(next(iter(segmentation.table.spacings), None))
        return _encoded(_fitted(Image.fromarray(picture), rendering.viewport, aspect), media_type, rendering)

    def sources(self, path: Path, frame: int | None) -> bytes:
        """What a frame of a segmentation, or that which stands for all, was drawn on, as JSON.

        `frame` is from 0, `references` are SOP class, SOP instance and frame numbers, and `series` those that the whole object
        refers to. Raises NotFound, UnreadablePixels.
        """
        index, segmentation = self._frame(path, frame), self._segments(path)
        series = (item.get("SeriesInstanceUID") for item in segmentation.header.get("ReferencedSeriesSequence") or ())
        references = [source[:3] for source in segmentation.table.sources[index]]
        return json.dumps({"frame": index, "references": references, "series": [str(uid) for uid in series if uid]}).encode()

    def _segments(self, path: Path) -> Segmentation:
        if self._segmentation is None or self._path != path:
            self._segmentation = None  # no two are held at a time
            try:
                segmentation = open_segmentation(path)
            except NotASegmentation as error:
                raise UnreadablePixels(f"its segments cannot be told: {error}") from error
            _require_size(segmentation.rows, segmentation.columns)
            self._path, self._segmentation = path, segmentation
        return self._segmentation

    def _frame(self, path: Path, frame: int | None) -> int:
        segmentation = self._segments(path)
        if frame is None:
            return fullest_frame(segmentation)
        if frame >= len(segmentation.frames):
            raise NotFound(f"it has {len(segmentation.frames)} frames")
        return frame

    def _over(
        self, path: Path, frame: int, over: Sequence[tuple[str, Sequence[int]]], window: Window | None
    ) -> tuple[Bytes, float]:
        segmentation = self._segments(path)
        painted = paint(segmentation, frames_of_plane(segmentation, frame))
        file, index, placed = _source(segmentation, frame, painted, over)
        attributes = of_frame(file.header, index)
        picture = displayed(file, index, attributes, window)
        if picture.ndim == 2:
            picture = np.repeat(picture[..., np.newaxis], 3, axis=-1)
        return placed.over(picture), _aspect(attributes)


def displayed(file: OpenFile, index: int, attributes: Dataset, window: Window | None) -> Bytes:
    """A frame (from 0) as (rows, columns) of grey, or (rows, columns, 3) of sRGB; `attributes` are those of the frame.

    Raises NotFound, UnreadablePixels, and whatever decoders do.
    """
    numbers = file.places.numbers
    _require_size(numbers["Rows"], numbers["Columns"])
    samples, stored = numbers.get("SamplesPerPixel", 1), numbers.get("BitsStored", numbers["BitsAllocated"])
    if samples == 3:
        return eight_bits(file.colours(index), stored)
    if samples != 1:
        raise UnreadablePixels(f"SamplesPerPixel is {samples}: pictures are made of 1 or 3")
    is_float = "FloatPixelData" in attributes or "DoubleFloatPixelData" in attributes
    high_bit = attributes.get("HighBit", stored - 1)
    if not isinstance(high_bit, int) or not _has_all_bits(file):
        high_bit = None
    values = stored_values(file.frame(index), numbers, high_bit, is_float=is_float)
    return picture_of(values, attributes, window)


def _has_all_bits(file: OpenFile) -> bool:
    """Whether its frames have bits that are not stored: what a codec that loses something rounds in values is no such bit."""
    return file.places.starts is None or file.transfer_syntax_uid in _LOSSLESS


def _source(
    segmentation: Segmentation, frame: int, painted: Paint, over: Sequence[tuple[str, Sequence[int]]]
) -> tuple[OpenFile, int, Paint]:
    """The frame (from 0) of a file that lies where segments do, nearest, and these at its pixels.

    Raises NotFound where none does.
    """
    where, tile = segmentation_plane(segmentation, frame), segmentation_tile(segmentation, frame)
    best: tuple[float, OpenFile, int, Plane] | None = None
    for file, index, attributes, is_only in _frames(over):
        is_as_large = (attributes.get("Rows"), attributes.get("Columns")) == (segmentation.rows, segmentation.columns)
        if tile is not None:
            if is_as_large and tile == image_tile(attributes, index):
                return file, index, painted
            continue
        there = image_plane(attributes)
        if where is None or there is None:
            if is_as_large and is_only:  # it was drawn on that, and nothing says where (PS3.3 A.51.3)
                return file, index, painted
            continue
        distance = where.distance(there)
        if distance is not None and (best is None or distance < best[0]):
            best = (distance, file, index, there)
    if best is None or where is None:
        raise NotFound(
            f"no image that is held lies in the plane of its frame {frame + 1}: without overlay it is rendered alone"
        )
    _, file, index, there = best
    return file, index, painted.at(where.places(there))


def _frames(over: Sequence[tuple[str, Sequence[int]]]) -> Iterator[tuple[OpenFile, int, Dataset, bool]]:
    """The frames (from 0) that are named and there, their attributes, and whether it is the only one."""
    for path, numbers in over:
        file = open_file(Path(path))
        there = range(1, int(file.header.get("NumberOfFrames") or 1) + 1)
        named = [number for number in numbers if number in there] if numbers else there
        for number in named:
            yield file, number - 1, of_frame(file.header, number - 1), len(over) == len(named) == 1


def _require_size(rows: int, columns: int) -> None:
    if rows * columns > _MOST_PIXELS:
        raise UnreadablePixels(f"Rows x Columns is {rows} x {columns}: frames of {_MOST_PIXELS} pixels at most are rendered")


def _aspect(attributes: Dataset) -> float:
    """How much higher than wide its pixels are (PS3.3 C.7.6.3.1.7, 10.7)."""
    return _ratio(next((attributes.get(keyword) for keyword in _SPACINGS if attributes.get(keyword)), None))


def _ratio(spacing: object) -> float:
    values = list(spacing) if isinstance(spacing, MultiValue | list | tuple) else []
    if len(values) != 2 or not all(isinstance(value, int | float) and 0 < value < np.inf for value in values):
        return 1.0
    return float(min(max(values[0] / values[1], 1 / _MOST_OBLONG), _MOST_OBLONG))


def _fitted(picture: Image.Image, viewport: Viewport | None, aspect: float) -> Image.Image:
    """The region that is asked for, as large as fits into the viewport, undistorted (PS3.18 8.3.5.1.3). Raises BadRequest."""
    if viewport is None:
        return picture
    width, height = picture.size
    right = min(viewport.x + (viewport.region_width or width), width)
    bottom = min(viewport.y + (viewport.region_height or height), height)
    wide, high = right - viewport.x, (bottom - viewport.y) * aspect
    if wide <= 0 or high <= 0:
        raise BadRequest(f"the region of viewport lies beside the image, which has {width} columns and {height} rows")
    scale = min(viewport.width / wide, viewport.height / high)
    if not viewport.enlarges:
        scale = min(scale, 1.0)
    size = max(1, round(wide * scale)), max(1, round(high * scale))
    # Between two segments, and between one and nothing, there is no third colour.
    method = Image.Resampling.NEAREST if picture.mode == "RGBA" else Image.Resampling.BICUBIC
    fitted = picture.resize(size, method, box=(viewport.x, viewport.y, right, bottom))
    if viewport.is_flipped:
        fitted = fitted.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return fitted.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if viewport.is_upside_down else fitted


def _encoded(picture: Image.Image, media_type: str, how: Rendering) -> bytes:
    """A file of that type, black where there is nothing and the type knows no transparency. Raises UnreadablePixels."""
    if picture.mode == "RGBA" and media_type != PNG:
        black = Image.new("RGB", picture.size)
        black.paste(picture, mask=picture.getchannel("A"))
        picture = black
    name, options = _FORMATS[media_type]
    file = BytesIO()
    picture.save(file, name, **options(how))
    if file.tell() > _LARGEST_PICTURE:
        raise UnreadablePixels(f"the picture takes more than {_LARGEST_PICTURE >> 20} MiB: ask for {JPEG}, or a viewport")
    return file.getvalue()
