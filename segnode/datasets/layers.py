"""The labels of a series on the grid of its images: one labelmap, or as few as overlapping segments need."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from segnode.datasets.grid import Fit, Grid, affine_text, fit
from segnode.errors import CannotConvert, GridMismatch, NotAVolume, OverlappingSegments
from segnode.seg.arrays import labelmap
from segnode.seg.combine import Labelmap, Packed, Pair, combine_segments, label_type, overlapping_voxels
from segnode.seg.convert.overlap import fewest_groups
from segnode.seg.masks import Masks, masks_of
from segnode.seg.planes import Planes, pixel_spacing, planes_of
from segnode.seg.segmentation import Segmentation


@dataclass(frozen=True, eq=False)
class Layers:
    """Labelmaps (slices, rows, columns) of one grid, and in which of them each value is, also where it has no voxel."""

    maps: tuple[Labelmap, ...]
    of: Mapping[int, int]

    @property
    def values(self) -> tuple[int, ...]:
        """All values, in order."""
        return tuple(sorted(self.of))

    def mask(self, value: int) -> npt.NDArray[np.bool_]:
        """The voxels of a value, (slices, rows, columns)."""
        return np.asarray(self.maps[self.of[value]] == value)


def layers_of(segmentation: Segmentation, value_of: Mapping[int, int], grid: Grid, threshold: float | None) -> Layers:
    """The labels of a Segmentation on the grid of its images; `value_of` is the value of each segment number.

    Raises CannotConvert for a FRACTIONAL without a threshold, GridMismatch where it does not lie on the grid, NotAVolume,
    UnreadablePixels.
    """
    if segmentation.type == "FRACTIONAL" and threshold is None:
        raise CannotConvert("a FRACTIONAL has no labels: say from which fraction on a voxel counts (--threshold 0.5)")
    planes = planes_of(segmentation)
    places = _places(segmentation, planes, grid)
    dtype = label_type(max(value_of.values(), default=0))
    if segmentation.type != "FRACTIONAL":
        try:
            found = labelmap(segmentation, planes=planes)
        except (OverlappingSegments, NotAVolume):
            pass
        else:
            table = np.zeros(1 << found.itemsize * 8, dtype)
            for number, value in value_of.items():
                table[number] = value
            straight = all(number == value for number, value in value_of.items()) and segmentation.padding_value == 0
            maps = [_on_grid(found, places, grid, None if straight and found.dtype == dtype else table)]
            return Layers(tuple(maps), dict.fromkeys(value_of.values(), 0))
    masks = masks_of(segmentation, threshold)
    groups = _groups(masks, tuple(value_of))
    maps = []
    for group in groups:
        labels = np.zeros((len(planes), segmentation.rows, segmentation.columns), dtype)
        for plane, out in enumerate(labels):
            inside = {value_of[number]: packed for number, packed in masks.at(plane).items() if number in group}
            combine_segments(inside, out)
        maps.append(_on_grid(labels, places, grid, None))
    return Layers(tuple(maps), {value_of[number]: layer for layer, group in enumerate(groups) for number in group})


def _groups(masks: Masks, numbers: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    counts: Counter[Pair] = Counter()
    for plane in range(len(masks.planes)):
        segments: dict[int, Packed] = masks.at(plane)
        counts.update(overlapping_voxels(segments))
    return fewest_groups(numbers, counts).groups


def joined(layers: Sequence[Layers], grid: Grid) -> Layers:
    """The labels of several Segmentations, whose values differ, in as few labelmaps as go on each other in turn."""
    maps: list[Labelmap] = []
    of: dict[int, int] = {}
    for each in layers:
        for layer, labels in enumerate(each.maps):
            values = [value for value, place in each.of.items() if place == layer]
            place = next((i for i, there in enumerate(maps) if not np.logical_and(there, labels).any()), len(maps))
            if place == len(maps):
                maps.append(labels)
            else:
                maps[place] = np.where(labels > 0, labels, maps[place]).astype(
                    np.promote_types(labels.dtype, maps[place].dtype)
                )
            of |= dict.fromkeys(values, place)
    return Layers(tuple(maps) or (np.zeros(grid.shape, np.uint8),), of)


def layers_of_masks(masks: Iterable[tuple[int, npt.NDArray[Any]]], shape: tuple[int, int, int], largest: int) -> Layers:
    """Masks (slices, rows, columns) by value, one after the other, in the first labelmap that has room for each."""
    maps: list[Labelmap] = [np.zeros(shape, label_type(largest))]
    of: dict[int, int] = {}
    for value, mask in masks:
        inside = mask != 0
        place = next((i for i, labels in enumerate(maps) if not labels[inside].any()), len(maps))
        if place == len(maps):
            maps.append(np.zeros(shape, label_type(largest)))
        maps[place][inside] = value
        of[value] = place
    return Layers(tuple(maps), of)


@dataclass(frozen=True)
class _Places:
    """Where the planes of a Segmentation lie: their slices, and how the rows and columns of all of them are turned."""

    slices: tuple[int, ...]
    turn: Fit | None


def _on_grid(labels: Labelmap, places: _Places, grid: Grid, table: npt.NDArray[Any] | None) -> Labelmap:
    if table is None and places.turn is None and places.slices == tuple(range(grid.shape[0])):
        return labels
    out = np.zeros(grid.shape, labels.dtype if table is None else table.dtype)
    for plane, place in zip(labels, places.slices, strict=True):
        turned = plane if places.turn is None else places.turn.place(plane[np.newaxis])[0]
        out[place] = turned if table is None else table[turned]
    return out


def _places(segmentation: Segmentation, planes: Planes, grid: Grid) -> _Places:
    table = segmentation.table
    if not grid.placed:
        return _places_of_frames(segmentation, planes, grid)
    if segmentation.is_tiled or len(table.orientations) != 1 or not np.isfinite(table.positions).all():
        raise NotAVolume("the frames have no one orientation and no positions in the patient (PlanePositionSequence)")
    cosines = np.reshape(table.orientations[0], (2, 3))
    spacing = pixel_spacing(segmentation)
    slices: list[int] = []
    turn: Fit | None = None
    plane_affine = np.eye(4)
    plane_affine[:3, 0] = grid.affine[:3, 0]
    plane_affine[:3, 1], plane_affine[:3, 2] = cosines[1] * spacing[0], cosines[0] * spacing[1]
    for place, position in enumerate(table.positions[planes.first_frame]):
        plane_affine[:3, 3] = position
        where = f"SOP instance {segmentation.sop_instance_uid}, plane {place + 1}"
        found = fit((1, segmentation.rows, segmentation.columns), plane_affine, grid, where)
        if found.axes[0] != 0:
            raise GridMismatch(f"{where}: its planes are not along the slices of the images, at\n{affine_text(grid.affine)}")
        slices.append(found.start[0])
        turn = Fit(found.axes, (False, *found.flipped[1:]), (0, *found.start[1:]), (1, *grid.shape[1:]))
    if len(set(slices)) < len(slices):
        raise GridMismatch(f"SOP instance {segmentation.sop_instance_uid}: two of its planes lie on one slice of the images")
    whole = (segmentation.rows, segmentation.columns) == grid.shape[1:]
    straight = turn is not None and turn.axes == (0, 1, 2) and not any(turn.flipped) and whole
    return _Places(tuple(slices), None if straight else turn)


def _places_of_frames(segmentation: Segmentation, planes: Planes, grid: Grid) -> _Places:
    """By the frames of the one image that planes were made of, where there is no place in the patient."""
    where = f"SOP instance {segmentation.sop_instance_uid}"
    if (segmentation.rows, segmentation.columns) != grid.shape[1:]:
        raise GridMismatch(f"{where}: its frames are {segmentation.rows} x {segmentation.columns}, unlike those of the image")
    sources = [segmentation.table.sources[frame] for frame in planes.first_frame.tolist()]
    if not all(sources) and len(planes) > 1:
        raise NotAVolume(f"{where} does not say what frame of the image each of its frames was made of (SourceImageSequence)")
    slices = tuple(of[0].frame_numbers[0] - 1 if of and of[0].frame_numbers else 0 for of in sources)
    if len(set(slices)) < len(slices) or not set(slices) <= set(range(grid.shape[0])):
        raise GridMismatch(f"{where}: its planes are not those of the {grid.shape[0]} frames of the image")
    return _Places(slices, None)
