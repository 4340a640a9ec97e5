"""STOW-RS of a running node: every form of a request, and what it is answered (PS3.18 10.5)."""

import json
import socket
from collections.abc import Iterator, Mapping
from xml.etree import ElementTree as ET

import httpx
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from segnode.testing.part10 import encode_part10
from segnode.testing.servers import Server, node_config, segnode
from tests.wire.test_storage import FAILED, OTHER, STORED, files, held, items, kept_bytes, small

CRLF = b"\r\n"
NATIVE = "{http://dicom.nema.org/PS3.19/models/NativeDICOM}"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A node without rules; behind all requests its incoming folder is empty."""
    with segnode(tmp_path_factory.mktemp("node"), "models = []\nrules = []") as server:
        yield server
        assert list((node_config(server).data / "objects" / "incoming" / "web-1").iterdir()) == []


def part10(sop: str, **attributes) -> bytes:
    """A small object as a file."""
    return encode_part10(small(sop, **attributes), ExplicitVRLittleEndian)


def post(node: Server, content_type: str, body: bytes | Iterator[bytes], path: str = "", **headers: str) -> httpx.Response:
    """Post a body; with headers by name, `_` for `-`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    headers = {"Content-Type": content_type, **named}
    return httpx.post(f"{node.dicomweb}/studies{path}", content=body, headers=headers, timeout=60)


def message(*parts: bytes, head: bytes = b"Content-Type: application/dicom\r\n\r\n", boundary: bytes = b"b") -> bytes:
    """A multipart message, each part behind the same headers."""
    return b"".join(b"--" + boundary + CRLF + head + part + CRLF for part in parts) + b"--" + boundary + b"--" + CRLF


def in_pieces(body: bytes, size: int) -> Iterator[bytes]:
    """A body that is sent chunked."""
    return (body[start : start + size] for start in range(0, len(body), size))


ONE = part10("1.2.30.1")


def taken(one: bytes) -> dict[str, tuple[str, bytes]]:
    """Forms of a request with one object: Content-Type and body."""
    return {
        "quoted": ('multipart/related; type="application/dicom"; boundary="b"', message(one)),
        "unquoted": ("multipart/related;type=application/dicom;boundary=b", message(one)),
        "upper case": ("Multipart/Related; TYPE=Application/DICOM; Boundary=b", message(one)),
        "no type": ("multipart/related; boundary=b", message(one)),
        "type with a transfer syntax": (
            'multipart/related; type="application/dicom; transfer-syntax=1.2.840.10008.1.2.1"; boundary=b',
            message(one),
        ),
        "70 characters": ("multipart/related; boundary=" + "x" * 70, message(one, boundary=b"x" * 70)),
        "spaces in the boundary": ('multipart/related; boundary="a (b) c"', message(one, boundary=b"a (b) c")),
        "preamble": ("multipart/related; boundary=b", b"This is - a message --b in parts.\r\n" + message(one) + b"an epilogue"),
        "padding": ("multipart/related; boundary=b", b"--b \t\r\n\r\n" + one + b"\r\n--b-- \r\n"),
        "no content type": ("multipart/related; boundary=b", message(one, head=CRLF)),
        "many headers": (
            "multipart/related; boundary=b",
            message(one, head=b"Content-Type: application/dicom\r\nContent-Length: 7\r\nContent-Location: /x\r\nX:\r\n\r\n"),
        ),
        "single part": ("application/dicom", one),
        "single part with a transfer syntax": ("application/dicom; transfer-syntax=1.2.840.10008.1.2.1", one),
    }


@pytest.mark.parametrize("form", taken(b""))
@pytest.mark.parametrize("chunk", [0, 1, 4096])
def test_every_form_of_a_request_is_taken(node: Server, form: str, chunk: int) -> None:
    """Whatever PS3.18 and RFC 2046 let a client write, with a length or chunked: 200, and the object is held as it was sent."""
    uid = f"1.2.31.{list(taken(b'')).index(form) + 1}.{chunk}"
    one = part10(uid)
    content_type, body = taken(one)[form]
    response = post(node, content_type, in_pieces(body, chunk) if chunk else body)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/dicom+json"
    assert set(response.json()) == {"00081190", STORED}
    assert kept_bytes(node, uid) == one


RELATED = "multipart/related; type=application/dicom; boundary=b"
REFUSED = {
    "nothing": ("", b"", 415),
    "another media type": ("application/json", b"{}", 415),
    "another multipart": ("multipart/form-data; boundary=b", message(ONE), 415),
    "XML without metadata": ('multipart/related; type="application/dicom+xml"; boundary=b', message(ONE), 400),
    "XML with a DTD": ("application/dicom+xml", b"<!DOCTYPE NativeDicomModel><NativeDicomModel/>", 400),
    "no boundary": ("multipart/related; type=application/dicom", message(ONE), 400),
    "boundary of other characters": (b"multipart/related; boundary=\xff", message(ONE), 400),
    "long boundary": ("multipart/related; boundary=" + "b" * 71, message(ONE, boundary=b"b" * 71), 413),
    "empty body": (RELATED, b"", 400),
    "empty single part": ("application/dicom", b"", 400),
    "no parts": (RELATED, b"--b--\r\n", 400),
    "no boundary in the body": (RELATED, b"nonsense", 400),
    "no boundary in a long body": (RELATED, b"nonsense " * 10_000, 400),
    "half a part": (RELATED, b"--b\r\n\r\n" + ONE[:100], 400),
    "half the headers": (RELATED, b"--b\r\nContent-Type: appl", 400),
    "no header": (RELATED, b"--b\r\nno header\r\n\r\n" + ONE + b"\r\n--b--", 400),
    "long header": (RELATED, message(ONE, head=b"X: " + b"x" * 17_000 + b"\r\n\r\n"), 413),
    "many headers": (RELATED, message(ONE, head=b"X: x\r\n" * 10_000 + b"\r\n"), 413),
    "many parts": (RELATED, b"--b\r\n\r\n\r\n" * 100_002, 413),
    "no DICOM": (RELATED, message(b"no DICOM"), 409),
    "no DICOM in a single part": ("application/dicom", b"no DICOM", 409),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_cannot_be_taken_says_why(node: Server, form: str) -> None:
    """415 for what is not taken, 400 for no message, 413 beyond a limit, 409 for no object; and nothing is kept."""
    content_type, body, status = REFUSED[form]
    before = files(node)
    response = post(node, content_type, body)
    assert response.status_code == status
    assert response.text.strip()
    assert files(node) == before
    assert post(node, "application/dicom", ONE).status_code == 200


def test_body_over_the_limit_is_refused_unread(node: Server) -> None:
    """A body that says that it is longer than the node takes is refused before it comes."""
    head = (
        "POST /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/dicom\r\nContent-Length: {65 << 30}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", node.http_port)) as connection:
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


BROKEN = {"ends": b"--b\r\n\r\n" + ONE[:200], "breaks": b"--b\r\nno header\r\n\r\n" + ONE, "has no last boundary": b""}


@pytest.mark.parametrize("how", BROKEN)
def test_message_that_breaks_behind_an_object_tells_both(node: Server, how: str) -> None:
    """What came whole is held and listed; that the message went wrong behind it is a failure without UIDs."""
    whole = b"--b\r\n\r\n" + part10("1.2.30.2") + CRLF
    response = post(node, RELATED, whole + BROKEN[how] if BROKEN[how] else whole + b"--b\r\n\r\n")
    assert response.status_code == 202
    assert len(items(response, STORED)) == 1
    ((reason, text),) = items(response, OTHER)
    assert reason == 0xC000
    assert "body" in str(text)


def test_objects_of_several_studies_have_no_study_in_common(node: Server) -> None:
    """The RetrieveURL of the response is that of the study, and empty where there are two."""
    one = post(node, RELATED, message(part10("1.2.30.4"), part10("1.2.30.5"))).json()
    assert one["00081190"]["Value"] == [f"{node.dicomweb}/studies/1.2.3"]
    two = post(node, RELATED, message(ONE, part10("1.2.30.6", StudyInstanceUID="1.2.31", SeriesInstanceUID="1.2.31.1"))).json()
    assert "Value" not in two["00081190"]
    urls = [item["00081190"]["Value"][0] for item in two[STORED]["Value"]]
    assert [httpx.get(url, headers={"Accept": "application/dicom"}).status_code for url in urls] == [200, 200]


ANSWERS = [
    ("", "json"),
    ("*/*", "json"),
    ("application/dicom+json", "json"),
    ("application/json", "json"),
    ("application/dicom+xml", "xml"),
    ("application/dicom+xml;q=0.5, application/dicom+json;q=0.4", "xml"),
    ("application/dicom+xml;q=0.5, application/dicom+json", "json"),
    ("text/html, application/dicom+xml;q=0.1", "xml"),
]


@pytest.mark.parametrize(("accept", "kind"), ANSWERS)
@pytest.mark.parametrize("by", ["header", "query"])
def test_response_is_what_is_accepted(node: Server, accept: str, kind: str, by: str) -> None:
    """DICOM JSON, or the Native DICOM Model where that is preferred; both list the same."""
    body = message(ONE, b"no DICOM")
    path = str(httpx.QueryParams(accept=accept)) if by == "query" else ""
    response = post(node, RELATED, body, path=f"?{path}", Accept=accept if by == "header" else "text/html")
    if by == "query" and not accept:
        assert response.status_code == 406
        return
    assert response.status_code == 202
    assert response.headers["content-type"] == f"application/dicom+{kind}"
    if kind == "json":
        assert (len(items(response, STORED)), len(items(response, OTHER))) == (1, 1)
        return
    root = ET.fromstring(response.content)
    sequences = {a.get("tag"): a.findall(f"{NATIVE}Item") for a in root.findall(f"{NATIVE}DicomAttribute")}
    assert (len(sequences[STORED]), len(sequences[OTHER])) == (1, 1)
    uid = sequences[STORED][0].find(f"{NATIVE}DicomAttribute[@keyword='ReferencedSOPInstanceUID']/{NATIVE}Value")
    assert uid is not None
    assert uid.text == "1.2.30.1"


def test_response_that_nobody_takes_is_said_before_anything_is_kept(node: Server) -> None:
    """406 where the client takes neither JSON nor XML."""
    response = post(node, "application/dicom", part10("1.2.30.7"), Accept="text/html, application/dicom+json;q=0")
    assert response.status_code == 406
    assert held(node, "1.2.30.7") is None


METHODS: Mapping[str, str] = {
    "/": "OPTIONS",
    "/studies": "GET, HEAD, OPTIONS, POST",
    "/studies/1.2.3": "GET, HEAD, OPTIONS, POST",
    "/studies/1.2.3/metadata": "GET, HEAD, OPTIONS",
    "/studies/1.2.3/series/1.2/instances/1": "GET, HEAD, OPTIONS",
    "/series": "GET, HEAD, OPTIONS",
}


@pytest.mark.parametrize("path", METHODS)
@pytest.mark.parametrize("method", ["DELETE", "PUT", "PATCH"])
def test_method_that_is_not_served_says_which_are(node: Server, path: str, method: str) -> None:
    """405 with Allow (PS3.18 8.3)."""
    response = httpx.request(method, node.dicomweb + path)
    assert (response.status_code, response.headers["allow"]) == (405, METHODS[path])


def test_capabilities_list_what_is_served(node: Server) -> None:
    """OPTIONS of the root lists every resource with its methods, of a resource that one."""
    found = httpx.options(f"{node.dicomweb}/").json()["application"]["resources"]
    resources = {r["@path"]: [method["@name"] for method in r["method"]] for r in found["resource"]}
    assert found["@base"] == f"{node.dicomweb}/"
    assert resources["studies"] == ["GET", "HEAD", "OPTIONS", "POST"]
    assert "studies/{study}/series/{series}/instances/{instance}/metadata" in resources
    one = httpx.options(f"{node.dicomweb}/studies")
    assert [r["@path"] for r in one.json()["application"]["resources"]["resource"]] == ["studies"]
    assert one.headers["allow"] == METHODS["/studies"]


def test_no_patient_data_in_logs_and_errors(node: Server) -> None:
    """Objects that are refused, whole or in part: neither what is answered nor what is logged names the patient."""
    bad = part10("1.2.30.8", PatientName="Secret^Person", PatientID="SECRET", SeriesInstanceUID="")
    answers = [
        post(node, RELATED, message(bad)),
        post(node, RELATED, b"--b\r\nSecret^Person\r\n\r\n" + bad),
        post(node, "multipart/related; boundary=Secret^Person", message(bad)),
        post(node, "application/dicom", bad[:-9], path="/Secret^Person"),
        post(node, "text/Secret^Person", bad, Accept="Secret^Person"),
    ]
    assert all(400 <= answer.status_code < 500 for answer in answers)
    said = "".join(answer.text for answer in answers) + node.log.read_text()
    assert "Secret" not in said
    assert "SECRET" not in said


def test_failures_have_the_reasons_of_the_standard(node: Server) -> None:
    """Of a study that is not the URL's: A900 with its UIDs; of no object: C000 without."""
    response = post(node, RELATED, message(part10("1.2.30.9"), b"x"), path="/1.2.99")
    assert response.status_code == 409
    assert [reason for reason, _ in items(response, FAILED)] == [0xA900]
    assert [reason for reason, _ in items(response, OTHER)] == [0xC000]
    (failed,) = response.json()[FAILED]["Value"]
    assert failed["00081155"]["Value"] == ["1.2.30.9"]
    assert failed["00081150"]["Value"] == [small("1").SOPClassUID]
    assert STORED not in response.json()
    assert json.loads(response.text)["00081190"] == {"vr": "UR"}
