"""A contact sheet: slices of a volume with its labels in colour, as one picture to look at."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from pydicom import Dataset

from segnode.dicom.volume import Volume
from segnode.seg.colour import srgb

_COLUMNS, _ROWS = 4, 3
_CELL: Final = 320
_LEGEND: Final = 28
_OPACITY: Final = 0.45
_CT_WINDOW_HU: Final = (-1000.0, 800.0)
_GREY: Final = (128, 128, 128)

Rgb = tuple[int, int, int]


def draw_contact_sheet(path: Path, volume: Volume, labels: npt.NDArray[np.integer[Any]], segmentation: Dataset) -> None:
    """Write a PNG of twelve slices from first to last; `labels` is on the volume's grid, colours and names are the SEG's."""
    colours = {int(item.SegmentNumber): _colour(item) for item in segmentation.SegmentSequence}
    names = {int(item.SegmentNumber): str(item.SegmentLabel) for item in segmentation.SegmentSequence}
    sheet = Image.new("RGB", (_COLUMNS * _CELL, _ROWS * _CELL + _LEGEND), "black")
    chosen = np.linspace(0, len(labels) - 1, _COLUMNS * _ROWS).round().astype(int)
    low, high = _window(volume)
    for place, index in enumerate(chosen):
        grey = np.clip((volume.array[index] - low) / (high - low), 0, 1) * 255
        cell = Image.fromarray(_blend(grey, labels[index], colours)).resize((_CELL, _CELL))
        ImageDraw.Draw(cell).text((6, 6), f"slice {index + 1}/{len(labels)}", fill="white")
        sheet.paste(cell, (place % _COLUMNS * _CELL, place // _COLUMNS * _CELL))
    _draw_legend(ImageDraw.Draw(sheet), {names[n]: colours[n] for n in sorted(colours) if n})
    sheet.save(path)


def _colour(segment: Dataset) -> Rgb:
    cielab = segment.get("RecommendedDisplayCIELabValue")
    return srgb(cielab) if cielab else _GREY


def _window(volume: Volume) -> tuple[float, float]:
    low, high = np.percentile(volume.array[:: max(1, len(volume.array) // 12)], (0.5, 99.5))
    is_ct = low < -500  # air
    return _CT_WINDOW_HU if is_ct else (float(low), float(max(high, low + 1)))


def _blend(
    grey: npt.NDArray[np.float32], labels: npt.NDArray[np.integer[Any]], colours: Mapping[int, Rgb]
) -> npt.NDArray[np.uint8]:
    picture = np.repeat(grey[..., np.newaxis], 3, axis=2)
    for number, colour in colours.items():
        if number:
            inside = labels == number
            picture[inside] = picture[inside] * (1 - _OPACITY) + np.array(colour) * _OPACITY
    return picture.astype(np.uint8)


def _draw_legend(draw: ImageDraw.ImageDraw, colours: Mapping[str, Rgb]) -> None:
    left, top = 8, _ROWS * _CELL + 6
    for name, colour in colours.items():
        draw.rectangle((left, top, left + 16, top + 16), fill=colour)
        draw.text((left + 22, top + 2), name, fill="white")
        left += 40 + int(draw.textlength(name))
