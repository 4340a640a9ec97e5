"""Clients that ask for much and read it slowly: what they cost, and that nobody waits for them (WADO-RS)."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPResponse
from pathlib import Path

import httpx
import numpy as np
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from segnode.testing.part10 import encode_part10
from segnode.testing.processes import descendants, peak, post_of
from segnode.testing.servers import Server, segnode
from tests.wire.test_storage import small

MIB = 1 << 20
READERS = 200
PIXELS = np.random.default_rng(5).bytes(16 * MIB)
OBJECT = (
    encode_part10(small("1.2.86.1"), ExplicitVRLittleEndian)
    + b"\xe0\x7f\x10\x00OW\0\0"
    + len(PIXELS).to_bytes(4, "little")
    + PIXELS
)
STUDY = small("1.2.86.1").StudyInstanceUID
INSTANCE = f"/studies/{STUDY}/series/{small('1.2.86.1').SeriesInstanceUID}/instances/1.2.86.1"
ASKED = (
    (INSTANCE, "application/dicom"),
    (INSTANCE, 'multipart/related; type="application/dicom"'),
    (f"/studies/{STUDY}", 'multipart/related; type="application/dicom"; transfer-syntax=*'),
    (f"{INSTANCE}/bulkdata/7FE00010", "application/octet-stream"),
)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Server]:
    """A node that holds one object of 16 MiB."""
    with segnode(tmp_path / "node", "models = []\nrules = []", roles=("web",)) as server:
        kind = {"Content-Type": "application/dicom"}
        httpx.post(f"{server.dicomweb}/studies", content=OBJECT, headers=kind, timeout=60).raise_for_status()
        yield server


def ask(node: Server, path: str, accept: str) -> socket.socket:
    """A connection on which an answer begins that is not read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    connection.settimeout(100)
    connection.connect(("127.0.0.1", node.http_port))
    connection.sendall(f"GET /dicom-web{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {accept}\r\n\r\n".encode())
    assert connection.recv(1, socket.MSG_PEEK) == b"H"
    return connection


def test_slow_readers_keep_nobody_waiting(node: Server) -> None:
    """With 200 answers that stopped in the middle others are served, each takes less than 3 MiB, and all end well."""
    (web,) = (process for process in descendants(node.process.pid) if post_of(process) == "web-1")
    Path(f"/proc/{web}/clear_refs").write_text("5")  # the peak is counted from now on (proc(5))
    before = peak(web)
    with ExitStack() as stack:
        slow = [stack.enter_context(ask(node, *ASKED[number % len(ASKED)])) for number in range(READERS)]
        whole = httpx.get(f"{node.dicomweb}{INSTANCE}", headers={"Accept": "application/dicom"}, timeout=60)
        assert whole.content == OBJECT
        assert httpx.get(f"{node.dicomweb}/studies", timeout=60).json()
        new = encode_part10(small("1.2.86.2", StudyInstanceUID="1.2.86.3"), ExplicitVRLittleEndian)
        kind = {"Content-Type": "application/dicom"}
        assert httpx.post(f"{node.dicomweb}/studies", content=new, headers=kind, timeout=60).status_code == 200
        assert peak(web) - before < READERS * 3 * MIB
        for connection in slow:
            response = HTTPResponse(connection)
            response.begin()
            assert response.status == 200
            assert PIXELS in response.read()
