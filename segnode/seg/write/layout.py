"""Pixels as people have them — labels, stacked segments, probabilities — as the frames of a Segmentation (PS3.3 C.8.20.2)."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from segnode.errors import LabelError, OverlappingSegments
from segnode.seg.combine import extents_in, label_type, values_in
from segnode.seg.pixels import FramesToEncode, FrameToEncode, MadeFrames, largest_value, one_by_one
from segnode.seg.segmentation import SegmentationType, up_to_a_gap
from segnode.seg.write.placement import Matrix

Overlap = Literal["YES", "NO", "UNDEFINED"]
# Labels (planes, rows, columns); stacked segments or probabilities (planes, rows, columns, segments).
Pixels = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Layout:
    """Frames to be written: `planes` and `numbers` say of each where it lies and which segment it is of, 0 in a LABELMAP."""

    frames: FramesToEncode
    planes: tuple[int, ...]
    numbers: tuple[int, ...]
    overlap: Overlap


def shaped(pixels: Pixels, matrix: Matrix | None) -> Pixels:
    """Pixels with an axis of planes: one plane is given it, a total pixel matrix is cut into tiles. Raises LabelError."""
    if matrix is not None and matrix.cut:
        return _cut(pixels, matrix)
    if pixels.ndim == 2:
        return pixels[np.newaxis]
    if pixels.ndim not in (3, 4):
        raise LabelError(
            f"the pixels have {pixels.ndim} axes: labels have (planes, rows, columns), stacked segments one more for segments"
        )
    return pixels


def _cut(pixels: Pixels, matrix: Matrix) -> Pixels:
    """Tiles (tiles, rows, columns[, segments]) of a total pixel matrix, zero beyond its edges."""
    whole = pixels[np.newaxis] if pixels.ndim == 2 else pixels
    if whole.ndim not in (3, 4) or whole.shape[:3] != (1, matrix.rows, matrix.columns):
        raise LabelError(
            f"the pixels are {_size(pixels.shape)}, where the total pixel matrix has {matrix.rows} rows and {matrix.columns}"
            " columns: give (rows, columns), (1, rows, columns) or (1, rows, columns, segments)"
        )
    height, width = matrix.tile_size
    down, across = -(-matrix.rows // height), -(-matrix.columns // width)
    padding = [(0, down * height - matrix.rows), (0, across * width - matrix.columns), *[(0, 0)] * (whole.ndim - 3)]
    padded = np.pad(whole[0], padding)
    tiles = padded.reshape(down, height, across, width, *whole.shape[3:]).swapaxes(1, 2)
    return np.ascontiguousarray(tiles).reshape(down * across, height, width, *whole.shape[3:])


def lay_out(
    pixels: Pixels,
    kind: SegmentationType,
    numbers: Sequence[int],
    order: Sequence[int],
    *,
    omit_empty: bool,
    maximum: int,
) -> Layout:
    """The frames of (planes, rows, columns[, segments]) in a type of segmentation; `numbers` are those that are described.

    Planes come in `order`, for each segment after the other; when all frames are empty all are written. Raises LabelError,
    OverlappingSegments.
    """
    if not pixels.size:
        raise LabelError(f"the pixels are {_size(pixels.shape)}: there is not one")
    if pixels.ndim == 3 and pixels.dtype.kind == "f":
        pixels = pixels[..., np.newaxis]
    if pixels.ndim == 4:
        _require_stacked(pixels, kind, numbers)
        return _stacked(pixels, kind, numbers, order, omit_empty=omit_empty, maximum=maximum)
    if pixels.dtype.kind not in "bui":
        raise LabelError(f"labels of type {pixels.dtype} are no segment numbers: give bool or integers")
    labels = pixels.view(np.uint8) if pixels.dtype == np.bool_ else pixels
    if kind == "LABELMAP":
        return _labelmap(labels, numbers, order, omit_empty=omit_empty)
    present = [extents_in(plane) for plane in labels]
    _require_known(present, numbers)
    kept = [(plane, number) for number in numbers for plane in order if not omit_empty or number in present[plane]]
    planes, of = _split(kept or [(plane, number) for number in numbers for plane in order])
    full = None if kind == "BINARY" else maximum

    def make(index: int) -> FrameToEncode:
        inside: npt.NDArray[np.bool_] = labels[planes[index]] == of[index]
        return inside if full is None else inside.astype(np.uint8) * np.uint8(full)

    def packed(index: int) -> tuple[int, npt.NDArray[np.uint8]]:
        begin, end = present[planes[index]].get(of[index], (0, 0))
        first = begin // 8
        inside = labels[planes[index]].reshape(-1)[first * 8 : -(-end // 8) * 8] == of[index]
        return first, np.packbits(inside, bitorder="little")

    frames = MadeFrames(_stored_type(full), len(planes), one_by_one(make), packed if full is None else None)
    return Layout(frames, planes, of, "NO")


def lay_out_layers(layers: Pixels, numbers: Sequence[int], order: Sequence[int]) -> Layout:
    """The frames of a BINARY of labels (layers, planes, rows, columns), in which segments may overlap.

    The first of `numbers` is written as 1, the next as 2. Raises LabelError for labels that are none of these.
    """
    present = [set().union(*(extents_in(layer) for layer in plane)) for plane in layers.swapaxes(0, 1)]
    _require_known(present, numbers)
    kept = [(plane, place) for place, number in enumerate(numbers) for plane in order if number in present[plane]]
    planes, places = _split(kept or [(plane, place) for place in range(len(numbers)) for plane in order])

    def make(index: int) -> FrameToEncode:
        return np.asarray((layers[:, planes[index]] == numbers[places[index]]).any(axis=0))

    frames = MadeFrames(_stored_type(None), len(planes), one_by_one(make))
    return Layout(frames, planes, tuple(place + 1 for place in places), "YES")


def _labelmap(labels: Pixels, numbers: Sequence[int], order: Sequence[int], *, omit_empty: bool) -> Layout:
    kept = tuple(order)
    is_signed = labels.dtype.kind == "i"
    if omit_empty or (is_signed and labels.min() < 0) or largest_value(labels) > up_to_a_gap(set(numbers)):
        present = [values_in(plane) for plane in labels]
        _require_known(present, numbers)
        kept = tuple(plane for plane in order if not omit_empty or present[plane] - {0}) or kept
    dtype = label_type(max(numbers))
    chosen = labels if kept == tuple(range(len(labels))) else labels[list(kept)]
    return Layout(np.ascontiguousarray(chosen.astype(dtype, copy=False)), kept, (0,) * len(kept), "NO")


def _stacked(
    stacked: Pixels, kind: SegmentationType, numbers: Sequence[int], order: Sequence[int], *, omit_empty: bool, maximum: int
) -> Layout:
    described = [number for number in numbers if number != 0]
    if kind == "LABELMAP":
        return _labelmap(_combined(stacked, described), numbers, order, omit_empty=omit_empty)
    full = None if kind == "BINARY" else maximum
    # Below half a step a probability is stored as 0.
    least = 0.5 / maximum if stacked.dtype.kind == "f" else 0
    filled = np.array([[(plane[..., index] > least).any() for index in range(stacked.shape[3])] for plane in stacked])
    kept = [(plane, number) for number in described for plane in order if not omit_empty or filled[plane, number - 1]]
    planes, of = _split(kept or [(plane, number) for number in described for plane in order])

    def make(index: int) -> FrameToEncode:
        values = stacked[planes[index], :, :, of[index] - 1]
        if full is None:
            return np.ascontiguousarray(values != 0)
        return np.ascontiguousarray(np.rint(values * np.float64(full)).astype(np.uint8))

    return Layout(MadeFrames(_stored_type(full), len(planes), one_by_one(make)), planes, of, _overlap(stacked))


def _stored_type(full: int | None) -> "np.dtype[Any]":
    """That of a frame, where `full` is what is stored for a pixel inside, None for 1 bit."""
    return np.dtype(np.bool_ if full is None else np.uint8)


def _overlap(stacked: Pixels) -> Overlap:
    if stacked.shape[3] == 1:
        return "NO"
    if stacked.dtype.kind == "f" and not all(np.isin(plane, (0, 1)).all() for plane in stacked):
        return "UNDEFINED"
    return "YES" if any(((plane != 0).sum(axis=-1) > 1).any() for plane in stacked) else "NO"


def _combined(stacked: Pixels, numbers: Sequence[int]) -> Pixels:
    """Stacked segments as a labelmap."""
    labels = np.zeros(stacked.shape[:3], label_type(max(numbers)))
    for labelled, plane in zip(labels, stacked, strict=True):
        for index, number in enumerate(numbers):
            inside = plane[..., index] != 0
            shared = inside & (labelled != 0)
            if shared.any():
                other = int(labelled[shared][0])
                raise OverlappingSegments(
                    f"segments {other} and {number} overlap in {int(shared.sum())} pixels of a plane: a LABELMAP holds one"
                    " segment a pixel; write a BINARY segmentation"
                )
            labelled[inside] = number
    return labels


def _require_stacked(stacked: Pixels, kind: SegmentationType, numbers: Sequence[int]) -> None:
    described = len([number for number in numbers if number != 0])
    if stacked.shape[3] != described:
        raise LabelError(
            f"{stacked.shape[3]} segments are stacked and {described} are described: describe each, in their order"
        )
    if stacked.dtype.kind not in "buif":
        raise LabelError(f"segments of type {stacked.dtype} are neither 0 and 1 nor probabilities")
    for plane in stacked:
        if not ((plane >= 0) & (plane <= 1)).all():
            raise LabelError("stacked segments hold something else than 0 to 1: divide probabilities by their maximum")
        if kind != "FRACTIONAL" and plane.dtype.kind == "f" and not ((plane == 0) | (plane == 1)).all():
            raise LabelError(f"a {kind} segmentation holds no fractions: write a FRACTIONAL one, or apply a threshold")


def _require_known(present: Sequence[Collection[int]], numbers: Sequence[int]) -> None:
    unknown = sorted(set().union(*present) - {0, *numbers})
    if unknown:
        raise LabelError(f"the labels hold values that no segment describes: {unknown[:10]}; describe them, or set them to 0")


def _split(kept: Sequence[tuple[int, int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(plane for plane, _ in kept), tuple(number for _, number in kept)


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
