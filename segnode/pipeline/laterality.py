"""Laterality: segments that are coded left or right, held to the middle of the patient's body in the images.

A body that is not found, or that the image's edge cuts at a side, has no middle here: what lies there is not judged.
All coordinates are millimetres in the LPS patient coordinate system, whose x grows to the patient's left.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from segnode.dicom.codes import Code
from segnode.dicom.volume import Volume
from segnode.pipeline.placement_proof import ImagePlane, Labels, Numbers, plane_of
from segnode.seg.segments import LabelDictionary, Segment

LEFT: Final = 1
RIGHT: Final = -1

_SIDES: Final = {("SCT", "7771000"): LEFT, ("SCT", "24028007"): RIGHT}
_WORDS: Final = {"left": LEFT, "right": RIGHT}
_OTHER_SIDE: Final = {LEFT: "right", RIGHT: "left"}
# The chambers of the heart: its left and right are not the patient's.
_OF_THE_HEART: Final = frozenset(("82471001", "73829009", "87878005", "53085002"))
_BODY_HU: Final = -300
# The body is looked at in about so many rows and columns, segments in twice as many.
_PIXELS: Final = 128
_SMALLEST_BODY: Final = 0.01  # of all pixels
_MOST_AT_EDGE: Final = 0.1  # of the pixels of an edge
_BEYOND_MM: Final = 10.0
_WRONG: Final = 0.5  # of the voxels that are judged

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Middle:
    """The x of the middle of the body for each slice, row or column, whichever follow each other from feet to head.

    `axis` says which: 0, 1 or 2. NaN is where the middle is not known.
    """

    axis: int
    x: Numbers


@dataclass(frozen=True)
class Judgement:
    """Segments on the side that they are not coded for, each as a sentence, and the numbers of those that are not judged."""

    wrong: tuple[str, ...]
    not_judged: tuple[int, ...]


NOTHING_WRONG: Final = Judgement((), ())


def sides(dictionary: LabelDictionary) -> Mapping[int, int]:
    """LEFT or RIGHT for each value of a model's labelmap that is coded so."""
    found = {segment.value: _side(segment) for segment in dictionary.segment}
    return {value: side for value, side in found.items() if side}


def _side(segment: Segment) -> int:
    if segment.modifier is not None and (side := _SIDES.get((segment.modifier.scheme, segment.modifier.value))):
        return side
    return _side_in(segment.type) or (_side_in(segment.region) if segment.region is not None else 0)


def _side_in(code: Code) -> int:
    """The side that a code has in itself."""
    return 0 if code.value in _OF_THE_HEART else _WORDS.get(code.meaning.lower().partition(" ")[0], 0)


def middle_of(volume: Volume, images: Sequence[Dataset]) -> Middle:
    """The middle of the body in a CT or MR volume, by the images that its slices are; not known for other modalities."""
    planes = [plane_of(image) for image in images]
    upright = _axis_along(planes[0], 2, ())
    modality = volume.series.get("Modality")
    every = _step(volume.array.shape, _PIXELS)
    array = volume.array[:, ::every, ::every]
    if modality not in ("CT", "MR") or array.min() == array.max():
        return Middle(upright, np.full(volume.array.shape[upright], np.nan))
    body = _body(array > (_BODY_HU if modality == "CT" else _otsu(array)))
    others = tuple(axis for axis in range(3) if axis != upright)
    inside = np.count_nonzero(body, axis=others)
    middle = np.sum(_x(planes, body.shape, every), axis=others, where=body) / np.maximum(inside, 1)
    middle[inside < _SMALLEST_BODY * body.size / len(middle)] = np.nan
    sideways = _axis_along(planes[0], 0, (upright,))
    for edge in (0, -1):
        # What is left of the other two axes, upright first.
        face = np.moveaxis(body, (upright, sideways), (0, 1))[:, edge]
        middle[face.mean(axis=1) > _MOST_AT_EDGE] = np.nan
    return Middle(upright, np.repeat(middle, 1 if upright == 0 else every)[: volume.array.shape[upright]])


def judge(labelmap: Labels, images: Sequence[Dataset], dictionary: LabelDictionary, middle: Middle) -> Judgement:
    """Whether segments of a model's labelmap (slices, rows, columns), by the images of its slices, lie on their side.

    One does not when most of its voxels lie more than 10 mm beyond the middle of the body.
    """
    side_of = sides(dictionary)
    side = np.zeros(max(segment.value for segment in dictionary.segment) + 1, np.int8)
    side[list(side_of)] = list(side_of.values())
    present, judged, wrong = (np.zeros(len(side), np.int64) for _ in range(3))
    every = _step(labelmap.shape, 2 * _PIXELS)
    for number, (labels, plane) in enumerate(zip(labelmap[:, ::every, ::every], map(plane_of, images), strict=True)):
        rows, columns = np.nonzero(side[labels])
        values = labels[rows, columns].astype(np.intp)
        x = plane.position[0] + every * (rows * plane.down[0] + columns * plane.across[0])
        inwards = side[values] * (x - middle.x[(number, rows * every, columns * every)[middle.axis]])
        present += np.bincount(values, minlength=len(side))
        judged += np.bincount(values[~np.isnan(inwards)], minlength=len(side))
        wrong += np.bincount(values[inwards < -_BEYOND_MM], minlength=len(side))
    found = [segment for segment in dictionary.segment if present[segment.value]]
    return Judgement(
        tuple(
            f"segment {segment.segment_number} ({segment.label}) lies on the patient's {_OTHER_SIDE[side_of[segment.value]]},"
            f" {wrong[segment.value] / judged[segment.value]:.0%} of it over {_BEYOND_MM:g} mm beyond the middle of the body"
            for segment in found
            if wrong[segment.value] > _WRONG * judged[segment.value]
        ),
        tuple(segment.segment_number for segment in found if not judged[segment.value]),
    )


def _step(shape: Sequence[int], pixels: int) -> int:
    return max(1, min(shape[1:]) // pixels)


def _x(planes: Sequence[ImagePlane], shape: Sequence[int], every: int) -> npt.NDArray[np.float32]:
    """The x of every pixel that is looked at."""
    first = np.array([plane.position[0] for plane in planes], np.float32)[:, np.newaxis, np.newaxis]
    down = (np.arange(shape[1]) * every * planes[0].down[0]).astype(np.float32)[:, np.newaxis]
    across = (np.arange(shape[2]) * every * planes[0].across[0]).astype(np.float32)
    return np.asarray(first + (down + across))


def _axis_along(plane: ImagePlane, direction: int, but: Sequence[int]) -> int:
    """The axis of (slices, rows, columns), but these, that runs most along x (0), y or z (2)."""
    steps = plane.normal, plane.down / np.linalg.norm(plane.down), plane.across / np.linalg.norm(plane.across)
    return max((axis for axis in range(3) if axis not in but), key=lambda axis: abs(float(steps[axis][direction])))


def _body(dense: Mask) -> Mask:
    """The largest connected part, with what it encloses in each slice: a table and clothes are not connected to it."""
    from scipy import ndimage  # noqa: PLC0415  few models code sides, and every worker would load it at its start

    parts, count = ndimage.label(dense)
    if count == 0:
        return dense
    body = parts == int(np.bincount(parts.ravel())[1:].argmax()) + 1
    in_plane = np.zeros((3, 3, 3), np.bool_)
    in_plane[1] = ndimage.generate_binary_structure(2, 1)
    around, count = ndimage.label(~body, in_plane)
    outside = np.zeros(count + 1, np.bool_)
    for edge in (around[:, 0], around[:, -1], around[:, :, 0], around[:, :, -1]):
        outside[edge.ravel()] = True
    outside[0] = False
    return np.asarray(~outside[around])


def _otsu(array: npt.NDArray[np.float32]) -> float:
    """The value that parts dark from bright best: the variance between the two is greatest."""
    counts, edges = np.histogram(array, 256)
    values = (edges[:-1] + edges[1:]) / 2
    below, sums = counts.cumsum()[:-1], (counts * values).cumsum()[:-1]
    above, rest = array.size - below, (counts * values).sum() - sums
    between = below * above * (sums / np.maximum(below, 1) - rest / np.maximum(above, 1)) ** 2
    return float(values[:-1][between.argmax()])
