"""Settling: whatever way a model wants its volume, and wherever its result lies, labels come out where they lay."""

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segnode.config import ModelConfig
from segnode.dicom.volume import Volume
from segnode.models import Result
from segnode.models.settle import as_wanted, settled
from tests.property.test_labelmap import rotation

SIDES = {"R": (-1, 0, 0), "L": (1, 0, 0), "A": (0, -1, 0), "P": (0, 1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
ORIENTATIONS = sorted("".join(letters) for pairs in permutations(("RL", "AP", "SI")) for letters in product(*pairs))
AXES = np.array([[0, -1, 0], [0, 0, 1], [1, 0, 0]], np.float64)


def config(**keys) -> ModelConfig:
    """A model's configuration."""
    return ModelConfig(name="m", run="python:m", labels="m", version="1", **keys)


def positions(shape, affine: np.ndarray) -> np.ndarray:
    """Where the voxels of a grid lie, in LPS mm, (…, 3)."""
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


def at(array: np.ndarray, affine: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What an array has at points, 0 outside, and which points lie clearly in a voxel or outside."""
    inverse = np.linalg.inv(affine)
    index = points @ inverse[:3, :3].T + inverse[:3, 3]
    nearest = np.rint(index).astype(int)
    inside = ((nearest >= 0) & (nearest < array.shape)).all(-1)
    found = array[tuple(np.moveaxis(np.clip(nearest, 0, np.array(array.shape) - 1), -1, 0))]
    clear = (np.abs(np.abs(index - nearest) - 0.5) > 1e-3).all(-1)
    return np.where(inside, found, 0), clear


@st.composite
def volumes(draw: st.DrawFn, least: int = 1) -> Volume:
    """A volume of any shape and place, no two voxels alike."""
    shape = draw(st.tuples(*[st.integers(least, 7)] * 3))
    angle = st.floats(-3, 3, allow_nan=False) | st.just(0.0)
    axes = rotation(draw(st.tuples(angle, angle, angle))) @ AXES
    affine = np.eye(4)
    affine[:3, :3] = axes * draw(st.tuples(*[st.sampled_from([0.5, 0.9, 2.5, 1.0])] * 3))
    affine[:3, 3] = draw(st.tuples(*[st.integers(-200, 200)] * 3))
    array = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)
    return Volume(array, affine, {}, tuple(str(number) for number in range(shape[0])))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@settings(max_examples=20)
@given(volume=volumes())
def test_orientation_is_given_and_undone(orientation: str, volume: Volume) -> None:
    """Each voxel that the model is given is the one that lies there, its axes go nearest to what is said, and back is exact."""
    wanted = config(orientation=orientation)
    turned = as_wanted(volume, wanted)
    found, _ = at(volume.array, volume.affine, positions(turned.array.shape, turned.affine))
    np.testing.assert_array_equal(found, turned.array)
    axes = turned.affine[:3, :3] / np.linalg.norm(turned.affine[:3, :3], axis=0)
    along = [float(axes[:, axis] @ SIDES[letter]) for axis, letter in enumerate(orientation)]
    others = [sum(float(axes[:, axis] @ SIDES[letter]) for axis, letter in enumerate(other)) for other in ORIENTATIONS]
    assert sum(along) >= max(others) - 1e-9
    assert turned.array.flags.c_contiguous
    back = settled(lambda given: Result(given.array.astype(np.int32)), wanted)(volume)
    assert back.affine is None
    np.testing.assert_array_equal(back.labelmap, volume.array)


@settings(max_examples=50)
@given(volume=volumes(), orientation=st.sampled_from(ORIENTATIONS), kind=st.sampled_from(["masks", "probabilities"]))
def test_masks_and_probabilities_are_undone(volume: Volume, orientation: str, kind: str) -> None:
    """Masks and probabilities in another orientation come back as the labels that they are."""
    labels = volume.array.astype(int) % 4

    def model(given: Volume) -> Result:
        stacked = np.stack([given.array.astype(int) % 4 == value for value in range(4)])
        return Result(masks=stacked[1:]) if kind == "masks" else Result(probabilities=stacked.astype(np.float16))

    np.testing.assert_array_equal(settled(model, config(orientation=orientation))(volume).labelmap, labels)


SPACINGS = st.tuples(*[st.sampled_from([0.4, 1.0, 1.5, 3.0])] * 3)


@settings(max_examples=100)
@given(volume=volumes(), orientation=st.sampled_from([None, *ORIENTATIONS]), spacing=SPACINGS)
def test_labels_in_another_spacing_come_back_to_where_they_lay(volume: Volume, orientation: str | None, spacing) -> None:
    """Every voxel of the images has the label of the model's voxel that it lies in."""
    returned = []

    def model(given: Volume) -> Result:
        np.testing.assert_allclose(given.spacing, spacing)
        labelmap = np.arange(1, given.array.size + 1, dtype=np.uint16).reshape(given.array.shape)
        returned.append((labelmap, given.affine))
        return Result(labelmap)

    back = settled(model, config(orientation=orientation, spacing=spacing))(volume)
    expected, clear = at(*returned[0], positions(volume.array.shape, volume.affine))
    np.testing.assert_array_equal(back.labelmap[clear], expected[clear])


def plane(points: np.ndarray) -> np.ndarray:
    """A number that grows evenly through the patient."""
    return points @ np.array([1.0, -2.0, 3.0])


@settings(max_examples=100)
@given(volume=volumes(least=3), orientation=st.sampled_from([None, *ORIENTATIONS]), spacing=SPACINGS)
def test_volume_in_another_spacing_has_the_values_of_the_place(volume: Volume, orientation: str | None, spacing) -> None:
    """What grows evenly in the patient does so in what the model is given, wherever that lies between voxels."""
    slope = Volume(plane(positions(volume.array.shape, volume.affine)).astype(np.float32), volume.affine, {}, ())
    wanted = as_wanted(slope, config(orientation=orientation, spacing=spacing))
    points = positions(wanted.array.shape, wanted.affine)
    inverse = np.linalg.inv(volume.affine)
    index = points @ inverse[:3, :3].T + inverse[:3, 3]
    between = ((index >= -1e-6) & (index <= np.array(volume.array.shape) - 1 + 1e-6)).all(-1)
    np.testing.assert_allclose(wanted.array[between], plane(points)[between], rtol=1e-4, atol=0.01)
    beyond = np.maximum(-index, index - np.array(volume.array.shape) + 1).max((0, 1, 2)) * volume.spacing
    assert (beyond <= np.maximum(volume.spacing, max(spacing)) / 2 + 1e-6).all()


@settings(max_examples=100)
@given(volume=volumes(), other=volumes())
def test_result_on_another_grid(volume: Volume, other: Volume) -> None:
    """Labels on any grid, turned or not, are found on the images by the nearest voxel; nothing where there is none."""
    affine = other.affine.copy()
    affine[:3, 3] = volume.affine[:3, 3]
    back = settled(lambda _: Result(other.array.astype(np.int64), affine=affine), config())(volume)
    expected, clear = at(other.array, affine, positions(volume.array.shape, volume.affine))
    np.testing.assert_array_equal(back.labelmap[clear], expected[clear])


@settings(max_examples=100)
@given(volume=volumes(), other=volumes(least=2))
def test_probabilities_on_another_grid(volume: Volume, other: Volume) -> None:
    """They are interpolated before the greatest is taken: a border that is even in the patient stays where it is."""
    affine = other.affine.copy()
    affine[:3, 3] = volume.affine[:3, 3]
    middle, reach = plane(positions((1, 1, 1), affine + 0)).item(), 200.0

    def of(points: np.ndarray) -> np.ndarray:
        return 0.5 + (plane(points) - middle - 3.3) / reach

    first = of(positions(other.array.shape, affine))
    back = settled(lambda _: Result(probabilities=np.stack([1 - first, first]), affine=affine), config())(volume)
    points = positions(volume.array.shape, volume.affine)
    inverse = np.linalg.inv(affine)
    index = points @ inverse[:3, :3].T + inverse[:3, 3]
    last = np.array(other.array.shape) - 1
    between = ((index >= 0) & (index <= last)).all(-1) & (np.abs(of(points) - 0.5) > 1e-6)
    outside = ((index < -0.501) | (index > last + 0.501)).any(-1)
    np.testing.assert_array_equal(back.labelmap[between], (of(points) > 0.5)[between])
    assert not back.labelmap[outside].any()


@settings(max_examples=50)
@given(volume=volumes(), other=volumes(), orientation=st.sampled_from([None, *ORIENTATIONS]))
def test_own_grid_lies_where_it_lay(volume: Volume, other: Volume, orientation: str | None) -> None:
    """On a grid of its own each label keeps its place in the patient; the order of axes is the one nearest to the images'."""
    own = settled(
        lambda _: Result(other.array.astype(np.int64), affine=other.affine), config(grid="own", orientation=orientation)
    )(volume)
    if own.affine is None:
        assert own.labelmap.shape == volume.array.shape
        return
    found, _ = at(other.array, other.affine, positions(own.labelmap.shape, own.affine))
    np.testing.assert_array_equal(own.labelmap, found)
    assert own.labelmap.size == other.array.size


@settings(max_examples=50)
@given(volume=volumes(), seed=st.integers(0, 99), count=st.integers(1, 5), share=st.sampled_from([0.02, 0.3]))
def test_overlapping_masks_are_kept(volume: Volume, seed: int, count: int, share: float) -> None:
    """Each mask is found among the layers as it was; there is one layer where none overlap."""
    masks = np.random.default_rng(seed).random((count, *volume.array.shape)) < share
    result = settled(lambda _: Result(masks=masks), config())(volume)
    found = [(result.layers == value).any(0) for value in range(1, count + 1)]
    np.testing.assert_array_equal(found, masks)
    assert (len(result.layers) == 1) == (masks.sum(0) <= 1).all()
    assert result.labelmap.ndim == (3 if len(result.layers) == 1 else 4)
