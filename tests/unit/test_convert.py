"""Converting SEGs: labels stay in their place, nothing is dropped in silence, and what is written keeps the rules."""

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import highdicom
import numpy as np
import pytest
from pydicom import Dataset, dcmread

from segnode.errors import CannotConvert, OverlappingSegments
from segnode.seg.arrays import stacked, total_pixel_matrix
from segnode.seg.check import check
from segnode.seg.codecs import CODECS
from segnode.seg.convert import Converted, Target, convert
from segnode.seg.diff import diff
from segnode.seg.read import read_segmentation

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TYPES = ("LABELMAP", "BINARY", "FRACTIONAL")
SAMPLES = (
    "highdicom/seg_image_ct_binary.dcm",
    "highdicom/seg_image_sm_control.dcm",
    "highdicom/seg_image_sm_control_labelmap.dcm",
    "highdicom/seg_image_sm_dots_tiled_full.dcm",
    "pydicom-data/liver_expb.dcm",
    "pydicom-data/liver_deflate.dcm",
    "pydicom-data/liver_nonbyte_aligned.dcm",
    "pydicom-data/liver_rle.dcm",
    "dcmqi/24x38x3/seg/label.seg",
)
Sample = Callable[[str], Path]


def target(kind: str, codec: str = "native", **options) -> Target:
    """A target."""
    return Target(kind, CODECS[codec], **options)


def one(data: bytes, wanted: Target) -> Converted:
    """The only object that a conversion makes."""
    (made,) = convert(data, wanted, NOW)
    return made


def errors(part10: bytes) -> list[str]:
    """What breaks a rule."""
    return [str(finding) for finding in check(dcmread(BytesIO(part10))) if finding.severity == "error"]


def header(part10: bytes) -> Dataset:
    """A data set."""
    return dcmread(BytesIO(part10))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", SAMPLES)
def test_labels_stay_in_their_place_and_the_rules_are_kept(sample: Sample, name: str, kind: str) -> None:
    """Every sample, in every type, and back."""
    data = sample(name).read_bytes()
    source = read_segmentation(data)
    there = one(data, target(kind, "rle"))
    back = one(there.part10, target(source.type, "implicit"))
    for made in (there, back):
        assert errors(made.part10) == []
        assert diff(source, read_segmentation(made.part10)).is_equal


@pytest.mark.parametrize("codec", [name for name in CODECS if name != "native"])
def test_another_codec_is_the_same_object(sample: Sample, codec: str) -> None:
    """Only the encoding changes: no attribute and no pixel does."""
    data = sample("highdicom/seg_image_sm_control_labelmap.dcm").read_bytes()
    before, after = header(data), header(one(data, target("LABELMAP", codec)).part10)
    assert after.file_meta.TransferSyntaxUID == CODECS[codec].transfer_syntax_uid
    same = read_segmentation(data).frames.all(), read_segmentation(one(data, target("LABELMAP", codec)).part10).frames.all()
    np.testing.assert_array_equal(*same)
    for element in before:
        if element.keyword != "PixelData":
            assert after[element.tag].value == element.value, element.keyword


def test_the_same_codec_gives_the_same_bytes(sample: Sample) -> None:
    """Nothing is to be done."""
    data = sample("highdicom/seg_image_ct_binary.dcm").read_bytes()
    assert one(data, target("BINARY", "implicit")).part10 == data


@pytest.mark.parametrize("codec", ["jpeg-ls", "htj2k"])
def test_a_codec_without_one_bit_is_refused_for_binary(sample: Sample, codec: str) -> None:
    """With the reason."""
    with pytest.raises(CannotConvert, match=f"{codec} has no frames of 1 bit"):
        convert(sample("highdicom/seg_image_ct_binary.dcm").read_bytes(), target("BINARY", codec), NOW)


def test_a_new_object_says_where_it_comes_from(sample: Sample) -> None:
    """New UIDs and a reference back; the segments, the sources and the contributors are kept."""
    data = sample("highdicom/seg_image_ct_binary.dcm").read_bytes()
    before, after = header(data), header(one(data, target("LABELMAP", "jpeg-ls")).part10)
    assert after.SOPClassUID == after.file_meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"
    assert after.SOPInstanceUID == after.file_meta.MediaStorageSOPInstanceUID != before.SOPInstanceUID
    assert after.SeriesInstanceUID != before.SeriesInstanceUID
    assert (after.StudyInstanceUID, after.PatientID) == (before.StudyInstanceUID, before.PatientID)
    assert after.ReferencedInstanceSequence[-1].ReferencedSOPInstanceUID == before.SOPInstanceUID
    listed = {str(s.SeriesInstanceUID): s.ReferencedInstanceSequence for s in after.ReferencedSeriesSequence}
    assert listed[before.SeriesInstanceUID][-1].ReferencedSOPInstanceUID == before.SOPInstanceUID
    assert after.ContributingEquipmentSequence[-1].PurposeOfReferenceCodeSequence[0].CodeValue == "109103"
    assert (after.ContentDate, after.PixelPaddingValue, after.SegmentsOverlap) == ("20260102", 0, "NO")
    assert [item.SegmentNumber for item in after.SegmentSequence] == [1, 0]
    kept, original = after.SegmentSequence[0], before.SegmentSequence[0]
    assert all(kept[element.tag].value == element.value for element in original)
    assert not any("SegmentIdentificationSequence" in item for item in after.PerFrameFunctionalGroupsSequence)


def test_a_repeat_is_the_same_object_in_any_transfer_syntax(sample: Sample) -> None:
    """UIDs derive from source and target; the encoding is no part of them, the type is."""
    data = sample("highdicom/seg_image_ct_binary.dcm").read_bytes()
    first = one(data, target("LABELMAP"))
    assert one(data, target("LABELMAP")).part10 == first.part10
    assert one(data, target("LABELMAP", "rle")).sop_instance_uid == first.sop_instance_uid
    assert one(data, target("LABELMAP", overlap="split")).sop_instance_uid == first.sop_instance_uid
    assert one(data, target("FRACTIONAL")).sop_instance_uid != first.sop_instance_uid


def test_labelmap_to_binary_counts_from_one(sample: Sample) -> None:
    """And the record says which number became which."""
    data = sample("dcmqi/sparse-labelmap-ppv5.dcm").read_bytes()
    made = one(data, target("BINARY"))
    numbers = [item.SegmentNumber for item in header(made.part10).SegmentSequence]
    assert numbers == list(range(1, len(numbers) + 1)) == list(made.numbers.values())
    assert "PixelPaddingValue" not in header(made.part10)


def test_an_overlap_is_an_error_that_names_the_segments(sample: Sample) -> None:
    """By number and label, with their voxels, and what to do."""
    data = sample("dcmqi/partial_overlaps.dcm").read_bytes()
    with pytest.raises(OverlappingSegments, match=r"1 \(GREEN\) and 2 \(ORANGE\) in 3017 voxels.*split.*priority"):
        convert(data, target("LABELMAP"), NOW)


@pytest.mark.parametrize(
    ("name", "parts"), [("dcmqi/partial_overlaps.dcm", 3), ("highdicom/seg_image_ct_binary_overlap.dcm", 2)]
)
def test_split_parts_make_up_the_source(sample: Sample, name: str, parts: int) -> None:
    """The fewest there can be, in one series, each told; together they are the stacked segments of the source."""
    data = sample(name).read_bytes()
    source, made = read_segmentation(data), convert(data, target("LABELMAP", overlap="split"), NOW)
    assert len(made) == parts == made[0].lower_bound
    assert len({part.series_instance_uid for part in made}) == 1 < len({part.sop_instance_uid for part in made})
    assert sorted(number for part in made for number in part.numbers) == list(source.numbers)
    for part in made:
        described = header(part.part10)
        assert errors(part.part10) == []
        assert f"part {part.part} of {parts}" in described.ContentDescription
        assert described.InstanceNumber == part.part
        equal = {s.number for s in diff(source, read_segmentation(part.part10)).segments if s.is_equal and s.voxels}
        assert equal == set(part.numbers)


def test_priority_gives_an_overlap_to_the_first(sample: Sample) -> None:
    """Every overlap is counted; one of two segments that are not in the list is not guessed."""
    data = sample("highdicom/seg_image_ct_binary_overlap.dcm").read_bytes()
    segments = stacked(read_segmentation(data))
    for order in ((1, 2), (2,), (2, 1)):
        made = one(data, target("LABELMAP", overlap="priority", priority=order))
        first = stacked(read_segmentation(made.part10))[..., order[0] - 1]
        np.testing.assert_array_equal(first, segments[..., order[0] - 1])
        assert made.overlaps[0].voxels == np.count_nonzero(segments.all(axis=-1))
        assert errors(made.part10) == []
    with pytest.raises(OverlappingSegments, match="priority names neither"):
        convert(data, target("LABELMAP", overlap="priority", priority=()), NOW)
    with pytest.raises(CannotConvert, match=r"does not describe: \[9\]"):
        convert(data, target("LABELMAP", overlap="priority", priority=(9,)), NOW)


@pytest.mark.parametrize("threshold", [None, 0.25, 0.75])
@pytest.mark.parametrize("kind", ["LABELMAP", "BINARY"])
def test_fractional_becomes_segments(sample: Sample, kind: str, threshold: float | None) -> None:
    """By a threshold, or where the fraction is at least what it leaves to the background."""
    data = sample("highdicom/seg_image_ct_true_fractional.dcm").read_bytes()
    made = one(data, target(kind, threshold=threshold))
    fractions = stacked(read_segmentation(data))
    expected = fractions >= (0.5 if threshold is None else threshold)
    np.testing.assert_array_equal(stacked(read_segmentation(made.part10)), expected)
    assert "MaximumFractionalValue" not in header(made.part10)
    assert errors(made.part10) == []


def test_tiles_keep_their_place(sample: Sample) -> None:
    """TILED_FULL stays that, and the total pixel matrix is the same."""
    data = sample("highdicom/seg_image_sm_dots_tiled_full.dcm").read_bytes()
    made = one(data, target("LABELMAP", "rle"))
    assert header(made.part10).DimensionOrganizationType == "TILED_FULL"
    before, after = (total_pixel_matrix(read_segmentation(bytes_)) for bytes_ in (data, made.part10))
    np.testing.assert_array_equal(before, after)


def test_highdicom_reads_the_same_labels(sample: Sample) -> None:
    """By a reader that is not ours."""
    data = sample("highdicom/seg_image_ct_binary.dcm").read_bytes()
    volumes = [
        highdicom.seg.segread(BytesIO(part10)).get_volume(combine_segments=True)
        for part10 in (data, one(data, target("LABELMAP", "jpeg-ls")).part10)
    ]
    np.testing.assert_array_equal(volumes[0].array, volumes[1].array)
    np.testing.assert_allclose(volumes[0].affine, volumes[1].affine)


def test_an_object_without_a_uid_is_refused(sample: Sample) -> None:
    """Nothing could be derived from it."""
    dataset = dcmread(sample("highdicom/seg_image_ct_binary.dcm"))
    del dataset.SeriesInstanceUID
    file = BytesIO()
    dataset.save_as(file)
    with pytest.raises(CannotConvert, match="SeriesInstanceUID is missing"):
        convert(file.getvalue(), target("LABELMAP"), NOW)


def test_converting_loads_nothing_that_it_does_not_need() -> None:
    """Servers and databases take seconds to load."""
    program = "import sys, segnode.cli, segnode.seg.convert, segnode.seg_files; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split())
    assert not loaded & {"pynetdicom", "sqlalchemy", "scipy", "dbos", "highdicom", "nibabel", "nrrd"}
