"""TotalSegmentator's published example through the command door: its own labels, by a stand-in of the same command line."""

import random
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from segnode.dicom.slices import order_slices, read_volume
from segnode.dicom.uids import derived_uid
from segnode.models.doors import load_model
from segnode.seg.segments import read_label_dictionary
from segnode.testing.servers import Server, await_jobs, node_config, segnode
from tests.commands import model, program, stand_in

# The axes of the array that become slices, rows and columns, and which of them run backwards.
SERIES = {
    "as it is": ((0, 1, 2), (1, 1, 1)),
    "shuffled": ((0, 1, 2), (1, 1, 1)),
    "reversed": ((0, 1, 2), (-1, 1, 1)),
    "rotated": ((0, 2, 1), (1, 1, -1)),
    "rotated out of plane": ((1, 0, 2), (-1, -1, 1)),
}
RULE = '[[rules]]\nwhen = { Modality = "CT" }\nmodel = "totalsegmentator"\nquiet = 1.0\nlaterality = "off"\n'


def series(images: Sequence[Dataset], name: str) -> list[Dataset]:
    """The images of a CT, cut in another way: the same voxels at the same places in the patient."""
    slices = order_slices(list(images))
    array, affine = read_volume(slices, slices.images).array, slices.affine
    axes, signs = SERIES[name]
    corner = [0, 0, 0, 1]
    for axis, sign in zip(axes, signs, strict=True):
        corner[axis] = 0 if sign > 0 else array.shape[axis] - 1
    origin = affine @ corner
    array = array.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]
    step, column, row = (affine[:3, axis] * sign for axis, sign in zip(axes, signs, strict=True))
    made = [
        image_at(slices.images[0], name, number, plane, origin[:3] + number * step, row, column, step)
        for number, plane in enumerate(array)
    ]
    if name == "shuffled":
        random.Random(7).shuffle(made)
    return made


def image_at(
    source: Dataset, name: str, number: int, plane: np.ndarray, position: Any, row: Any, column: Any, step: Any
) -> Dataset:
    """An image of a series, at its place."""
    image = Dataset()
    for keyword in (
        "PatientID",
        "PatientName",
        "StudyInstanceUID",
        "Modality",
        "FrameOfReferenceUID",
        "SOPClassUID",
        "StudyDate",
    ):
        setattr(image, keyword, source.get(keyword, ""))
    image.preamble, image.file_meta = bytes(128), FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPInstanceUID, image.SeriesInstanceUID = derived_uid("image", name, str(number)), derived_uid("series", name)
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.ImageType, image.InstanceNumber, image.SeriesNumber = ["DERIVED", "SECONDARY", "REFORMATTED"], number + 1, 1
    image.ImagePositionPatient = [f"{value:.9g}" for value in position]
    image.ImageOrientationPatient = [f"{value:.9g}" for axis in (row, column) for value in axis / np.linalg.norm(axis)]
    image.PixelSpacing = [f"{np.linalg.norm(axis):.9g}" for axis in (column, row)]
    image.SliceThickness = f"{np.linalg.norm(step):.9g}"
    image.Rows, image.Columns = plane.shape
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
    image.RescaleIntercept, image.RescaleSlope, image.RescaleType = "0", "1", "HU"
    image.PixelData = np.ascontiguousarray(plane, "<i2").tobytes()
    return image


def require_equal(labels: np.ndarray, affine: np.ndarray, reference: Path) -> None:
    """Hold labels to those of a NIfTI file, voxel for voxel where they lie in the patient."""
    image: Any = nibabel.load(reference)
    expected = np.asarray(image.dataobj)
    to_index = np.linalg.inv(image.affine) @ np.diag([-1, -1, 1, 1]) @ affine
    slices, rows, columns = np.meshgrid(*map(np.arange, labels.shape), indexing="ij", sparse=True)
    where = [r[0] * slices + r[1] * rows + r[2] * columns + r[3] for r in to_index[:3]]
    nearest = [np.rint(along).astype(int) for along in where]
    assert max(np.abs(along - near).max() for along, near in zip(where, nearest, strict=True)) < 0.01
    np.testing.assert_array_equal(labels, expected[tuple(nearest)])
    assert np.count_nonzero(labels) == np.count_nonzero(expected)


@pytest.fixture(scope="module")
def reference(sample: Callable[[str], Path]) -> Path:
    """The labels that TotalSegmentator has published for its example."""
    return sample("totalsegmentator/example_seg_dicom.nii.gz")


@pytest.fixture(scope="module")
def node(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A node whose model is the stand-in."""
    folder = tmp_path_factory.mktemp("totalsegmentator")
    segmentator = stand_in(folder, "TotalSegmentator")
    table = f"""
[[models]]
name = "totalsegmentator"
run = "command:{segmentator} -i {{input}} -o {{output}} --ml"
version_command = "{segmentator} --version"
labels = "totalsegmentator"
env = {{ STAND_IN_LABELS = "{reference}" }}
"""
    with segnode(folder / "node", table + RULE) as server:
        yield server


@pytest.mark.parametrize("name", SERIES)
def test_published_labels_come_out_as_a_seg_where_they_lie(node: Server, sample_ct: Path, reference: Path, name: str) -> None:
    """Read by highdicom, the SEG has the reference's labels at each place in the patient, of 31 coded segments."""
    images = series([dcmread(file) for file in sample_ct.iterdir()], name)
    client = DICOMwebClient(node.dicomweb)
    client.store_instances(images)
    jobs = await_jobs(node_config(node), len(client.search_for_series(search_filters={"Modality": "CT"})))
    job = next(job for job in jobs if job.series_instance_uid == images[0].SeriesInstanceUID)
    assert (job.state, job.error) == ("delivered", "")
    found = client.search_for_instances(search_filters={"SOPInstanceUID": job.sop_instance_uid})
    uids = [found[0][tag]["Value"][0] for tag in ("0020000D", "0020000E", "00080018")]
    returned = client.retrieve_instance(*uids, media_types=(("application/dicom", "*"),))
    file = BytesIO()
    returned.save_as(file, enforce_file_format=True)
    segmentation = highdicom.seg.segread(BytesIO(file.getvalue()))
    volume = segmentation.get_volume(combine_segments=True)
    found_there = [int(number) for number in np.unique(volume.array) if number]
    assert len(found_there) == 31
    assert sorted(item.SegmentNumber for item in returned.SegmentSequence) == [0, *found_there]
    dictionary = {segment.segment_number: segment for segment in read_label_dictionary("totalsegmentator", Path()).segment}
    for number in found_there:
        described, segment = segmentation.get_segment_description(number), dictionary[number]
        assert described.segmented_property_category.value == segment.category.value
        assert described.segmented_property_type.value == segment.type.value
        assert described.algorithm_identification.version == "2.4.0"
    require_equal(volume.array, volume.affine, reference)


def test_labels_of_an_oblique_series_are_put_back(sample_ct: Path, reference: Path, tmp_path: Path) -> None:
    """A patient who lies askew: images and reference turned alike about all three axes."""
    slices = order_slices([dcmread(file) for file in sample_ct.iterdir()])
    volume = read_volume(slices, slices.images)
    turn = np.eye(4)
    turn[:3, :3], _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    image: Any = nibabel.load(reference)
    turned = tmp_path / "reference.nii.gz"
    ras = np.diag([-1, -1, 1, 1])
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), ras @ turn @ ras @ image.affine), turned)
    run = f"{program(tmp_path / 'copy', 'shutil.copy(sys.argv[1], sys.argv[2])')} {turned} {{output}}.gz {{input}}"
    askew = type(volume)(volume.array, turn @ volume.affine, volume.series, volume.sop_instance_uids)
    result = load_model(model(run, labels="totalsegmentator"))(askew)
    assert result.affine is None
    require_equal(result.labelmap, askew.affine, turned)
