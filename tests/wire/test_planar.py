"""Planar images (DX, MG) as the source of SEGs: through a node, read back by highdicom."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import highdicom
import numpy as np
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from segnode.dicom.planar import one_by_one, planar_slices
from segnode.dicom.slices import read_volume
from segnode.dicom.uids import derived_uid
from segnode.errors import Misplaced, NotAVolume
from segnode.pipeline.placement_proof import require_images_in_volume
from segnode.testing.servers import await_jobs, node_config, segnode
from tests.labels import segment
from tests.wire.test_first_path import fetch, only

BRIGHT = """from segnode.models import Result

def segment(volume):
    assert volume.array.shape == (1, 40, 50), volume.array.shape
    assert volume.series["Modality"] == "DX"
    assert volume.series["PhotometricInterpretation"] == "MONOCHROME2"
    assert volume.spacing[1:] == (0.2, 0.3)
    return Result(labelmap=(volume.array > volume.array.mean()).astype("uint8"))
"""
TABLES = """
[[models]]
name = "bright"
run = "python:bright"
labels = "bright.toml"
version = "1"
input = "planar"

[[rules]]
when = { Modality = "DX" }
model = "bright"
quiet = 0.5
"""


def radiograph(number: int, **attributes: object) -> Dataset:
    """A digital X-ray with a bright square that lies elsewhere in each."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID = DigitalXRayImageStorageForPresentation
    image.SOPInstanceUID = derived_uid("radiograph", str(number))
    image.StudyInstanceUID, image.SeriesInstanceUID = derived_uid("study", "dx"), derived_uid("series", "dx")
    image.PatientID, image.PatientName, image.Modality = "P1", "Planar^One", "DX"
    image.StudyDate = image.StudyTime = image.AccessionNumber = image.StudyID = image.PatientBirthDate = image.PatientSex = ""
    image.SeriesNumber, image.InstanceNumber, image.PatientOrientation = 1, number, ["L", "F"]
    image.ImageType, image.PhotometricInterpretation = ["ORIGINAL", "PRIMARY"], "MONOCHROME2"
    image.Rows, image.Columns, image.ImagerPixelSpacing = 40, 50, [0.2, 0.3]
    image.SamplesPerPixel, image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 1, 16, 12, 11, 0
    pixels = np.full((40, 50), 100, np.uint16)
    pixels[4 * number : 4 * number + 9, 3 * number : 3 * number + 20] = 4000
    image.PixelData = pixels.tobytes()
    for keyword, value in attributes.items():
        setattr(image, keyword, value)
    file = BytesIO()
    image.save_as(file, enforce_file_format=True)
    return dcmread(BytesIO(file.getvalue()))


def test_planar_images_become_a_seg_on_each(tmp_path: Path) -> None:
    """A model is given each by itself; the SEG has a frame on each, found by its source image, and no position."""
    node_folder = tmp_path / "node"
    node_folder.mkdir()
    (node_folder / "bright.toml").write_text(segment(1, "Bright", "272673000"))
    (tmp_path / "bright.py").write_text(BRIGHT)
    images = [radiograph(number) for number in (3, 1, 2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        with segnode(node_folder, TABLES) as node:
            client = DICOMwebClient(node.dicomweb)
            client.store_instances(images)
            job = only(await_jobs(node_config(node)))
            assert (job.state, job.error) == ("delivered", "")
            (seg,) = fetch(client, job.sop_instance_uid)
    file = BytesIO()
    seg.save_as(file, enforce_file_format=True)
    read = highdicom.seg.segread(BytesIO(file.getvalue()))
    labels = read.get_pixels_by_source_instance([image.SOPInstanceUID for image in images], combine_segments=True)
    np.testing.assert_array_equal(labels, [image.pixel_array > 1000 for image in images])
    assert "FrameOfReferenceUID" not in seg
    assert not any("PlanePositionSequence" in groups for groups in seg.PerFrameFunctionalGroupsSequence)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"ImagePositionPatient": [0, 0, 0]}, "ImagePositionPatient"),
        ({"Rows": 20}, "other Rows or Columns"),
        ({"NumberOfFrames": 2}, "multi-frame"),
    ],
)
def test_what_is_no_planar_image_is_refused(attributes: dict[str, object], reason: str) -> None:
    """The image and the attribute are named."""
    with pytest.raises(NotAVolume, match=reason):
        planar_slices([radiograph(1), radiograph(2, **attributes)])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda images: images.reverse() or [setattr(image, "SOPInstanceUID", f"1.{n}") for n, image in enumerate(images)],
        lambda images: setattr(images[1], "PixelData", images[0].PixelData),
    ],
)
def test_proof_finds_an_image_that_is_another(spoil: Callable[[list[Dataset]], object]) -> None:
    """Pixels of another image, or another image, are not what the volume says."""
    images = [radiograph(number) for number in (1, 2, 3)]
    slices = planar_slices(images)
    volume = read_volume(slices, slices.images)
    assert len(require_images_in_volume(volume, images)) == 3
    assert [each.array.shape for each in one_by_one(slices, volume)] == [(1, 40, 50)] * 3
    spoil(images)
    with pytest.raises(Misplaced):
        require_images_in_volume(volume, images)
