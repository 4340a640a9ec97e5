"""A synthetic CT whose truth is known: a body with lungs and bones, on a table, as a series of Part 10 files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from segnode.dicom.uids import derived_uid

BODY, LUNG, BONE = 1, 2, 3

_FIELD_MM: Final = 400.0
_SLICE_MM: Final = 2.5
_TABLE_POSTERIOR_MM: Final = 150.0
_HU: Final = {"air": -1000, "table": -50, "body": 40, "lung": -850, "bone": 700, "gas": -900}
_NOISE_HU: Final = 25
_INTERCEPT: Final = -1024

Line = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Ellipsoid:
    """Where something lies: centre and half axes in LPS mm (x to the left, y to the back, z to the head)."""

    centre: tuple[float, float, float]
    axes: tuple[float, float, float]

    def covers(self, x: Line, y: Line, z: float) -> npt.NDArray[np.bool_]:
        """The points of a slice at z that are inside; `x` is a row of it, `y` a column."""
        (cx, cy, cz), (ax, ay, az) = self.centre, self.axes
        return ((x - cx) / ax) ** 2 + (((y - cy) / ay) ** 2 + np.float32(((z - cz) / az) ** 2)) <= 1


# No two sides are alike, so that a mirror, a swap of axes or a shift shows in the labels.
_TRUNK: Final = Ellipsoid((5, 0, 0), (165, 110, 1000))
_LUNGS: Final = (Ellipsoid((-75, -10, 20), (55, 70, 110)), Ellipsoid((80, 5, 40), (48, 62, 80)))
_BONES: Final = (
    Ellipsoid((4, 80, 0), (18, 18, 1000)),
    Ellipsoid((-8, -96, 60), (14, 7, 70)),
    Ellipsoid((120, 40, -90), (15, 12, 45)),
)
_GAS: Final = Ellipsoid((40, -60, -110), (10, 9, 9))


@dataclass(frozen=True, eq=False)
class Phantom:
    """A written series: its files, its labels (slices, rows, columns), and `affine`, (slice, row, column) to LPS mm."""

    folder: Path
    labelmap: npt.NDArray[np.uint8]
    affine: npt.NDArray[np.float64]


def write_ct(folder: Path, slices: int = 104, size: int = 512, seed: int = 1, **attributes: str) -> Phantom:
    """Write a CT series of `slices` images of size x size pixels; instance numbers run against the positions.

    `attributes` (by keyword) replace those of every image. The seed sets the noise and every UID.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pixel = _FIELD_MM / size
    first = np.array([-_FIELD_MM / 2 + pixel / 2, -_FIELD_MM / 2 + pixel / 2, -_SLICE_MM * slices / 2])
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    affine[2, 0], affine[1, 1], affine[0, 2], affine[:3, 3] = _SLICE_MM, pixel, pixel, first
    along = np.arange(size, dtype=np.float32) * np.float32(pixel)
    x, y = (along + np.float32(first[0]))[np.newaxis, :], (along + np.float32(first[1]))[:, np.newaxis]
    noise = np.random.default_rng(seed).integers(-_NOISE_HU, _NOISE_HU, (size, size), np.int16)
    labelmap = np.zeros((slices, size, size), np.uint8)
    for index in range(slices):
        z = float(first[2] + index * _SLICE_MM)
        hounsfield, labelmap[index] = _slice(x, y, z)
        hounsfield += np.roll(noise, (37 * index, 91 * index), (0, 1))
        image = _image(hounsfield, (float(first[0]), float(first[1]), z), pixel, seed, slices - index, attributes)
        image.save_as(folder / f"{slices - index:04d}.dcm", enforce_file_format=True)
    return Phantom(folder, labelmap, affine)


def _slice(x: Line, y: Line, z: float) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    hounsfield = np.full((y.size, x.size), _HU["air"], np.int16)
    labels = np.zeros(hounsfield.shape, np.uint8)
    hounsfield[(y > _TABLE_POSTERIOR_MM) & (y < _TABLE_POSTERIOR_MM + 12) & (abs(x) < 180)] = _HU["table"]
    trunk = _TRUNK.covers(x, y, z)
    hounsfield[trunk], labels[trunk] = _HU["body"], BODY
    hounsfield[_GAS.covers(x, y, z)] = _HU["gas"]
    for lung in _LUNGS:
        inside = lung.covers(x, y, z)
        hounsfield[inside], labels[inside] = _HU["lung"], LUNG
    for bone in _BONES:
        inside = bone.covers(x, y, z)
        hounsfield[inside], labels[inside] = _HU["bone"], BONE
    return hounsfield, labels


def _image(
    hounsfield: npt.NDArray[np.int16],
    position: tuple[float, float, float],
    pixel: float,
    seed: int,
    number: int,
    attributes: Mapping[str, str],
) -> Dataset:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, derived_uid("phantom image", str(seed), str(number))
    image.StudyDate = image.SeriesDate = image.AcquisitionDate = image.ContentDate = "20260102"
    image.StudyTime = image.SeriesTime = image.AcquisitionTime = image.ContentTime = "030405"
    image.AccessionNumber, image.ReferringPhysicianName, image.StudyID = "PHANTOM1", "", "1"
    image.Modality, image.Manufacturer, image.StudyDescription = "CT", "segnode phantom", "Phantom"
    image.PatientName, image.PatientID, image.PatientBirthDate, image.PatientSex = "Phantom^Synthetic", "PHANTOM", "", "O"
    image.SliceThickness, image.KVP, image.PatientPosition = f"{_SLICE_MM}", "120", "HFS"
    image.StudyInstanceUID = derived_uid("phantom study", str(seed))
    image.SeriesInstanceUID = derived_uid("phantom series", str(seed))
    image.SeriesNumber, image.AcquisitionNumber, image.InstanceNumber = 3, 1, number
    image.ImagePositionPatient = [f"{value:.6f}" for value in position]
    image.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    image.FrameOfReferenceUID = derived_uid("phantom frame of reference", str(seed))
    image.PositionReferenceIndicator = ""
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows, image.Columns = hounsfield.shape
    image.PixelSpacing = [f"{pixel:.10g}"] * 2
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
    image.RescaleIntercept, image.RescaleSlope, image.RescaleType = str(_INTERCEPT), "1", "HU"
    image.PixelData = np.clip(hounsfield - _INTERCEPT, 0, None).astype("<u2").tobytes()
    for keyword, value in attributes.items():
        setattr(image, keyword, value)
    return image
