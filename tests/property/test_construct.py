"""Segmentations of every type: any labels, shape, numbering, orientation and codec, read back by our reader and highdicom."""

from io import BytesIO

import highdicom
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as any_array
from pydicom import dcmread

from segnode.dicom.slices import order_slices
from segnode.seg import arrays
from segnode.seg.check import check
from segnode.seg.codecs import CODECS
from segnode.seg.read import read_segmentation
from segnode.seg.segmentation import DescribedSegment
from segnode.seg.write import StoredAs, write_segmentation
from segnode.seg.write.placement import on_grid, on_images

from .test_labelmap import CODE, IDENTITY, headers, rotation

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 70), st.integers(1, 70))
ANGLES = st.tuples(*[st.floats(-3, 3, allow_nan=False)] * 3)
OF_ONE_BIT = [name for name, codec in CODECS.items() if 1 in codec.bits]


def described(numbers: list[int]) -> list[DescribedSegment]:
    """Segments with these numbers."""
    return [DescribedSegment(number, f"segment {number}", CODE, CODE, algorithm_type="MANUAL") for number in numbers]


@st.composite
def labels_of(draw: st.DrawFn, *, consecutive: bool) -> tuple[np.ndarray, list[int]]:
    """Labels and their numbers, with gaps, unless they are to be consecutive."""
    if consecutive:
        numbers = list(range(1, draw(st.integers(1, 6)) + 1))
    else:
        numbers = sorted(draw(st.sets(st.integers(1, draw(st.sampled_from([9, 255, 65535]))), min_size=1, max_size=6)))
    dtype = draw(st.sampled_from([np.uint8, np.uint16, np.int32, np.int64])) if max(numbers) < 256 else np.uint16
    return draw(any_array(dtype, draw(SHAPES), elements=st.sampled_from([0, *numbers]))), numbers


@settings(max_examples=40)
@given(case=labels_of(consecutive=False), turn=ANGLES, codec=st.sampled_from(sorted(CODECS)), omit=st.booleans())
def test_labelmaps_come_back(case, turn, codec: str, omit: bool) -> None:
    """The labels are the same, where they were, in our reader and in highdicom; nothing is wrong with the object."""
    labels, numbers = case
    images = headers(labels.shape, rotation(turn))
    stored_as = StoredAs("LABELMAP", codec, omit_empty_frames=omit)
    part10 = write_segmentation(labels, on_images(images), described(numbers), stored_as, IDENTITY)
    ours, dataset = read_segmentation(part10), dcmread(BytesIO(part10))
    assert not [finding for finding in check(dataset) if finding.severity == "error"]
    assert ours.numbers == tuple(numbers)
    assert ours.frames.shape.bits == (8 if max(numbers) < 256 else 16)
    uids = [image.SOPInstanceUID for image in images]
    np.testing.assert_array_equal(arrays.labelmap(ours, planes=arrays.by_source_instances(ours, uids)), labels)
    if codec not in ("deflate-frames", "htj2k") and not omit:
        theirs = highdicom.seg.Segmentation.from_dataset(dataset)
        np.testing.assert_array_equal(theirs.get_pixels_by_source_instance(uids, combine_segments=True), labels)


@settings(max_examples=30)
@given(case=labels_of(consecutive=True), turn=ANGLES, codec=st.sampled_from(OF_ONE_BIT), omit=st.booleans())
def test_binary_comes_back(case, turn, codec: str, omit: bool) -> None:
    """Segments of 1 bit are the same in every shape, also where frames do not end with a byte."""
    labels, numbers = case
    images = headers(labels.shape, rotation(turn))
    stored_as = StoredAs("BINARY", codec, omit_empty_frames=omit)
    part10 = write_segmentation(labels, on_images(images), described(numbers), stored_as, IDENTITY)
    ours, dataset = read_segmentation(part10), dcmread(BytesIO(part10))
    assert not [finding for finding in check(dataset) if finding.severity == "error"]
    uids = [image.SOPInstanceUID for image in images]
    np.testing.assert_array_equal(arrays.labelmap(ours, planes=arrays.by_source_instances(ours, uids)), labels)
    if codec in ("native", "implicit", "deflate") and not omit:
        theirs = highdicom.seg.Segmentation.from_dataset(dataset)
        np.testing.assert_array_equal(theirs.get_pixels_by_source_instance(uids, combine_segments=True), labels)


@settings(max_examples=25)
@given(data=st.data(), maximum=st.integers(1, 255), codec=st.sampled_from(sorted(CODECS)))
def test_probabilities_come_back(data, maximum: int, codec: str) -> None:
    """Each value is that of the nearest step."""
    shape = (*data.draw(SHAPES), data.draw(st.integers(1, 3)))
    values = np.random.default_rng(data.draw(st.integers(0, 1000))).random(shape)
    images = headers(shape[:3], np.eye(3))
    stored_as = StoredAs("FRACTIONAL", codec, False, "OCCUPANCY", maximum)
    numbers = list(range(1, shape[3] + 1))
    part10 = write_segmentation(values, on_images(images), described(numbers), stored_as, IDENTITY)
    found = arrays.stacked(read_segmentation(part10))
    np.testing.assert_allclose(found, values, atol=0.5 / maximum + 1e-6)


@settings(max_examples=20)
@given(case=labels_of(consecutive=False), turn=ANGLES, spacing=st.tuples(*[st.floats(0.1, 9)] * 3))
def test_volumes_come_back_where_they_were(case, turn, spacing) -> None:
    """A grid of its own has the same affine after reading; slices against the normal come back in its order."""
    labels, numbers = case
    turned, affine = rotation(turn), np.eye(4)
    for axis, column in enumerate((2, 1, 0)):
        affine[:3, axis] = turned[:, column] * spacing[axis]
    affine[:3, 3] = 3, -4, 5
    images = order_slices(headers((3, 5, 6), np.eye(3))).images
    stored_as = StoredAs("LABELMAP", omit_empty_frames=False)
    part10 = write_segmentation(labels, on_grid(images, affine, len(labels)), described(numbers), stored_as, IDENTITY)
    found = arrays.volume(read_segmentation(part10))
    np.testing.assert_array_equal(found.array, labels)
    np.testing.assert_allclose(found.affine, affine, atol=1e-6)
