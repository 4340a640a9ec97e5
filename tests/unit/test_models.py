"""The built-in model, on the phantom whose truth is known."""

import subprocess
import sys
from itertools import permutations, product

import numpy as np
from pydicom import dcmread

from segnode.dicom.slices import order_slices, read_volume
from segnode.models import Result, Volume
from segnode.models.threshold import segment
from segnode.testing.phantom import Phantom


def test_threshold_finds_the_truth(phantom: Phantom) -> None:
    """Body, lungs and bone are labelled as the phantom has them; the table and a bubble of gas are not."""
    slices = order_slices([dcmread(file) for file in phantom.folder.iterdir()])
    result = segment(read_volume(slices, slices.images))
    assert isinstance(result, Result)
    np.testing.assert_array_equal(result.labelmap, phantom.labelmap)


def test_threshold_on_air_finds_nothing() -> None:
    """A volume of air has no body."""
    result = segment(Volume(np.full((3, 8, 8), -1000, np.float32), np.eye(4), {}, ("1", "2", "3")))
    assert not result.labelmap.any()


def test_no_mirror_and_no_swap_of_the_phantom_looks_like_it(phantom: Phantom) -> None:
    """Every flip, and every swap of rows and columns, changes the labels: a comparison with the truth would see it."""
    labels = phantom.labelmap
    for order, flips in product(permutations(range(3)), product((1, -1), repeat=3)):
        turned = labels.transpose(order)[tuple(slice(None, None, flip) for flip in flips)]
        same = turned.shape == labels.shape and np.array_equal(turned, labels)
        assert same == (order == (0, 1, 2) and flips == (1, 1, 1))


def test_process_of_a_model_loads_no_dicom_and_no_database() -> None:
    """What runs a model is there in a third of a second, and leaves the memory to it: pydicom and SQLAlchemy are not loaded."""
    code = "import sys, segnode.cli, segnode.models.child; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "segnode.models.child" in loaded
    assert not {"pydicom", "sqlalchemy"} & set(loaded)
