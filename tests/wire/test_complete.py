"""When a series is complete, and what becomes of images that come late: with DCMTK, dicomweb-client and Orthanc at the ends."""

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import highdicom
import httpx
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind

from segnode.config import DimseAddress
from segnode.dicomweb.find import DicomWebCatalogue
from segnode.dimse.find import DimseCatalogue
from segnode.errors import FindFailed
from segnode.node import open_index, open_jobs
from segnode.seg.check import check
from segnode.store.jobs import Job
from segnode.testing.part10 import encode_part10
from segnode.testing.phantom import Phantom
from segnode.testing.servers import Server, await_jobs, free_port, node_config, segnode, until
from tests.wire.test_first_path import dcmsend, fetch
from tests.wire.test_kills import await_starts, kill_role
from tests.wire.test_storage import small, stow

FOR_EVER = 3600.0
RULE = '[[rules]]\nwhen = {{}}\nmodel = "threshold"\nquiet = {quiet}\n{more}\n'
REQUEST = RULE.format(quiet=FOR_EVER, more='expect = "request"')
STUDY, SERIES = "1.2.3", "1.2.3.5"


def part10(sop: str, series: str = SERIES, **attributes) -> bytes:
    """A small object of a series."""
    return encode_part10(small(sop, SeriesInstanceUID=series, **attributes), ExplicitVRLittleEndian)


@contextmanager
def slow_stow(node: Server) -> Iterator[Callable[[], bytes]]:
    """A STOW request that has brought an image, and is in the middle of the next; call it to end it, for its first line."""
    parts = [part10("1.1"), part10("1.2", EncapsulatedDocument=bytes(6 << 20))]
    body = b"".join(b"--b\r\nContent-Type: application/dicom\r\n\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"
    head = (
        f"POST /dicom-web/studies HTTP/1.1\r\nHost: node\r\nContent-Length: {len(body)}\r\n"
        'Content-Type: multipart/related; type="application/dicom"; boundary=b\r\n\r\n'
    )
    half = len(body) // 2
    with socket.create_connection(("127.0.0.1", node.http_port)) as connection:

        def end() -> bytes:
            connection.sendall(body[half:])
            return connection.recv(15)

        connection.sendall(head.encode() + body[:half])
        until(lambda: held(node) == 1)
        yield end


def first_of(phantom: Phantom) -> Dataset:
    """One image of the phantom."""
    return dcmread(sorted(phantom.folder.iterdir())[0])


def held(node: Server, series: str = SERIES) -> int:
    """How many objects of a series a node holds."""
    return len(open_index(node_config(node)).images(series))


def series_of_jobs(node: Server) -> list[str]:
    """The series that were decided on, in that order."""
    return [job.series_instance_uid for job in open_jobs(node_config(node)).all()]


def test_slow_stow_request_holds_its_series_back(tmp_path: Path) -> None:
    """Not complete while the body goes on, however long ago its last image came; complete when the request has ended."""
    with segnode(tmp_path / "node", RULE.format(quiet=0.0, more="")) as node, slow_stow(node) as end:
        assert stow(node, part10("1.8", "1.2.3.6")).status_code == 200
        until(lambda: series_of_jobs(node) == ["1.2.3.6"])
        assert end() == b"HTTP/1.1 200 OK"
        until(lambda: series_of_jobs(node) == ["1.2.3.6", SERIES])


def test_stow_request_that_ends_is_the_whole_series(tmp_path: Path) -> None:
    """With expect = "request" one that ended is followed by a job at once; one that breaks off, or has a refused part, is not."""
    with segnode(tmp_path / "node", REQUEST) as node:
        with slow_stow(node):
            pass
        assert stow(node, part10("1.2", "1.2.3.6"), b"no DICOM").status_code == 202
        client = DICOMwebClient(node.dicomweb)
        client.store_instances([dcmread(BytesIO(part10(f"1.{number}", "1.2.3.7"))) for number in (3, 4)])
        until(lambda: series_of_jobs(node) == ["1.2.3.7"])
        assert stow(node, part10("1.1")).status_code == 200
        until(lambda: series_of_jobs(node) == ["1.2.3.7", SERIES])


def test_association_that_is_released_is_the_whole_series(tmp_path: Path, phantom: Phantom, dcmtk) -> None:
    """With expect = "request" DCMTK's release is followed by a job at once, an abort is not."""
    file = tmp_path / "1.dcm"
    file.write_bytes(part10("1.1"))
    with segnode(tmp_path / "node", REQUEST) as node:
        aborting = [dcmtk("storescu"), "--abort", "-aec", "SEGNODE", "127.0.0.1", str(node.dicom_port), str(file)]
        subprocess.run(aborting, check=True, env={**os.environ, "TCP_NODELAY": "1"}, capture_output=True)
        assert held(node) == 1
        dcmsend(dcmtk("dcmsend"), phantom.folder, node)
        (job,) = await_jobs(node_config(node))
        assert (job.state, job.series_instance_uid) == ("delivered", first_of(phantom).SeriesInstanceUID)


def test_killed_process_is_no_end_of_a_request(tmp_path: Path) -> None:
    """The process of an open STOW request is killed: its series is complete when it is quiet, also for expect = "request"."""
    rules = RULE.format(quiet=3.0, more='expect = "request"')
    with segnode(tmp_path / "node", rules) as node, slow_stow(node):
        (image,) = open_index(node_config(node)).images(SERIES)
        await_starts(node, kill_role(node, "web"))
        until(lambda: series_of_jobs(node) == [SERIES])
        (job,) = open_jobs(node_config(node)).all()
        assert job.created_at - image.received_at >= 3.0
