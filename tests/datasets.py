"""What the tests of training sets share: the formats, series with segmentations, and the way there and back."""

import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from segnode.datasets.exporting import Export, export_dataset
from segnode.datasets.formats import FormatName
from segnode.datasets.importing import Import, import_dataset
from segnode.datasets.sources import FolderSource
from segnode.dicom.codes import Code
from segnode.dicom.uids import derived_uid
from segnode.seg.codecs import CODECS
from segnode.seg.convert import Target, convert
from segnode.seg.diff import diff
from segnode.seg.read import read_segmentation
from segnode.seg.segmentation import DescribedSegment
from segnode.seg.write import Identity, StoredAs, write_segmentation
from segnode.seg.write.placement import on_images

# Each format with its layout.
FORMATS: Sequence[tuple[FormatName, str]] = (
    ("nifti", ""),
    ("nrrd", ""),
    ("hydrogen-torch", ""),
    ("medsegpy", "3d"),
    ("medsegpy", "2d"),
    ("mathworks", "dicom"),
    ("mathworks", "nifti"),
    ("mathworks", "nrrd"),
)
NAMES = [f"{name}-{layout}".rstrip("-") for name, layout in FORMATS]


def write_series(folder: Path, affine: npt.NDArray[np.float64], shape: Sequence[int], seed: str = "1") -> list[Dataset]:
    """Write a CT series on a grid, its files in no order; the headers in slice order."""
    folder.mkdir(parents=True, exist_ok=True)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    images = []
    for place in range(shape[0]):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, derived_uid("test image", seed, str(place))
        image.StudyInstanceUID, image.SeriesInstanceUID = derived_uid("test study", seed), derived_uid("test series", seed)
        image.FrameOfReferenceUID, image.PositionReferenceIndicator = derived_uid("test frame", seed), ""
        image.PatientName, image.PatientID = "Marker^Secret", f"SECRET{seed}"
        image.PatientBirthDate, image.PatientSex, image.StudyDate, image.StudyTime = "19700101", "O", "20260102", "0102"
        image.StudyID, image.AccessionNumber, image.ReferringPhysicianName = "1", "MARKER", "Marker^Doctor"
        image.Modality, image.SeriesNumber, image.InstanceNumber = "CT", 1, shape[0] - place
        image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        image.Rows, image.Columns = shape[1], shape[2]
        image.ImagePositionPatient = [f"{v:.9g}"[:16] for v in affine[:3, 3] + place * affine[:3, 0]]
        cosines = [*(affine[:3, 2] / lengths[2]), *(affine[:3, 1] / lengths[1])]
        image.ImageOrientationPatient = [f"{v:.10f}" for v in cosines]
        image.PixelSpacing = [f"{lengths[1]:.9g}", f"{lengths[2]:.9g}"]
        image.SliceThickness = f"{lengths[0]:.9g}"
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
        image.RescaleIntercept, image.RescaleSlope = "-1024", "1"
        values = np.arange(shape[1] * shape[2]).reshape(shape[1:]) % 4000 + place
        image.PixelData = values.astype("<u2").tobytes() + b""
        image.save_as(folder / f"{(place * 7 + 3) % 97:02d}-{place}.dcm", enforce_file_format=True)
        images.append(image)
    return images


def described(number: int, label: str | None = None) -> DescribedSegment:
    """A segment that says what it is."""
    tissue, kind = Code("SCT", "85756007", "Tissue"), Code("99TEST", f"T{number}", f"Thing {number}")
    return DescribedSegment(number, label or f"Thing {number}", tissue, kind, algorithm_type="MANUAL")


def write_seg(
    file: Path, pixels: npt.NDArray[np.unsignedinteger], images: Sequence[Dataset], segments: Sequence[DescribedSegment]
) -> Path:
    """Write labels as a LABELMAP, or stacked segments as a BINARY."""
    identity = Identity(
        derived_uid("test seg", str(file)), derived_uid("test seg series", str(file)), "", datetime.now(UTC), "1", "1"
    )
    stored_as = StoredAs("LABELMAP" if pixels.ndim == 3 else "BINARY", omit_empty_frames=False)
    file.write_bytes(write_segmentation(pixels, on_images(images), segments, stored_as, identity))
    return file


def oblique(degrees: float = 20.0) -> npt.NDArray[np.float64]:
    """An affine (slice, row, column) to LPS mm that is turned twice, with three spacings."""
    a, b = np.radians([degrees, degrees / 2])
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = (turn @ tilt)[:, [2, 1, 0]] * (2.5, 0.7, 0.9)
    affine[:3, 3] = (-120.5, 33.25, -801.0)
    return affine


@dataclass(frozen=True)
class Back:
    """Segmentations that came back: what they say together is compared with another."""

    files: Sequence[Path]

    def require_same(self, source: Path, threshold: float | None = None) -> None:
        """Every segment of the source is in one of them, voxel by voxel in the patient's space, with its codes."""
        part10 = source.read_bytes()
        if threshold is not None:
            part10 = convert(part10, Target("BINARY", CODECS["native"], threshold=threshold), datetime.now(UTC))[0].part10
        segmentation = read_segmentation(part10)
        meanings = {number: _meaning(segmentation.segment[number]) for number in segmentation.numbers}
        seen = set()
        for file in self.files:
            other = read_segmentation(file.read_bytes())
            found = diff(segmentation, other)
            assert not found.geometry
            for segment in found.segments:
                if segment.other_number is None and len(self.files) > 1:
                    continue  # it is in another part
                assert segment.is_equal, segment
                if segment.number is not None and segment.other_number is not None:
                    assert meanings[segment.number] == _meaning(other.segment[segment.other_number])
                    seen.add(segment.number)
        assert seen == set(segmentation.numbers)


def _meaning(segment: DescribedSegment) -> DescribedSegment:
    return replace(segment, number=1, tracking_id="", tracking_uid="", description="")


def there_and_back(folder: Path, scratch: Path, form: tuple[FormatName, str], threshold: float | None = None) -> Back:
    """Export a folder, and import what was exported."""
    out = scratch / "set"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export_dataset(FolderSource(folder), out, Export(form[0], layout=form[1], threshold=threshold))
        made = import_dataset(out, FolderSource(folder), scratch / "back", Import(form[0]))
    return Back([each.file for each in made])


def copied(files: Sequence[Path], folder: Path) -> Path:
    """A folder with copies of files."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copy(file, folder / file.name)
    return folder


def header_of(file: Path) -> Dataset:
    """The data set of a file without its pixels."""
    return dcmread(file, stop_before_pixels=True)
