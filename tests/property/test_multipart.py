"""Messages of any bytes: parts come out as they went in, however they are cut; what is broken is said in one way."""

import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRLittleEndian

from segnode.dicomweb.multipart import Multipart
from segnode.dicomweb.stow import StoreRequest
from segnode.errors import BadRequest, TooLarge, UnsupportedMedia
from segnode.pipeline.associations import Associations
from segnode.pipeline.receive import Receiver
from segnode.store.database import open_database
from segnode.store.index import Index, Sender
from segnode.store.leases import Lease
from segnode.store.measures import Meter
from segnode.store.objects import ObjectStore
from segnode.testing.part10 import encode_part10
from tests.wire.test_storage import small

BOUNDARY_CHARACTERS = "0123456789abcXYZ'()+_,-./:=? "
boundaries = st.text(BOUNDARY_CHARACTERS, min_size=1, max_size=70).filter(lambda text: not text.endswith(" "))
# Bytes that look like what stands between parts.
contents = st.lists(st.one_of(st.binary(max_size=20), st.sampled_from([b"\r\n", b"--", b"\r\n--", b"-", b"\r", b"\n"])))
names = st.text("abcXYZ-", min_size=1, max_size=9)
values = st.text("abc xyz/;=\"'", max_size=20).map(str.strip)


class Recorder:
    """Remembers the parts."""

    def __init__(self) -> None:
        self.parts: list[tuple[Mapping[str, str], bytes]] = []
        self._headers: Mapping[str, str] = {}
        self._content = bytearray()

    def begin(self, headers: Mapping[str, str]) -> None:
        """A part begins."""
        self._headers, self._content = headers, bytearray()

    def write(self, block: bytes) -> None:
        """Bytes of it."""
        self._content += block

    def end(self) -> None:
        """It ends."""
        self.parts.append((self._headers, bytes(self._content)))


def cut(body: bytes, places: list[int]) -> Iterator[bytes]:
    """The body in pieces."""
    bounds = sorted({place % (len(body) + 1) for place in places} | {0, len(body)})
    return (body[start:end] for start, end in pairwise(bounds))


@settings(max_examples=300)
@given(
    boundary=boundaries,
    parts=st.lists(st.tuples(st.dictionaries(names, values, max_size=3), contents.map(b"".join)), min_size=1, max_size=4),
    preamble=contents.map(b"".join),
    padding=st.text(" \t", max_size=3),
    places=st.lists(st.integers(0, 1 << 16), max_size=30),
)
@example(boundary="b", parts=[({}, b"\r\n--\r\n-")], preamble=b"-", padding="", places=list(range(40)))
def test_parts_come_out_as_they_went_in(boundary, parts, preamble, padding, places) -> None:
    """Whatever is in them, in front of them, and however the message is cut."""
    delimiter = b"\r\n--" + boundary.encode()
    parts = [({name.lower(): value for name, value in headers.items()}, content) for headers, content in parts]
    if any(delimiter in b"\r\n" + content + b"\r\n" for content in (preamble, *(content for _, content in parts))):
        return
    body = preamble
    for headers, content in parts:
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        body += delimiter + padding.encode() + b"\r\n" + head.encode() + b"\r\n" + content
    body += delimiter + b"--" + b"epilogue"
    recorder = Recorder()
    message = Multipart(boundary, recorder)
    for block in cut(body, places):
        message.feed(block)
    message.finish()
    assert recorder.parts == parts


class Door:
    """Requests to a store."""

    def __init__(self, folder: Path) -> None:
        self.objects = ObjectStore(folder, Lease("a" * 12, "web-1"))
        index = Index(open_database(folder / "index.sqlite"))
        self._receiver = Receiver(self.objects, index, Meter("web"), "SEGNODE", 0, lambda: 1.0)
        self._associations = Associations(index, Lease("a" * 12, "web-1"))

    def post(self, content_type: str, body: Iterator[bytes]) -> tuple[int, int, int]:
        """The status, and how many objects were stored and refused."""
        try:
            request = StoreRequest(self._receiver, self._associations, content_type, None, Sender())
            try:
                for block in body:
                    request.feed(block)
                stored = request.finish()
                assert stored.document("http://here")
            finally:
                request.close()
        except (BadRequest, TooLarge, UnsupportedMedia):
            return 400, 0, 0
        finally:
            assert list(self.objects.incoming.iterdir()) == []
        return stored.http_status, len(stored.instances), len(stored.refusals)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Door:
    """A store."""
    return Door(tmp_path_factory.mktemp("door"))


OBJECT = encode_part10(small("1.2.70.1"), ExplicitVRLittleEndian)
DOCUMENT = {**small("1.2.70.2").to_json_dict(), "7FE00010": {"vr": "OW", "BulkDataURI": "x"}}
OBJECTS = b"pre\r\n--b\r\nContent-Type: application/dicom\r\n\r\n" + OBJECT + b"\r\n--b\r\n\r\n" + OBJECT + b"\r\n--b--\r\n"
METADATA = b"--b\r\nContent-Type: application/dicom+json\r\n\r\n" + json.dumps([DOCUMENT]).encode() + b"\r\n--b\r\n"
METADATA += b"Content-Type: application/octet-stream\r\nContent-Location: x\r\n\r\n" + bytes(9) + b"\r\n--b--\r\n"
REQUESTS = [
    ("multipart/related; boundary=b", OBJECTS, 2),
    ('multipart/related; type="application/dicom+json"; boundary=b', METADATA, 1),
]


@pytest.mark.parametrize(("content_type", "body", "count"), REQUESTS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=st.lists(st.integers(0, 1 << 12), max_size=60))
def test_request_is_the_same_however_it_is_cut(door: Door, content_type: str, body: bytes, count: int, places) -> None:
    """A message in random pieces is stored as in one."""
    assert door.post(content_type, cut(body, places)) == (200, count, 0)


@pytest.mark.parametrize(("content_type", "body", "count"), REQUESTS)
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_request_is_answered(door: Door, content_type: str, body: bytes, count: int, data: st.DataObject) -> None:
    """Bytes changed, cut out, doubled: an outcome or a refusal, never another error; and nothing half is left."""
    damaged = bytearray(body)
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        how = data.draw(st.sampled_from(["change", "delete", "double", "insert"]))
        length = data.draw(st.integers(1, 40))
        if how == "change":
            damaged[at] = data.draw(st.integers(0, 255))
        elif how == "insert":
            damaged[at:at] = data.draw(st.sampled_from([b"\r\n--b\r\n", b"--b--", b"\r\n\r\n", b"\0", b'"', b"{", b"["]))
        else:
            damaged[at : at + length] = damaged[at : at + length] * (2 if how == "double" else 0)
        damaged = damaged or bytearray(b"\0")
    status, stored, refused = door.post(content_type, cut(bytes(damaged), data.draw(st.lists(st.integers(0, 1 << 12)))))
    assert status in (200, 202, 400, 409)
    assert (status == 400) == (stored + refused == 0)
    assert stored <= 2 * count + 10


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content_type=st.one_of(st.text(max_size=60), boundaries.map(lambda b: f"multipart/related; boundary={b}")), body=st.binary()
)
def test_any_content_type_and_body_is_answered(door: Door, content_type: str, body: bytes) -> None:
    """Random headers and bytes are refused."""
    status, stored, _ = door.post(content_type, iter([body]))
    assert status in (400, 409)
    assert stored == 0


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5), st.just("1.2")),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["Value", "vr", "00080018", "Alphabetic"]), inner)
    ),
    max_leaves=6,
)
vrs = st.sampled_from(
    "AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tag=st.one_of(
        st.sampled_from(["00080018", "7FE00010", "00280008", "00080005", "00091001", "5400010A"]), st.text(max_size=9)
    ),
    vr=st.one_of(vrs, json_values),
    kind=st.sampled_from(["Value", "BulkDataURI", "InlineBinary", "Other"]),
    value=st.one_of(json_values, json_values.map(lambda value: [value]), st.just("x")),
)
@pytest.mark.filterwarnings("ignore")
def test_any_metadata_is_answered(door: Door, tag: str, vr: object, kind: str, value: object) -> None:
    """An attribute of any tag, VR and value is stored or refused."""
    metadata = json.dumps({**DOCUMENT, tag: {"vr": vr, kind: value}}).encode()
    body = b"--b\r\n\r\n" + metadata + b"\r\n--b\r\nContent-Location: x\r\n\r\n12345\r\n--b--"
    status, _, _ = door.post('multipart/related; type="application/dicom+json"; boundary=b', iter([body]))
    assert status in (200, 400, 409)
