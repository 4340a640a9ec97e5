"""Results that are none, and the proof that settling has moved nothing."""

from collections.abc import Callable

import nibabel
import numpy as np
import pytest

from segnode.config import ModelConfig
from segnode.dicom.volume import Volume
from segnode.errors import Misplaced, ModelFailed
from segnode.models import Result
from segnode.models.settle import as_wanted, settled
from segnode.models.settle_proof import require_given, require_labels, require_mask, require_probabilities

SHAPE = (4, 5, 6)
AFFINE = np.array([[0, 0, 0.9, -100], [0, 0.7, 0, 50], [2.5, 0, 0, 7], [0, 0, 0, 1]])
PROBABLE = np.full((3, *SHAPE), 1 / 3, np.float32)


def config(**keys) -> ModelConfig:
    """A model's configuration."""
    return ModelConfig(name="lungs", run="python:m", labels="m", version="1", **keys)


@pytest.fixture
def volume() -> Volume:
    """A small volume, no two voxels alike."""
    return Volume(np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE), AFFINE, {}, ("1", "2", "3", "4"))


def probable(value: float, channel: int = 1) -> np.ndarray:
    """Probabilities, one of which is another."""
    changed = PROBABLE.copy()
    changed[channel, 1, 2, 3] = value
    return changed


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (None, "returned NoneType, not a Result"),
        (Result(), "returned neither labelmap, masks nor probabilities"),
        (Result(np.zeros(SHAPE, int), masks=np.zeros((1, *SHAPE), bool)), "returned labelmap and masks: one of the three"),
        (Result([[[1]]]), "returned list as labelmap, not an array"),
        (Result(np.zeros((4, 6, 5), int)), r"returned labelmap of shape \(4, 6, 5\) for \(4, 5, 6\)"),
        (Result(np.zeros(SHAPE[1:], int)), r"returned labelmap of shape \(5, 6\) for \(4, 5, 6\)"),
        (Result(np.zeros(SHAPE)), "returned labelmap of float64: integers are needed"),
        (Result(masks=np.zeros((1, *SHAPE), np.uint8)), "returned masks of uint8: bool are needed"),
        (Result(masks=np.zeros(SHAPE, bool)), r"returned masks of shape \(4, 5, 6\) for \(4, 5, 6\) behind the axis of values"),
        (Result(probabilities=np.zeros((2, *SHAPE), int)), "returned probabilities of int64: floats are needed"),
        (Result(probabilities=probable(np.nan)), "returned NaN among the probabilities of value 1"),
        (Result(probabilities=probable(np.nan, 0)), "returned NaN among the probabilities of value 0"),
        (Result(probabilities=probable(1.01)), "of value 1 from 0.333333 to 1.01, .* logits, without softmax or sigmoid"),
        (Result(probabilities=probable(-0.5, 2)), "of value 2 from -0.5 to 0.333333, which are not from 0 to 1"),
        (Result(probabilities=probable(np.inf)), "of value 1 from 0.333333 to inf"),
        (Result(np.zeros(SHAPE, int), affine=np.eye(3)), "returned an affine that is no 4x4 matrix"),
        (Result(np.zeros(SHAPE, int), affine=np.full((4, 4), np.nan)), "returned an affine that is no 4x4 matrix"),
        (Result(np.zeros(SHAPE, int), affine=np.diag([1.0, 0, 1, 1])), "its axes lie in one plane"),
        (Result(np.zeros(SHAPE, int), scores={1: np.nan}), "scores that are not finite"),
        (Result(np.zeros(SHAPE, int), scores=[0.5]), "scores that are no mapping"),
    ],
)
def test_bad_result(volume: Volume, result: object, said: str) -> None:
    """What is no result is a failure that names the model, and says which and why."""
    with pytest.raises(ModelFailed, match=rf"^model 'lungs' {'.*' + said}"):
        settled(lambda _: result, config())(volume)


def test_own_grid_must_be_one_that_can_be_written(volume: Volume) -> None:
    """Axes that are not perpendicular cannot be said in a SEG; resampled they are taken."""
    sheared = AFFINE.copy()
    sheared[0, 0] = 1.0
    result = Result(np.ones(SHAPE, int), affine=sheared)
    with pytest.raises(ModelFailed, match="not perpendicular"):
        settled(lambda _: result, config(grid="own"))(volume)
    assert settled(lambda _: result, config())(volume).labelmap.shape == SHAPE


def test_rounding_is_no_bad_probability(volume: Volume) -> None:
    """What half precision makes of 0 and 1 is let pass."""
    assert settled(lambda _: Result(probabilities=probable(1.0004, 2)), config())(volume).labelmap[1, 2, 3] == 2


def test_threshold(volume: Volume) -> None:
    """With a threshold every value that reaches it is there, over the others; without, the greatest alone."""
    probabilities = np.zeros((3, *SHAPE), np.float32)
    probabilities[0], probabilities[1], probabilities[2, :2] = 0.6, 0.5, 0.8
    result = Result(probabilities=probabilities)
    assert np.unique(settled(lambda _: result, config())(volume).labelmap).tolist() == [0, 2]
    layers = settled(lambda _: result, config(threshold=0.5))(volume).layers
    assert (layers == 1).any(0).all()
    np.testing.assert_array_equal((layers == 2).any(0), probabilities[2] > 0)


def test_layers_that_do_not_overlap_are_one_labelmap(volume: Volume) -> None:
    """Layers are for what overlaps; where nothing does, one labelmap says it all."""
    layers = np.zeros((2, *SHAPE), np.uint8)
    layers[0, :2], layers[1, 2:] = 1, 2
    assert settled(lambda _: Result(layers), config())(volume).labelmap.tolist() == layers.max(0).tolist()


def test_what_is_not_changed_is_not_copied(volume: Volume) -> None:
    """Without orientation and spacing a model has the array that came, and its labelmap is the one that goes."""
    labelmap = np.zeros(SHAPE, np.int16)
    seen = []

    def model(given: Volume) -> Result:
        seen.append(given)
        return Result(labelmap, scores={1: np.float32(0.5)})

    result = settled(model, config())(volume)
    assert seen[0] is volume
    assert result.labelmap.base is labelmap
    assert result.scores == {1: 0.5}


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SPL", "IAR", "PIR"])
def test_letters_are_those_of_nibabel(volume: Volume, orientation: str) -> None:
    """The letters say where axes go to, as nibabel has it of its affines, which are RAS."""
    turned = as_wanted(volume, config(orientation=orientation))
    assert "".join(nibabel.aff2axcodes(np.diag([-1, -1, 1, 1]) @ turned.affine)) == orientation


FAULTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "slices are flipped": lambda array: array[..., ::-1, :, :],
    "rows are flipped": lambda array: array[..., ::-1, :],
    "columns are flipped": lambda array: array[..., ::-1],
    "everything is a column further": lambda array: np.roll(array, 1, -1),
    "everything is a slice further": lambda array: np.roll(array, 1, -3),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_of_settling_is_found(volume: Volume, fault: str) -> None:
    """Volumes, labels, masks and labels of probabilities that lie elsewhere than they lay are refused, and only these."""
    change, random = FAULTS[fault], np.random.default_rng(1)
    labels = random.integers(0, 3, SHAPE)
    probabilities = np.stack([labels == value for value in range(3)]).astype(np.float32)
    proofs: list[Callable[[Callable[[np.ndarray], np.ndarray]], None]] = [
        lambda to: require_given(volume, Volume(to(volume.array), AFFINE, {}, ())),
        lambda to: require_labels(labels, AFFINE, to(labels), AFFINE),
        lambda to: require_mask(labels == 1, AFFINE, to(labels == 1), AFFINE, 1),
        lambda to: require_probabilities(probabilities, AFFINE, to(labels)[np.newaxis], AFFINE, None),
        lambda to: require_probabilities(probabilities, AFFINE, to(labels)[np.newaxis], AFFINE, 0.5),
    ]
    for proof in proofs:
        proof(lambda array: array)
        with pytest.raises(Misplaced):
            proof(change)
