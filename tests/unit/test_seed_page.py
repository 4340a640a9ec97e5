"""What highdicom's guide to Segmentations shows of reading them: every example through segnode.seg, with the same values."""

from pathlib import Path

import highdicom
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes

from segnode.dicom.codes import Code
from segnode.errors import NotFound, OverlappingSegments
from segnode.seg import arrays
from segnode.seg.read import open_segmentation
from segnode.seg.segmentation import Segmentation
from segnode.testing.phantom import Phantom

TRACKED = [
    "1.2.826.0.1.3680043.10.511.3.83271046815894549094043330632275067",
    "1.2.826.0.1.3680043.10.511.3.10042414969629429693880339016394772",
]
ALGORITHM = {
    "series_instance_uid": "2.25.1",
    "series_number": 1,
    "sop_instance_uid": "2.25.2",
    "instance_number": 1,
    "manufacturer": "Foo Corp.",
    "manufacturer_model_name": "Liver Segmentation Algorithm",
    "software_versions": "0.0.1",
    "device_serial_number": "1234567890",
}


def described(number: int, **more: object) -> highdicom.seg.SegmentDescription:
    """A segment as the guide describes its tumour."""
    identification = highdicom.AlgorithmIdentificationSequence(
        name="Auto-Tumor", version="v1.0", family=codes.cid7162.ArtificialIntelligence
    )
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=f"segment {number}",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Tumor,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=identification,
        anatomic_regions=[codes.SCT.Kidney],
        **more,
    )


def sources(phantom: Phantom) -> list[Dataset]:
    """The phantom's images in their spatial order."""
    return highdicom.spatial.sort_datasets([dcmread(file) for file in sorted(phantom.folder.iterdir())[8:14]])


def both(path: Path) -> tuple[Segmentation, highdicom.seg.Segmentation]:
    """The file as we read it, and as highdicom does."""
    return open_segmentation(path), highdicom.seg.segread(path)


@pytest.fixture(params=["BINARY", "LABELMAP", "FRACTIONAL"])
def written(request: pytest.FixtureRequest, phantom: Phantom, tmp_path: Path) -> Path:
    """Three segments of six images, some of them empty, in each type."""
    images = sources(phantom)
    pixels = np.stack([image.pixel_array for image in images])
    labels = np.select([pixels > 1500, pixels < 100, pixels > 1060], [3, 2, 1], 0).astype(np.uint8)
    labels[2] = 0
    more = {"max_fractional_value": 1} if request.param == "FRACTIONAL" else {}
    segments = [described(number, tracking_id=f"t{number}", tracking_uid=f"2.25.{number}") for number in (1, 2, 3)]
    seg = highdicom.seg.Segmentation(images, labels, request.param, segments, **ALGORITHM, **more)
    seg.save_as(tmp_path / "seg.dcm")
    return tmp_path / "seg.dcm"


def test_segments_are_searched(sample) -> None:
    """By label, by type, with its scheme or without, by tracking UID, by what all share, and by what none has."""
    ours, theirs = both(sample("highdicom/seg_image_ct_binary_overlap.dcm"))
    assert len(ours.numbers) == theirs.number_of_segments == 2
    assert list(ours.numbers) == list(theirs.segment_numbers)
    searches = [
        ({"label": "first segment"}, {"segment_label": "first segment"}),
        ({"label": "second segment"}, {"segment_label": "second segment"}),
        ({"type": codes.SCT.Bone.value}, {"segmented_property_type": codes.SCT.Bone}),
        ({"type": Code("SCT", codes.SCT.Spine.value, "")}, {"segmented_property_type": codes.SCT.Spine}),
        ({"category": codes.SCT.Tissue.value}, {"segmented_property_category": codes.SCT.Tissue}),
        ({"tracking_uid": TRACKED[0]}, {"tracking_uid": TRACKED[0]}),
        ({"tracking_uid": TRACKED[1]}, {"tracking_uid": TRACKED[1]}),
        ({"algorithm_type": "MANUAL"}, {"algorithm_type": "MANUAL"}),
        ({"tracking_id": "none", "label": "first segment"}, {"tracking_id": "none", "segment_label": "first segment"}),
    ]
    for asked, asked_of_highdicom in searches:
        found = [segment.number for segment in arrays.find_segments(ours, **asked)]
        assert found == theirs.get_segment_numbers(**asked_of_highdicom), asked
    assert [segment.number for segment in arrays.find_segments(ours, type=Code("SRT", codes.SCT.Spine.value, ""))] == []
    assert (ours.segment[1].label, ours.segment[1].tracking_uid) == ("first segment", TRACKED[0])
    assert str(ours.header.PatientName) == "Doe^Archibald"


def test_segments_are_described(written: Path) -> None:
    """Label, codes, region, algorithm and tracking of a segment are highdicom's."""
    ours, theirs = both(written)
    for number in ours.numbers:
        mine, other = ours.segment[number], theirs.get_segment_description(number)
        assert (mine.label, mine.tracking_id, mine.tracking_uid) == (other.segment_label, other.tracking_id, other.tracking_uid)
        assert mine.category == code_of(other.segmented_property_category)
        assert mine.type == code_of(other.segmented_property_type)
        assert mine.regions == tuple(map(code_of, other.anatomic_regions))
        assert mine.algorithm_type == other.algorithm_type.value
        identification = other.algorithm_identification
        assert (mine.algorithm_name, mine.algorithm_version) == (identification.name, identification.version)
        assert mine.algorithm_family == code_of(identification.family)


def code_of(concept: highdicom.sr.CodedConcept) -> Code:
    """A coded concept as ours."""
    return Code(concept.scheme_designator, concept.value, concept.meaning)


def test_source_images_are_listed_and_followed(sample) -> None:
    """The images that a file refers to; two of them in the order asked for."""
    ours, theirs = both(sample("highdicom/seg_image_ct_binary.dcm"))
    assert arrays.source_images(ours) == theirs.get_source_image_uids()
    uids = [instance for _, _, instance in arrays.source_images(ours)][:2]
    pixels = arrays.stacked(ours, planes=arrays.by_source_instances(ours, uids))
    assert (pixels.shape, np.unique(pixels).tolist()) == ((2, 16, 16, 1), [0, 1])
    np.testing.assert_array_equal(pixels, theirs.get_pixels_by_source_instance(uids))
    with pytest.raises(NotFound, match="SourceImageSequence"):
        arrays.by_source_instances(ours, ["1.2.3"])


@pytest.mark.parametrize("numbers", [None, [3, 1], [2]])
def test_images_are_followed_in_any_order(numbers: list[int] | None, written: Path, phantom: Phantom) -> None:
    """Stacked, combined and relabelled, of all segments or some in the order asked for; what is missing is empty."""
    ours, theirs = both(written)
    uids = [image.SOPInstanceUID for image in sources(phantom)][::-1]
    planes, given = (
        arrays.by_source_instances(ours, uids),
        {"segment_numbers": numbers, "assert_missing_frames_are_empty": True},
    )
    selection = arrays.select(ours, numbers)
    np.testing.assert_array_equal(arrays.stacked(ours, selection, planes), theirs.get_pixels_by_source_instance(uids, **given))
    for relabel in (False, True):
        labels = arrays.labelmap(ours, arrays.select(ours, numbers, relabel=relabel), planes)
        expected = theirs.get_pixels_by_source_instance(uids, combine_segments=True, relabel=relabel, **given)
        np.testing.assert_array_equal(labels, only_asked_for(expected, numbers, relabel))


@pytest.mark.parametrize("numbers", [None, [10, 9, 8]])
@pytest.mark.parametrize("name", ["sm_control", "sm_control_labelmap"])
def test_frames_of_a_source_are_followed(name: str, numbers: list[int] | None, sample) -> None:
    """The tiles of a slide by the frames of its image."""
    ours, theirs = both(sample(f"highdicom/seg_image_{name}.dcm"))
    uid, frames = arrays.source_images(ours)[0][2], range(1, 26)
    given = {"assert_missing_frames_are_empty": True, "segment_numbers": numbers, "ignore_spatial_locations": True}
    planes = arrays.by_source_frames(ours, uid, frames)
    pixels = arrays.stacked(ours, arrays.select(ours, numbers), planes)
    assert pixels.shape == (25, 10, 10, len(numbers or ours.numbers))
    np.testing.assert_array_equal(pixels, theirs.get_pixels_by_source_frame(uid, frames, **given))
    for relabel in (False, True):
        labels = arrays.labelmap(ours, arrays.select(ours, numbers, relabel=relabel), planes)
        expected = theirs.get_pixels_by_source_frame(uid, frames, combine_segments=True, relabel=relabel, **given)
        np.testing.assert_array_equal(labels, expected)
        if numbers:
            assert np.unique(labels).tolist() == ([0, 1, 2, 3] if relabel else [0, 8, 9, 10])


def test_dimension_index_values_are_followed(written: Path) -> None:
    """The values of each frame, and some that no frame has."""
    ours, theirs = both(written)
    values = [[3], [1], [2], [9]]
    pixels = arrays.stacked(ours, planes=arrays.by_dimension_index_values(ours, values))
    expected = theirs.get_pixels_by_dimension_index_values(values, assert_missing_frames_are_empty=True)
    np.testing.assert_array_equal(pixels, expected)
    assert pixels[:3].any(axis=(1, 2, 3)).all()


def test_fractional_values_are_printed(sample) -> None:
    """Rescaled values are those of the guide."""
    ours, theirs = both(sample("highdicom/seg_image_ct_true_fractional.dcm"))
    uids = [uid for _, _, uid in arrays.source_images(ours)]
    planes = arrays.by_source_instances(ours, uids)
    pixels = arrays.stacked(ours, planes=planes)
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(np.unique(pixels), [0, 0.2509804, 0.5019608], atol=1e-7)
    np.testing.assert_array_equal(pixels, theirs.get_pixels_by_source_instance(uids))
    raw = theirs.get_pixels_by_source_instance(uids, rescale_fractional=False)
    np.testing.assert_array_equal(arrays.stacked(ours, planes=planes, rescale=False), raw)


@pytest.mark.parametrize("numbers", [None, [3, 1]])
def test_volumes_lie_where_highdicom_puts_them(numbers: list[int] | None, written: Path) -> None:
    """Combined, relabelled and stacked, with the slice that has no frame; in the patient, whichever way slices run."""
    ours, theirs = both(written)
    for relabel in (False, True):
        volume = arrays.volume(ours, arrays.select(ours, numbers, relabel=relabel))
        expected = theirs.get_volume(segment_numbers=numbers, combine_segments=True, relabel=relabel)
        labels = turned(expected, volume.affine, volume.array.shape).array
        np.testing.assert_array_equal(volume.array, only_asked_for(labels, numbers, relabel))
    stacked = arrays.stacked_volume(ours, arrays.select(ours, numbers))
    every = turned(theirs.get_volume(segment_numbers=numbers), stacked.affine, stacked.array.shape[:3])
    np.testing.assert_array_equal(every.array, stacked.array)


def only_asked_for(labels: np.ndarray, numbers: list[int] | None, relabel: bool) -> np.ndarray:
    """highdicom 0.28 leaves the other segments of a LABELMAP in place, where its guide says 0."""
    return labels if numbers is None or relabel else np.where(np.isin(labels, numbers), labels, 0)


def turned(volume: highdicom.Volume, affine: np.ndarray, shape: tuple[int, ...]) -> highdicom.Volume:
    """highdicom's volume on our grid."""
    uid = volume.frame_of_reference_uid
    return volume.match_geometry(highdicom.VolumeGeometry(affine, shape, "PATIENT", uid))


def test_volume_is_printed(sample) -> None:
    """The guide's shape, spacing and corners; its slices run the other way."""
    volume = arrays.volume(open_segmentation(sample("highdicom/seg_image_ct_binary.dcm")))
    assert volume.array.shape == (3, 16, 16)
    flipped = volume.affine @ np.array([[-1, 0, 0, 2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    printed = [[0, 0, 0.488281, -125], [0, 0.488281, 0, -128.100006], [-1.25, 0, 0, 105.519997], [0, 0, 0, 1]]
    np.testing.assert_allclose(flipped, printed, atol=1e-6)


def test_overlapping_segments_are_not_combined(sample) -> None:
    """Where the guide has a RuntimeError, and a parameter that skips the check, which is not here."""
    ours, theirs = both(sample("highdicom/seg_image_ct_binary_overlap.dcm"))
    with pytest.raises(RuntimeError):
        theirs.get_volume(combine_segments=True)
    with pytest.raises(OverlappingSegments, match="1 and 2 in 16 voxels"):
        arrays.volume(ours)


@pytest.mark.parametrize("full", [False, True])
def test_pixel_matrix_of_the_guide_comes_back(full: bool, sample, tmp_path: Path) -> None:
    """The mask that the guide tiles, with and without its empty tiles."""
    image = dcmread(sample("highdicom/sm_image.dcm"))
    mask = np.zeros((image.TotalPixelMatrixRows, image.TotalPixelMatrixColumns), np.uint8)
    mask[38:43, 5:41] = 1
    how = {"omit_empty_frames": False, "dimension_organization_type": "TILED_FULL"} if full else {}
    seg = highdicom.seg.Segmentation([image], mask, "BINARY", [described(1)], tile_pixel_array=True, **how, **ALGORITHM)
    seg.save_as(tmp_path / "seg.dcm")
    ours = open_segmentation(tmp_path / "seg.dcm")
    assert len(ours.frames) == (25 if full else 10)
    np.testing.assert_array_equal(arrays.total_pixel_matrix(ours), mask)
    np.testing.assert_array_equal(arrays.stacked_total_pixel_matrix(ours), mask[..., np.newaxis])
    with pytest.raises(NotFound, match="rows from 9 up to 3 are not in the total pixel matrix: it has rows 1 to 50"):
        arrays.total_pixel_matrix(ours, rows=(9, 3))
