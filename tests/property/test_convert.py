"""Any segments, overlapping or not: converted and back they are the same; parts make up the whole; colouring is minimal."""

from datetime import UTC, datetime
from io import BytesIO
from itertools import combinations, product

import highdicom
import numpy as np
import pytest
from highdicom.seg import SegmentDescription
from highdicom.sr.coding import CodedConcept
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom import dcmread

from segnode.seg.arrays import stacked
from segnode.seg.check import check
from segnode.seg.codecs import CODECS
from segnode.seg.convert import Target, convert
from segnode.seg.convert.overlap import fewest_groups
from segnode.seg.diff import diff
from segnode.seg.read import read_segmentation

from .test_labelmap import headers

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
CODE = CodedConcept("123037004", "SCT", "Anatomical structure")
# highdicom 0.28 pads frames of fewer than 8 pixels on their own when it writes them natively, and they are lost.
PIXELS = st.tuples(st.integers(1, 4), st.integers(3, 9), st.integers(3, 9), st.integers(1, 4)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 1))
)
CODEC = st.sampled_from(["native", "implicit", "deflate", "rle"])


def binary(pixels: np.ndarray) -> bytes:
    """A BINARY by highdicom of (slices, rows, columns, segments)."""
    names = {"manufacturer": "m", "manufacturer_model_name": "m", "software_versions": "1", "device_serial_number": "1"}
    described = [SegmentDescription(n + 1, f"segment {n}", CODE, CODE, "MANUAL") for n in range(pixels.shape[-1])]
    images = headers(pixels.shape[:3], np.eye(3))
    for image in images:  # highdicom wants them though empty
        for keyword in ("PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime", "AccessionNumber"):
            setattr(image, keyword, None)
        image.ReferringPhysicianName = image.PositionReferenceIndicator = None
    made = highdicom.seg.Segmentation(images, pixels, "BINARY", described, "2.25.3", 1, "2.25.4", 1, content_label="A", **names)
    file = BytesIO()
    made.save_as(file)
    return file.getvalue()


def target(kind: str, codec: str, overlap: str = "error") -> Target:
    """A target."""
    return Target(kind, CODECS[codec], overlap)


@settings(max_examples=10)
@given(PIXELS, st.sampled_from(["BINARY", "FRACTIONAL", "LABELMAP"]), CODEC)
def test_there_and_back(pixels: np.ndarray, kind: str, codec: str) -> None:
    """Every type and codec keeps every voxel, and what is written keeps the rules."""
    if kind == "LABELMAP":
        pixels = np.eye(pixels.shape[-1] + 1, dtype=np.uint8)[(pixels * range(1, pixels.shape[-1] + 1)).max(axis=-1)][..., 1:]
    if not pixels.any():
        pixels[0, 0, 0, 0] = 1
    data = binary(pixels)
    source = read_segmentation(data)
    (there,) = convert(data, target(kind, codec), NOW)
    (back,) = convert(there.part10, Target("BINARY", CODECS["native"], threshold=0.5), NOW)
    assert not [f for f in check(dcmread(BytesIO(there.part10))) if f.severity == "error"]
    assert diff(source, read_segmentation(there.part10)).is_equal
    assert diff(source, read_segmentation(back.part10)).is_equal


@settings(max_examples=8)
@given(PIXELS, CODEC)
def test_highdicom_has_the_same_labels(pixels: np.ndarray, codec: str) -> None:
    """Voxel for voxel in patient space; where segments overlap it refuses as well."""
    pixels[0, 0, 0, 0] = 1
    data = binary(pixels)
    theirs = highdicom.seg.segread(BytesIO(data))
    if (pixels.sum(axis=-1) > 1).any():
        with pytest.raises(Exception, match="overlap"):
            convert(data, target("LABELMAP", codec), NOW)
        return
    (made,) = convert(data, target("LABELMAP", "native" if codec == "rle" else codec), NOW)
    expected = theirs.get_volume(combine_segments=True)
    found = highdicom.seg.segread(BytesIO(made.part10)).get_volume(combine_segments=True)
    np.testing.assert_array_equal(found.match_geometry(expected).array, expected.array)


@settings(max_examples=10)
@given(PIXELS)
def test_parts_make_up_the_stacked_segments(pixels: np.ndarray) -> None:
    """Each voxel of each segment is in the part of that segment, and nowhere else."""
    pixels[0, 0, 0, 0] = 1
    data = binary(pixels)
    source = read_segmentation(data)
    parts = convert(data, target("LABELMAP", "rle", "split"), NOW)
    assert sorted(number for part in parts for number in part.numbers) == list(source.numbers)
    for part in parts:
        made = read_segmentation(part.part10)
        same = {s.number for s in diff(source, made).segments if s.is_equal}
        assert set(part.numbers) <= same
        assert made.numbers == tuple(sorted(part.numbers))
    assert stacked(source).sum() == sum(int((read_segmentation(part.part10).frames.all() > 0).sum()) for part in parts)


@settings(max_examples=60)
@given(
    st.integers(1, 6).flatmap(
        lambda n: st.tuples(st.just(n), st.sets(st.sampled_from([*combinations(range(1, n + 1), 2)] or [None])))
    )
)
def test_the_groups_are_the_fewest(graph: tuple[int, set]) -> None:
    """As brute force finds them."""
    count, pairs = graph
    pairs = {pair for pair in pairs if pair is not None}
    numbers = range(1, count + 1)
    fewest = next(
        colours
        for colours in range(1, count + 1)
        if any(all(c[a - 1] != c[b - 1] for a, b in pairs) for c in product(range(colours), repeat=count))
    )
    found = fewest_groups(numbers, pairs)
    assert len(found.groups) == found.lower_bound == fewest
    assert sorted(number for group in found.groups for number in group) == list(numbers)
    assert not any(a in group and b in group for group in found.groups for a, b in pairs)


def test_many_overlapping_segments_have_a_lower_bound() -> None:
    """A ring of 41 needs three groups; beyond 32 segments only two can be proved."""
    ring = [(n, n % 41 + 1) for n in range(1, 42)]
    found = fewest_groups(range(1, 42), ring)
    assert (len(found.groups), found.lower_bound, found.is_fewest) == (3, 2, False)
