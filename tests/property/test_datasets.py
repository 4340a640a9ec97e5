"""Training sets: whatever the shape, the orientation and the labels, they come back where they were."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segnode.datasets.grid import Grid, fit, fits
from segnode.datasets.rle import mask_of, runs_of
from segnode.testing.datasets_bench import mask2rle
from tests.datasets import FORMATS, NAMES, described, oblique, there_and_back, write_seg, write_series

shapes = st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9))
volumes = shapes.flatmap(lambda shape: arrays(np.uint8, shape, elements=st.sampled_from((0, 0, 0, 1, 3, 200))))


@given(volumes)
def test_runs_are_those_of_the_page(labels: npt.NDArray[np.uint8]) -> None:
    """Every value has the text that the page's function makes of its mask, and the text decodes to it."""
    runs = runs_of(labels)
    assert set(runs) == set(np.unique(labels)) - {0}
    for value, text in runs.items():
        assert text == mask2rle(labels == value)
        assert np.array_equal(mask_of(text, labels.shape), labels == value)


@given(
    volumes,
    st.permutations((0, 1, 2)),
    st.tuples(*[st.booleans()] * 3),
    st.floats(-170, 170),
    st.tuples(*[st.integers(0, 2)] * 3),
)
def test_an_array_finds_its_place_in_any_order_of_axes(labels, axes, flips, degrees, margin) -> None:
    """Turned, flipped, or a part of the grid: by its affine it lies where it did; beside its voxels it fits nowhere."""
    affine = oblique(degrees)
    shape = tuple(length + 2 * extra for length, extra in zip(labels.shape, margin, strict=True))
    expected = np.zeros(shape, np.uint8)
    expected[tuple(slice(extra, extra + n) for extra, n in zip(margin, labels.shape, strict=True))] = labels
    step = np.zeros((4, 4))
    step[3, 3] = 1
    for new, old in enumerate(axes):
        step[old, new] = -1 if flips[old] else 1
        step[old, 3] = margin[old] + (labels.shape[old] - 1 if flips[old] else 0)
    turned = labels[tuple(slice(None, None, -1 if f else 1) for f in flips)].transpose(axes)
    grid = Grid(shape, affine)
    assert np.array_equal(fit(turned.shape, affine @ step, grid, "here").place(turned), expected)
    moved = affine @ step
    moved[:3, 3] += affine[:3, 1] / 3
    assert not fits(turned.shape, moved, grid)


@pytest.mark.parametrize("form", FORMATS, ids=NAMES)
@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(volumes, st.floats(-60, 60), st.booleans())
def test_labels_of_any_shape_come_back(form, labels: npt.NDArray[np.uint8], degrees: float, overlap: bool) -> None:
    """Odd shapes, oblique grids, gaps in the numbers, empty labels; and overlaps, as a BINARY."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "series"
        images = write_series(folder, oblique(degrees), labels.shape)
        if overlap:
            pixels = np.stack([(labels > 0), labels > 2, labels == 200], axis=-1).astype(np.uint8)
            segments = [described(1), described(2), described(3)]
        else:
            pixels, segments = labels, [described(1), described(3), described(7), described(200)]
        write_seg(folder / "seg.dcm", pixels, images, segments)
        there_and_back(folder, Path(scratch), form).require_same(folder / "seg.dcm")
