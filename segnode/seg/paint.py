"""Segments in their colours, as pictures show them: on nothing, or over the image that they were drawn on."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from segnode.dicom.display import palette_colours
from segnode.errors import NotAVolume
from segnode.seg.colour import srgb
from segnode.seg.planes import planes_of
from segnode.seg.segmentation import Segmentation

Bytes = npt.NDArray[np.uint8]

NOTHING: Final = -1
_OPACITY_OVER_AN_IMAGE: Final = 0.5
# For segments that say no colour, by their number: such as are told apart, also from grey.
_COLOURS: Final = np.array(
    [
        (230, 60, 60),
        (70, 190, 70),
        (70, 120, 235),
        (245, 200, 40),
        (40, 200, 215),
        (215, 70, 215),
        (245, 140, 40),
        (150, 230, 90),
        (150, 100, 235),
        (245, 150, 180),
        (0, 150, 130),
        (190, 140, 90),
    ],
    np.uint8,
)
# Frames that are looked at for the one that shows most.
_LOOKED_AT: Final = 64


@dataclass(frozen=True, eq=False)
class Paint:
    """The segments of a plane: `labels` (rows, columns) is the number of the segment on top, NOTHING for none.

    `opacity` (rows, columns) is how much of it there is, 255 for all; `colours` (numbers, 3) is by segment number, sRGB.
    """

    labels: npt.NDArray[np.int32]
    opacity: Bytes
    colours: Bytes

    def at(self, places: npt.NDArray[np.intp]) -> "Paint":
        """The same at other pixels: `places` (rows, columns, 2) are row and column in this one, of which some lie outside."""
        rows, columns = self.labels.shape
        inside = np.asarray(((places >= 0) & (places < (rows, columns))).all(axis=-1))
        row, column = np.moveaxis(np.where(inside[..., np.newaxis], places, 0), -1, 0)
        labels = np.where(inside, self.labels[row, column], np.int32(NOTHING))
        return Paint(labels, np.where(inside, self.opacity[row, column], np.uint8(0)), self.colours)

    def alone(self) -> Bytes:
        """(rows, columns, 4), sRGB and opacity: nothing where there is no segment."""
        opacity = np.where(self.labels == NOTHING, np.uint8(0), self.opacity)
        coloured = self.colours[np.maximum(self.labels, 0)]
        coloured[opacity == 0] = 0
        return np.concatenate([coloured, opacity[..., np.newaxis]], axis=-1)

    def over(self, picture: Bytes) -> Bytes:
        """(rows, columns, 3): a picture (rows, columns, 3), of which half is seen through segments but not their outlines."""
        alpha = self.opacity * np.float32(_OPACITY_OVER_AN_IMAGE / 255)
        alpha[self.labels == NOTHING] = 0
        alpha[self._outlines()] = 1
        coloured = self.colours[np.maximum(self.labels, 0)]
        mixed = picture + (coloured - picture.astype(np.float32)) * alpha[..., np.newaxis]
        return np.rint(mixed).astype(np.uint8)

    def _outlines(self) -> npt.NDArray[np.bool_]:
        """The pixels of segments next to what is no such segment; those that are there in part have none."""
        around = np.pad(self.labels, 1, mode="edge")
        middle = self.labels
        outer = np.zeros(middle.shape, np.bool_)
        for beside in (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:]):
            outer |= beside != middle
        return np.asarray(outer & (middle != NOTHING) & (self.opacity == 255))


def frames_of_plane(segmentation: Segmentation, frame: int) -> list[int]:
    """The frames (from 0) that lie where this one does, itself among them; a frame of a LABELMAP has all that is there."""
    if segmentation.type == "LABELMAP":
        return [frame]
    try:
        planes = planes_of(segmentation).of_frame
    except NotAVolume:
        return [frame]
    return [int(number) for number in np.flatnonzero(planes == planes[frame])] if planes[frame] >= 0 else [frame]


def paint(segmentation: Segmentation, frames: list[int]) -> Paint:
    """What frames of one plane show. Where segments overlap the one of the highest number is on top, of fractions the greatest.

    Raises UnreadablePixels.
    """
    if segmentation.type == "LABELMAP":
        labels = segmentation.frames.decode(frames[0]).astype(np.int32)
        labels[_is_nothing(segmentation, labels)] = NOTHING
        return Paint(labels, np.full(labels.shape, 255, np.uint8), _colours(segmentation, int(labels.max())))
    shape = (segmentation.rows, segmentation.columns)
    labels, opacity = np.full(shape, NOTHING, np.int32), np.zeros(shape, np.uint8)
    numbers = segmentation.table.segment_numbers
    for frame in sorted(frames, key=lambda frame: int(numbers[frame])):
        there = _opacity(segmentation, frame)
        on_top = (there > 0) & (there >= opacity)
        labels[on_top], opacity[on_top] = numbers[frame], there[on_top]
    return Paint(labels, opacity, _colours(segmentation, int(numbers[frames].max())))


def fullest_frame(segmentation: Segmentation) -> int:
    """The frame (from 0) that shows most of its segments, of some that are spread evenly over all of them."""
    count = len(segmentation.frames)
    chosen = np.unique(np.linspace(0, count - 1, min(count, _LOOKED_AT)).round().astype(int))
    return int(max(chosen, key=lambda frame: _shown(segmentation, int(frame))))


def _shown(segmentation: Segmentation, frame: int) -> int:
    if segmentation.type == "LABELMAP":
        labels = segmentation.frames.decode(frame)
        return int(np.count_nonzero(~_is_nothing(segmentation, labels)))
    return int(np.count_nonzero(segmentation.frames.decode(frame)))


def _opacity(segmentation: Segmentation, frame: int) -> Bytes:
    values = segmentation.frames.decode(frame)
    if segmentation.type == "BINARY":
        return np.where(values != 0, np.uint8(255), np.uint8(0))
    most = segmentation.maximum_fractional_value
    return np.rint(np.minimum(values, most) * (255 / most)).astype(np.uint8)


def _is_nothing(segmentation: Segmentation, labels: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
    """The background of a LABELMAP: its padding value, and 0 unless that is a segment."""
    background = labels == segmentation.padding_value
    return np.asarray(background if 0 in segmentation.numbers else background | (labels == 0))


def _colours(segmentation: Segmentation, highest: int) -> Bytes:
    """By segment number: of the palette, as recommended, or of the table here."""
    numbers = np.arange(max(highest, *segmentation.segment, 0) + 1)
    if segmentation.header.get("PhotometricInterpretation") == "PALETTE COLOR":
        return palette_colours(numbers, segmentation.header)
    colours: Bytes = _COLOURS[(numbers - 1) % len(_COLOURS)]
    for number, segment in segmentation.segment.items():
        if segment.cielab is not None:
            colours[number] = srgb(segment.cielab)
    return colours
