"""Answers of several objects, of which some cannot be given as they are asked for; and what is given where nothing is asked."""

from collections.abc import Iterator
from io import BytesIO

import httpx
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, JPEGLSLossless

from segnode.node import object_file, open_index
from segnode.seg.codecs import jpeg_ls
from segnode.testing.part10 import encode_part10
from segnode.testing.servers import Server, node_config, segnode
from tests.wire.test_frames import GREY, SERIES, STUDY, image, store
from tests.wire.test_storage import small, stow

DICOM = 'multipart/related; type="application/dicom"'
EXPLICIT = f"{DICOM}; transfer-syntax={ExplicitVRLittleEndian}"
OF_STUDY = f"/studies/{STUDY}"
OF_SERIES = f"{OF_STUDY}/series/{SERIES}"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A node that holds an image that is big endian, one in JPEG-LS, and one whose codestream is damaged."""
    with segnode(tmp_path_factory.mktemp("node"), "models = []\nrules = []", roles=("web",)) as server:
        store(server, big_endian(), ExplicitVRBigEndian)
        codestreams = [jpeg_ls.encode(frame) for frame in GREY]
        store(server, image("1.2", GREY, encapsulate(codestreams)), JPEGLSLossless)
        store(server, image("1.3", GREY, encapsulate([codestreams[0], codestreams[1][:60], *codestreams[2:]])), JPEGLSLossless)
        yield server


def big_endian() -> Dataset:
    """A big endian image with words, numbers, text and a sequence."""
    made = image("1.1", GREY, GREY.astype(">u2").tobytes())
    item = Dataset()
    item.FloatPixelData, item.Rows = np.float32([1.5, -2.0]).astype(">f4").tobytes(), 7
    made.PatientName, made.SliceThickness, made.ReferencedImageSequence = "Some^Body", "1.5", [item]
    made.RedPaletteColorLookupTableData = b"\x01\x02\x03\x04"
    return made


def objects(answer: httpx.Response) -> dict[str, Dataset]:
    """The objects of a message, by UID."""
    boundary = b"--" + answer.headers["content-type"].rpartition("boundary=")[2].encode()
    bodies = (part.partition(b"\r\n\r\n")[2] for part in answer.content.split(boundary)[1:-1])
    return {made.SOPInstanceUID: made for made in (dcmread(BytesIO(body)) for body in bodies)}


def test_big_endian_is_given_little_endian(node: Server) -> None:
    """Numbers, words and pixels are what they were, in items too; whoever asks for the stored syntax gets the very bytes."""
    url = f"{node.dicomweb}{OF_SERIES}/instances/1.1"
    given = dcmread(BytesIO(httpx.get(url, headers={"Accept": "application/dicom"}, timeout=60).content))
    assert given.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    np.testing.assert_array_equal(given.pixel_array, GREY)
    assert given.RedPaletteColorLookupTableData == b"\x02\x01\x04\x03"
    assert (given.PatientName, given.SliceThickness, given.Rows) == ("Some^Body", 1.5, 16)
    (item,) = given.ReferencedImageSequence
    assert (np.frombuffer(item.FloatPixelData, "<f4").tolist(), item.Rows) == ([1.5, -2.0], 7)
    held = httpx.get(url, headers={"Accept": "application/dicom; transfer-syntax=*"}).content
    assert held == encode_part10(big_endian(), ExplicitVRBigEndian)


def test_unknown_values_of_big_endian_stay_as_they_are(node: Server) -> None:
    """Nobody knows the order of their bytes: the object is given as it is held, and to who wants little endian it is not."""
    unknown = small("1.2.52.9")
    unknown.add_new(0x00091001, "UN", b"\x01\x02")
    assert stow(node, encode_part10(unknown, ExplicitVRBigEndian)).status_code == 200
    url = f"{node.dicomweb}/studies/1.2.3/series/1.2.3.5/instances/1.2.52.9"
    answer = httpx.get(url, timeout=60)
    assert (answer.status_code, f"transfer-syntax={ExplicitVRBigEndian}".encode() in answer.content) == (200, True)
    assert httpx.get(url, headers={"Accept": EXPLICIT}, timeout=60).status_code == 406


@pytest.mark.parametrize("accept", ["*/*", DICOM])
def test_without_a_transfer_syntax_all_are_given(node: Server, accept: str) -> None:
    """One that cannot be decoded comes as it is held, and its part says so; the others in explicit little endian."""
    answer = httpx.get(node.dicomweb + OF_STUDY, headers={"Accept": accept}, timeout=60)
    assert (answer.status_code, "warning" in answer.headers) == (200, False)
    syntaxes = {uid: str(given.file_meta.TransferSyntaxUID) for uid, given in objects(answer).items()}
    assert syntaxes == {"1.1": ExplicitVRLittleEndian, "1.2": ExplicitVRLittleEndian, "1.3": JPEGLSLossless}
    assert answer.content.count(f"transfer-syntax={JPEGLSLossless}".encode()) == 1


def test_with_a_transfer_syntax_the_rest_is_given_and_what_lacks_is_named(node: Server) -> None:
    """206 with a Warning that names the one; by itself it is 406."""
    answer = httpx.get(node.dicomweb + OF_SERIES, headers={"Accept": EXPLICIT}, timeout=60)
    assert (answer.status_code, set(objects(answer))) == (206, {"1.1", "1.2"})
    assert answer.headers["warning"].endswith("left out: 1.3")
    assert httpx.get(f"{node.dicomweb}{OF_SERIES}/instances/1.3", headers={"Accept": EXPLICIT}, timeout=60).status_code == 406


def test_a_syntax_that_only_some_are_held_in(node: Server) -> None:
    """What is asked for as it is held, by those that are: the others are named."""
    answer = httpx.get(node.dicomweb + OF_SERIES, headers={"Accept": f"{DICOM}; transfer-syntax={ExplicitVRBigEndian}"})
    assert (answer.status_code, set(objects(answer))) == (206, {"1.1"})
    assert answer.headers["warning"].endswith("left out: 1.2, 1.3")
    assert int(answer.headers["content-length"]) == len(answer.content)


def test_frames_that_cannot_be_decoded_come_as_they_are(node: Server) -> None:
    """To who accepts anything; whoever asks for bytes is told that there are none."""
    url = f"{node.dicomweb}{OF_SERIES}/instances/1.3/frames/2"
    answer = httpx.get(url, timeout=60)
    assert (answer.status_code, b"image/jls" in answer.content) == (200, True)
    assert httpx.get(url, headers={"Accept": "application/octet-stream"}, timeout=60).status_code == 406


@pytest.mark.parametrize("accept", ["application/dicom+json", 'multipart/related; type="application/dicom+xml"'])
def test_metadata_of_a_study_without_the_one_that_is_damaged(node: Server, accept: str) -> None:
    """206 and a Warning, without an ETag that would stand for all; the object by itself is 406; without its file it is 404."""
    series, kind = f"1.2.52.{int(accept[0] == 'm') + 1}", {"Accept": accept}
    for number in (1, 2):
        assert stow(node, encode_part10(small(f"{series}.{number}", SeriesInstanceUID=series), ExplicitVRLittleEndian))
    config = node_config(node)
    damaged = open_index(config).find(f"{series}.1")
    assert damaged is not None
    object_file(config, damaged.object_key).write_bytes(b"no longer what it was")
    url = f"{node.dicomweb}/studies/1.2.3/series/{series}"
    answer = httpx.get(f"{url}/metadata", headers=kind, timeout=60)
    assert (answer.status_code, "etag" in answer.headers) == (206, False)
    assert answer.headers["warning"].endswith(f"left out: {series}.1")
    assert (f"{series}.2" in answer.text, f"{series}.1/" in answer.text) == (True, False)
    one = httpx.get(f"{url}/instances/{series}.1/metadata", headers=kind, timeout=60)
    assert (one.status_code, damaged.object_key in one.text) == (406, False)
    object_file(config, damaged.object_key).unlink()
    assert httpx.get(f"{url}/instances/{series}.1/metadata", headers=kind, timeout=60).status_code == 404
    assert httpx.get(f"{url}/instances/{series}.1/frames/1", timeout=60).status_code == 404
    assert httpx.get(f"{url}/instances/{series}.1", timeout=60).status_code == 404
    assert httpx.get(f"{url}/instances/{series}.2/metadata", headers=kind, timeout=60).status_code == 200


def test_pictures_that_cannot_be_made_are_left_out(node: Server) -> None:
    """Of a series the others come, and the object is named (206); alone it is 406."""
    accept = {"Accept": 'multipart/related; type="image/png"'}
    answer = httpx.get(f"{node.dicomweb}{OF_SERIES}/rendered", headers=accept, timeout=60)
    assert (answer.status_code, answer.headers["vary"]) == (206, "Accept")
    assert answer.headers["warning"].endswith("left out: 1.3")
    assert answer.content.count(b"Content-Location: ") == 3 * len(GREY) - 1
    alone = httpx.get(f"{node.dicomweb}{OF_SERIES}/instances/1.3/frames/2/rendered", headers=accept, timeout=60)
    assert alone.status_code == 406
