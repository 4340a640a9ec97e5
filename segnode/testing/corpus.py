"""Series of Part 10 files in memory that benchmarks send, under as many UIDs as they like."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, MultiFrameGrayscaleWordSecondaryCaptureImageStorage

from segnode.dicom.uids import derived_uid
from segnode.testing.part10 import encode_part10
from segnode.testing.phantom import write_ct

# As long as those of other clients: it is looked for in every byte.
BOUNDARY: Final = b"7c3f0d5e9b1a48c6a2e4d8f601b3957e"
_MESSAGE: Final = 25


@dataclass(frozen=True)
class Series:
    """A series of Part 10 files by SOP instance UID, in memory."""

    study: str
    uid: str
    files: Mapping[str, bytes]

    @property
    def path(self) -> str:
        """Its resource under a DICOMweb root."""
        return f"studies/{self.study}/series/{self.uid}"

    def messages(self) -> Iterator[bytes]:
        """Bodies of STOW-RS."""
        files = iter(self.files.values())
        while some := [*islice(files, _MESSAGE)]:
            head = b"--" + BOUNDARY + b"\r\nContent-Type: application/dicom\r\n\r\n"
            yield b"".join(head + file + b"\r\n" for file in some) + b"--" + BOUNDARY + b"--\r\n"


def ct_series(folder: Path, slices: int, size: int, seed: int) -> Series:
    """A CT series, written to a folder first."""
    files = {}
    for file in sorted(write_ct(folder, slices, size, seed, PatientID=f"BENCH{seed}").folder.iterdir()):
        dataset = dcmread(file, stop_before_pixels=True)
        files[str(dataset.SOPInstanceUID)] = file.read_bytes()
    return Series(str(dataset.StudyInstanceUID), str(dataset.SeriesInstanceUID), files)


def renamed(series: Series, number: int) -> Series:
    """The same images under other UIDs, which are as long."""

    def renamed(uid: str) -> str:
        return f"{uid[:-2]}{(int(uid[-2:]) + number) % 100:02}"

    def file(uid: str, content: bytes) -> bytes:
        for each in (series.study, series.uid, uid):
            content = content.replace(each.encode(), renamed(each).encode())
        return content

    files = {renamed(uid): file(uid, content) for uid, content in series.files.items()}
    return Series(renamed(series.study), renamed(series.uid), files)


def multi_frame(size: int, frames: int) -> Series:
    """One object of many frames; with 512 rows and columns 200 of them have 100 MiB."""
    image = Dataset()
    image.SOPClassUID = MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    image.SOPInstanceUID, image.StudyInstanceUID, image.SeriesInstanceUID = (derived_uid("bench", level) for level in "isS")
    image.PatientID, image.PatientName, image.Modality, image.StudyDate = "MANY", "Many^Frames", "OT", "20260102"
    image.SamplesPerPixel, image.PhotometricInterpretation, image.NumberOfFrames = 1, "MONOCHROME2", frames
    image.Rows = image.Columns = size
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
    image.PixelData = np.random.default_rng(1).integers(0, 1 << 16, (frames, size, size), np.uint16).tobytes()
    file = encode_part10(image, ExplicitVRLittleEndian)
    return Series(image.StudyInstanceUID, image.SeriesInstanceUID, {image.SOPInstanceUID: file})
