"""The case that the SEG engine is measured on: a CT of hundreds of slices, a hundred structures, and their BINARY SEG."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from segnode.dicom.uids import derived_digest

Labels = npt.NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class Case:
    """A folder with `labelmap.npy` (slices, rows, columns), the headers of its CT in `ct`, and `binary.dcm`."""

    folder: Path

    @property
    def labelmap(self) -> Labels:
        """The labels, slice after slice as the CT's headers lie in the patient."""
        labelmap: Labels = np.load(self.folder / "labelmap.npy")
        return labelmap

    @property
    def images(self) -> list[Dataset]:
        """The headers of the CT, in slice order."""
        return [dcmread(file, stop_before_pixels=True) for file in sorted((self.folder / "ct").iterdir())]

    @property
    def binary(self) -> Path:
        """The same labels as a BINARY SEG."""
        return self.folder / "binary.dcm"


def write_case(folder: Path, labelmap: Labels) -> Case:
    """Write the labels and the headers of a CT with UIDs of 64 characters; `binary.dcm` is written by a job."""
    (folder / "ct").mkdir(parents=True, exist_ok=True)
    np.save(folder / "labelmap.npy", labelmap)
    for number in range(len(labelmap)):
        image = _header(number, labelmap.shape[1:])
        image.save_as(folder / "ct" / f"{number:04}.dcm", enforce_file_format=True)
    return Case(folder)


def synthetic_labels(slices: int, size: int, structures: int) -> Labels:
    """Ellipsoids of many sizes that lie beside and in each other, as organs do."""
    random = np.random.default_rng(7)
    labelmap = np.zeros((slices, size, size), np.uint8)
    for number in range(1, structures + 1):
        centre = random.uniform(0.1, 0.9, 3) * labelmap.shape
        radii = random.uniform(0.03, 0.14, 3) * labelmap.shape
        low = np.maximum(centre - radii, 0).astype(int)
        high = np.minimum(centre + radii + 1, labelmap.shape).astype(int)
        axes = np.ogrid[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        inside = sum(((axis - c) / r) ** 2 for axis, c, r in zip(axes, centre, radii, strict=True)) <= 1
        labelmap[tuple(slice(a, b) for a, b in zip(low, high, strict=True))][inside] = number
    return labelmap


def _header(number: int, size: Sequence[int]) -> Dataset:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = CTImageStorage
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = _long_uid("image", number)
    image.StudyInstanceUID, image.SeriesInstanceUID = _long_uid("study"), _long_uid("series")
    image.FrameOfReferenceUID, image.PositionReferenceIndicator = _long_uid("frame of reference"), ""
    image.PatientName, image.PatientID, image.PatientBirthDate, image.PatientSex = "Bench^Mark", "BENCH", "19700101", "O"
    image.StudyID, image.StudyDate, image.StudyTime = "1", "20260101", "120000"
    image.AccessionNumber, image.ReferringPhysicianName = "1", ""
    image.Modality, image.Manufacturer, image.ImageType = "CT", "segnode", ["ORIGINAL", "PRIMARY", "AXIAL"]
    image.SeriesNumber, image.InstanceNumber, image.AcquisitionNumber = 1, number + 1, 1
    image.Rows, image.Columns = size
    image.PixelSpacing, image.SliceThickness = [0.8, 0.8], 1.0
    image.ImageOrientationPatient, image.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-200.0, -200.0, float(number)]
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.RescaleIntercept, image.RescaleSlope, image.KVP = -1024, 1, 120
    return image


def _long_uid(*parts: object) -> UID:
    return UID(f"1.2.826.0.1.3680043.10.511.8.{int(derived_digest(*map(str, parts)), 16)}"[:64])
