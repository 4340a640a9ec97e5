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
from pydicom.uid import ImplicitVRLittleEndian

from segnode.errors import CannotConvert, NotASegmentation, OverlappingSegments
from segnode.seg.arrays import stacked, total_pixel_matrix
from segnode.seg.check import check
from segnode.seg.codecs import CODECS
from segnode.seg.convert import Converted, Target, convert
from segnode.seg.diff import diff
from segnode.seg.pixels import pixel_data
from segnode.seg.read import read_segmentation
from segnode.seg.write import StoredAs, write_segmentation
from segnode.seg.write.placement import on_grid, on_images

from .test_construct import IDENTITY, assert_ascending, manual, series

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


def test_what_is_copied_is_what_would_be_written() -> None:
    """Sequences of a source in explicit VR are copied as bytes; those of one in implicit VR are decoded and written."""
    data = of_two_segments()
    implicit = one(data, target("BINARY", "implicit")).part10
    assert one(data, target("LABELMAP")).part10 == one(implicit, target("LABELMAP")).part10


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


def of_two_segments(change: Callable[[int, Dataset], object] | None = None) -> bytes:
    """A BINARY of two segments, beside each other on each of four slices; `change` is given each frame's groups."""
    labels = np.zeros((4, 9, 11), np.uint8)
    labels[:, 1:4, 2:5], labels[:, 5:8, 6:9] = 1, 2
    segments = [manual(1), manual(2, "bone")]
    dataset = header(write_segmentation(labels, on_images(series()), segments, StoredAs("BINARY"), IDENTITY))
    for index, groups in enumerate(dataset.PerFrameFunctionalGroupsSequence if change else ()):
        change(index, groups)
    return saved(dataset)


def saved(dataset: Dataset) -> bytes:
    """The bytes of a data set."""
    file = BytesIO()
    dataset.save_as(file)
    return file.getvalue()


def height(groups: Dataset) -> float:
    """Which of the slices a frame lies on."""
    return float(groups.PlanePositionSequence[0].ImagePositionPatient[2])


def preserved(part10: bytes) -> list[str | None]:
    """What each frame says of the spatial locations of its source images."""
    return [
        source.get("SpatialLocationsPreserved")
        for groups in header(part10).PerFrameFunctionalGroupsSequence
        for source in groups.DerivationImageSequence[0].SourceImageSequence
    ]


def say_preserved(*values: str | None) -> Callable[[int, Dataset], None]:
    """Have the frames of each segment say so of their source images."""

    def change(index: int, groups: Dataset) -> None:
        said = values[groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber - 1]
        for source in groups.DerivationImageSequence[0].SourceImageSequence:
            source.SpatialLocationsPreserved = said
            if said is None:
                del source.SpatialLocationsPreserved

    return change


@pytest.mark.parametrize("kind", ["LABELMAP", "FRACTIONAL"])
@pytest.mark.parametrize("said", ["YES", "NO", None])
def test_whether_spatial_locations_are_preserved_goes_over(kind: str, said: str | None) -> None:
    """Neither NO nor nothing becomes YES."""
    data = of_two_segments(say_preserved(said, said))
    assert set(preserved(one(data, target(kind, "rle")).part10)) == {said}


@pytest.mark.parametrize(("said", "expected"), [(("YES", "NO"), "NO"), (("YES", None), None), ((None, "NO"), "NO")])
def test_frames_that_contradict_each_other_promise_nothing(said: tuple, expected: str | None) -> None:
    """Where one frame stands for two, locations are preserved if both say so."""
    data = of_two_segments(say_preserved(*said))
    assert preserved(one(data, target("LABELMAP")).part10) == [expected] * 4
    assert preserved(one(data, target("FRACTIONAL")).part10) == [said[0]] * 4 + [said[1]] * 4


def test_sources_that_all_frames_share_stay_shared() -> None:
    """On a grid of its own all frames are of all images: said once, with locations that are not preserved."""
    affine = np.diag([2.0, 1.5, 1.5, 1.0])[[2, 1, 0, 3]]
    labels = np.ones((5, 6, 7), np.uint8)
    data = write_segmentation(labels, on_grid(series(), affine, 5), [manual(1)], StoredAs("BINARY"), IDENTITY)
    made = header(one(data, target("LABELMAP")).part10)
    (shared,) = made.SharedFunctionalGroupsSequence[0].DerivationImageSequence
    assert [source.SpatialLocationsPreserved for source in shared.SourceImageSequence] == ["NO"] * 4
    assert not any("DerivationImageSequence" in groups for groups in made.PerFrameFunctionalGroupsSequence)
    assert errors(saved(made)) == []


def measure(spacing: Callable[[Dataset], list]) -> Callable[[int, Dataset], None]:
    """Give each frame pixel measures of its own."""

    def change(index: int, groups: Dataset) -> None:
        item = Dataset()
        item.SliceThickness, item.PixelSpacing = f"{1 + height(groups)}", spacing(groups)
        groups.PixelMeasuresSequence = [item]

    return change


def without_shared_measures(data: bytes) -> bytes:
    """Leave pixel measures to the frames."""
    dataset = header(data)
    del dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    return saved(dataset)


@pytest.mark.parametrize("codec", ["rle", "implicit", "deflate"])
@pytest.mark.parametrize("kind", ["LABELMAP", "FRACTIONAL"])
def test_spacings_that_differ_from_slice_to_slice_go_over(kind: str, codec: str) -> None:
    """Each frame keeps its own, and none is shared; back again they are the same."""
    change = measure(lambda groups: ["0.5", f"{0.5 + height(groups):g}"])
    data = without_shared_measures(of_two_segments(change))
    there = one(data, target(kind, codec)).part10
    for part10 in (there, one(there, target("BINARY", threshold=0.5)).part10):
        made = header(part10)
        assert "PixelMeasuresSequence" not in made.SharedFunctionalGroupsSequence[0]
        for groups in made.PerFrameFunctionalGroupsSequence:
            (item,) = groups.PixelMeasuresSequence
            assert (item.PixelSpacing, item.SliceThickness) == ([0.5, 0.5 + height(groups)], 1 + height(groups))
        assert errors(part10) == []


@pytest.mark.parametrize("unit", [1, 0.0005])
def test_spacings_that_differ_in_one_place_are_refused_for_a_labelmap(unit: float) -> None:
    """One frame cannot stand for pixels of two sizes, however small; frames of one segment each can."""

    def spacing(groups: Dataset) -> list[str]:
        return ["0.5", f"{groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber * unit}"]

    data = without_shared_measures(of_two_segments(measure(spacing)))
    with pytest.raises(CannotConvert, match=r"differ in PixelSpacing \(PixelMeasuresSequence\).*BINARY or FRACTIONAL"):
        convert(data, target("LABELMAP"), NOW)
    frames = header(one(data, target("FRACTIONAL")).part10).PerFrameFunctionalGroupsSequence
    assert [groups.PixelMeasuresSequence[0].PixelSpacing[1] for groups in frames] == [unit] * 4 + [2 * unit] * 4


def test_spacings_that_only_some_frames_have_are_refused() -> None:
    """What differs, and is not said of every frame, is no geometry."""

    def change(index: int, groups: Dataset) -> None:
        if index:
            measure(lambda groups: ["0.5", f"{0.5 + height(groups)}"])(index, groups)

    with pytest.raises(CannotConvert, match="PixelMeasuresSequence differs from frame to frame, and some frames have none"):
        convert(without_shared_measures(of_two_segments(change)), target("LABELMAP"), NOW)


def test_spacings_of_frames_come_before_one_that_is_shared() -> None:
    """Where both are there, which is not allowed, it is the frame's that readers go by."""
    data = of_two_segments(measure(lambda _: ["0.25", "0.5"]))
    for kind in ("LABELMAP", "FRACTIONAL"):
        made = read_segmentation(one(data, target(kind)).part10)
        assert made.table.spacings == read_segmentation(data).table.spacings == ((0.25, 0.5),)


def test_orientation_and_spacing_that_each_frame_repeats_are_shared() -> None:
    """What is the same in all frames is said once."""
    dataset = header(of_two_segments())
    shared = dataset.SharedFunctionalGroupsSequence[0]
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        groups.PixelMeasuresSequence, groups.PlaneOrientationSequence = (
            shared.PixelMeasuresSequence,
            shared.PlaneOrientationSequence,
        )
    spacing = shared.PixelMeasuresSequence[0].PixelSpacing
    del shared.PixelMeasuresSequence, shared.PlaneOrientationSequence
    made = header(one(saved(dataset), target("LABELMAP")).part10)
    shared = made.SharedFunctionalGroupsSequence[0]
    assert shared.PixelMeasuresSequence[0].PixelSpacing == spacing
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == [1, 0, 0, 0, 1, 0]
    assert not any("PixelMeasuresSequence" in groups for groups in made.PerFrameFunctionalGroupsSequence)


def say_anatomy(of: Callable[[Dataset], str]) -> Callable[[int, Dataset], None]:
    """Give each frame an anatomy, a private element, and content of its own."""

    def change(index: int, groups: Dataset) -> None:
        item, region = Dataset(), Dataset()
        region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = "69536005", "SCT", of(groups)
        item.FrameLaterality, item.AnatomicRegionSequence = "U", [region]
        groups.FrameAnatomySequence = [item]
        block = groups.private_block(0x0099, "A TEST", create=True)
        block.add_new(1, "DS", f"{height(groups)}")
        content = groups.FrameContentSequence[0]
        content.FrameAcquisitionNumber, content.FrameComments = int(height(groups)), "seen"
        content.StackID, content.InStackPositionNumber, content.FrameLabel = "1", index + 1, f"frame {index}"

    return change


@pytest.mark.parametrize("codec", ["rle", "implicit"])
def test_what_else_frames_say_goes_over(codec: str) -> None:
    """Functional groups that are none of ours, private elements, and the content of a frame but for dimensions."""
    made = one(of_two_segments(say_anatomy(lambda groups: f"slice {height(groups)}")), target("LABELMAP", codec))
    assert made.left_out == ()
    assert errors(made.part10) == []
    assert_ascending(header(made.part10))
    for groups in header(made.part10).PerFrameFunctionalGroupsSequence:
        assert groups.FrameAnatomySequence[0].AnatomicRegionSequence[0].CodeMeaning == f"slice {height(groups)}"
        assert float(groups.private_block(0x0099, "A TEST")[1].value) == height(groups)
        content = groups.FrameContentSequence[0]
        assert (content.FrameAcquisitionNumber, content.FrameComments) == (int(height(groups)), "seen")
        # Of the source's dimensions, and what the two frames do not agree in.
        assert not any(keyword in content for keyword in ("StackID", "InStackPositionNumber", "FrameLabel"))


def test_what_frames_of_one_place_do_not_agree_in_is_left_out_and_told() -> None:
    """An anatomy of one of two segments is not that of their frame; a group that some frames lack, none has."""

    def region(groups: Dataset) -> str:
        return "same" if height(groups) else f"{groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber}"

    data = of_two_segments(say_anatomy(region))
    made = one(data, target("LABELMAP"))
    assert made.left_out == ("FrameAnatomySequence",)
    assert not any("FrameAnatomySequence" in groups for groups in header(made.part10).PerFrameFunctionalGroupsSequence)
    assert one(data, target("FRACTIONAL")).left_out == ()


def test_values_that_cannot_be_read_are_refused() -> None:
    """Four bytes that are said to be a number of eight cannot be written in another encoding."""

    def change(_: int, groups: Dataset) -> None:
        groups.FrameAnatomySequence = [Dataset()]
        groups.FrameAnatomySequence[0].SliceThickness = "7.89"

    data = of_two_segments(change).replace(b"DS\x04\x007.89", b"FD\x04\x007.89")
    with pytest.raises(CannotConvert, match="FrameAnatomySequence of a frame holds values that are not of their VR"):
        convert(data, target("LABELMAP", "implicit"), NOW)


def test_full_tiles_keep_what_their_frames_say(sample: Sample) -> None:
    """TILED_FULL with functional groups of frames, which say nothing of their place."""
    dataset = header(sample("highdicom/seg_image_sm_dots_tiled_full.dcm").read_bytes())
    dataset.PerFrameFunctionalGroupsSequence = []
    for _ in range(dataset.NumberOfFrames):
        groups, content = Dataset(), Dataset()
        content.FrameComments = "seen"
        groups.FrameContentSequence = [content]
        dataset.PerFrameFunctionalGroupsSequence.append(groups)
    made = header(one(saved(dataset), target("LABELMAP", "rle")).part10)
    assert made.DimensionOrganizationType == "TILED_FULL"
    assert len(made.PerFrameFunctionalGroupsSequence) == made.NumberOfFrames
    assert {groups.FrameContentSequence[0].FrameComments for groups in made.PerFrameFunctionalGroupsSequence} == {"seen"}
    assert [f for f in check(made) if f.severity == "error"] == []


@pytest.mark.parametrize("numbers", [(1, 2, 3), (2, 7, 300)])
def test_descriptions_of_segments_survive_there_and_back(numbers: tuple[int, ...]) -> None:
    """In 8 and 16 bits: every attribute of an item but its number, as BINARY counts from 1."""
    labels = np.zeros((4, 9, 11), np.uint16)
    for row, number in enumerate(numbers):
        labels[:, row] = number
    described = [
        manual(number, f"segment {number}", tracking_id=f"t{number}", tracking_uid=f"2.25.{number}", cielab=(number, 2, 3))
        for number in numbers
    ]
    data = write_segmentation(labels, on_images(series()), described, StoredAs("LABELMAP"), IDENTITY)
    binary = one(data, target("BINARY"))
    back = header(one(binary.part10, target("LABELMAP")).part10)
    expected = {int(item.SegmentNumber): item for item in header(data).SegmentSequence}
    for made, renumbered in ((header(binary.part10), binary.numbers), (back, binary.numbers)):
        found = {int(item.SegmentNumber): item for item in made.SegmentSequence}
        for before, after in renumbered.items():
            item = found[after]
            item.SegmentNumber = before
            assert item == expected[before]
    assert header(data).BitsAllocated == (16 if max(numbers) > 255 else 8)


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL"])
def test_colours_of_a_palette_become_those_of_segments(kind: str) -> None:
    """Also of a palette of 16 bits, and of a segmented one, as the types without a palette have no other place for them."""
    labels = np.zeros((4, 9, 11), np.uint8)
    labels[1, 2:5, 3:7] = 1
    colour = (30000, 40000, 20000)
    source = write_segmentation(
        labels, on_images(series()), [manual(1, cielab=colour)], StoredAs("LABELMAP", palette=True), IDENTITY
    )
    wide, segmented = header(source), header(source)
    for name in ("Red", "Green", "Blue"):
        keyword = f"{name}PaletteColorLookupTable"
        entries = np.frombuffer(header(source)[f"{keyword}Data"].value, np.uint8).astype("<u2") * 257
        for dataset in (wide, segmented):
            dataset[f"{keyword}Descriptor"].value = [len(entries), 0, 16]
            dataset[f"{keyword}Data"].value = entries.tobytes()
        del segmented[f"{keyword}Data"]
        setattr(segmented, f"Segmented{keyword}Data", np.array([0, len(entries), *entries], "<u2").tobytes())
    for dataset in (header(source), wide, segmented):
        made = header(one(part10_of(dataset), target(kind)).part10)
        np.testing.assert_allclose(made.SegmentSequence[0].RecommendedDisplayCIELabValue, colour, atol=130)
        assert not errors(part10_of(made))


def part10_of(dataset: Dataset) -> bytes:
    """The bytes of a file."""
    file = BytesIO()
    dataset.save_as(file)
    return file.getvalue()


def test_a_palette_that_is_none_is_refused() -> None:
    """Its colours would be lost."""
    labels = np.ones((4, 9, 11), np.uint8)
    source = header(write_segmentation(labels, on_images(series()), [manual(1)], StoredAs("LABELMAP", palette=True), IDENTITY))
    source.RedPaletteColorLookupTableDescriptor = [2, 0]
    with pytest.raises(CannotConvert, match="RedPaletteColorLookupTableDescriptor"):
        convert(part10_of(source), target("BINARY"), NOW)


@pytest.mark.parametrize(
    ("keyword", "vr", "value"),
    [
        ("LossyImageCompression", "SQ", []),
        ("ContributingEquipmentSequence", "US", [1, 2]),
        ("ReferencedSeriesSequence", "PN", "a^b"),
        ("SeriesDate", "SQ", []),
    ],
)
def test_a_value_that_is_not_of_its_vr_is_named(sample: Sample, keyword: str, vr: str, value: object) -> None:
    """It is no error of the library that is to write it."""
    dataset = dcmread(sample("pydicom-data/liver.dcm"))
    if keyword in dataset:
        del dataset[keyword]
    dataset.add_new(keyword, vr, value)
    with pytest.raises(CannotConvert, match=keyword):
        convert(part10_of(dataset), target("LABELMAP"), NOW)


def implicit(dataset: Dataset) -> bytes:
    """The bytes of a file that does not say which VR a value has."""
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    file = BytesIO()
    dataset.save_as(file, implicit_vr=True)
    return file.getvalue()


def test_a_series_number_that_is_none_is_as_if_there_were_none(sample: Sample) -> None:
    """It only decides the number of the new series."""
    dataset = dcmread(sample("pydicom-data/liver.dcm"))
    del dataset.SeriesNumber
    dataset.add_new("SeriesNumber", "LO", "abc")
    made = one(implicit(dataset), target("LABELMAP"))
    assert header(made.part10).SeriesNumber == 1


def test_values_of_frames_that_are_not_of_their_vr_are_refused(sample: Sample) -> None:
    """Also where the object stays the same one, in another encoding."""
    dataset = dcmread(sample("pydicom-data/liver.dcm"))
    content = dataset.PerFrameFunctionalGroupsSequence[1].FrameContentSequence[0]
    del content.DimensionIndexValues
    content.add_new("DimensionIndexValues", "CS", "FIRST")
    with pytest.raises(CannotConvert, match="PerFrameFunctionalGroupsSequence"):
        convert(implicit(dataset), target("BINARY"), NOW)


def stack_of(count: int) -> bytes:
    """A BINARY of so many segments of 8 x 8 voxels, all in one place."""
    grid = on_grid(series(), np.eye(4), 1)
    pixels = np.ones((1, 8, 8, count), np.uint8)
    return write_segmentation(pixels, grid, [manual(number) for number in range(1, count + 1)], StoredAs("BINARY"), IDENTITY)


@pytest.mark.parametrize("overlap", ["error", "split", "priority"])
def test_more_overlaps_than_can_be_told_are_refused(overlap: str) -> None:
    """A megabyte can hold billions of pairs of segments that overlap, and each would take memory."""
    priority = {"priority": (1,)} if overlap == "priority" else {}
    with pytest.raises(OverlappingSegments, match="5000 segments overlap"):
        convert(stack_of(5000), target("LABELMAP", overlap=overlap, **priority), NOW)
    with pytest.raises(OverlappingSegments, match="pairs of segments overlap"):
        convert(stack_of(800), target("LABELMAP", overlap=overlap, **priority), NOW)


def test_native_pixels_longer_than_their_length_can_say_are_refused() -> None:
    """It has 32 bits: a codec that compresses frames is named."""
    frames = np.broadcast_to(np.zeros((1, 1), np.uint16), (2049, 1024 * 1024)).reshape(2049, 1024, 1024)
    assert frames.nbytes > 1 << 32
    with pytest.raises(CannotConvert, match="rle"):
        pixel_data(frames, CODECS["native"])


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL"])
def test_two_frames_of_a_segment_in_one_place_must_agree(kind: str) -> None:
    """They were laid onto each other: a time series that does not say so became labels that none of its frames has."""
    labels = np.zeros((4, 8, 8), np.uint8)
    labels[1, 2:5, 3:7] = 1
    source = header(write_segmentation(labels, on_images(series(4, 8, 8)), [manual(1)], StoredAs(kind), IDENTITY))
    source.PerFrameFunctionalGroupsSequence.append(source.PerFrameFunctionalGroupsSequence[0])
    source.NumberOfFrames, frame = 2, source.PixelData
    source.PixelData = frame + frame
    other = "LABELMAP" if kind == "BINARY" else "BINARY"
    again = part10_of(source)
    assert read_segmentation(one(again, target(other)).part10).frames.all().sum() == labels.sum()
    source.PixelData = frame + bytes(len(frame) - 2) + (b"\1\1" if kind == "BINARY" else b"\xff\xff")
    for work in (
        lambda: convert(part10_of(source), target(other), NOW),
        lambda: diff(read_segmentation(again), read_segmentation(part10_of(source))),
    ):
        with pytest.raises(OverlappingSegments, match="frames 1 and 2 are both of segment 1"):
            work()


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("keyword", ["ReferencedImageSequence", "AcquisitionContextSequence"])
@pytest.mark.parametrize("kind", TYPES)
def test_sequences_that_lie_deep_are_refused_at_once(sample: Sample, kind: str, keyword: str, undefined: bool) -> None:
    """The library that writes them says each error again at every level: a conversion took for ever, and all memory."""
    dataset = dcmread(sample("pydicom-data/liver.dcm"))
    item = Dataset()
    item.PatientID = "1"
    for _ in range(11):
        inner, item = item, Dataset()
        setattr(item, keyword, [inner])
    setattr(dataset, keyword, [item])
    dataset[keyword].is_undefined_length = undefined
    with pytest.raises(NotASegmentation, match="sequences more than 10 deep"):
        convert(part10_of(dataset), target(kind), NOW)


def test_frames_with_deep_sequences_are_not_written_anew(sample: Sample) -> None:
    """As they would be in another encoding."""
    dataset = dcmread(sample("pydicom-data/liver.dcm"))
    item = Dataset()
    for _ in range(11):
        inner, item = item, Dataset()
        item.ReferencedImageSequence = [inner]
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        frame.DerivationImageSequence = item.ReferencedImageSequence
    with pytest.raises(CannotConvert, match="PerFrameFunctionalGroupsSequence"):
        convert(part10_of(dataset), target("BINARY", "implicit"), NOW)
