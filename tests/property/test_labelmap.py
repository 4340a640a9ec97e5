"""LABELMAP SEGs: any labels, shape, numbering, geometry and codec, read back by highdicom in patient space."""

from datetime import UTC, datetime
from io import BytesIO

import highdicom
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage

from segnode.dicom.codes import Code
from segnode.dicom.slices import Slices, order_slices
from segnode.dicom.uids import derived_uid
from segnode.seg.forms import FORMS
from segnode.seg.recode import recode
from segnode.seg.segments import LabelDictionary, Segment
from segnode.seg.write import Algorithm, Identity, write_labelmap

CODE = Code("SCT", "123037004", "Anatomical structure")
ALGORITHM = Algorithm("test", "1", Code("DCM", "123110", "Artificial Intelligence"))
# The forms that highdicom, which this is held to, reads.
READ_ELSEWHERE = ("labelmap:native", "labelmap:implicit", "labelmap:rle", "labelmap:jpeg-ls", "labelmap:jpeg-2000")
IDENTITY = Identity("2.25.1", "2.25.2", "made by a test", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "1", "1", {})


def rotation(vector: tuple[float, float, float]) -> np.ndarray:
    """The rotation of an angle about an axis, both in one vector (Rodrigues)."""
    angle = np.linalg.norm(vector)
    x, y, z = np.array(vector) / angle if angle else (0, 0, 0)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def headers(shape: tuple[int, int, int], turn: np.ndarray) -> list[Dataset]:
    """Headers of a series of that shape on a turned grid."""
    images = []
    for index in range(shape[0]):
        image = Dataset()
        image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, derived_uid("image", str(index))
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = "1.2.3", "1.2.4", "1.2.5"
        image.PatientName, image.PatientID, image.Rows, image.Columns = "A^B", "1", shape[1], shape[2]
        image.PixelSpacing, image.SliceThickness = ["0.7", "0.9"], "2"
        image.ImageOrientationPatient = [f"{v:.12f}"[:16] for v in (*turn[:, 0], *turn[:, 1])]
        image.ImagePositionPatient = [f"{v:.10f}"[:16] for v in np.array([5, -7, 11]) + turn[:, 2] * 1.5 * index]
        images.append(image)
    return images


def dictionary(numbers: list[int]) -> LabelDictionary:
    """A dictionary with these segment numbers."""
    return LabelDictionary(tuple(Segment(n, f"segment {n}", CODE, CODE, colour=(n % 256, 9, 9)) for n in numbers))


def expected_in_patient_space(labels: np.ndarray, slices: Slices, returned: highdicom.Volume) -> np.ndarray:
    """The labels on the grid that highdicom returned them on."""
    volume = highdicom.Volume(
        labels, slices.affine, coordinate_system="PATIENT", frame_of_reference_uid=returned.frame_of_reference_uid
    )
    return volume.match_geometry(returned).array


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, list[int], np.ndarray]:
    """Labels, their numbers, and how the patient lies."""
    numbers = draw(st.lists(st.integers(1, 255), min_size=1, max_size=6, unique=True))
    if draw(st.booleans()):
        numbers.append(draw(st.integers(256, 65535)))
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40)))
    dtype = np.uint16 if max(numbers) > 255 else np.uint8
    labels = draw(arrays(dtype, shape, elements=st.sampled_from([0, *numbers])))
    angle = st.floats(-3, 3, allow_nan=False)
    return labels, sorted(numbers), rotation(draw(st.tuples(angle, angle, angle)))


@pytest.mark.parametrize("name", READ_ELSEWHERE)
@settings(max_examples=25)
@given(case=cases())
def test_labels_come_back_from_every_form(name, case) -> None:
    """What is written in a form, and what is re-encoded to every other, has the same labels in the same place."""
    labels, numbers, turn = case
    slices = order_slices(headers(labels.shape, turn))
    part10 = write_labelmap(labels, slices.affine, slices.images, dictionary(numbers), ALGORITHM, IDENTITY, FORMS[name])
    for form in map(FORMS.__getitem__, READ_ELSEWHERE):
        encoded = recode(part10, form.codec)
        dataset = dcmread(BytesIO(encoded))
        assert dataset.file_meta.TransferSyntaxUID == form.transfer_syntax_uid
        segmentation = highdicom.seg.Segmentation.from_dataset(dataset)
        assert sorted(segmentation.segment_numbers) == numbers
        np.testing.assert_array_equal(frames_by_position(segmentation, slices), labels)
        if len(labels) > 1:
            returned = segmentation.get_volume(combine_segments=True)
            np.testing.assert_array_equal(returned.array, expected_in_patient_space(labels, slices, returned))


def frames_by_position(segmentation: highdicom.seg.Segmentation, slices: Slices) -> np.ndarray:
    """The labels by the source image that each frame says it was made from."""
    uids = [image.SOPInstanceUID for image in slices.images]
    return segmentation.get_pixels_by_source_instance(uids, combine_segments=True)
