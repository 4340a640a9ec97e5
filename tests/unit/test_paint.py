"""Segments at the pixels of another plane, and what lies in one plane."""

from dataclasses import replace

import numpy as np
import pytest

from segnode.dicomweb.plane import Plane
from segnode.seg.paint import NOTHING, Paint

COARSE = Plane("1.2", np.array([10.0, 20, 30]), np.array([0.0, 2, 0]), np.array([2.0, 0, 0]), (4, 5), 3.0)
# Of the same plane, in pixels of half the size that begin where those do, from the other side.
FINE = Plane("1.2", np.array([18.5, 19.5, 30.4]), np.array([0.0, 1, 0]), np.array([-1.0, 0, 0]), (8, 10), 3.0)
LABELS = np.arange(20, dtype=np.int32).reshape(4, 5) - 1


def test_each_pixel_has_the_segment_of_its_place() -> None:
    """Twice as many rows and columns, mirrored: each value is there four times, where it was."""
    painted = Paint(LABELS, np.full(LABELS.shape, 255, np.uint8), np.zeros((20, 3), np.uint8))
    assert COARSE.distance(FINE) == pytest.approx(0.4)
    assert (painted.at(COARSE.places(FINE)).labels == np.repeat(np.repeat(LABELS, 2, 0), 2, 1)[:, ::-1]).all()


def test_beside_the_segments_there_is_nothing() -> None:
    """An image that reaches farther than they do."""
    wider = replace(COARSE, position=COARSE.position - (4, 0, 0), shape=(4, 9))
    painted = Paint(LABELS + 5, np.full(LABELS.shape, 255, np.uint8), np.zeros((30, 3), np.uint8))
    found = painted.at(COARSE.places(wider)).labels
    assert (found[:, 2:7] == LABELS + 5).all()
    assert (np.delete(found, slice(2, 7), axis=1) == NOTHING).all()


@pytest.mark.parametrize(
    "elsewhere",
    [
        replace(COARSE, frame_of_reference_uid="1.3"),
        replace(COARSE, position=COARSE.position + (0, 0, 1.6)),
        replace(COARSE, down=np.array([0.0, 0, 2])),
    ],
)
def test_what_lies_elsewhere_is_not_drawn_on(elsewhere: Plane) -> None:
    """Another frame of reference, another slice, or another direction."""
    assert COARSE.distance(elsewhere) is None
