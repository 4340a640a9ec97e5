"""All bulk data, and all pixel data, of a study, a series or an object at once (PS3.18 10.4.1.1.5 and 6)."""

from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, JPEGLSLossless

from segnode.seg.codecs import jpeg_ls
from segnode.testing.processes import descendants, forget_peak, peak, post_of
from segnode.testing.servers import Server, segnode
from tests.wire.test_frames import AS_OHIF_ASKS, GREY, OCTETS, SERIES, STUDY, image, store
from tests.wire.test_storage import small

TABLE = bytes(range(256)) * 20
INSTANCES = f"/studies/{STUDY}/series/{SERIES}/instances"
NATIVE = f"application/octet-stream; transfer-syntax={ExplicitVRLittleEndian}"
STORED = f"image/jls; transfer-syntax={JPEGLSLossless}"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A node that holds a native image with a large value in an item, one in JPEG-LS, and an object without bulk data."""
    with segnode(tmp_path_factory.mktemp("node"), "models = []\nrules = []", roles=("web",)) as server:
        native, item = image("1.1", GREY, GREY.tobytes()), Dataset()
        item.RedPaletteColorLookupTableData = TABLE
        native.ReferencedImageSequence = [item]
        store(server, native, ExplicitVRLittleEndian)
        codestreams = [jpeg_ls.encode(frame) for frame in GREY]
        store(server, image("1.2", GREY, encapsulate(codestreams)), JPEGLSLossless)
        damaged = encapsulate([codestreams[0], codestreams[1][:60], *codestreams[2:]])
        store(server, image("1.3", GREY, damaged), JPEGLSLossless)
        store(server, small("1.2.53.1"), ExplicitVRLittleEndian)
        yield server


def parts(answer: httpx.Response) -> dict[str, tuple[str, bytes]]:
    """Of each part by the end of its location the type and the bytes."""
    boundary, found = b"--" + answer.headers["content-type"].rpartition("boundary=")[2].encode(), {}
    for part in answer.content.split(boundary)[1:-1]:
        head, _, body = part.partition(b"\r\n\r\n")
        lines = dict(line.split(": ", 1) for line in head.decode().strip().split("\r\n"))
        found[lines["Content-Location"].partition("/instances/")[2]] = (lines["Content-Type"], body.removesuffix(b"\r\n"))
    return found


def get(node: Server, path: str, accept: str = "*/*") -> httpx.Response:
    """A resource."""
    return httpx.get(node.dicomweb + path, headers={"Accept": accept}, timeout=60)


def test_all_bulk_data_of_an_object(node: Server) -> None:
    """Each value is a part under the very URI of the metadata."""
    found = parts(get(node, f"{INSTANCES}/1.1/bulkdata"))
    assert found == {
        "1.1/bulkdata/00081140/1/00281201": (NATIVE, TABLE),
        "1.1/bulkdata/7FE00010": (NATIVE, GREY.tobytes()),
    }


@pytest.mark.parametrize("path", [f"/studies/{STUDY}", f"/studies/{STUDY}/series/{SERIES}"])
def test_all_bulk_data_of_a_study_and_a_series(node: Server, path: str) -> None:
    """Of compressed pixel data the frames, decoded; the frame that cannot be is left out, and its object named (206)."""
    answer = get(node, f"{path}/bulkdata", OCTETS)
    assert (answer.status_code, answer.headers["warning"].endswith("left out: 1.3")) == (206, True)
    found = parts(answer)
    frames = {f"1.2/frames/{number}": (NATIVE, frame.tobytes()) for number, frame in enumerate(GREY, 1)}
    damaged = {f"1.3/frames/{number}": (NATIVE, GREY[number - 1].tobytes()) for number in (1, 3, 4)}
    values = {"1.1/bulkdata/00081140/1/00281201": (NATIVE, TABLE), "1.1/bulkdata/7FE00010": (NATIVE, GREY.tobytes())}
    assert found == values | frames | damaged


def test_pixel_data_as_it_is_held(node: Server) -> None:
    """Without any other bulk data, and of compressed the codestreams; nothing need be decoded for that."""
    answer = get(node, f"/studies/{STUDY}/series/{SERIES}/pixeldata", AS_OHIF_ASKS)
    assert answer.status_code == 200
    found = parts(answer)
    assert set(found) == {"1.1/bulkdata/7FE00010", *(f"{uid}/frames/{n}" for uid in ("1.2", "1.3") for n in (1, 2, 3, 4))}
    kind, codestream = found["1.2/frames/2"]
    assert (kind, codestream.rstrip(b"\0")) == (STORED, jpeg_ls.encode(GREY[1]).rstrip(b"\0"))


def test_pixel_data_of_one_object(node: Server) -> None:
    """By itself for who asks so; compressed as its frames."""
    alone = get(node, f"{INSTANCES}/1.1/pixeldata", "application/octet-stream")
    assert (alone.status_code, alone.content) == (200, GREY.tobytes())
    frames = parts(get(node, f"{INSTANCES}/1.2/pixeldata", OCTETS))
    assert np.array_equal(np.frombuffer(b"".join(body for _, body in frames.values()), "<u2").reshape(GREY.shape), GREY)


@pytest.mark.parametrize(
    ("path", "accept", "status"),
    [
        ("/studies/1.2.3/bulkdata", "*/*", 404),
        ("/studies/1.2.3/pixeldata", "*/*", 404),
        ("/studies/9/bulkdata", "*/*", 404),
        (f"{INSTANCES}/1.1/bulkdata", "text/html", 406),
        (f"{INSTANCES}/1.1/pixeldata", "image/jls", 406),
    ],
)
def test_what_is_not_there(node: Server, path: str, accept: str, status: int) -> None:
    """No bulk data, nothing held, or nothing acceptable: each has its status and a reason."""
    answer = get(node, path, accept)
    assert (answer.status_code, bool(answer.text.strip())) == (status, True)


def test_an_inflated_value_is_not_in_the_memory_of_who_answers(node: Server) -> None:
    """It is inflated elsewhere, and sent from disk."""
    values = np.tile(np.arange(1 << 15, dtype=np.uint16), (1, 1 << 10, 1))
    large = image("1.9.1", values, values.tobytes())
    large.StudyInstanceUID, large.SeriesInstanceUID = "1.2.9", "1.2.9.1"
    store(node, large, DeflatedExplicitVRLittleEndian)
    (web,) = (process for process in descendants(node.process.pid) if post_of(process) == "web-1")
    forget_peak(web)
    before = peak(web)
    given = get(node, "/studies/1.2.9/series/1.2.9.1/instances/1.9.1/bulkdata/7FE00010", "application/octet-stream")
    assert given.content == values.tobytes()
    assert peak(web) - before < 32 << 20  # of 64 MiB


@pytest.mark.parametrize("accept", ["application/octet-stream", OCTETS])
def test_a_large_value_has_a_length(node: Server, accept: str) -> None:
    """It is known before it is sent, alone and in multipart."""
    values = np.zeros((1, 4096, 4096), np.uint16) + 3
    large = image("1.9.2", values, values.tobytes())
    large.StudyInstanceUID, large.SeriesInstanceUID = "1.2.9", "1.2.9.1"
    store(node, large, ExplicitVRLittleEndian)
    answer = get(node, "/studies/1.2.9/series/1.2.9.1/instances/1.9.2/bulkdata/7FE00010", accept)
    assert answer.headers["content-length"] == str(len(answer.content))
    assert values.tobytes() in answer.content


RANGES = {"bytes=0-99": (0, 100), "bytes=1000-": (1000, 5120), "bytes=-10": (5110, 5120), "bytes=5000-9999": (5000, 5120)}


@pytest.mark.parametrize("text", RANGES)
def test_a_range_of_a_value(node: Server, text: str) -> None:
    """206 with these bytes and where they lie (RFC 9110 15.3.7)."""
    begin, end = RANGES[text]
    answer = ranged(node, text)
    assert (answer.status_code, answer.content) == (206, TABLE[begin:end])
    assert answer.headers["content-range"] == f"bytes {begin}-{end - 1}/{len(TABLE)}"
    assert ranged(node, text, answer.headers["etag"]).status_code == 206


@pytest.mark.parametrize("text", ["bytes=0-1,5-6", "items=0-1", "bytes=-", "bytes=9-1", "bytes=x-1"])
def test_a_range_that_is_none_or_several_is_passed_over(node: Server, text: str) -> None:
    """200 with all bytes, and so where the value is another by now (If-Range)."""
    for answer in (ranged(node, text), ranged(node, "bytes=0-1", '"another"')):
        assert (answer.status_code, answer.content, answer.headers["accept-ranges"]) == (200, TABLE, "bytes")


@pytest.mark.parametrize("text", ["bytes=5120-", "bytes=-0", "bytes=99999-999999"])
def test_a_range_behind_the_end_is_refused(node: Server, text: str) -> None:
    """416, with the length that there is."""
    answer = ranged(node, text)
    assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{len(TABLE)}")


def ranged(node: Server, text: str, if_range: str = "") -> httpx.Response:
    """A range of the value in the item, by itself."""
    headers = {"Accept": "application/octet-stream", "Range": text} | ({"If-Range": if_range} if if_range else {})
    return httpx.get(f"{node.dicomweb}{INSTANCES}/1.1/bulkdata/00081140/1/00281201", headers=headers, timeout=60)
