"""Training sets of a real archive, and labels that go back to it: over DICOMweb and DIMSE."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from click.testing import CliRunner, Result

from segnode.cli import main
from segnode.testing.servers import Server, orthanc, orthanc_program
from tests.conftest import absent
from tests.datasets import Back, described, oblique, write_seg, write_series

SEGMENTS = [described(1), described(2)]


def run(*words: object) -> Result:
    """Run a command of `segnode dataset`."""
    return CliRunner().invoke(main, ["dataset", *map(str, words)])


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An Orthanc that lets everybody ask."""
    if orthanc_program() is None:
        absent("Orthanc with its DICOMweb plug-in", "install orthanc and orthanc-dicomweb (scripts/peers does)")
    with orthanc(tmp_path_factory.mktemp("orthanc"), DicomAlwaysAllowFind=True, DicomAlwaysAllowGet=True) as server:
        yield server


@pytest.fixture(scope="module")
def folder(archive: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series with a BINARY, which the archive holds too."""
    folder = tmp_path_factory.mktemp("held")
    images = write_series(folder, oblique(), (4, 5, 7))
    stack = np.zeros((4, 5, 7, 2), np.uint8)
    stack[1:3, 1:4, 2:6, 0] = stack[3, 4, 6, 1] = 1
    write_seg(folder / "seg.dcm", stack, images, SEGMENTS)
    for file in folder.iterdir():
        httpx.post(f"http://127.0.0.1:{archive.http_port}/instances", content=file.read_bytes()).raise_for_status()
    return folder


def places(archive: Server) -> list[str]:
    """How the archive is reached."""
    return [f"http://127.0.0.1:{archive.http_port}/dicom-web", f"{archive.ae_title}@127.0.0.1:{archive.dicom_port}"]


@pytest.mark.parametrize("door", [0, 1], ids=["dicomweb", "dimse"])
def test_a_set_of_an_archive_is_that_of_its_files(door: int, archive: Server, folder: Path, tmp_path: Path) -> None:
    """Its labels come back where they were."""
    words = ("--format", "nifti", "--from", places(archive)[door], "--query", "Modality=CT", "--out", tmp_path / "set")
    result = run("export", *words)
    assert result.exit_code == 0, result.output
    words = ("--format", "nifti", tmp_path / "set", "--images", places(archive)[door], "--out", tmp_path / "back")
    result = run("import", *words)
    assert result.exit_code == 0, result.output
    Back([*(tmp_path / "back").iterdir()]).require_same(folder / "seg.dcm")


def test_nothing_is_exported_of_what_does_not_match(archive: Server, folder: Path, tmp_path: Path) -> None:
    """A study that the archive does not have."""
    result = run("export", "--format", "nrrd", "--from", places(archive)[0], "--study", "1.2.3.4", "--out", tmp_path / "set")
    assert result.exit_code == 1
    assert "no image series" in result.output
    assert not list(tmp_path.iterdir())


def test_labels_go_to_a_destination(archive: Server, folder: Path, tmp_path: Path) -> None:
    """In a form that it takes; a repeat sends the same object."""
    config = tmp_path / "segnode.toml"
    forms = json.dumps(["labelmap:rle", "binary:native"])
    config.write_text(f'[[destinations]]\nname = "pacs"\nto = "{places(archive)[1]}"\nseg = {forms}\n')
    run("export", "--format", "nrrd", "--from", folder, "--out", tmp_path / "set")
    words = ("--config", config, "--format", "nrrd", tmp_path / "set", "--images", folder, "--send-to", "pacs")
    before = len(httpx.get(f"http://127.0.0.1:{archive.http_port}/instances").json())
    for _ in range(2):
        result = run("import", *words)
        assert result.exit_code == 0, result.output
        assert "(binary:native)" in result.output
    assert len(httpx.get(f"http://127.0.0.1:{archive.http_port}/instances").json()) == before + 1
