"""What tests share: a phantom, real peers, real samples; what is absent skips by name, and fails in CI."""

import gc
import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from httpx._transports import default as transports
from hypothesis import settings
from pydicom import Dataset, dcmread
from sqlalchemy import Connection, Engine
from sqlalchemy.event import listens_for

from segnode.testing.phantom import Phantom, write_ct
from segnode.testing.processes import leads_to
from segnode.testing.servers import Server, orthanc, orthanc_program

# How long an example takes says nothing on a machine that others use as well.
settings.register_profile("segnode", deadline=None)
settings.load_profile("segnode")

# Each request by itself would read a hundred authorities of the web for 25 ms, of which a test needs none.
transports.create_ssl_context = cache(transports.create_ssl_context)

PEERS = Path(__file__).parents[1] / ".peers"
SAMPLES = Path(os.environ.get("SEGNODE_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
# Sockets from 1,024 on break pynetdicom's own, in whichever test has them then.
MOST_DESCRIPTORS = 200
_engines: set[Engine] = set()


@listens_for(Engine, "engine_connect")
def _note(connection: Connection) -> None:
    _engines.add(connection.engine)


@pytest.fixture(autouse=True)
def _disposed() -> Iterator[None]:
    """Databases that a test has looked into are closed when it ends; who looks again opens them again."""
    yield
    while _engines:
        _engines.pop().dispose()


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    """What the tests of a file have open is closed when they end: a leak is found in the file that makes it."""
    yield
    if leads_to(os.getpid()).total() > MOST_DESCRIPTORS:
        gc.collect()  # some sockets are in cycles with their associations
        left = leads_to(os.getpid())
        assert left.total() <= MOST_DESCRIPTORS, left.most_common(20)


def absent(what: str, how: str) -> None:
    """Skip a test for want of something; in CI that is a failure."""
    message = f"{what} is not here: {how}"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


def installed(program: str, package: str) -> str:
    """The path of a program."""
    path = shutil.which(program)
    if path is None:
        absent(program, f"install {package} (scripts/peers does)")
    return str(path)


def peer(name: str) -> Path:
    """The folder of a peer that scripts/peers puts into .peers."""
    if not (PEERS / name / "stamp").exists():
        absent(name, "run scripts/peers")
    return PEERS / name


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Phantom:
    """A small synthetic CT with known truth."""
    return write_ct(tmp_path_factory.mktemp("phantom") / "ct", slices=24, size=128)


@pytest.fixture(scope="session")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a synthetic CT that is smaller still."""
    return write_ct(tmp_path_factory.mktemp("small") / "ct", slices=8, size=64).folder


@pytest.fixture(scope="session")
def sample() -> Callable[[str], Path]:
    """Finds a published sample."""

    def find(name: str) -> Path:
        if not (SAMPLES / name).exists():
            absent(f"sample {name}", "set SEGNODE_TEST_DATA to the folder of the samples")
        return SAMPLES / name

    return find


@pytest.fixture(scope="session")
def sample_ct(sample: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TotalSegmentator's 20-slice CT in JPEG 2000, with the UIDs that its publishers emptied."""
    folder = tmp_path_factory.mktemp("sample-ct")
    for file in sorted(sample("totalsegmentator/example_ct_dicom").iterdir()):
        image = dcmread(file)
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID
        image.StudyInstanceUID, image.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.2"
        image.save_as(folder / f"{file.name}.dcm")
    return folder


@pytest.fixture(scope="session")
def dcmtk() -> Callable[[str], str]:
    """Finds a program of DCMTK."""
    return lambda program: installed(program, "dcmtk")


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An Orthanc with its DICOMweb plug-in."""
    if orthanc_program() is None:
        absent("Orthanc with its DICOMweb plug-in", "install orthanc and orthanc-dicomweb (scripts/peers does)")
    with orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


@pytest.fixture(scope="session")
def archive_of_any_class(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An Orthanc that takes what it does not know by C-STORE too, LABELMAP among it."""
    if orthanc_program() is None:
        absent("Orthanc with its DICOMweb plug-in", "install orthanc and orthanc-dicomweb (scripts/peers does)")
    with orthanc(tmp_path_factory.mktemp("orthanc"), UnknownSopClassAccepted=True, DicomAlwaysAllowStore=True) as server:
        yield server


@pytest.fixture
def image(phantom: Phantom) -> Dataset:
    """One image of the phantom, to be changed."""
    return dcmread(phantom.folder / "0001.dcm")
