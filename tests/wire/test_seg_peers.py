"""Peers that are not ours read the SEGs that are: highdicom, dcmqi (3D Slicer) and the OHIF viewer's parser; dciodvfy checks.

Labels are compared voxel for voxel in the patient's space with the array that was written, which no reader of ours has seen.
"""

import json
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import highdicom
import nrrd
import numpy as np
import pytest
from click.testing import CliRunner
from pydicom import Dataset, dcmread

from segnode.cli import main
from segnode.dicom.codes import Code
from segnode.seg.segmentation import DescribedSegment
from segnode.seg.write import Identity, StoredAs, write_segmentation
from segnode.seg.write.placement import Placement, on_frames, on_images, on_slide
from segnode.testing.phantom import Phantom
from tests.conftest import installed, peer

OHIF_DRIVER = Path(__file__).parents[1] / "peers" / "ohif-seg-parser" / "labels.mjs"
IDENTITY = Identity("2.25.1", "2.25.2", "made by a test", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "serial", "0.1")
SPACING = (2.5, 3.25, 2.75)
# Two at the end and one amid the others: frames that are left out.
EMPTY_SLICES = [0, 1, 11]
GAPPED = np.array([0, 2, 5, 9], np.uint8)
Sample = Callable[[str], Path]
Labels = np.ndarray


@dataclass(frozen=True, eq=False)
class Series:
    """An oblique CT: its files, its headers in slice order, labels 1 to 3, and (slice, row, column) to LPS mm."""

    folder: Path
    images: Sequence[Dataset]
    labels: Labels
    affine: np.ndarray

    def holding(self, labels: Labels, affine: np.ndarray) -> Labels:
        """Labels of another grid on that of this series; each has to lie on one of its voxels."""
        there = np.argwhere(labels)
        to_here = np.linalg.inv(self.affine) @ affine
        exact = there @ to_here[:3, :3].T + to_here[:3, 3]
        here = np.rint(exact).astype(int)
        np.testing.assert_allclose(exact, here, atol=1e-3)
        assert (here >= 0).all()
        onto = np.zeros_like(self.labels)
        onto[tuple(here.T)] = labels[tuple(there.T)]
        return onto


@pytest.fixture(scope="module")
def series(phantom: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Series:
    """The phantom turned about two axes, with fewer rows than columns, and pixels that are not square.

    No two axes have the same length or spacing, none is the patient's, and file names run against the positions.
    """
    folder = tmp_path_factory.mktemp("oblique")
    (a, b), (c, d) = (np.cos(0.3), np.sin(0.3)), (np.cos(-0.5), np.sin(-0.5))
    turn = np.array([[a, -b, 0], [b, a, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -d], [0, d, c]])
    across, down, up = turn.T
    labels = phantom.labelmap[:, 8:-8].copy()
    labels[EMPTY_SLICES] = 0
    affine = np.eye(4)
    affine[:3] = np.stack([up * SPACING[0], down * SPACING[1], across * SPACING[2], (-120.5, 30.25, -77)], axis=1)
    images = []
    for index in range(len(labels)):
        name = f"{len(labels) - index:04d}.dcm"
        image = dcmread(phantom.folder / name)
        image.PixelData = image.pixel_array[8:-8].tobytes()
        image.Rows, image.PixelSpacing = labels.shape[1], [*map(str, SPACING[1:])]
        image.ImageOrientationPatient = [f"{cosine:.12f}" for cosine in (*across, *down)]
        image.ImagePositionPatient = [f"{value:.10f}" for value in affine[:3, 3] + index * affine[:3, 0]]
        image.save_as(folder / name)
        images.append(image)
    return Series(folder, images, labels, affine)


def by_highdicom(file: Path, series: Series) -> Labels:
    """What highdicom reads."""
    volume = highdicom.seg.segread(file).get_volume(combine_segments=True, allow_missing_positions=True)
    return series.holding(volume.array, volume.affine)


def by_dcmqi(file: Path, series: Series) -> Labels:
    """What 3D Slicer's converter reads: an NRRD in LPS whose axes are column, row and slice."""
    out = file.with_suffix(".dcmqi")
    out.mkdir()
    program = peer("dcmqi") / "bin" / "segimage2itkimage"
    run(program, "--inputDICOM", file, "--outputDirectory", out, "--mergeSegments")
    (only,) = out.glob("*.nrrd")
    array, header = nrrd.read(str(only))
    assert header["space"] == "left-posterior-superior"
    affine = np.eye(4)
    affine[:3] = np.stack([*header["space directions"][::-1], header["space origin"]], axis=1)
    return series.holding(array.T, affine)


def by_ohif(file: Path, series: Series) -> Labels:
    """What the OHIF viewer paints on each image of the series."""
    packages, out = peer("ohif-seg-parser"), file.with_suffix(".labels")
    driver = ["--input-type=module", "-", series.folder, file, out]
    found = run("node", *driver, cwd=packages, script=OHIF_DRIVER.read_text())
    told = json.loads(found.splitlines()[-1])
    assert not told["overlapping"]
    painted = np.fromfile(out, np.uint8).reshape(-1, *series.labels.shape[1:])
    by_image = dict(zip(told["images"], painted, strict=True))
    return np.stack([by_image[image.SOPInstanceUID] for image in series.images])


def run(program: object, *words: object, cwd: Path | None = None, script: str = "") -> str:
    """What a program prints when all is well."""
    command = [str(program), *map(str, words)]
    done = subprocess.run(command, cwd=cwd, input=script, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def part10(labels: Labels, placement: Placement, kind: str, codec: str = "native") -> bytes:
    """A SEG of segments that somebody drew."""
    organ, liver = Code("SCT", "123037004", "Anatomical structure"), Code("SCT", "10200004", "Liver")
    segments = [
        DescribedSegment(int(number), f"segment {number}", organ, liver, algorithm_type="MANUAL")
        for number in np.unique(labels[labels > 0])
    ]
    return write_segmentation(labels, placement, segments, StoredAs(kind, codec), IDENTITY)


def converted(file: Path, kind: str, codec: str = "native") -> Path:
    """What `segnode seg convert` makes of a file."""
    out = file.with_name("converted.dcm")
    words = ["seg", "convert", str(file), str(out), "--type", kind, "--codec", codec]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    return out


def written(labels: Labels, placement: Placement, folder: Path) -> Path:
    """A BINARY."""
    file = folder / "binary.dcm"
    file.write_bytes(part10(labels, placement, "BINARY"))
    return file


@pytest.fixture
def binary(series: Series, tmp_path: Path) -> Path:
    """The labels of the series as a BINARY."""
    return written(series.labels, on_images(series.images), tmp_path)


READERS = [by_highdicom, by_dcmqi, by_ohif]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("codec", ["native", "rle"])
def test_a_written_labelmap_is_read(read, codec: str, series: Series, tmp_path: Path) -> None:
    """Equal labels, with gaps in the numbers and slices without a frame."""
    file = tmp_path / "labelmap.dcm"
    file.write_bytes(part10(GAPPED[series.labels], on_images(series.images), "LABELMAP", codec))
    np.testing.assert_array_equal(read(file, series), GAPPED[series.labels])


@pytest.mark.parametrize("read", READERS)
def test_a_written_binary_is_read(read, binary: Path, series: Series) -> None:
    """Equal labels, native."""
    np.testing.assert_array_equal(read(binary, series), series.labels)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("codec", ["native", "rle"])
def test_a_labelmap_made_of_a_binary_is_read(read, codec: str, binary: Path, series: Series) -> None:
    """Equal labels."""
    np.testing.assert_array_equal(read(converted(binary, "labelmap", codec), series), series.labels)


def test_dcmqi_makes_the_same_labelmap_of_a_binary(binary: Path, series: Series, tmp_path: Path) -> None:
    """Its conversion and ours have the same labels in the same places."""
    theirs = tmp_path / "theirs.dcm"
    run(peer("dcmqi") / "bin" / "bin2labelsegimage", "--inputDICOM", binary, "--outputDICOM", theirs)
    assert dcmread(theirs).SegmentationType == "LABELMAP"
    np.testing.assert_array_equal(
        by_highdicom(theirs, series), by_highdicom(converted(binary, "labelmap"), series), strict=True
    )


def on_a_series(series: Series, sample: Sample) -> tuple[Labels, Placement]:
    """Labels of the CT series."""
    return series.labels, on_images(series.images)


def on_an_enhanced_image(series: Series, sample: Sample) -> tuple[Labels, Placement]:
    """Labels of the frames of an enhanced CT."""
    image = dcmread(sample("pydicom-data/eCT_Supplemental.dcm"), stop_before_pixels=True)
    labels = np.zeros((int(image.NumberOfFrames), image.Rows, image.Columns), np.uint8)
    labels[0, 3:9, 3:20], labels[1, 5:7, 100:120] = 1, 2
    return labels, on_frames(image)


def on_a_slide_image(series: Series, sample: Sample, *, full: bool = False) -> tuple[Labels, Placement]:
    """Labels of a total pixel matrix."""
    image = dcmread(sample("highdicom/sm_image.dcm"), stop_before_pixels=True)
    labels = np.zeros((image.TotalPixelMatrixRows, image.TotalPixelMatrixColumns), np.uint8)
    labels[38:43, 5:41], labels[2:9, 11:13] = 1, 2
    return labels, on_slide(image, full=full)


def complaints(file: Path) -> list[str]:
    """Errors and warnings of dciodvfy, which has to know what it looks at."""
    command = [installed("dciodvfy", "dicom3tools"), "-new", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert "Segmentation" in lines
    return [line for line in lines if line.startswith(("Error", "Warning"))]


def made_of_a_labelmap(labels: Labels, placement: Placement, folder: Path) -> Path:
    """A BINARY that was a LABELMAP."""
    file = folder / "labelmap.dcm"
    file.write_bytes(part10(labels, placement, "LABELMAP", "rle"))
    return converted(file, "binary")


@pytest.mark.parametrize("placed", [on_a_series, on_an_enhanced_image, on_a_slide_image])
@pytest.mark.parametrize("made", [written, made_of_a_labelmap])
def test_dciodvfy_finds_nothing_in_a_binary(made, placed, series: Series, sample: Sample, tmp_path: Path) -> None:
    """Neither errors nor warnings."""
    assert complaints(made(*placed(series, sample), tmp_path)) == []


@pytest.mark.parametrize("made", [written, made_of_a_labelmap])
def test_dciodvfy_misses_in_full_tiles_only_what_their_order_says(made, series: Series, sample: Sample, tmp_path: Path) -> None:
    """The functional groups of each frame, and the number of its segment in them, and nothing else.

    Its version of 2022 misses them in highdicom's TILED_FULL as well, where frames need none (PS3.3 C.7.6.17.3).
    """
    found = complaints(made(*on_a_slide_image(series, sample, full=True), tmp_path))
    missed = [re.search(r"(\w+)\(\w+,\w+\)> - Missing attribute", line) for line in found]
    keywords = {match and match[1] for match in missed}
    assert keywords == {"PerFrameFunctionalGroupsSequence", "SegmentIdentificationSequence"}
