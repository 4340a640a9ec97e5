"""STOW-RS of metadata and bulk data: what arrives in parts is held as the object that it was."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import imagecodecs
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.encaps import generate_frames
from pydicom.uid import UID, ExplicitVRLittleEndian

from segnode.dicom.xml import native_xml
from segnode.testing.answering import answering
from segnode.testing.servers import Server, node_config, segnode
from tests.wire.test_storage import FAILED, OTHER, STORED, files, held, items, kept_bytes

JSON = "application/dicom+json"
XML = "application/dicom+xml"
RELATED = f'multipart/related; type="{JSON}"; boundary=b'
BYTES = "application/octet-stream"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A node without rules."""
    with segnode(tmp_path_factory.mktemp("node"), "models = []\nrules = []") as server:
        yield server


def part(content: bytes, content_type: str = "", location: str = "") -> bytes:
    """A part with its headers."""
    head = f"Content-Type: {content_type}\r\n" if content_type else ""
    head += f"Content-Location: {location}\r\n" if location else ""
    return b"--b\r\n" + head.encode() + b"\r\n" + content + b"\r\n"


def metadata(*documents: dict[str, Any]) -> bytes:
    """The part of metadata."""
    return part(json.dumps(documents).encode(), JSON)


def post(node: Server, *parts: bytes, content_type: str = RELATED) -> httpx.Response:
    """Post parts."""
    body = b"".join(parts) + b"--b--\r\n"
    return httpx.post(f"{node.dicomweb}/studies", content=body, headers={"Content-Type": content_type}, timeout=60)


def document(image: Dataset, sop: str, **bulk: str) -> dict[str, Any]:
    """The metadata of an image under another UID; bulk data by keyword is where it says."""
    image.SOPInstanceUID = sop
    found = image.to_json_dict()
    for keyword, uri in bulk.items():
        found[f"{int(image[keyword].tag):08X}"] = {"vr": image[keyword].VR, "BulkDataURI": uri}
    return found


def reread(node: Server, sop: str) -> Dataset:
    """The object that is held."""
    return dcmread(BytesIO(kept_bytes(node, sop)))


def test_uncompressed_object_is_the_one_that_was_taken_apart(node: Server, image: Dataset) -> None:
    """Every attribute and every pixel, in explicit little endian, with file meta information of the node."""
    response = post(node, metadata(document(image, "1.2.50.1", PixelData="bulk/1")), part(image.PixelData, BYTES, "bulk/1"))
    assert response.status_code == 200
    assert len(items(response, STORED)) == 1
    found = reread(node, "1.2.50.1")
    assert found.pop("SpecificCharacterSet").value == "ISO_IR 192"
    image.pop("SpecificCharacterSet", None)
    assert found == image
    assert found.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert found.file_meta.MediaStorageSOPInstanceUID == "1.2.50.1"


def test_xml_with_bulk_data_is_the_object_that_was_taken_apart(node: Server, image: Dataset) -> None:
    """As from JSON: every attribute and every pixel; each object has a part of its own (PS3.18 10.5.1.2)."""
    xml = [native_xml(document(image, f"1.2.50.3{n}", PixelData="bulk/1")) for n in (1, 2)]
    parts = [*(part(each, XML) for each in xml), part(image.PixelData, BYTES, "bulk/1")]
    response = post(node, *parts, content_type=RELATED.replace(JSON, XML))
    assert (response.status_code, len(items(response, STORED))) == (200, 2)
    found = reread(node, "1.2.50.32")
    found.pop("SpecificCharacterSet")
    image.pop("SpecificCharacterSet", None)
    assert found == image


def test_several_objects_and_parts_in_any_order(node: Server, image: Dataset) -> None:
    """Two objects in one part of metadata, a third in another; bulk data before and behind it, some without a media type."""
    pixels = image.PixelData
    parts = [
        metadata(*(document(image, f"1.2.50.2{n}", PixelData=f"http://elsewhere.example/{n}") for n in (1, 2))),
        part(pixels, "", "http://elsewhere.example/2"),
        part(pixels, BYTES, "http://elsewhere.example/1"),
        metadata(document(image, "1.2.50.23", PixelData="http://elsewhere.example/1")),
    ]
    assert len(items(post(node, *parts), STORED)) == 3
    assert all(reread(node, f"1.2.50.2{n}").PixelData == pixels for n in (1, 2, 3))


def encoded(frame: np.ndarray, codec: str) -> bytes:
    """A frame as a codestream."""
    if codec == "jls":
        return imagecodecs.jpegls_encode(frame)
    return imagecodecs.jpeg2k_encode(frame, codecformat="J2K", level=0)


COMPRESSED = [
    ("image/jls", "jls", "1.2.840.10008.1.2.4.80"),
    ("image/jls; transfer-syntax=1.2.840.10008.1.2.4.80", "jls", "1.2.840.10008.1.2.4.80"),
    ("image/jls; transfer-syntax=1.2.840.10008.1.2.4.81", "jls", "1.2.840.10008.1.2.4.81"),
    ("image/jp2", "j2k", "1.2.840.10008.1.2.4.90"),
    ('image/jp2; transfer-syntax="1.2.840.10008.1.2.4.91"', "j2k", "1.2.840.10008.1.2.4.91"),
]


@pytest.mark.parametrize(("media_type", "codec", "syntax"), COMPRESSED)
@pytest.mark.parametrize("frames", [1, 3])
def test_compressed_frames_are_encapsulated(
    node: Server, image: Dataset, media_type: str, codec: str, syntax: str, frames: int
) -> None:
    """One part a frame, all with the same Content-Location: their media type says the transfer syntax; pixels are equal."""
    stack = np.stack([image.pixel_array.astype("uint16") + n for n in range(frames)])
    image.PixelRepresentation, image.NumberOfFrames = 0, frames
    sop = f"1.2.50.3.{frames}.{COMPRESSED.index((media_type, codec, syntax))}"
    parts = [part(encoded(frame, codec), media_type, "pixels") for frame in stack]
    response = post(node, metadata(document(image, sop, PixelData="pixels")), *parts)
    assert response.status_code == 200, response.text
    found = reread(node, sop)
    assert found.file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(found.pixel_array.reshape(stack.shape), stack)


def test_rle_frames_are_encapsulated(node: Server, image: Dataset) -> None:
    """image/dicom-rle, its codestreams by pydicom."""
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    pixels = image.pixel_array
    image.compress(UID("1.2.840.10008.1.2.5"), generate_instance_uid=False)
    (stream,) = generate_frames(image.PixelData, number_of_frames=1)
    response = post(node, metadata(document(image, "1.2.50.5", PixelData="x")), part(stream, "image/dicom-rle", "x"))
    assert response.status_code == 200, response.text
    np.testing.assert_array_equal(reread(node, "1.2.50.5").pixel_array, pixels)


def test_any_value_may_be_bulk_data(node: Server, image: Dataset) -> None:
    """Text, private bytes, an odd length and what lies inside a sequence; what stands inline stays."""
    image.add_new(0x00091001, "OB", b"")
    image.TextValue = ""
    waveform = Dataset()
    waveform.add_new(0x54001010, "OW", b"")
    image.WaveformSequence = [waveform]
    image.ICCProfile = b"inline"
    found = document(image, "1.2.50.4", PixelData="p", TextValue="text")
    found["00091001"] = {"vr": "OB", "BulkDataURI": ["odd"]}
    found["54000100"]["Value"][0]["54001010"] = {"vr": "OW", "BulkDataURI": "wave"}
    parts = [("p", image.PixelData), ("odd", b"12345"), ("text", "größer".encode()), ("wave", b"\1\2\3\4")]
    response = post(node, metadata(found), *(part(content, BYTES, location) for location, content in parts))
    assert response.status_code == 200, response.text
    back = reread(node, "1.2.50.4")
    assert back.TextValue == "größer"
    assert back[0x00091001].value == b"12345\0"
    assert back.WaveformSequence[0].WaveformData == b"\1\2\3\4"
    assert back.ICCProfile == b"inline"
    assert back.PixelData == image.PixelData


def test_metadata_alone_is_an_object(node: Server, image: Dataset) -> None:
    """Without bulk data, in a single part; decimals are as long as JSON writes them."""
    image.pop("PixelData")
    found = document(image, "1.2.50.6")
    found["00281053"] = {"vr": "DS", "Value": [0.12345678901234567]}
    body = json.dumps(found).encode()
    response = httpx.post(f"{node.dicomweb}/studies", content=body, headers={"Content-Type": JSON})
    assert response.status_code == 200, response.text
    assert float(reread(node, "1.2.50.6").RescaleSlope) == pytest.approx(0.12345678901234567)


WRONG = ["no such part", "other media type", "two native parts", "frames missing", "rows missing", "syntax of another", "mixed"]


@pytest.mark.parametrize("what", WRONG)
def test_object_that_cannot_be_put_together_is_a_failure_with_its_uids(node: Server, image: Dataset, what: str) -> None:
    """What is missing or does not fit is said; the object beside it is stored, and nothing of the other is left."""
    good, pixels = document(image, "1.2.50.7", PixelData="good"), image.PixelData
    bad = document(image, "1.2.50.8", PixelData="bad")
    stream = encoded(image.pixel_array.astype("uint16"), "jls")
    parts = {
        "no such part": [],
        "other media type": [part(pixels, "image/x-mine", "bad")],
        "two native parts": [part(pixels, BYTES, "bad"), part(pixels, BYTES, "bad")],
        "frames missing": [part(stream, "image/jls", "bad"), part(stream, "image/jls", "bad")],
        "rows missing": [part(stream, "image/jls", "bad")],
        "syntax of another": [part(stream, "image/jls; transfer-syntax=1.2.840.10008.1.2.4.90", "bad")],
        "mixed": [part(stream, "image/jls", "bad"), part(stream, "image/jp2", "bad")],
    }[what]
    if what == "rows missing":
        bad.pop("00280010")
    response = post(node, metadata(good, bad), part(pixels, BYTES, "good"), *parts)
    assert response.status_code == 202
    assert len(items(response, STORED)) == 1
    ((reason, _),) = items(response, FAILED)
    assert reason == 0xC000
    assert response.json()[FAILED]["Value"][0]["00081155"]["Value"] == ["1.2.50.8"]
    assert held(node, "1.2.50.8") is None
    assert list((node_config(node).data / "objects" / "incoming" / "web-1").iterdir()) == []


def test_bulk_data_uri_is_never_followed(node: Server, image: Dataset, tmp_path: Path) -> None:
    """A URI that leads to a server, or a file of this machine, is not looked at: a failure, and nobody was asked."""
    asked = threading.Event()

    class Elsewhere(BaseHTTPRequestHandler):
        def handle(self) -> None:
            asked.set()

    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    with answering(HTTPServer(("127.0.0.1", 0), Elsewhere)) as address:
        uris = [f"http://{address}/x", f"file://{secret}", str(secret), "../../index.sqlite"]
        documents = [document(image, f"1.2.50.9.{n}", PixelData=uri) for n, uri in enumerate(uris)]
        response = post(node, metadata(*documents))
    assert response.status_code == 409
    assert [reason for reason, _ in items(response, FAILED)] == [0xC000] * len(uris)
    assert not asked.is_set()


def test_items_are_in_the_character_set_of_json(node: Server, image: Dataset) -> None:
    """Whatever they name: a name that their set has no characters for is kept."""
    image.pop("PixelData")
    item = {"00080005": {"vr": "CS", "Value": ["ISO_IR 100"]}, "00104000": {"vr": "LT", "Value": ["\u5c71 \u00fc"]}}
    assert post(node, metadata({**document(image, "1.2.50.10"), "00081140": {"vr": "SQ", "Value": [item]}})).status_code == 200
    (found,) = reread(node, "1.2.50.10").ReferencedImageSequence
    assert found.PatientComments == "\u5c71 \u00fc"


def test_numbers_that_are_empty_stay_so(node: Server, image: Dataset) -> None:
    """Null among others (PS3.18 F.2.5) is an empty value of the object, also in an item."""
    image.pop("PixelData")
    numbers = {"00281050": {"vr": "DS", "Value": [40.5, None, -2.5]}, "00720064": {"vr": "IS", "Value": [None, 7]}}
    given = {**document(image, "1.2.50.11"), **numbers, "00283010": {"vr": "SQ", "Value": [numbers]}}
    assert post(node, metadata(given)).status_code == 200
    found = reread(node, "1.2.50.11")
    for each in (found, found.VOILUTSequence[0]):
        assert each.get_item("WindowCenter").value.split() == [b"40.5\\\\-2.5"]
        assert each.get_item("SelectorISValue").value.split() == [b"\\7"]


@pytest.mark.parametrize(
    "content",
    [
        {"vr": "IS", "Value": [5.5]},
        {"vr": "US", "Value": [5.5]},
        {"vr": "OB", "InlineBinary": "!!!!"},
        {"vr": "AT", "Value": ["00100010", "x"]},
        {"vr": "SQ", "Value": [{"00420011": {"vr": "OB", "InlineBinary": "!!!!"}}]},
    ],
)
def test_values_that_would_be_lost_are_a_failure(node: Server, image: Dataset, content: dict[str, Any]) -> None:
    """A fraction of a whole number, binary data that is no base64, a tag that is none: the object is not kept without them."""
    image.pop("PixelData")
    response = post(node, metadata({**document(image, "1.2.50.12"), "00720001": content}))
    assert (response.status_code, [reason for reason, _ in items(response, FAILED)]) == (409, [0xC000])
    assert held(node, "1.2.50.12") is None


NO_JSON = {
    "no JSON": (part(b"{", JSON), 400),
    "deep JSON": (part(b"[" * 100_000, JSON), 400),
    "deep JSON that ends": (part(b'[{"1":' + b"[" * 100_000 + b"]" * 100_000 + b"}]", JSON), 400),
    "a number": (part(b"3", JSON), 400),
    "no metadata": (part(b"x", BYTES, "x"), 400),
    "nothing": (b"", 400),
    "empty array": (part(b"[]", JSON), 400),
    "no object": (part(b"[3]", JSON), 409),
    "no attribute": (part(b'[{"x":{}}]', JSON), 409),
    "no content": (part(b'[{"00080018":3}]', JSON), 409),
    "no UIDs": (part(b"[{}]", JSON), 409),
    "empty value": (part(b'[{"00080018":{"vr":"UI","Value":[]}}]', JSON), 409),
}


@pytest.mark.parametrize("what", NO_JSON)
def test_metadata_that_is_none_is_refused(node: Server, what: str) -> None:
    """400 where there is no metadata, 409 where it is of no object; nothing is left, and the node serves on."""
    body, status = NO_JSON[what]
    before = files(node)
    response = post(node, body)
    assert response.status_code == status, response.text
    assert response.text.strip()
    assert files(node) == before


def test_metadata_beyond_its_limit_is_refused(node: Server) -> None:
    """A part of metadata of more than 64 MiB is 413."""
    before = files(node)
    assert post(node, part(b" " * ((64 << 20) + 1), JSON)).status_code == 413
    assert files(node) == before


VALUES = [
    {"vr": "XX", "Value": ["Secret"]},
    {"Value": ["Secret"]},
    {"vr": "PN", "Value": "Secret"},
    {"vr": "UI", "Value": ["Secret"]},
    {"vr": "DA", "Value": ["Secret"]},
    {"vr": "US", "Value": ["Secret"]},
    {"vr": "US", "Value": [1e300]},
    {"vr": "SQ", "Value": ["Secret"]},
    {"vr": "SQ", "Value": [{"Secret": 3}]},
    {"vr": "OB", "InlineBinary": "Secret"},
    {"vr": 3, "Value": [3]},
    {"vr": "SQ", "BulkDataURI": "x"},
    {"vr": "PN", "BulkDataURI": {}},
    {"vr": "AT", "Value": ["Secret"]},
    {"vr": "CS", "Value": ["Secret" * 99]},
]


@pytest.mark.parametrize("content", VALUES)
def test_values_that_are_not_of_their_vr_are_kept_or_refused_in_silence(node: Server, image: Dataset, content) -> None:
    """Never an unforeseen error; and whatever pydicom thinks of the value, it is in no log and no answer."""
    image.pop("PixelData")
    response = post(
        node, metadata({**document(image, f"1.2.51.{VALUES.index(content)}"), "00100010": content}), part(b"x", BYTES, "x")
    )
    assert response.status_code in (200, 409)
    assert "Secret" not in response.text + node.log.read_text()
    assert "broke" not in node.log.read_text()
    assert len(items(response, STORED) + items(response, FAILED) + items(response, OTHER)) == 1
