"""The Storage SCP and STOW-RS of a running node: what is kept, what is refused, and what is left behind."""

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, build_context

from segnode.config import parse_dimse_address
from segnode.dicom.transfer_syntaxes import STORED_TRANSFER_SYNTAXES
from segnode.dicom.uids import LABEL_MAP_SEGMENTATION_STORAGE, derived_uid
from segnode.dimse.scu import send_files
from segnode.dimse.switches import set_switches
from segnode.store.index import Instance, Sender
from segnode.testing.part10 import encode_part10
from segnode.testing.servers import Server, node_config, segnode, until
from tests.rows import index_of


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A node without rules."""
    with segnode(tmp_path_factory.mktemp("node"), "models = []\nrules = []") as server:
        yield server


def held(node: Server, sop_instance_uid: str) -> Instance | None:
    """The row of an object."""
    return index_of(node).find(sop_instance_uid)


def kept_bytes(node: Server, sop_instance_uid: str) -> bytes:
    """The file of an object."""
    instance = held(node, sop_instance_uid)
    assert instance is not None
    key = instance.object_key
    return (node_config(node).data / "objects" / key[:2] / key[2:4] / key).read_bytes()


def files(node: Server) -> set[Path]:
    """Every file under the objects folder."""
    return {path for path in (node_config(node).data / "objects").rglob("*") if path.is_file()}


def small(sop: str, sop_class: str = CTImageStorage, **attributes) -> Dataset:
    """A small object."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, sop
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.5"
    dataset.PatientName, dataset.Modality = "Some^Body", "OT"
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def store(node: Server, data: bytes, tmp_path: Path, sop_class: str = CTImageStorage, syntax: str = ExplicitVRLittleEndian):
    """Send a Part 10 file's data set, undecoded, in one association; the response."""
    file = tmp_path / "sent.dcm"
    file.write_bytes(data)
    set_switches()
    association = AE("TEST").associate("127.0.0.1", node.dicom_port, [build_context(sop_class, syntax)], node.ae_title)
    assert association.is_established
    response = association.send_c_store(file)
    association.release()
    return response


def stow(node: Server, *parts: bytes, study: str = "") -> httpx.Response:
    """Post parts as multipart/related."""
    body = b"".join(b"--b\r\nContent-Type: application/dicom\r\n\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"
    headers = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=b'}
    return httpx.post(f"{node.dicomweb}/studies{study}", content=body, headers=headers, timeout=60)


def items(response: httpx.Response, sequence: str) -> list[tuple[int | None, str]]:
    """Failure reason and text of each item of a sequence in a STOW response."""
    found = response.json().get(sequence, {}).get("Value", [])
    reason, comment, nothing = "00081197", "00000902", {"Value": [None]}
    return [(item.get(reason, nothing)["Value"][0], item.get(comment, nothing)["Value"][0]) for item in found]


FAILED, STORED, OTHER = "00081198", "00081199", "0008119A"


def test_echo(node: Server, dcmtk: Callable[[str], str]) -> None:
    """DCMTK's echoscu is answered."""
    command = [dcmtk("echoscu"), "-aec", "SEGNODE", "127.0.0.1", str(node.dicom_port)]
    assert subprocess.run(command, check=False, env={**os.environ, "TCP_NODELAY": "1"}).returncode == 0


def test_every_storage_class_is_accepted_in_every_transfer_syntax(node: Server) -> None:
    """Every storage SOP class of the standard, LABELMAP among them, and every transfer syntax is accepted as it is offered."""
    classes = [str(context.abstract_syntax) for context in AllStoragePresentationContexts]
    assert LABEL_MAP_SEGMENTATION_STORAGE in classes
    assert set(ALL_TRANSFER_SYNTAXES) <= set(STORED_TRANSFER_SYNTAXES)
    offered = [(sop_class, str(ExplicitVRLittleEndian)) for sop_class in classes]
    offered += [(str(LABEL_MAP_SEGMENTATION_STORAGE), syntax) for syntax in STORED_TRANSFER_SYNTAXES]
    for start in range(0, len(offered), 128):
        batch = offered[start : start + 128]
        contexts = [build_context(*kind) for kind in batch]
        association = AE("TEST").associate("127.0.0.1", node.dicom_port, contexts, node.ae_title)
        accepted = {(str(c.abstract_syntax), str(c.transfer_syntax[0])) for c in association.accepted_contexts}
        association.release()
        assert accepted == set(batch)


@pytest.mark.parametrize(
    "syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.8.1", "1.2.840.10008.1.2.4.80"]
)
def test_data_set_is_stored_as_received(node: Server, tmp_path: Path, syntax: str) -> None:
    """The bytes of the data set are kept as they came, in their transfer syntax, also in one that pydicom does not know."""
    sop = f"1.2.9.{STORED_TRANSFER_SYNTAXES.index(syntax)}"
    dataset = small(sop, LABEL_MAP_SEGMENTATION_STORAGE)
    data = encode_part10(dataset, syntax)
    assert store(node, data, tmp_path, LABEL_MAP_SEGMENTATION_STORAGE, syntax).Status == 0x0000
    instance = held(node, sop)
    assert instance is not None
    assert instance.transfer_syntax_uid == syntax
    body = data[data.rindex(syntax.encode()) + len(syntax) + len(syntax) % 2 :]
    assert kept_bytes(node, sop).endswith(body)


def test_same_object_again_is_success_and_changes_nothing(node: Server, tmp_path: Path) -> None:
    """Sent twice by C-STORE and once by STOW, an object is held once, in the file that was first."""
    data = encode_part10(small("1.2.10.1"), ExplicitVRLittleEndian)
    assert store(node, data, tmp_path).Status == 0x0000
    before, first = files(node), held(node, "1.2.10.1")
    assert store(node, data, tmp_path).Status == 0x0000
    assert stow(node, data).status_code == 200
    assert files(node) == before
    assert held(node, "1.2.10.1") == first


def test_same_uid_with_other_content_keeps_the_first_and_says_so(node: Server, tmp_path: Path) -> None:
    """Another object under a held UID is not kept in its place, and the log names it."""
    assert store(node, encode_part10(small("1.2.10.2"), ExplicitVRLittleEndian), tmp_path).Status == 0x0000
    first = kept_bytes(node, "1.2.10.2")
    other = encode_part10(small("1.2.10.2", SeriesDescription="other"), ExplicitVRLittleEndian)
    assert store(node, other, tmp_path).Status == 0x0000
    assert kept_bytes(node, "1.2.10.2") == first
    assert "same UID, other bytes" in node.log.read_text()


BAD = [
    ({"StudyInstanceUID": ""}, 0xC000, "StudyInstanceUID"),
    ({"SeriesInstanceUID": "not a uid"}, 0xC000, "SeriesInstanceUID"),
    ({"StudyInstanceUID": "../../etc"}, 0xC000, "StudyInstanceUID"),
    ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}, 0xA900, "SOPClassUID"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("attributes", "status", "keyword"), BAD)
def test_bad_object_is_refused_by_c_store(node: Server, tmp_path: Path, attributes, status: int, keyword: str) -> None:
    """A missing UID, one that is none, or an object that is not what the command says: a status, a reason, nothing kept."""
    before = files(node)
    good = encode_part10(small("1.2.11.1"), ExplicitVRLittleEndian)
    bad = encode_part10(small("1.2.11.1", **attributes), ExplicitVRLittleEndian)
    head = good.index(b"\x08\x00\x16\x00UI")  # the data set of one behind the file meta information of the other
    response = store(node, good[:head] + bad[bad.index(b"\x08\x00\x16\x00UI") :], tmp_path)
    assert response.Status == status
    assert keyword in response.ErrorComment
    assert response.OffendingElement == tag_for_keyword(keyword)
    assert files(node) == before
    assert held(node, "1.2.11.1") is None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cut", [1, 9, 60])
def test_truncated_object_is_refused_by_c_store(node: Server, tmp_path: Path, cut: int) -> None:
    """A data set that ends in the middle of an element cannot be understood."""
    data = encode_part10(small("1.2.11.2"), ExplicitVRLittleEndian)
    assert store(node, data[:-cut], tmp_path).Status == 0xC000
    assert held(node, "1.2.11.2") is None


def test_stow_tells_the_good_from_the_bad(node: Server) -> None:
    """Of a mixed request what is good is kept; each failure has its item and reason, and nothing of it is kept."""
    good = encode_part10(small("1.2.12.1"), ExplicitVRLittleEndian)
    nameless = encode_part10(small("1.2.12.2", SeriesInstanceUID=""), ExplicitVRLittleEndian)
    before = len(files(node))
    response = stow(node, good, b"no DICOM at all", nameless, good)
    assert response.status_code == 202
    assert len(items(response, STORED)) == 2
    (first, second) = items(response, OTHER)
    assert first[0] == second[0] == 0xC000
    assert "not a DICOM file" in str(first[1])
    assert "SeriesInstanceUID" in str(second[1])
    assert len(files(node)) == before + 1
    url = response.json()[STORED]["Value"][0]["00081190"]["Value"][0]
    assert httpx.get(url, headers={"Accept": "application/dicom"}).content.endswith(good[-20:])


def test_stow_of_another_study_is_refused(node: Server) -> None:
    """An object that is not of the study in the URL is a failure with its UIDs, and is not kept."""
    response = stow(node, encode_part10(small("1.2.12.3"), ExplicitVRLittleEndian), study="/9.9")
    assert response.status_code == 409
    ((reason, text),) = items(response, FAILED)
    assert reason == 0xA900
    assert "StudyInstanceUID" in str(text)
    assert held(node, "1.2.12.3") is None


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("multipart/related; type=application/dicom", b"", 400),
        ("multipart/related; type=application/dicom; boundary=b", b"", 400),
        ("multipart/related; type=application/dicom; boundary=b", b"--b--\r\n", 400),
        ("multipart/related; type=application/dicom; boundary=b", b"nonsense", 400),
        ("multipart/related; type=application/dicom; boundary=b", b"--b\r\n\r\nhalf a part", 400),
        ("multipart/related; type=application/dicom; boundary=" + "b" * 71, b"--b--\r\n", 413),
    ],
)
def test_stow_that_is_no_multipart_is_refused(node: Server, content_type: str, body: bytes, status: int) -> None:
    """A wrong media type is 415; a broken message is 400; nothing is left of it, and the node serves on."""
    before = files(node)
    response = httpx.post(f"{node.dicomweb}/studies", content=body, headers={"Content-Type": content_type})
    assert response.status_code == status
    assert response.text.strip()
    assert files(node) == before


def test_stow_that_breaks_off_leaves_nothing(node: Server) -> None:
    """When the client goes away in the middle of a part, what was written of it is deleted."""
    before = files(node)
    with socket.create_connection(("127.0.0.1", node.http_port)) as connection:
        head = "POST /dicom-web/studies HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9000000\r\n"
        head += "Content-Type: multipart/related; type=application/dicom; boundary=b\r\n\r\n--b\r\n\r\n"
        connection.sendall(head.encode() + bytes(4 << 20))
        incoming = node_config(node).data / "objects" / "incoming" / "web-1"
        until(lambda: any(incoming.iterdir()))
    until(lambda: not any(incoming.iterdir()))
    assert files(node) == before


def test_association_that_breaks_off_leaves_nothing_acknowledged(node: Server) -> None:
    """An association that is aborted in the middle leaves the node serving, and no row."""
    with socket.create_connection(("127.0.0.1", node.dicom_port)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
    assert stow(node, encode_part10(small("1.2.12.9"), ExplicitVRLittleEndian)).status_code == 200


def test_who_sent_a_series_is_kept(node: Server, tmp_path: Path) -> None:
    """AE titles and host by C-STORE, the host by STOW: rules can ask for them."""
    sent = encode_part10(small("1.2.77.1", SeriesInstanceUID="1.2.77"), ExplicitVRLittleEndian)
    assert store(node, sent, tmp_path).Status == 0x0000
    posted = encode_part10(small("1.2.77.2", SeriesInstanceUID="1.2.77"), ExplicitVRLittleEndian)
    assert stow(node, posted).status_code == 200
    senders = index_of(node).senders("1.2.77")
    assert senders == [Sender(host="127.0.0.1"), Sender("TEST", "SEGNODE", "127.0.0.1")]


def test_many_senders_at_once(node: Server, tmp_path: Path) -> None:
    """Four associations and four STOW connections at once, some with the same objects: each is held once, none is lost."""
    folder = tmp_path / "many"
    folder.mkdir()
    paths = []
    for number in range(40):
        path = folder / f"{number}.dcm"
        path.write_bytes(encode_part10(small(f"1.2.13.{number}"), ExplicitVRLittleEndian))
        paths.append(path)

    def by_dimse(first: int) -> int:
        address = parse_dimse_address(node.dimse, "")
        return len([answer for _, answer in send_files(paths[first:] + paths[:first], address, "TEST") if "0x0000" in answer])

    def by_stow(first: int) -> int:
        return len(items(stow(node, *(p.read_bytes() for p in paths[first:] + paths[:first])), STORED))

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(send, 10 * n) for n in range(4) for send in (by_dimse, by_stow)]
        assert [future.result() for future in futures] == [40] * 8
    index = index_of(node)
    assert len([i for i in index.instances("1.2.3") if i.sop_instance_uid.startswith("1.2.13.")]) == 40


def memory_kb(process: int) -> int:
    """The resident memory of a process and those under it."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid=,rss="], capture_output=True, text=True, check=True).stdout
    rows = [tuple(map(int, line.split())) for line in listed.splitlines()]
    wanted = {process}
    for pid, parent, _ in rows:
        if parent in wanted:
            wanted.add(pid)
    return sum(rss for pid, _, rss in rows if pid in wanted)


@pytest.mark.parametrize("door", ["dimse", "stow"])
def test_large_object_does_not_fill_the_memory(node: Server, tmp_path: Path, door: str) -> None:
    """An object of 256 MiB goes to disk as it comes: the node's memory grows by a fraction of it."""
    size = 256 << 20
    sop = derived_uid("large", door)
    data = encode_part10(small(sop, Rows=1, Columns=1), ExplicitVRLittleEndian)
    path = tmp_path / "large.dcm"
    with path.open("wb") as file:
        file.write(data + b"\xe0\x7f\x10\x00OW\0\0" + size.to_bytes(4, "little"))
        file.truncate(file.tell() + size)
    before = memory_kb(node.process.pid)
    if door == "dimse":
        assert [answer for _, answer in send_files([path], parse_dimse_address(node.dimse, ""), "TEST")] == ["status 0x0000"]
    else:
        blocks = [b"--b\r\n\r\n", path.read_bytes(), b"\r\n--b--\r\n"]
        headers = {"Content-Type": "multipart/related; type=application/dicom; boundary=b"}
        response = httpx.post(f"{node.dicomweb}/studies", content=iter(blocks), headers=headers, timeout=60)
        assert response.status_code == 200
    assert memory_kb(node.process.pid) - before < 64 * 1024
    instance = held(node, sop)
    assert instance is not None
    assert instance.size > size
