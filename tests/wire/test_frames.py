"""Frames by WADO-RS: with the public client, by other forms of asking, and of objects that are large, odd or damaged."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import httpx
import imagecodecs
import numpy as np
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGLSLossless,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from segnode.seg.codecs import jpeg_ls
from segnode.testing.part10 import encode_part10
from segnode.testing.phantom import Phantom
from segnode.testing.processes import are_gone, descendants, peak, post_of
from segnode.testing.servers import Server, segnode, until

STUDY, SERIES = "1.2.3.1", "1.2.3.2"
OCTETS = 'multipart/related; type="application/octet-stream"'
AS_OHIF_ASKS = "multipart/related; type=application/octet-stream; transfer-syntax=*"
BITS = np.random.default_rng(1).integers(0, 2, (3, 7, 9), np.uint8)
GREY = np.random.default_rng(2).integers(0, 4096, (4, 16, 16), np.uint16)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A node that holds a BINARY of an odd size, native and deflated, and images in JPEG-LS, one of them damaged."""
    with segnode(tmp_path_factory.mktemp("node"), "models = []\nrules = []", roles=("web",)) as server:
        packed = np.packbits(BITS, bitorder="little").tobytes()
        store(server, image("1.1", BITS, packed), ExplicitVRLittleEndian)
        store(server, image("1.2", BITS, packed), DeflatedExplicitVRLittleEndian)
        codestreams = [jpeg_ls.encode(frame) for frame in GREY]
        store(server, image("1.3", GREY, encapsulate(codestreams)), JPEGLSLossless)
        damaged = [codestreams[0], codestreams[1][:60], *codestreams[2:]]
        store(server, image("1.4", GREY, encapsulate(damaged)), JPEGLSLossless)
        store(server, image("1.5", GREY, b""), ExplicitVRLittleEndian)
        yield server


def image(uid: str, values: np.ndarray, data: bytes) -> Dataset:
    """A data set with these frames."""
    made = Dataset()
    made.SOPClassUID = SegmentationStorage if values.max() == 1 else SecondaryCaptureImageStorage
    made.SOPInstanceUID, made.StudyInstanceUID, made.SeriesInstanceUID, made.Modality = uid, STUDY, SERIES, "OT"
    bits = 1 if values.max() == 1 else values.dtype.itemsize * 8
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PixelRepresentation = 1, "MONOCHROME2", 0
    made.NumberOfFrames, made.Rows, made.Columns = values.shape
    made.BitsAllocated, made.BitsStored, made.HighBit = bits, bits, bits - 1
    if data:
        made.PixelData = data
        made["PixelData"].VR = "OB" if bits == 1 else "OW"
        made["PixelData"].is_undefined_length = data[:4] == b"\xfe\xff\x00\xe0"
    return made


def store(server: Server, dataset: Dataset, syntax: str) -> None:
    """Have the node hold it."""
    body = b"--x\r\nContent-Type: application/dicom\r\n\r\n" + encode_part10(dataset, syntax) + b"\r\n--x--\r\n"
    kind = 'multipart/related; type="application/dicom"; boundary=x'
    httpx.post(f"{server.dicomweb}/studies", content=body, headers={"Content-Type": kind}, timeout=60).raise_for_status()


def url(server: Server, uid: str, frames: str) -> str:
    """Where frames of an object are had."""
    return f"{server.dicomweb}/studies/{STUDY}/series/{SERIES}/instances/{uid}/frames/{frames}"


@pytest.mark.parametrize("uid", ["1.1", "1.2"])
def test_frames_of_one_bit_begin_at_a_byte(node: Server, uid: str) -> None:
    """7 x 9 pixels a frame: each comes in bytes of its own, in the order asked for, repeats too; deflated or not."""
    frames = DICOMwebClient(node.dicomweb).retrieve_instance_frames(STUDY, SERIES, uid, [3, 1, 2, 1])
    assert frames == [np.packbits(BITS[index], bitorder="little").tobytes() for index in (2, 0, 1, 0)]


def test_decoded_or_stored(node: Server) -> None:
    """The client gets native frames by octet-stream, and the very codestream by the media type of JPEG-LS."""
    client = DICOMwebClient(node.dicomweb)
    (native,) = client.retrieve_instance_frames(STUDY, SERIES, "1.3", [2], media_types=("application/octet-stream",))
    assert native == GREY[1].astype("<u2").tobytes()
    asked = (("image/jls", str(JPEGLSLossless)),)
    (stored,) = client.retrieve_instance_frames(STUDY, SERIES, "1.3", [2], media_types=asked)
    assert stored.rstrip(b"\0") == jpeg_ls.encode(GREY[1]).rstrip(b"\0")


@pytest.mark.parametrize(
    ("accept", "uid", "status", "kind"),
    [
        (AS_OHIF_ASKS, "1.3", 200, f"image/jls; transfer-syntax={JPEGLSLossless}"),
        (AS_OHIF_ASKS, "1.1", 200, f"application/octet-stream; transfer-syntax={ExplicitVRLittleEndian}"),
        ("*/*", "1.3", 200, f"application/octet-stream; transfer-syntax={ExplicitVRLittleEndian}"),
        ("multipart/related; type=image/jp2", "1.3", 406, "image/jls"),
        ("text/html", "1.1", 406, "application/octet-stream"),
        (f"{OCTETS}; transfer-syntax={JPEG2000Lossless}", "1.3", 406, "image/jls"),
    ],
)
def test_what_is_acceptable(node: Server, accept: str, uid: str, status: int, kind: str) -> None:
    """OHIF's way of asking gets the stored codestream; what cannot be had is 406 and says what can."""
    response = httpx.get(url(node, uid, "1"), headers={"Accept": accept})
    assert response.status_code == status
    assert kind in response.text


def test_a_query_may_hold_any_character(node: Server) -> None:
    """What no header could say is not acceptable: no error of the server."""
    assert httpx.get(url(node, "1.3", "1"), params={"accept": "Ā/Ā"}).status_code == 406


@pytest.mark.parametrize(
    ("uid", "frames", "status"),
    [
        ("1.1", "4", 404),
        ("1.2", "4", 404),
        ("1.1", "0", 400),
        ("1.1", "1,,2", 400),
        ("1.1", "-1", 400),
        ("1.1", "99999999999", 400),
        ("1.5", "1", 404),
        ("1.9", "1", 404),
        ("1.4", "2", 406),
        ("1.4", "1,2", 406),
        ("1.4", "1", 200),
    ],
)
def test_frames_that_are_not_there(node: Server, uid: str, frames: str, status: int) -> None:
    """Beyond the count, no number, no pixels, no object, or a damaged codestream: each has its status and a reason."""
    response = httpx.get(url(node, uid, frames), headers={"Accept": OCTETS}, timeout=60)
    assert response.status_code == status
    assert status == 200 or response.text.strip()


def test_jpeg_lossless_is_decoded(node: Server, phantom: Phantom, dcmtk: Callable[[str], str], tmp_path: Path) -> None:
    """A signed image in JPEG Lossless, as scanners send it: its frame, and the whole object natively, have its pixels."""
    sent = dcmread(phantom.folder / "0005.dcm")
    command = [dcmtk("dcmcjpeg"), "+e1", "+un", phantom.folder / "0005.dcm", tmp_path / "jpeg.dcm"]
    subprocess.run(command, check=True, capture_output=True)
    header = {"Content-Type": "application/dicom"}
    put = httpx.post(f"{node.dicomweb}/studies", content=(tmp_path / "jpeg.dcm").read_bytes(), headers=header, timeout=60)
    assert put.status_code == 200
    where = f"{node.dicomweb}/studies/{sent.StudyInstanceUID}/series/{sent.SeriesInstanceUID}/instances/{sent.SOPInstanceUID}"
    frame = httpx.get(f"{where}/frames/1", headers={"Accept": "application/octet-stream"}, timeout=60)
    assert (frame.status_code, frame.content) == (200, sent.PixelData)
    whole = httpx.get(where, headers={"Accept": "application/dicom"}, timeout=60)
    np.testing.assert_array_equal(dcmread(BytesIO(whole.content)).pixel_array, sent.pixel_array)


@pytest.mark.parametrize(("uid", "count"), [("1.1", 1), ("1.2", 1), ("1.3", 4)])
def test_pixel_data_as_bulk_data(node: Server, uid: str, count: int) -> None:
    """The URI in the metadata gives native pixel data whole, deflated or not; of compressed the frames."""
    client = DICOMwebClient(node.dicomweb)
    instance = url(node, uid, "1").rpartition("/frames")[0]
    (metadata,) = httpx.get(f"{instance}/metadata", timeout=60).json()
    parts = client.retrieve_bulkdata(metadata["7FE00010"]["BulkDataURI"])
    whole = [np.packbits(BITS, bitorder="little").tobytes()] if count == 1 else [frame.tobytes() for frame in GREY]
    assert parts == whole
    assert httpx.get(f"{instance}/bulkdata/00420011", timeout=60).status_code == 404


def test_a_damaged_object_is_given_as_it_is(node: Server) -> None:
    """What cannot be decoded is not acceptable in a transfer syntax that is asked for, and had with *, or without any."""
    instance = url(node, "1.4", "1").rpartition("/frames")[0]
    refused = httpx.get(
        instance, headers={"Accept": f"application/dicom; transfer-syntax={ExplicitVRLittleEndian}"}, timeout=60
    )
    assert refused.status_code == 406
    assert "transfer-syntax=*" in refused.text
    for accept in ("application/dicom; transfer-syntax=*", "application/dicom"):
        given = httpx.get(instance, headers={"Accept": accept}, timeout=60)
        assert (given.status_code, given.headers["content-type"]) == (
            200,
            f"application/dicom; transfer-syntax={JPEGLSLossless}",
        )


def test_one_frame_without_multipart(node: Server) -> None:
    """A client that asks for a media type by itself gets one frame so."""
    response = httpx.get(url(node, "1.1", "2"), headers={"Accept": "application/octet-stream"})
    assert response.content == np.packbits(BITS[1], bitorder="little").tobytes()


def test_a_decoder_that_dies_is_replaced(node: Server) -> None:
    """After the decoding processes were killed, the next frame is decoded by a new one."""
    for _ in range(2):
        assert httpx.get(url(node, "1.3", "1"), headers={"Accept": OCTETS}, timeout=60).status_code == 200
        decoders = [process for process in descendants(node.process.pid) if is_decoder(process)]
        assert decoders
        for process in decoders:
            os.kill(process, signal.SIGKILL)
        until(lambda killed=decoders: are_gone(killed, ()))  # whom a signal has not reached is still asked


def is_decoder(process: int) -> bool:
    """Whether a process decodes frames."""
    return b"decoding_child" in Path(f"/proc/{process}/cmdline").read_bytes()


def test_a_large_object_is_not_read_whole(node: Server) -> None:
    """Of 200 frames of half a MiB some are had; the web process grows by a fraction of them, and each is the right one."""
    frames = np.broadcast_to(np.arange(200, dtype="<u2")[:, None, None], (200, 512, 512))
    store(node, image("1.6", frames, frames.tobytes()), ExplicitVRLittleEndian)
    (web,) = (process for process in descendants(node.process.pid) if post_of(process) == "web-1")
    Path(f"/proc/{web}/clear_refs").write_text("5")  # the peak is counted from now on (proc(5))
    before = peak(web)
    for number in (200, 1, 100, 37):
        response = httpx.get(url(node, "1.6", str(number)), headers={"Accept": "application/octet-stream"})
        assert response.content == frames[number - 1].tobytes()
    assert peak(web) - before < 24 << 20


SAMPLES = (
    "pydicom-data/emri_small_RLE.dcm",
    "pydicom-data/emri_small_big_endian.dcm",
    "pydicom-data/liver_nonbyte_aligned.dcm",
    "pydicom-data/liver_j2k.dcm",
    "pydicom-data/eCT_Supplemental.dcm",
    "highdicom/sm_image.dcm",
    "highdicom/sm_image_jpegls.dcm",
    "cornerstone/CTImage.dcm_JPEG2000LosslessOnlyTransferSyntax_1.2.840.10008.1.2.4.90.dcm",
)


@pytest.mark.parametrize("name", SAMPLES)
def test_published_samples(node: Server, sample, name: str) -> None:
    """Frames of published images are those that pydicom reads; and those that are stored are asked for as OHIF does."""
    path = sample(name)
    body = b"--x\r\nContent-Type: application/dicom\r\n\r\n" + path.read_bytes() + b"\r\n--x--\r\n"
    kind = 'multipart/related; type="application/dicom"; boundary=x'
    httpx.post(f"{node.dicomweb}/studies", content=body, headers={"Content-Type": kind}, timeout=60).raise_for_status()
    held = dcmread(path)
    uids = held.StudyInstanceUID, held.SeriesInstanceUID, held.SOPInstanceUID
    count = int(held.get("NumberOfFrames", 1))
    client = DICOMwebClient(node.dicomweb)
    frames = client.retrieve_instance_frames(*uids, list(range(1, count + 1)))
    for frame, expected in zip(frames, held.pixel_array if count > 1 else [held.pixel_array], strict=True):
        values = np.packbits(expected, bitorder="little") if held.BitsAllocated == 1 else expected
        assert frame == values.astype(values.dtype.newbyteorder("<")).tobytes()
    if held.file_meta.TransferSyntaxUID.is_encapsulated:
        path = "/studies/{}/series/{}/instances/{}/frames/1".format(*uids)
        stored = httpx.get(node.dicomweb + path, headers={"Accept": AS_OHIF_ASKS}).content
        assert get_frame(held.PixelData, 0, number_of_frames=count) in stored


@pytest.mark.parametrize(("uid", "values"), [("1.3", GREY), ("1.7", GREY.astype(np.int16) - 2000)])
def test_frames_in_htj2k(node: Server, uid: str, values: np.ndarray) -> None:
    """Of an object in another codec and of a native one, signed as well: the codestreams are of the same pixels."""
    if uid == "1.7":
        signed = image(uid, values, values.tobytes())
        signed.PixelRepresentation = 1
        store(node, signed, ExplicitVRLittleEndian)
    for number, frame in enumerate(values, 1):
        answer = httpx.get(url(node, uid, str(number)), headers={"Accept": "image/jphc"}, timeout=60)
        assert answer.headers["content-type"] == f"image/jphc; transfer-syntax={HTJ2KLossless}"
        np.testing.assert_array_equal(imagecodecs.jpeg2k_decode(answer.content), frame)
    listed = httpx.get(url(node, uid, "2,1"), headers={"Accept": "multipart/related; type=image/jphc"}, timeout=60)
    assert (listed.status_code, listed.content.count(b"\xff\x4f\xff\x51")) == (200, 2)


def test_what_htj2k_would_misstate_is_not_written(node: Server) -> None:
    """Of 12 bits stored in 16 the codestream would say 16; and there is none of one bit."""
    twelve = image("1.8", GREY, GREY.tobytes())
    twelve.BitsStored, twelve.HighBit = 12, 11
    store(node, twelve, ExplicitVRLittleEndian)
    for uid in ("1.8", "1.1"):
        assert httpx.get(url(node, uid, "1"), headers={"Accept": "image/jphc"}, timeout=60).status_code == 406
