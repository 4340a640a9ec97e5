"""Comparing SEGs in the patient's space."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from segnode.seg.codecs import CODECS
from segnode.seg.convert import Target, convert
from segnode.seg.diff import diff
from segnode.seg.read import read_segmentation
from segnode.seg.segmentation import Segmentation

from .test_convert import NOW

Sample = Callable[[str], Path]


@pytest.fixture
def dataset(sample: Sample) -> Dataset:
    """A native LABELMAP with one segment on several planes."""
    data = sample("highdicom/seg_image_ct_binary.dcm").read_bytes()
    return dcmread(BytesIO(convert(data, Target("LABELMAP", CODECS["native"]), NOW)[0].part10))


def read(dataset: Dataset) -> Segmentation:
    """A data set, read."""
    file = BytesIO()
    dataset.save_as(file)
    return read_segmentation(file.getvalue())


def with_pixels(dataset: Dataset, pixels: np.ndarray) -> Dataset:
    """The data set with other pixels."""
    dataset.PixelData = pixels.tobytes()
    return dataset


def test_a_voxel_is_found(dataset: Dataset) -> None:
    """Where it is, how many, and Dice."""
    before, pixels = read(dataset), dataset.pixel_array.copy()
    plane, row, column = np.argwhere(pixels == 1)[0]
    pixels[plane, row, column] = 0
    found = diff(before, read(with_pixels(dataset, pixels)))
    (segment,) = found.segments
    count = int((pixels == 1).sum())
    assert (found.is_equal, segment.differing, segment.voxels, segment.other_voxels) == (False, 1, count + 1, count)
    assert segment.dice == pytest.approx(2 * count / (2 * count + 1))
    assert segment.where is not None
    assert (segment.where.rows, segment.where.columns) == ((row, row), (column, column))
    assert segment.where.first_plane == tuple(before.table.positions[plane])


def test_the_order_of_frames_does_not_matter(dataset: Dataset) -> None:
    """Planes are matched by their position."""
    before, pixels = read(dataset), dataset.pixel_array[::-1]
    dataset.PerFrameFunctionalGroupsSequence = list(dataset.PerFrameFunctionalGroupsSequence)[::-1]
    assert diff(before, read(with_pixels(dataset, pixels))).is_equal


def test_a_plane_that_is_missing_is_background(dataset: Dataset) -> None:
    """Equal when it was empty in the other, and not when it was not."""
    pixels = dataset.pixel_array.copy()
    without = read(with_pixels(dataset, pixels))
    pixels[0] = 0
    empty = read(with_pixels(dataset, pixels))
    with_pixels(dataset, pixels[1:])
    dataset.PerFrameFunctionalGroupsSequence = list(dataset.PerFrameFunctionalGroupsSequence)[1:]
    dataset.NumberOfFrames = len(pixels) - 1
    shorter = read(dataset)
    assert diff(empty, shorter).is_equal
    assert diff(shorter, empty).is_equal
    assert not diff(without, shorter).is_equal


def test_segments_are_matched_by_what_they_mean(dataset: Dataset) -> None:
    """When their numbers differ."""
    before, pixels = read(dataset), dataset.pixel_array * 7
    dataset.SegmentSequence[0].SegmentNumber = 7
    found = diff(before, read(with_pixels(dataset, pixels)))
    assert found.is_equal
    assert (found.segments[0].number, found.segments[0].other_number) == (1, 7)


def test_a_segment_of_one_only_must_be_empty(dataset: Dataset) -> None:
    """What is in one and not in the other is a difference."""
    before, pixels = read(dataset), dataset.pixel_array * 7
    dataset.SegmentSequence[0].SegmentNumber = 7
    dataset.SegmentSequence[0].SegmentLabel = "other"
    found = diff(before, read(with_pixels(dataset, pixels)))
    assert not found.is_equal
    assert [(s.number, s.other_number, s.dice) for s in found.segments] == [(1, None, 0), (None, 7, 0)]


@pytest.mark.parametrize(
    ("group", "keyword", "value"),
    [
        ("PixelMeasuresSequence", "PixelSpacing", [9, 9]),
        ("PlaneOrientationSequence", "ImageOrientationPatient", [0, 1, 0, 1, 0, 0]),
    ],
)
def test_another_geometry_is_named(dataset: Dataset, group: str, keyword: str, value: list[int]) -> None:
    """Voxels of another grid are not compared."""
    before = read(dataset)
    setattr(dataset.SharedFunctionalGroupsSequence[0][group].value[0], keyword, value)
    found = diff(before, read(dataset))
    assert not found.is_equal
    assert keyword in found.geometry[0]


def test_another_frame_of_reference_is_named(dataset: Dataset) -> None:
    """It is another patient's space."""
    before = read(dataset)
    dataset.FrameOfReferenceUID = "1.2.3"
    assert "FrameOfReferenceUID" in diff(before, read(dataset)).geometry[0]


@pytest.mark.parametrize(
    ("keyword", "change"),
    [
        ("ImageOrientationSlide", lambda dataset: setattr(dataset, "ImageOrientationSlide", [0, 1, 0, 1, 0, 0])),
        (
            "TotalPixelMatrixOriginSequence",
            lambda dataset: setattr(dataset.TotalPixelMatrixOriginSequence[0], "XOffsetInSlideCoordinateSystem", 99),
        ),
    ],
)
def test_a_total_pixel_matrix_that_lies_elsewhere_is_named(sample: Sample, keyword: str, change) -> None:
    """The same tiles turned over or moved on the slide are other labels."""
    dataset = dcmread(sample("highdicom/seg_image_sm_dots_tiled_full.dcm"))
    before = read(dataset)
    change(dataset)
    assert keyword in diff(before, read(dataset)).geometry[0]


def test_an_orientation_of_another_length_is_named(dataset: Dataset) -> None:
    """What is no orientation is not the same as one."""
    before = read(dataset)
    orientation = dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    del orientation.ImageOrientationPatient
    orientation.add_new("ImageOrientationPatient", "CS", ["A", "B"])
    assert "ImageOrientationPatient" in diff(before, read(dataset)).geometry[0]
