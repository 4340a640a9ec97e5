"""Sliding windows cover a volume, and what comes of them is one labelmap."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from segnode.models.windows import LabelParts, ScoreParts, Windows

lengths = st.tuples(*[st.integers(1, 12)] * 3)
overlaps = st.floats(0, 1, exclude_max=True)


@given(lengths, lengths, overlaps)
def test_windows_cover_the_volume(shape: tuple[int, int, int], size: tuple[int, int, int], overlap: float) -> None:
    """Every voxel is in a window, and belongs to exactly one that holds it, the nearest; neighbours share what they are to."""
    windows = Windows(shape, size, overlap)
    owners = np.zeros(shape, int)
    for place in windows:
        held, own = np.zeros(shape, bool), np.zeros(shape, bool)
        held[windows.inside(place)] = True
        own[windows.own(place)] = True
        assert (held | ~own).all()
        owners += own
    assert (owners == 1).all()
    for axis, (starts, window) in enumerate(zip(windows.starts, size, strict=True)):
        for start in starts:
            own = windows.own(tuple(start if other == axis else 0 for other in range(3)))[axis]
            for voxel in range(own.start, own.stop):
                distances = [abs(each + (window - 1) / 2 - voxel) for each in starts]
                assert abs(start + (window - 1) / 2 - voxel) <= min(distances) + 1
    for starts, window in zip(windows.starts, size, strict=True):
        assert all(0 < step <= max(1, window * (1 - overlap)) for step in np.diff(starts))


@given(lengths, lengths, overlaps, st.randoms(use_true_random=False))
def test_labels_come_back_where_they_were(shape, size, overlap, random) -> None:
    """Labels that are the volume's own values are the volume; padding is what was asked for, and no part of it."""
    volume = np.random.default_rng(random.getrandbits(32)).integers(0, 300, shape)
    windows = Windows(shape, size, overlap)
    parts = LabelParts(windows)
    for place in windows:
        part = windows.cut(volume, place, 65000)
        assert part.shape == size
        inside = volume[windows.inside(place)].size
        assert (part == 65000).sum() == part.size - inside
        parts.add(place, part)
    np.testing.assert_array_equal(parts.labelmap(), volume)


@given(lengths, lengths, overlaps, st.integers(2, 4), st.randoms(use_true_random=False))
def test_label_is_that_of_the_greatest_mean_score(shape, size, overlap, channels, random) -> None:
    """Scores that differ by window make the labels that their means over all windows make."""
    windows = Windows(shape, size, overlap)
    numbers = np.random.default_rng(random.getrandbits(32))
    parts, sums, counts = ScoreParts(windows), np.zeros((channels, *shape)), np.zeros(shape)
    for place in windows:
        scores = numbers.integers(-50, 50, (channels, *size)).astype(np.float32)
        parts.add(place, scores)
        inside = windows.inside(place)
        given_ = scores[:, : counts[inside].shape[0], : counts[inside].shape[1], : counts[inside].shape[2]]
        sums[(slice(None), *inside)] += given_
        counts[inside] += 1
    np.testing.assert_array_equal(parts.labelmap(), (sums / counts).argmax(axis=0))
