"""Slimming real archives: each BINARY gets one LABELMAP with its labels, whatever happens on the way, and nothing goes."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import highdicom
import httpx
import numpy as np
import pytest
from click.testing import CliRunner, Result
from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage, SegmentationStorage

from segnode.cli import main
from segnode.dicom.uids import LABEL_MAP_SEGMENTATION_STORAGE
from segnode.seg.convert import labelmap_uids
from segnode.seg.write import StoredAs, write_segmentation
from segnode.seg.write.placement import on_images
from segnode.testing.part10 import encode_part10
from segnode.testing.processes import listens
from segnode.testing.servers import Server, free_port, orthanc, orthanc_program, until
from tests.conftest import absent
from tests.unit.test_construct import IDENTITY, manual, series

STUDY, OTHER_STUDY = "1.2.3", "1.2.99"
PLAIN, OVERLAPPING, LABELMAP, CT = "1.2.3.1", "1.2.3.2", "1.2.3.3", "1.2.3.4"
SEGMENTS = (manual(1), manual(2, "bone"))
Row = dict[str, object]


def stacked(*, overlap: bool = False) -> np.ndarray:
    """Two segments beside each other, or one over the other (slices, rows, columns, segments)."""
    inside = np.zeros((6, 200, 200, 2), np.uint8)
    inside[:, 20:120, 30:90, 0], inside[1:, 10:150, 80 if overlap else 90 : 180, 1] = 1, 1
    return inside


def seg(sop: str, study: str = STUDY, kind: str = "BINARY", *, overlap: bool = False) -> bytes:
    """A SEG of the stacked segments; its series is of the same number as itself."""
    images = series(6, 200, 200)
    for image in images:
        image.StudyInstanceUID = study
        image.PatientID = study
    identity = replace(IDENTITY, sop_instance_uid=sop, series_instance_uid=f"{sop}.7")
    return write_segmentation(stacked(overlap=overlap), on_images(images), SEGMENTS, StoredAs(kind), identity)


def ct() -> bytes:
    """An image of the same study."""
    image = series(1, 4, 4)[0]
    image.SOPInstanceUID, image.SeriesInstanceUID, image.Modality = CT, f"{CT}.7", "CT"
    image.StudyID = image.AccessionNumber = ""
    return encode_part10(image, "1.2.840.10008.1.2.1")


ALL = (seg(PLAIN), seg(OVERLAPPING, overlap=True), seg(LABELMAP, kind="LABELMAP"), ct())


@contextmanager
def holding(folder: Path, *objects: bytes) -> Iterator[Server]:
    """An Orthanc that holds these, and lets everybody ask."""
    if orthanc_program() is None:
        absent("Orthanc with its DICOMweb plug-in", "install orthanc and orthanc-dicomweb (scripts/peers does)")
    with orthanc(folder / "orthanc", DicomAlwaysAllowFind=True, DicomAlwaysAllowGet=True) as server:
        for part10 in objects:
            httpx.post(f"http://127.0.0.1:{server.http_port}/instances", content=part10).raise_for_status()
        yield server


def held(archive: Server) -> dict[str, Dataset]:
    """Every object that an Orthanc holds, by UID."""
    root = f"http://127.0.0.1:{archive.http_port}"
    files = [httpx.get(f"{root}/instances/{i}/file").content for i in httpx.get(f"{root}/instances").json()]
    return {str(found.SOPInstanceUID): found for found in map(dcmread, map(BytesIO, files))}


def config_of(folder: Path, to: str, forms: Sequence[str] = ("labelmap:rle", "labelmap:native", "binary:native")) -> Path:
    """A configuration with one destination."""
    path = folder / "segnode.toml"
    path.write_text(f'[[destinations]]\nname = "pacs"\nto = "{to}"\nseg = {json.dumps(forms)}\n')
    return path


def run(config: Path, *words: str) -> Result:
    """Run `segnode slim` on the archive."""
    return CliRunner().invoke(main, ["slim", "--config", str(config), "--from", "pacs", *words])


def slim(config: Path, *words: str) -> dict[str, Row]:
    """What became of each object, by its UID."""
    return {str(row["object"]): row for row in json.loads(run(config, "--json", *words).stdout)}


def outcomes(config: Path, *words: str) -> dict[str, object]:
    """The outcome for each object, by its UID."""
    return {uid: row["outcome"] for uid, row in slim(config, *words).items()}


def labels_of(dataset: Dataset) -> np.ndarray:
    """The stacked segments of an object, as highdicom reads them."""
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    read = highdicom.seg.segread(BytesIO(file.getvalue()))
    images = [image.SOPInstanceUID for image in series(6)]
    found = read.get_pixels_by_source_instance(
        images, segment_numbers=[1, 2], ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    return np.asarray(found)


@pytest.mark.parametrize("door", ["dicomweb"])
def test_only_the_plain_binary_is_slimmed_and_only_once(tmp_path: Path, door: str) -> None:
    """The LABELMAP has its labels and lies in its study; what overlaps is named; the same again sends nothing."""
    with holding(tmp_path, *ALL) as archive:
        config = config_of(tmp_path, getattr(archive, door))
        first = slim(config)
        after = held(archive)
        again = slim(config)
        assert held(archive).keys() == after.keys()
    made = labelmap_uids(PLAIN)[0]
    assert {uid: row["outcome"] for uid, row in first.items()} == {PLAIN: "slimmed", OVERLAPPING: "left"}
    assert "1 (liver) and 2 (bone)" in str(first[OVERLAPPING]["detail"])
    assert after.keys() == {PLAIN, OVERLAPPING, LABELMAP, CT, made}
    assert (after[made].SOPClassUID, after[made].StudyInstanceUID) == (LABEL_MAP_SEGMENTATION_STORAGE, STUDY)
    np.testing.assert_array_equal(labels_of(after[made]), stacked())
    assert (again[PLAIN]["outcome"], again[PLAIN]["sent"]) == ("slim", [made])
