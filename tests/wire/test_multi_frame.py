"""Enhanced and legacy-converted multi-frame images as the source of SEGs: written by highdicom, read back by highdicom."""

import random
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import highdicom
import numpy as np
import pytest
from dicomweb_client.api import DICOMwebClient
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

from segnode.dicom.slices import order_slices, read_volume
from segnode.dicom.volume import Volume
from segnode.errors import Misplaced, NotAVolume
from segnode.models.threshold import segment
from segnode.pipeline.placement_proof import require_images_in_volume
from segnode.testing.phantom import Phantom
from segnode.testing.servers import Server, await_jobs, node_config, segnode
from tests.wire.test_first_path import RULE, fetch, only


def legacy_converted(folder: Path, transfer_syntax: str = ExplicitVRLittleEndian) -> Dataset:
    """The images of a folder as the frames of one image, in no order."""
    images = [dcmread(file) for file in sorted(folder.iterdir())]
    random.Random(1).shuffle(images)
    made = LegacyConvertedEnhancedCTImage(
        images, generate_uid(), 7, generate_uid(), 1, transfer_syntax_uid=transfer_syntax, include_dimension_index=False
    )
    file = BytesIO()
    made.save_as(file)
    return dcmread(BytesIO(file.getvalue()))


@pytest.fixture
def image(phantom: Phantom) -> Dataset:
    """The phantom as one multi-frame image."""
    return legacy_converted(phantom.folder)


def volume_of(image: Dataset) -> Volume:
    """The frames of an image."""
    slices = order_slices([image])
    return read_volume(slices, slices.images)


def test_frames_are_the_volume_of_their_images(image: Dataset, phantom: Phantom) -> None:
    """Frames in any order are the same volume as the images they were made of, in modality units."""
    volume = volume_of(image)
    singles = order_slices([dcmread(file) for file in phantom.folder.iterdir()])
    expected = read_volume(singles, singles.images)
    np.testing.assert_array_equal(volume.array, expected.array)
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-6)
    assert sorted(volume.frame_numbers) == [*range(1, 25)] != list(volume.frame_numbers)
    assert set(volume.sop_instance_uids) == {image.SOPInstanceUID}
    assert volume.series["Modality"] == "CT"


def test_published_frames_are_the_volume_of_their_images(sample: Callable[[str], Path]) -> None:
    """A legacy-converted CT that dcmqi publishes, beside the images that it was made of."""
    volume = volume_of(dcmread(sample("dcmqi/24x38x3/multiframe/mf.dcm")))
    singles = order_slices([dcmread(file) for file in sample("dcmqi/24x38x3/image").iterdir()])
    expected = read_volume(singles, singles.images)
    np.testing.assert_array_equal(volume.array, expected.array)
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-4)


def test_volume_of_frames_names_its_file(image: Dataset, tmp_path: Path) -> None:
    """One file, however many frames; without a file there is none."""
    assert volume_of(image).files == ()
    image.save_as(tmp_path / "image.dcm")
    assert volume_of(dcmread(tmp_path / "image.dcm")).files == (tmp_path / "image.dcm",)


def test_rescale_of_a_frame_is_its_own(image: Dataset) -> None:
    """What a frame says of itself goes before what all share."""
    before = volume_of(image)
    last = image.PerFrameFunctionalGroupsSequence[-1]
    transformation = Dataset()
    transformation.RescaleSlope, transformation.RescaleIntercept = "2", "-1024"
    last.PixelValueTransformationSequence = [transformation]
    after = volume_of(image)
    at = after.frame_numbers.index(24)
    np.testing.assert_allclose(after.array[at], (before.array[at] + 1024) * 2 - 1024)
    np.testing.assert_array_equal(np.delete(after.array, at, 0), np.delete(before.array, at, 0))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda image: delattr(image, "PerFrameFunctionalGroupsSequence"), "no PerFrameFunctionalGroupsSequence"),
        (lambda image: image.PerFrameFunctionalGroupsSequence.pop(), "has 23 items for 24 frames"),
        (
            lambda image: delattr(image.PerFrameFunctionalGroupsSequence[3], "PlanePositionSequence"),
            "ImagePositionPatient .* does not hold 3 numbers",
        ),
    ],
)
def test_image_that_does_not_say_where_its_frames_lie_is_refused(
    image: Dataset, spoil: Callable[[Dataset], object], reason: str
) -> None:
    """The attribute is named."""
    spoil(image)
    with pytest.raises(NotAVolume, match=reason):
        order_slices([image])


def test_two_multi_frame_images_are_no_volume(image: Dataset, phantom: Phantom) -> None:
    """They may be phases, or echoes: which belong together is not guessed."""
    with pytest.raises(NotAVolume, match="one of 2 images, .* is multi-frame"):
        order_slices([image, legacy_converted(phantom.folder)])


def test_proof_finds_frames_that_are_out_of_place(image: Dataset) -> None:
    """Two frames whose positions were taken for each other's are found by what the file says."""
    volume = volume_of(image)
    headers = require_images_in_volume(volume, [image])
    assert sorted(header.frame_number for header in headers) == [*range(1, 25)]
    first, second = (image.PerFrameFunctionalGroupsSequence[index] for index in (0, 1))
    first.PlanePositionSequence, second.PlanePositionSequence = second.PlanePositionSequence, first.PlanePositionSequence
    with pytest.raises(Misplaced, match="slices"):
        require_images_in_volume(volume, [image])


def require_same_place(seg: Dataset, image: Dataset, labels: np.ndarray, affine: np.ndarray) -> None:
    """Hold a SEG to labels (slices, rows, columns): by highdicom, by source frame and by place in the patient."""
    file = BytesIO()
    seg.save_as(file, enforce_file_format=True)
    read = highdicom.seg.segread(BytesIO(file.getvalue()))
    grid = highdicom.Volume(labels, affine, coordinate_system="PATIENT", frame_of_reference_uid=image.FrameOfReferenceUID)
    np.testing.assert_array_equal(read.get_volume(combine_segments=True).match_geometry(grid).array, labels)
    volume = volume_of(image)
    by_frame = read.get_pixels_by_source_frame(image.SOPInstanceUID, list(volume.frame_numbers), combine_segments=True)
    np.testing.assert_array_equal(by_frame, labels)


@pytest.mark.parametrize("transfer_syntax", [ExplicitVRLittleEndian, RLELossless])
def test_multi_frame_image_becomes_a_seg_on_its_frames(tmp_path: Path, phantom: Phantom, transfer_syntax: str) -> None:
    """The labels of the SEG lie in the patient where the phantom's do, and name the frames that they were made from."""
    image = legacy_converted(phantom.folder, transfer_syntax)
    with segnode(tmp_path / "node", RULE.format(names="")) as node:
        job = segmented(node, image)
        assert (job.state, job.error) == ("delivered", "")
        (seg,) = fetch(DICOMwebClient(node.dicomweb), job.sop_instance_uid)
    require_same_place(seg, image, phantom.labelmap, phantom.affine)
    (series,) = seg.ReferencedSeriesSequence
    assert {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence} == {image.SOPInstanceUID}


def test_published_multi_frame_image_becomes_a_seg(tmp_path: Path, sample: Callable[[str], Path]) -> None:
    """The legacy-converted CT of dcmqi, with the labels that the model gives for the images it was made of."""
    image = dcmread(sample("dcmqi/24x38x3/multiframe/mf.dcm"))
    volume = volume_of(image)
    labels = np.asarray(segment(volume).labelmap)
    with segnode(tmp_path / "node", RULE.format(names="")) as node:
        job = segmented(node, image)
        assert (job.state, job.error) == ("delivered", "")
        (seg,) = fetch(DICOMwebClient(node.dicomweb), job.sop_instance_uid)
    require_same_place(seg, image, labels, volume.affine)


def segmented(node: Server, image: Dataset):
    """The job of an image that is sent by STOW."""
    DICOMwebClient(node.dicomweb).store_instances([image])
    return only(await_jobs(node_config(node)))
