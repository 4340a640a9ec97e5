"""Reading back by DICOMweb, with the public client."""

import zlib
from collections.abc import Callable, Iterator
from io import BytesIO

import httpx
import imagecodecs
import numpy as np
import pytest
from dicomweb_client.api import DICOMwebClient
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from segnode.config import parse_dimse_address
from segnode.dicom.transfer_syntaxes import DEFLATED_IMAGE_FRAME
from segnode.dimse.scu import send_files
from segnode.node import open_index
from segnode.store.database import open_database
from segnode.store.documents import Documents
from segnode.testing.part10 import encode_part10
from segnode.testing.phantom import Phantom
from segnode.testing.servers import Server, node_config, segnode, until


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, phantom: Phantom, sample_ct) -> Iterator[Server]:
    """A node that holds the phantom's series and the JPEG 2000 sample."""
    with segnode(tmp_path_factory.mktemp("node"), "models = []\nrules = []") as server:
        for folder in (phantom.folder, sample_ct):
            list(send_files(sorted(folder.iterdir()), parse_dimse_address(server.dimse, ""), "TEST"))
        yield server


@pytest.fixture
def client(node: Server) -> DICOMwebClient:
    """The public client on the node."""
    return DICOMwebClient(node.dicomweb)


def first(items: list[dict], tag: str) -> object:
    """The first value of an attribute of the first item."""
    return items[0][tag]["Value"][0]


def test_client_lists_and_fetches_a_study(client: DICOMwebClient, phantom: Phantom) -> None:
    """From a search for the patient down to every instance of a series, each data set as it was sent."""
    studies = client.search_for_studies(search_filters={"PatientID": "PHANTOM"})
    assert len(studies) == 1
    assert first(studies, "00201208") == 24
    study = str(first(studies, "0020000D"))
    series = client.search_for_series(study)
    assert [first(series, tag) for tag in ("00080060", "00201209")] == ["CT", 24]
    uid = str(first(series, "0020000E"))
    assert len(client.search_for_instances(study, uid)) == 24
    retrieved = {d.SOPInstanceUID: d for d in client.retrieve_series(study, uid)}
    sent = [dcmread(file) for file in phantom.folder.iterdir()]
    assert {image.SOPInstanceUID for image in sent} == set(retrieved)
    assert all(retrieved[image.SOPInstanceUID] == image for image in sent)


def test_metadata_is_the_data_set_without_pixels(client: DICOMwebClient, phantom: Phantom, node: Server) -> None:
    """Metadata of a series holds every attribute of each image; its pixel data is had by the URI that is given for it."""
    image = dcmread(phantom.folder / "0001.dcm", stop_before_pixels=True)
    found = client.retrieve_series_metadata(image.StudyInstanceUID, image.SeriesInstanceUID)
    assert len(found) == 24
    (mine,) = (m for m in found if m["00080018"]["Value"] == [image.SOPInstanceUID])
    bulk = mine.pop("7FE00010")
    assert mine == image.to_json_dict()
    assert bulk["vr"] == "OW"
    # The client's own Host header lacks the port, and so does every URL that it is told.
    path = bulk["BulkDataURI"].partition("/dicom-web")[2]
    (pixels,) = client.retrieve_bulkdata(node.dicomweb + path)
    assert pixels == dcmread(phantom.folder / "0001.dcm").PixelData


def test_metadata_that_a_client_has_are_not_sent_again(node: Server, phantom: Phantom) -> None:
    """With the ETag of an answer the next is 304, whatever came first: the documents, or the question."""
    image = dcmread(phantom.folder / "0001.dcm", stop_before_pixels=True)
    url = f"{node.dicomweb}/studies/{image.StudyInstanceUID}/metadata"
    answer = httpx.get(url)
    assert answer.status_code == 200
    tag = answer.headers["etag"]
    again = httpx.get(url, headers={"If-None-Match": f'"other", {tag}'})
    assert (again.status_code, again.content) == (304, b"")
    assert httpx.get(url, headers={"If-None-Match": '"other"'}).content == answer.content


def test_metadata_as_xml(node: Server, phantom: Phantom) -> None:
    """A client that asks for XML gets a part for each instance, with the URIs of bulk data."""
    image = dcmread(phantom.folder / "0001.dcm", stop_before_pixels=True)
    url = f"{node.dicomweb}/studies/{image.StudyInstanceUID}/metadata"
    answer = httpx.get(url, headers={"Accept": 'multipart/related; type="application/dicom+xml"'}, timeout=60)
    assert answer.status_code == 200
    assert answer.text.count("<NativeDicomModel") == 24
    assert f'<BulkData uri="{object_url(node, image)}/bulkdata/7FE00010"' in answer.text


def test_metadata_are_made_before_anybody_asks(node: Server) -> None:
    """The worker makes the documents of what has come, and keeps them."""
    documents = Documents(open_database(node_config(node).data / "documents.sqlite"))
    held = [instance for _, instance in open_index(node_config(node)).held_after(0, 1000)]
    until(lambda: len(documents.find(instance.object_key for instance in held)) == len(held))


def test_stored_syntax_on_request_and_native_without(client: DICOMwebClient, sample_ct, node: Server) -> None:
    """`transfer-syntax=*` gives the bytes as held; without one they come in explicit little endian, the same pixels."""
    image = dcmread(next(iter(sorted(sample_ct.iterdir()))))
    uids = (image.StudyInstanceUID, image.SeriesInstanceUID, image.SOPInstanceUID)
    held = client.retrieve_instance(*uids, media_types=(("application/dicom", "*"),))
    assert held.file_meta.TransferSyntaxUID == JPEG2000Lossless
    assert held.PixelData == image.PixelData
    url = "{}/studies/{}/series/{}/instances/{}".format(node.dicomweb, *uids)
    native = httpx.get(url, headers={"Accept": "application/dicom"})
    assert native.headers["content-type"] == f"application/dicom; transfer-syntax={ExplicitVRLittleEndian}"
    np.testing.assert_array_equal(dcmread(BytesIO(native.content)).pixel_array, image.pixel_array)


def test_a_range_of_an_object(node: Server, phantom: Phantom) -> None:
    """An object by itself has a length, gives ranges, and says where there is none; its ETag stands for its content."""
    part10 = (phantom.folder / "0002.dcm").read_bytes()
    url = object_url(node, dcmread(phantom.folder / "0002.dcm", stop_before_pixels=True))
    headers = {"Accept": "application/dicom; transfer-syntax=*"}
    whole = httpx.get(url, headers=headers)
    assert int(whole.headers["content-length"]) == len(whole.content)
    assert whole.content[-1000:] == part10[-1000:]
    part = httpx.get(url, headers={**headers, "Range": "bytes=1000-1999", "If-Range": whole.headers["etag"]})
    assert (part.status_code, part.content) == (206, whole.content[1000:2000])
    assert part.headers["content-range"] == f"bytes 1000-1999/{len(whole.content)}"
    assert httpx.get(url, headers={**headers, "Range": "bytes=999999999-"}).status_code == 416
    for text in ("items=0-1", "bytes=9-1", "bytes=x", "bytes="):  # none, which is passed over (RFC 9110 14.2)
        answer = httpx.get(url, headers={**headers, "Range": text})
        assert (answer.status_code, answer.content) == (200, whole.content)


def test_a_study_has_a_length(node: Server, phantom: Phantom) -> None:
    """A message of objects as they are held is as long as it says."""
    image = dcmread(phantom.folder / "0002.dcm", stop_before_pixels=True)
    answer = httpx.get(f"{node.dicomweb}/studies/{image.StudyInstanceUID}")
    assert int(answer.headers["content-length"]) == len(answer.content)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless, HTJ2KLossless])
def test_lossless_syntax_that_is_asked_for(node: Server, phantom: Phantom, syntax: str) -> None:
    """The same pixels, the same object, in the transfer syntax that the client wants."""
    image = dcmread(phantom.folder / "0003.dcm")
    answer = httpx.get(object_url(node, image), headers={"Accept": f"application/dicom; transfer-syntax={syntax}"}, timeout=60)
    assert answer.status_code == 200
    given = dcmread(BytesIO(answer.content))
    assert (given.file_meta.TransferSyntaxUID, given.SOPInstanceUID) == (syntax, image.SOPInstanceUID)
    np.testing.assert_array_equal(given.pixel_array, image.pixel_array)


def test_deflated_frames_that_are_asked_for(node: Server, phantom: Phantom) -> None:
    """Each frame by itself is the raw deflate stream of its native bytes (PS3.5 A.4.13); all else is as it was."""
    image = dcmread(phantom.folder / "0003.dcm")
    accept = f"application/dicom; transfer-syntax={DEFLATED_IMAGE_FRAME}"
    answer = httpx.get(object_url(node, image), headers={"Accept": accept}, timeout=60)
    assert (answer.status_code, answer.headers["content-type"]) == (200, accept)
    given = dcmread(BytesIO(answer.content))
    (frame,) = generate_frames(given.PixelData, number_of_frames=1)
    assert zlib.decompressobj(wbits=-zlib.MAX_WBITS).decompress(frame) == image.PixelData
    del given.PixelData, image.PixelData
    assert given == image


def small(uid: str, **attributes: object) -> Dataset:
    """A small image of three samples a pixel, without pixels yet."""
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = SecondaryCaptureImageStorage, uid
    image.StudyInstanceUID, image.SeriesInstanceUID, image.Modality = "1.2.9.1", "1.2.9.2", "OT"
    image.Rows, image.Columns, image.SamplesPerPixel, image.PhotometricInterpretation = 40, 35, 3, "RGB"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation, image.PlanarConfiguration = 8, 8, 7, 0, 1
    for keyword, value in attributes.items():
        setattr(image, keyword, value)
    return image


def stored(node: Server, image: Dataset, syntax: str = ExplicitVRLittleEndian) -> str:
    """Where an image is had, once it is stored."""
    body, headers = encode_part10(image, syntax), {"Content-Type": "application/dicom"}
    httpx.post(f"{node.dicomweb}/studies", content=body, headers=headers, timeout=60).raise_for_status()
    return object_url(node, image)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_colours_by_plane_are_the_same_in_every_syntax(node: Server, syntax: str) -> None:
    """PlanarConfiguration 1, of several frames: each pixel has its own samples."""
    planes = np.random.default_rng(2).integers(0, 256, (2, 3, 40, 35), np.uint8)
    url = stored(node, small("1.2.9.3", PixelData=planes.tobytes(), NumberOfFrames=2))
    answer = httpx.get(url, headers={"Accept": f"application/dicom; transfer-syntax={syntax}"}, timeout=60)
    assert answer.status_code == 200
    np.testing.assert_array_equal(dcmread(BytesIO(answer.content)).pixel_array, np.moveaxis(planes, 1, -1))


@pytest.mark.parametrize("said", [0, 1])
@pytest.mark.parametrize(
    ("uid", "syntax", "encode"),
    [
        ("1.2.9.5", JPEG2000Lossless, lambda values: imagecodecs.jpeg2k_encode(values, level=0, codecformat="j2k", mct=False)),
        ("1.2.9.6", JPEGLSLossless, imagecodecs.jpegls_encode),
    ],
)
def test_codestreams_of_colour_are_read_whatever_is_said_of_their_planes(
    node: Server, said: int, uid: str, syntax: str, encode: Callable[[np.ndarray], bytes]
) -> None:
    """PlanarConfiguration is not of the codestream (PS3.5 8.2); a native frame is as metadata say that it is."""
    colours = np.random.default_rng(3).integers(0, 256, (40, 35, 3), np.uint8)
    image = small(f"{uid}.{said}", PixelData=encapsulate([encode(colours)]), PlanarConfiguration=said)
    image["PixelData"].is_undefined_length = True
    url = stored(node, image, syntax)
    native = dcmread(BytesIO(httpx.get(url, headers={"Accept": "application/dicom"}, timeout=60).content))
    assert native.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    np.testing.assert_array_equal(native.pixel_array, colours)
    frame = httpx.get(f"{url}/frames/1", headers={"Accept": "application/octet-stream"}, timeout=60).content
    assert frame == (np.moveaxis(colours, -1, 0) if said else colours).tobytes()
    picture = httpx.get(f"{url}/rendered", headers={"Accept": "image/png"}, timeout=60).content
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(picture))), colours)


def test_float_pixels_have_no_compressed_form(node: Server) -> None:
    """406 for deflated frames, which are of PixelData: as that they would be whole numbers."""
    image = small("1.2.9.4", SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", BitsAllocated=32)
    del image.BitsStored, image.HighBit, image.PixelRepresentation, image.PlanarConfiguration
    image.FloatPixelData = np.ones(40 * 35, "<f4").tobytes()
    url = stored(node, image)
    assert httpx.get(url, headers={"Accept": "application/dicom"}).status_code == 200
    accept = f"application/dicom; transfer-syntax={DEFLATED_IMAGE_FRAME}"
    assert httpx.get(url, headers={"Accept": accept}, timeout=60).status_code == 406


def object_url(node: Server, image: Dataset) -> str:
    """Where an image is had."""
    uids = image.StudyInstanceUID, image.SeriesInstanceUID, image.SOPInstanceUID
    return "{}/studies/{}/series/{}/instances/{}".format(node.dicomweb, *uids)


@pytest.mark.parametrize(
    ("path", "accept", "status"),
    [
        ("/studies/1.2.3.99", "*/*", 404),
        ("/studies/1.2.3.99/metadata", "*/*", 404),
        ("/studies/{study}/series/9", "*/*", 404),
        ("/studies/..%2f..%2fetc/metadata", "*/*", 404),
        ("/studies/{study}", "text/html", 406),
        ("/studies/{study}", "application/dicom; transfer-syntax=1.2.840.10008.1.2.4.50", 406),
        ("/studies/{study}/metadata", "text/html", 406),
        ("/studies?limit=x", "*/*", 400),
        ("/studies?PatientID=nobody", "*/*", 204),
        ("/nothing", "*/*", 404),
    ],
)
def test_answers_that_are_no_objects(node: Server, phantom: Phantom, path: str, accept: str, status: int) -> None:
    """Nothing held, nothing acceptable, nothing found or nonsense: each has its status, and a reason where it is an error."""
    study = dcmread(phantom.folder / "0001.dcm", stop_before_pixels=True).StudyInstanceUID
    response = httpx.get(node.dicomweb + path.format(study=study), headers={"Accept": accept})
    assert response.status_code == status
    assert bool(response.text.strip()) == (status >= 400)


def test_search_says_which_keys_it_ignored(node: Server) -> None:
    """A key that is not indexed is named in a warning, not silently dropped."""
    response = httpx.get(f"{node.dicomweb}/studies", params={"PatientAge": "012Y"})
    assert response.status_code == 200
    assert "PatientAge" in response.headers["warning"]
