"""Other people's clients store, and many at once: slow ones take no room and keep nobody waiting."""

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path

import httpx
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from segnode.testing.part10 import encode_part10
from segnode.testing.processes import descendants, post_of
from segnode.testing.servers import Server, node_config, segnode, until
from tests.conftest import installed, peer
from tests.wire.test_storage import held, memory_kb, small
from tests.wire.test_stow_metadata import metadata, part

STORE = Path(__file__).parents[1] / "peers" / "dicomweb-client" / "store.mjs"
MIB = 1 << 20


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A node without rules, whose web process has stored something."""
    with segnode(tmp_path_factory.mktemp("node"), "models = []\nrules = []") as server:
        post(server, "application/dicom", encode_part10(small("1.2.80.0"), ExplicitVRLittleEndian))
        yield server


def post(node: Server, content_type: str, body: bytes | Iterator[bytes]) -> None:
    """Post a body that is stored."""
    response = httpx.post(f"{node.dicomweb}/studies", content=body, headers={"Content-Type": content_type}, timeout=100)
    assert response.status_code == 200


def web(node: Server) -> int:
    """The web process."""
    (process,) = [process for process in descendants(node.process.pid) if post_of(process).startswith("web")]
    return process


@pytest.mark.parametrize("chunk", [1000, 1_000_000])
def test_python_client_stores(node: Server, image: Dataset, chunk: int) -> None:
    """dicomweb-client stores several instances, chunked where the body is longer than a chunk, and finds them in its answer."""
    client, images = DICOMwebClient(node.dicomweb, chunk_size=chunk), []
    for number in range(3):
        images.append(deepcopy(image))
        images[-1].SOPInstanceUID = images[-1].file_meta.MediaStorageSOPInstanceUID = f"1.2.81.{chunk}.{number}"
    answer = client.store_instances(images, study_instance_uid=image.StudyInstanceUID)
    assert [i.ReferencedSOPInstanceUID for i in answer.ReferencedSOPSequence] == [i.SOPInstanceUID for i in images]
    assert "FailedSOPSequence" not in answer
    assert all(held(node, i.SOPInstanceUID) is not None for i in images)


def test_javascript_client_stores(node: Server, tmp_path: Path) -> None:
    """The client of the browser viewers stores two files in one request, and finds them."""
    files = [tmp_path / f"{number}.dcm" for number in range(2)]
    for number, file in enumerate(files):
        file.write_bytes(encode_part10(small(f"1.2.82.{number}"), ExplicitVRLittleEndian))
    packages = peer("dicomweb-client")
    command = [installed("node", "nodejs"), str(STORE), str(packages.absolute()), node.dicomweb, *map(str, files)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert {"1.2.82.0", "1.2.82.1"} <= set(json.loads(ended.stdout))


def objects(count: int, size: int) -> Iterator[bytes]:
    """A message of objects of that many MiB of pixels."""
    for number in range(count):
        start = encode_part10(small(f"1.2.83.{number}"), ExplicitVRLittleEndian)
        yield b"--b\r\nContent-Type: application/dicom\r\n\r\n" + start
        yield b"\xe0\x7f\x10\x00OW\0\0" + (size * MIB).to_bytes(4, "little")
        yield from (bytes(MIB) for _ in range(size))
        yield b"\r\n"
    yield b"--b--\r\n"


def composed(count: int, size: int) -> Iterator[bytes]:
    """A message of metadata, with bulk data of that many MiB each."""
    pixels = {f"u{number}": {"7FE00010": {"vr": "OW", "BulkDataURI": f"u{number}"}} for number in range(count)}
    yield metadata(*({**small(f"1.2.84.{uri[1:]}").to_json_dict(), **value} for uri, value in pixels.items()))
    for uri in pixels:
        head = part(b"", "application/octet-stream", uri)
        yield head.removesuffix(b"\r\n")
        yield from (bytes(MIB) for _ in range(size))
        yield b"\r\n"
    yield b"--b--\r\n"


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/related; type=application/dicom; boundary=b", objects(16, 64)),
        ('multipart/related; type="application/dicom+json"; boundary=b', composed(4, 64)),
    ],
)
def test_memory_does_not_grow_with_the_body(node: Server, content_type: str, body: Iterator[bytes]) -> None:
    """A GiB of objects, or a quarter of one as bulk data: the web process's peak grows by less than one of them."""
    process = web(node)
    Path(f"/proc/{process}/clear_refs").write_text("5")  # its peak is counted anew (proc(5))
    before = memory_kb(process)
    post(node, content_type, body)
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    assert int(status["VmHWM"].split()[0]) - before < 32 * 1024


def test_slow_senders_keep_nobody_waiting(node: Server) -> None:
    """With 200 requests that stopped in the middle others are served, each takes less than a MiB, and all end well."""
    process, incoming = web(node), node_config(node).data / "objects" / "incoming" / "web-1"
    before = memory_kb(process)
    with ExitStack() as stack:
        slow = []
        for number in range(200):
            data = encode_part10(small(f"1.2.85.{number}"), ExplicitVRLittleEndian)
            data += b"\xe0\x7f\x10\x00OW\0\0" + (400_000).to_bytes(4, "little") + bytes(400_000)
            head = "POST /dicom-web/studies HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/dicom\r\n"
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", node.http_port), timeout=100))
            connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data[:-1000])
            slow.append((connection, data[-1000:]))
        until(lambda: len(list(incoming.iterdir())) == 200)
        assert memory_kb(process) - before < 200 * 1024
        post(node, "application/dicom", encode_part10(small("1.2.80.1"), ExplicitVRLittleEndian))
        assert httpx.get(f"{node.dicomweb}/studies", timeout=10).status_code == 200
        for connection, rest in slow:
            connection.sendall(rest)
        assert all(connection.recv(12) == b"HTTP/1.1 200" for connection, _ in slow)
    assert list(incoming.iterdir()) == []
