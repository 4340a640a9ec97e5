"""Pictures by WADO-RS: of images and segmentations, as a browser and the public client ask for them."""

from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import highdicom as hd
import httpx
import numpy as np
import pytest
from dicomweb_client.api import DICOMwebClient
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.sr.codedict import codes
from pydicom.uid import (
    MPEG4HP41,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    SecondaryCaptureImageStorage,
)

from segnode.seg.codecs import jpeg_ls
from segnode.testing.part10 import encode_part10
from segnode.testing.processes import descendants, peak, post_of
from segnode.testing.servers import Server, segnode

STUDY, CT, OTHERS = "1.2.3.1", "1.2.3.2", "1.2.3.3"
ROWS, COLUMNS = 13, 9
RED, GREEN, BLUE = (200, 40, 30), (20, 180, 60), (10, 20, 250)
NEAR = 6  # what highdicom's way to CIELab and ours from it differ
PNG = {"Accept": "image/png"}
RNG = np.random.default_rng(5)
STORED = RNG.integers(600, 1600, (5, ROWS, COLUMNS), np.int16)
COLOURS = RNG.integers(0, 256, (ROWS, COLUMNS, 3), np.uint8)
GREY = RNG.integers(10, 4000, (ROWS, COLUMNS), np.uint16)
MASKS = np.zeros((5, ROWS, COLUMNS, 2), np.uint8)  # two segments, in three of five slices
MASKS[1:4, 2:8, 1:6, 0] = 1
MASKS[2:4, 9:12, 3:8, 1] = 1
FRACTIONS = np.zeros((5, ROWS, COLUMNS), np.float32)
FRACTIONS[2] = np.linspace(0, 1, ROWS * COLUMNS).reshape(ROWS, COLUMNS)
LABELS = MASKS[..., 0] + 2 * MASKS[..., 1]


def image(uid: str, values: np.ndarray, photometric: str = "MONOCHROME2", **attributes: object) -> Dataset:
    """An image of these stored values, (rows, columns) or with samples behind."""
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = SecondaryCaptureImageStorage, uid
    made.StudyInstanceUID, made.SeriesInstanceUID, made.Modality = STUDY, OTHERS, "OT"
    made.SamplesPerPixel, made.PhotometricInterpretation = values.shape[2] if values.ndim == 3 else 1, photometric
    made.Rows, made.Columns = values.shape[:2]
    bits = values.dtype.itemsize * 8
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = bits, bits, bits - 1, values.dtype.kind == "i"
    if made.SamplesPerPixel > 1:
        made.PlanarConfiguration = 0
    if values.dtype.kind == "f":
        made.FloatPixelData = values.astype("<f4").tobytes()
    else:
        made.PixelData = values.astype(values.dtype.newbyteorder("<")).tobytes()
        made["PixelData"].VR = "OW"
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return made


def ct_slice(number: int) -> Dataset:
    """A slice of a small CT, three millimetres from the next."""
    made = image(f"1.2.3.2.{number + 1}", STORED[number], RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=[40, 300])
    made.SOPClassUID, made.SeriesInstanceUID, made.Modality, made.SeriesNumber = CTImageStorage, CT, "CT", 1
    made.WindowWidth, made.InstanceNumber, made.FrameOfReferenceUID = [400, 1500], 5 - number, "1.2.3.9"
    made.ImagePositionPatient, made.ImageOrientationPatient = [1, 2, 3.0 * number], [1, 0, 0, 0, 1, 0]
    made.PixelSpacing, made.SliceThickness, made.ImageType = [0.5, 0.5], 3, ["ORIGINAL", "PRIMARY", "AXIAL"]
    made.PatientName = made.PatientID = made.PatientBirthDate = made.PatientSex = ""
    made.StudyDate = made.StudyTime = made.StudyID = made.AccessionNumber = made.ReferringPhysicianName = ""
    return made


def segmentation(uid: str, kind: SegmentationTypeValues, pixels: np.ndarray, **more: object) -> Dataset:
    """A segmentation of the CT, by highdicom: two segments, of which the second says no colour."""
    sources = [dcmread(BytesIO(encode_part10(ct_slice(number), ExplicitVRLittleEndian))) for number in range(5)]
    described = [
        SegmentDescription(
            number,
            label,
            codes.SCT.Organ,
            codes.SCT.Liver,
            SegmentAlgorithmTypeValues.MANUAL,
            display_color=hd.color.CIELabColor.from_rgb(*RED) if number == 1 else None,
        )
        for number, label in enumerate(
            ["red", "plain"][: pixels.shape[-1] if pixels.ndim == 4 else pixels.max().astype(int)], 1
        )
    ]
    return hd.seg.Segmentation(
        source_images=sources,
        pixel_array=pixels,
        segmentation_type=kind,
        segment_descriptions=described,
        series_instance_uid="1.2.3.4",
        series_number=2,
        sop_instance_uid=uid,
        instance_number=1,
        manufacturer="m",
        manufacturer_model_name="m",
        software_versions="1",
        device_serial_number="1",
        **more,
    )


def store(server: Server, dataset: Dataset, syntax: str = ExplicitVRLittleEndian) -> None:
    """Have the node hold it."""
    headers = {"Content-Type": "application/dicom"}
    body = encode_part10(dataset, syntax)
    httpx.post(f"{server.dicomweb}/studies", content=body, headers=headers, timeout=60).raise_for_status()


def with_palette(made: Dataset) -> Dataset:
    """A labelmap whose colours are in a palette: green for 1, blue for 2."""
    made.PhotometricInterpretation = "PALETTE COLOR"
    for colour, column in zip(("Red", "Green", "Blue"), np.array([[0, 0, 0], GREEN, BLUE], np.uint8).T, strict=True):
        setattr(made, f"{colour}PaletteColorLookupTableDescriptor", [3, 0, 8])
        setattr(made, f"{colour}PaletteColorLookupTableData", column.tobytes())
    return made


def jpeg(picture: np.ndarray) -> bytes:
    """A codestream of an image in colour."""
    file = BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=95)
    return file.getvalue()


SMOOTH = np.stack([*np.mgrid[0:64:4, 0:64:4], np.full((16, 16), 90)], axis=-1).astype(np.uint8) * 3
NOISE = jpeg_ls.encode(GREY)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A node that holds a CT of five slices, segmentations of it, and images of other kinds."""
    with segnode(tmp_path_factory.mktemp("node"), "models = []\nrules = []", roles=("web",)) as server:
        for number in range(5):
            store(server, ct_slice(number))
        store(server, segmentation("1.2.3.4.1", SegmentationTypeValues.BINARY, MASKS))
        store(server, segmentation("1.2.3.4.2", SegmentationTypeValues.FRACTIONAL, FRACTIONS, max_fractional_value=200))
        store(server, segmentation("1.2.3.4.3", SegmentationTypeValues.LABELMAP, LABELS))
        store(server, with_palette(segmentation("1.2.3.4.4", SegmentationTypeValues.LABELMAP, LABELS)))
        unrelated = segmentation("1.2.3.4.5", SegmentationTypeValues.BINARY, MASKS)
        del unrelated.ReferencedSeriesSequence
        for groups in unrelated.PerFrameFunctionalGroupsSequence:
            del groups.DerivationImageSequence
        store(server, unrelated)
        elsewhere = segmentation("1.2.3.4.6", SegmentationTypeValues.BINARY, MASKS)
        for groups in elsewhere.PerFrameFunctionalGroupsSequence:
            groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID = "1.2.3.77"
        store(server, elsewhere)
        misnumbered = segmentation("1.2.3.4.7", SegmentationTypeValues.BINARY, MASKS)
        for groups in misnumbered.PerFrameFunctionalGroupsSequence:
            groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber = 0
        store(server, misnumbered)
        anywhere = segmentation("1.2.3.4.8", SegmentationTypeValues.BINARY, MASKS)
        for groups in anywhere.PerFrameFunctionalGroupsSequence:
            groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID = "1.13"
            del groups.PlanePositionSequence
        store(server, anywhere)
        store(server, image("1.13", GREY, NumberOfFrames=2, PixelData=GREY.tobytes() * 2))
        padded = {"PixelPaddingValue": int(GREY.max()), "PixelSpacing": [2, 1]}
        store(server, image("1.1", GREY, "MONOCHROME1", **padded))
        store(server, image("1.2", COLOURS, "RGB"))
        red, green, blue = (table.tobytes() for table in COLOURS.reshape(-1, 3).T.copy())
        tables = {
            f"{c}PaletteColorLookupTableData": t for c, t in zip(("Red", "Green", "Blue"), (red, green, blue), strict=True)
        }
        described = {f"{c}PaletteColorLookupTableDescriptor": [ROWS * COLUMNS, 0, 8] for c in ("Red", "Green", "Blue")}
        indices = np.arange(ROWS * COLUMNS, dtype=np.uint8).reshape(ROWS, COLUMNS)
        store(server, image("1.3", indices, "PALETTE COLOR", **described, **tables))
        lossy = image("1.4", SMOOTH, "YBR_FULL_422", PixelData=encapsulate([jpeg(SMOOTH)]))
        lossy["PixelData"].is_undefined_length = True
        store(server, lossy, JPEGBaseline8Bit)
        store(server, image("1.5", np.array([[np.nan, 0.5], [0.25, 0.75]], np.float32)))
        damaged = image("1.6", GREY, PixelData=encapsulate([NOISE[:60]]))
        damaged["PixelData"].is_undefined_length = True
        store(server, damaged, JPEGLSLossless)
        film = image("1.7", GREY, NumberOfFrames=3, PixelData=encapsulate([b"\0" * 64]))
        film["PixelData"].is_undefined_length = True
        store(server, film, MPEG4HP41)
        without = image("1.8", GREY)
        del without.PixelData
        store(server, without)
        store(server, image("1.9", np.zeros((1, 1), np.uint8), NumberOfFrames=1001, PixelData=b"\1" * 1002))
        large = image("1.10", GREY, Rows=20000, Columns=20000, BitsAllocated=8, PixelData=b"\0" * 20000 * 20000)
        store(server, large, DeflatedExplicitVRLittleEndian)
        report = image("1.11", GREY)
        for keyword in ("Rows", "Columns", "PixelData"):
            del report[keyword]
        store(server, report)
        yield server


def url(server: Server, uid: str, resource: str = "rendered") -> str:
    """Where a picture is had."""
    series = {"1.2.3.2": CT, "1.2.3.4": "1.2.3.4"}.get(uid.rpartition(".")[0], OTHERS)
    return f"{server.dicomweb}/studies/{STUDY}/series/{series}/instances/{uid}/{resource}"


def picture(server: Server, uid: str, resource: str = "rendered") -> np.ndarray:
    """The pixels of a PNG."""
    response = httpx.get(url(server, uid, resource), headers=PNG, timeout=60)
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png"), response.text
    return np.asarray(Image.open(BytesIO(response.content)))


def linear(values: np.ndarray, center: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1 for an output of 0 to 255."""
    return np.clip(np.rint(((values - (center - 0.5)) / (width - 1) + 0.5) * 255), 0, 255).astype(np.uint8)


def test_signed_values_whose_sign_is_a_stored_bit(node: Server) -> None:
    """Of 12 bits in 16, compressed without loss: the bits above those are no part of the value, as in native pixels."""
    values = RNG.integers(-2048, 2048, (ROWS, COLUMNS), np.int16)
    codestream = jpeg_ls.encode(values.view(np.uint16) & 0x0FFF)
    signed = image("1.2.3.5.1", values, BitsStored=12, HighBit=11, PixelData=encapsulate([codestream]))
    signed.StudyInstanceUID, signed.SeriesInstanceUID = "1.2.3.5", "1.2.3.5.2"
    signed["PixelData"].is_undefined_length = True
    store(node, signed, JPEGLSLossless)
    where = f"{node.dicomweb}/studies/1.2.3.5/series/1.2.3.5.2/instances/1.2.3.5.1/rendered?window=0,1000,linear"
    shown = np.asarray(Image.open(BytesIO(httpx.get(where, headers=PNG, timeout=60).content)))
    np.testing.assert_array_equal(shown, linear(values.astype(float), 0, 1000))


def spanned(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """From least to greatest."""
    return np.rint((values - low) / (high - low) * 255).astype(np.uint8)


HU = STORED[2].astype(float) - 1024


def test_a_slice_is_shown_by_its_first_window(node: Server) -> None:
    """40/400 in HU: every pixel is the grey that PS3.3 gives it."""
    assert (picture(node, "1.2.3.2.3") == linear(HU, 40, 400)).all()


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ("100,50,linear", linear(HU, 100, 50)),
        ("-10.5,300.25,linear-exact", np.clip(np.rint(((HU + 10.5) / 300.25 + 0.5) * 255), 0, 255)),
        ("60,350,sigmoid", np.rint(255 / (1 + np.exp(-4 * (HU - 60) / 350)))),
        ("0,1,linear", np.where(HU > -0.5, 255, 0)),
    ],
)
def test_a_window_that_is_asked_for(node: Server, window: str, expected: np.ndarray) -> None:
    """It takes the place of that of the object, by its function."""
    assert (picture(node, "1.2.3.2.3", f"rendered?window={window}") == expected).all()


def test_without_a_window_from_least_to_greatest(node: Server) -> None:
    """MONOCHROME1 is inverted; padding does not count, and is black."""
    padded = GREY == GREY.max()
    expected = 255 - spanned(GREY.astype(float), GREY.min(), GREY[~padded].max()).astype(int)
    assert (picture(node, "1.1") == np.where(padded, 0, expected)).all()


def test_floats(node: Server) -> None:
    """Float Pixel Data spans black to white; what is no number is black."""
    assert picture(node, "1.5").tolist() == [[0, 128], [0, 255]]


@pytest.mark.parametrize("uid", ["1.2", "1.3"])
def test_colours_are_those_of_the_image(node: Server, uid: str) -> None:
    """RGB samples, and a palette of an odd number of bytes."""
    assert (picture(node, uid) == COLOURS).all()


def test_colours_of_a_jpeg(node: Server) -> None:
    """YBR becomes RGB: within what JPEG loses."""
    assert np.abs(picture(node, "1.4").astype(int) - SMOOTH).max() < 12


def test_a_binary_frame_is_its_segment(node: Server) -> None:
    """Of frames that do not begin at bytes each is one segment in its colour, to the pixel, and transparent elsewhere."""
    for frame, (segment, plane) in enumerate([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)], 1):
        shown = picture(node, "1.2.3.4.1", f"frames/{frame}/rendered")
        there = MASKS[plane, ..., segment] == 1
        assert (shown[..., 3] == np.where(there, 255, 0)).all()
        assert len(np.unique(shown[there], axis=0)) == 1
        if segment == 0:
            assert np.abs(shown[there][0, :3].astype(int) - RED).max() <= NEAR


def test_a_segmentation_as_one_picture(node: Server) -> None:
    """The plane of its fullest frame, with all its segments."""
    shown = picture(node, "1.2.3.4.1")
    assert ((shown[..., 3] == 255) == (LABELS[2] > 0)).all()
    assert len(np.unique(shown[LABELS[2] > 0], axis=0)) == 2


def test_a_fraction_is_that_opaque(node: Server) -> None:
    """FRACTIONAL: the stored value of its maximum."""
    stored = np.rint(FRACTIONS[2] * 200)
    assert np.abs(picture(node, "1.2.3.4.2")[..., 3] - np.rint(stored * 255 / 200)).max() <= 1


def test_a_labelmap_in_its_colours(node: Server) -> None:
    """Each value in the colour of its segment; a palette says them where there is one."""
    shown = picture(node, "1.2.3.4.3", "frames/2/rendered")
    assert ((shown[..., 3] == 255) == (LABELS[2] > 0)).all()
    assert np.abs(shown[LABELS[2] == 1][:, :3].astype(int) - RED).max() <= NEAR
    of_palette = picture(node, "1.2.3.4.4", "frames/2/rendered")
    assert (of_palette[LABELS[2] == 1] == (*GREEN, 255)).all()
    assert (of_palette[LABELS[2] == 2] == (*BLUE, 255)).all()
    assert (of_palette[LABELS[2] == 0] == 0).all()


def test_black_where_nothing_can_be_transparent(node: Server) -> None:
    """JPEG and GIF of a segmentation have a black background."""
    for media_type in ("image/jpeg", "image/gif"):
        response = httpx.get(url(node, "1.2.3.4.3"), headers={"Accept": media_type})
        shown = np.asarray(Image.open(BytesIO(response.content)).convert("RGB")).astype(int)
        assert shown[LABELS[2] == 0].max() < 60
        assert np.abs(shown[4, 3] - RED).max() < 30


@pytest.mark.parametrize("uid", ["1.2.3.4.1", "1.2.3.4.3", "1.2.3.4.5"])
def test_segments_over_the_image_that_they_were_drawn_on(node: Server, uid: str) -> None:
    """All of the plane: grey beside them, half seen through within, their outlines full; found by reference, or by place."""
    shown = picture(node, uid, "frames/2/rendered?overlay=source").astype(int)
    labels, below = LABELS[2], linear(HU, 40, 400).astype(int)
    assert (shown[labels == 0] == below[labels == 0][:, np.newaxis]).all()
    around = np.pad(labels, 1, mode="edge")
    beside = np.stack([around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:]])
    outline = (beside != labels).any(axis=0)
    assert np.abs(shown[(labels == 1) & outline] - RED).max() <= NEAR
    within = (labels == 1) & ~outline
    assert within.any()
    assert np.abs(shown[within] - (below[within][:, np.newaxis] + RED) / 2).max() <= NEAR
    assert (shown[(labels == 2) & outline].std(axis=0) == 0).all()


def store_samples(server: Server, sample: Callable[[str], Path], *names: str) -> list[Dataset]:
    """Have the node hold files of highdicom; what they hold."""
    files = [sample(f"highdicom/{name}") for name in names]
    for file in files:
        kind = {"Content-Type": "application/dicom"}
        httpx.post(f"{server.dicomweb}/studies", content=file.read_bytes(), headers=kind).raise_for_status()
    return [dcmread(file) for file in files]


@pytest.mark.parametrize(
    ("name", "frames"), [("seg_image_sm_control.dcm", (0, 7)), ("seg_image_sm_control_labelmap.dcm", (0, 7, 19))]
)
def test_tiles_of_a_slide_are_drawn_on_their_tiles(
    node: Server, sample: Callable[[str], Path], name: str, frames: tuple[int, ...]
) -> None:
    """A frame of a total pixel matrix, over the frame of the image in that place, which is in colour."""
    slide, segments = store_samples(node, sample, "sm_image_control.dcm", name)
    tiles = [groups.PlanePositionSlideSequence[0] for groups in segments.PerFrameFunctionalGroupsSequence]
    places = [(t.RowPositionInTotalImagePixelMatrix, t.ColumnPositionInTotalImagePixelMatrix) for t in tiles]
    across = -(-slide.TotalPixelMatrixColumns // slide.Columns)
    below, masks = slide.pixel_array, segments.pixel_array
    series = f"{node.dicomweb}/studies/{segments.StudyInstanceUID}/series/{segments.SeriesInstanceUID}"
    for frame in frames:
        row, column = places[frame]
        tile = below[(row - 1) // slide.Rows * across + (column - 1) // slide.Columns]
        resource = f"instances/{segments.SOPInstanceUID}/frames/{frame + 1}/rendered?overlay=source"
        response = httpx.get(f"{series}/{resource}", headers=PNG)
        assert response.status_code == 200, response.text
        shown = np.asarray(Image.open(BytesIO(response.content)))
        beside = ~masks[[place == places[frame] for place in places]].any(axis=0)
        assert (shown[beside] == tile[beside]).all()
        assert beside.all() or (shown[~beside] != tile[~beside]).any()


def test_a_tile_that_lies_elsewhere_than_what_it_refers_to(node: Server, sample: Callable[[str], Path]) -> None:
    """Rows and columns of this file are exchanged: nobody knows which is right, and it is drawn on neither."""
    _, segments = store_samples(node, sample, "sm_image_control.dcm", "seg_image_sm_control.dcm")
    place = segments.PerFrameFunctionalGroupsSequence[19].PlanePositionSlideSequence[0]
    assert (place.RowPositionInTotalImagePixelMatrix, place.ColumnPositionInTotalImagePixelMatrix) == (31, 21)
    source = segments.PerFrameFunctionalGroupsSequence[19].DerivationImageSequence[0].SourceImageSequence[0]
    assert source.ReferencedFrameNumber == 14  # which lies at row 21, column 31
    series = f"{node.dicomweb}/studies/{segments.StudyInstanceUID}/series/{segments.SeriesInstanceUID}"
    response = httpx.get(f"{series}/instances/{segments.SOPInstanceUID}/frames/20/rendered?overlay=source", headers=PNG)
    assert (response.status_code, "lies in the plane" in response.text) == (404, True)


def test_a_window_under_segments(node: Server) -> None:
    """It is applied to the image."""
    shown = picture(node, "1.2.3.4.3", "frames/2/rendered?overlay=source&window=100,50,linear")
    assert (shown[LABELS[2] == 0] == linear(HU, 100, 50)[LABELS[2] == 0][:, np.newaxis]).all()


@pytest.mark.parametrize(
    ("uid", "status", "named"),
    [
        ("1.2.3.4.6", 404, "1.2.3.77"),
        ("1.2.3.4.7", 404, "plane"),
        ("1.2.3.4.8", 404, "plane"),
        ("1.2.3.2.1", 400, "overlay"),
    ],
)
def test_overlays_that_cannot_be_had(node: Server, uid: str, status: int, named: str) -> None:
    """Not held, frame 0, one of several frames that may be meant, or no segmentation: each has its status, and is named."""
    response = httpx.get(url(node, uid, "rendered?overlay=source"))
    assert response.status_code == status
    assert named in response.text


CROPPED = linear(HU, 40, 400)[2:8, 1:5]


@pytest.mark.parametrize(
    ("viewport", "expected"),
    [
        ("4,6,1,2,4,6", CROPPED),
        ("4,6,-1,-2,4,6", CROPPED),
        ("4,6,1,2,-4,6", CROPPED[:, ::-1]),
        ("4,6,1,2,4,-6", CROPPED[::-1]),
        ("4,6,1,2,-4,-6", CROPPED[::-1, ::-1]),
        ("9,11,,2", linear(HU, 40, 400)[2:]),
        ("9,13", linear(HU, 40, 400)),
    ],
)
def test_a_region_of_the_image(node: Server, viewport: str, expected: np.ndarray) -> None:
    """It is cut out, and flipped where its width or height is negative; what is left out is up to the edge."""
    assert (picture(node, "1.2.3.2.3", f"rendered?viewport={viewport}") == expected).all()


@pytest.mark.parametrize(
    ("uid", "resource", "size"),
    [
        ("1.2.3.2.3", "rendered?viewport=90,1000", (90, 130)),
        ("1.2.3.2.3", "rendered?viewport=1000,26", (18, 26)),
        ("1.2.3.2.3", "rendered?viewport=8,8,0,0,2,1", (8, 4)),
        ("1.2.3.4.3", "rendered?viewport=18,26", (18, 26)),
        ("1.1", "rendered", (9, 13)),
        ("1.1", "rendered?viewport=90,260", (90, 260)),
        ("1.2.3.2.3", "thumbnail", (9, 13)),
        ("1.2.3.2.3", "thumbnail?viewport=90,1000", (90, 130)),
        ("1.2.3.2.3", "thumbnail?viewport=4,4", (3, 4)),
    ],
)
def test_as_large_as_fits_and_not_distorted(node: Server, uid: str, resource: str, size: tuple[int, int]) -> None:
    """Also where pixels are twice as high as wide; a thumbnail is not enlarged unless that is asked for."""
    response = httpx.get(url(node, uid, resource))
    assert Image.open(BytesIO(response.content)).size == size


def test_segments_are_enlarged_without_new_colours(node: Server) -> None:
    """Between a segment and nothing there is no other colour."""
    shown = picture(node, "1.2.3.4.3", "frames/2/rendered?viewport=36,52")
    assert (shown == np.repeat(np.repeat(picture(node, "1.2.3.4.3", "frames/2/rendered"), 4, axis=0), 4, axis=1)).all()


def test_a_thumbnail_is_the_middle_image(node: Server) -> None:
    """By InstanceNumber, which here runs against the slices; of a study, of the series with most images."""
    middle = picture(node, "1.2.3.2.3")
    for above in (f"{node.dicomweb}/studies/{STUDY}/series/{CT}", f"{node.dicomweb}/studies/{STUDY}"):
        response = httpx.get(f"{above}/thumbnail", headers=PNG)
        shown = np.asarray(Image.open(BytesIO(response.content)))
        assert response.status_code == 200
        if above.endswith(CT):
            assert (shown == middle).all()


@pytest.mark.parametrize(
    ("accept", "status", "kind"),
    [
        ("", 200, "image/jpeg"),
        ("*/*", 200, "image/jpeg"),
        ("image/*", 200, "image/jpeg"),
        ("image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5", 200, "image/png"),
        ("image/jpeg;q=0.2, image/png;q=0.7", 200, "image/png"),
        ("image/gif", 200, "image/gif"),
        ('multipart/related; type="image/png"', 200, 'multipart/related; type="image/png"'),
        ("image/jpeg;q=0, image/jp2", 406, ""),
        ("application/dicom", 406, ""),
        ("text/html", 406, ""),
    ],
)
def test_what_is_acceptable(node: Server, accept: str, status: int, kind: str) -> None:
    """JPEG unless another is preferred; what cannot be had is 406, which says what can."""
    response = httpx.get(url(node, "1.2.3.2.3"), headers={"Accept": accept} if accept else {})
    assert response.status_code == status
    assert response.headers["content-type"].startswith(kind) if kind else "image/png" in response.text


def test_the_query_parameter_outranks_the_header(node: Server) -> None:
    """As everywhere else."""
    response = httpx.get(url(node, "1.2.3.2.3", "rendered?accept=image/png"), headers={"Accept": "image/jpeg"})
    assert response.headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    "query",
    [
        *(f"quality={value}" for value in ("", "0", "101", "9.5", "best", "-1", "٣", "9" * 40)),
        *(f"viewport={value}" for value in ("", "10", "0,10", "10,-5", "a,b", "9,9,0,0,1,1,1", "99999,10", "9,9,x", "9,9,nan")),
        *(f"viewport=9,9,{value}" for value in (",,0", "9", "0,13", "inf", "1_0")),
        *(f"window={value}" for value in ("", "40,400", "40,400,log", "40,0,linear", "40,0.5,linear", "40,-1,sigmoid")),
        *(f"window={value}" for value in ("nan,400,linear", "40,inf,linear", ",400,linear", "40,400,linear,1")),
        "annotation=",
        "annotation=everything",
        "iccprofile=",
        "iccprofile=srgb",
        "overlay=",
        "overlay=1.2.3",
    ],
)
def test_parameters_that_mean_nothing(node: Server, query: str) -> None:
    """Each is a bad request that says why, and no picture of something else."""
    response = httpx.get(url(node, "1.2.3.2.3", f"rendered?{query}"))
    assert (response.status_code, bool(response.text.strip())) == (400, True)


def test_a_thumbnail_is_no_region(node: Server) -> None:
    """Its viewport has a width and a height (PS3.18 8.3.5.1.3)."""
    assert httpx.get(url(node, "1.2.3.2.3", "thumbnail?viewport=9,9,1,1")).status_code == 400


def test_annotations_are_not_drawn_which_is_said(node: Server) -> None:
    """The same picture, with the Warning of PS3.18 8.3.5.1.1."""
    response = httpx.get(url(node, "1.2.3.2.3", "rendered?annotation=patient,technique"), headers=PNG)
    said = "The following annotation values are not supported: patient, technique"
    assert response.headers["warning"] == f"299 {node.dicomweb}: {said}"
    assert (np.asarray(Image.open(BytesIO(response.content))) == picture(node, "1.2.3.2.3")).all()


def test_quality_is_that_of_the_jpeg(node: Server) -> None:
    """The less, the smaller."""
    sizes = [len(httpx.get(url(node, "1.2", f"rendered?quality={quality}")).content) for quality in (1, 50, 100)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("resource", ["rendered", "thumbnail", "frames/1/rendered"])
def test_a_picture_that_the_client_has(node: Server, resource: str) -> None:
    """It is not sent again (304); in another form, or shown in another way, it is another."""
    tag = httpx.get(url(node, "1.1", resource), headers=PNG).headers["etag"]
    again = httpx.get(url(node, "1.1", resource), headers=PNG | {"If-None-Match": tag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert httpx.get(url(node, "1.1", resource), headers={"If-None-Match": tag}).status_code == 200
    smaller = httpx.get(url(node, "1.1", f"{resource}?viewport=5,5"), headers=PNG | {"If-None-Match": tag})
    assert (smaller.status_code, smaller.headers["etag"] == tag) == (200, False)


def test_a_picture_over_another_object_has_no_tag(node: Server) -> None:
    """That one may be deleted, or another one come."""
    assert "etag" not in httpx.get(url(node, "1.2.3.4.1", "frames/2/rendered?overlay=source")).headers


def test_pictures_of_a_series(node: Server) -> None:
    """One of each image, by InstanceNumber, each with the place where it can be had by itself."""
    accept = {"Accept": 'multipart/related; type="image/png"'}
    response = httpx.get(f"{node.dicomweb}/studies/{STUDY}/series/{CT}/rendered", headers=accept)
    parts = response.content.split(b"Content-Location: ")[1:]
    places = [part.partition(b"\r\n")[0].decode() for part in parts]
    assert places == [url(node, f"1.2.3.2.{number}", "frames/1/rendered") for number in (5, 4, 3, 2, 1)]
    alone = [httpx.get(place, headers=PNG).content for place in places]
    assert all(picture in part for picture, part in zip(alone, parts, strict=True))


@pytest.mark.parametrize(
    ("uid", "resource", "status", "reason"),
    [
        ("1.6", "rendered", 406, "cannot be rendered"),
        ("1.6", "thumbnail", 406, "cannot be rendered"),
        ("1.7", "rendered", 406, "video"),
        ("1.8", "rendered", 404, "no pixel data"),
        ("1.11", "rendered", 404, "no pixel data"),
        ("1.11", "thumbnail", 404, "no pixel data"),
        ("1.10", "rendered", 406, "20000 x 20000"),
        ("1.77", "rendered", 404, "nothing is held"),
        ("1.1", "frames/2/rendered", 404, "frames"),
        ("1.1", "frames/0/rendered", 400, "from 1 on"),
        ("1.1", "frames/x/thumbnail", 400, "numbers"),
        ("1.2.3.4.1", "frames/6/rendered", 404, "frames"),
        ("1.2.3.2.3", "rendered?viewport=9,9,20", 400, "beside the image"),
    ],
)
def test_what_cannot_be_rendered(node: Server, uid: str, resource: str, status: int, reason: str) -> None:
    """Damaged, video, without pixels, too large, not there, or beside it: each has its status and its reason."""
    response = httpx.get(url(node, uid, resource), timeout=60)
    assert response.status_code == status
    assert reason in response.text


def test_a_segmentation_that_is_too_large(node: Server) -> None:
    """It is refused, however often it is asked for."""
    large = segmentation("1.2.3.4.9", SegmentationTypeValues.BINARY, MASKS)
    large.Rows = large.Columns = 9000
    large.NumberOfFrames, large.PerFrameFunctionalGroupsSequence = 1, large.PerFrameFunctionalGroupsSequence[:1]
    large.PixelData = b"\1" * (9000 * 9000 // 8)
    store(node, large)
    for _ in range(2):
        response = httpx.get(url(node, "1.2.3.4.9"), timeout=60)
        assert (response.status_code, "9000 x 9000" in response.text) == (406, True)


def test_too_many_pictures_at_once(node: Server) -> None:
    """They are refused, with what to ask for; one of them is had, and so is that which stands for all."""
    asked = {"Accept": 'multipart/related; type="image/jpeg"'}
    response = httpx.get(url(node, "1.9"), headers=asked)
    assert (response.status_code, "1001 pictures" in response.text) == (413, True)
    listed = ",".join(["1"] * 1001)
    assert httpx.get(url(node, "1.9", f"frames/{listed}/rendered"), headers=asked).status_code == 413
    assert httpx.get(url(node, "1.9", "frames/1001/rendered")).status_code == 200
    assert httpx.get(url(node, "1.9")).status_code == 200


def test_a_large_image_is_not_in_the_memory_of_who_answers(node: Server) -> None:
    """What is read, computed and encoded is so elsewhere: the web process hardly grows."""
    store(node, image("1.12", np.tile(np.arange(3000, dtype=np.uint16), (3000, 1))))
    (web,) = (process for process in descendants(node.process.pid) if post_of(process) == "web-1")
    Path(f"/proc/{web}/clear_refs").write_text("5")  # the peak is counted from now on (proc(5))
    before = peak(web)
    for resource in ("rendered", "thumbnail", "rendered?viewport=500,500"):
        assert httpx.get(url(node, "1.12", resource), timeout=60).status_code == 200
    assert peak(web) - before < 9 << 20  # of 18 MiB


def test_the_public_client(node: Server) -> None:
    """dicomweb-client gets an instance, frames of it, and a series of one image."""
    client = DICOMwebClient(node.dicomweb)
    asked = {"media_types": ("image/png",), "params": {"viewport": "18,26"}}
    assert Image.open(BytesIO(client.retrieve_instance_rendered(STUDY, CT, "1.2.3.2.3", **asked))).size == (18, 26)
    frame = client.retrieve_instance_frames_rendered(STUDY, "1.2.3.4", "1.2.3.4.1", [2], media_types=("image/png",))
    assert (np.asarray(Image.open(BytesIO(frame))) == picture(node, "1.2.3.4.1", "frames/2/rendered")).all()


def test_what_is_served_is_told(node: Server) -> None:
    """OPTIONS names the resources."""
    resources = httpx.options(f"{node.dicomweb}/").json()["application"]["resources"]["resource"]
    paths = {resource["@path"] for resource in resources}
    instance = "studies/{study}/series/{series}/instances/{instance}"
    assert {f"{instance}/frames/{{frames}}/rendered", f"{instance}/thumbnail", "studies/{study}/rendered"} <= paths


def test_no_sample_is_an_error_of_the_server(node: Server, sample: Callable[[str], Path]) -> None:
    """Whatever published files hold, a picture or a reason comes back."""
    answered = 0
    for folder in ("pydicom-data", "highdicom", "dcmqi", "cornerstone"):
        for file in sorted(sample(folder).glob("*.dcm")):
            header = dcmread(file, stop_before_pixels=True)
            kept = httpx.post(
                f"{node.dicomweb}/studies", content=file.read_bytes(), headers={"Content-Type": "application/dicom"}, timeout=60
            )
            if kept.status_code != 200:
                continue
            series = f"{node.dicomweb}/studies/{header.StudyInstanceUID}/series/{header.SeriesInstanceUID}"
            for resource in ("rendered", "thumbnail", "rendered?overlay=source"):
                response = httpx.get(f"{series}/instances/{header.SOPInstanceUID}/{resource}", timeout=60)
                allowed = {200} if "overlay" not in resource else {200, 400, 404}
                assert response.status_code in allowed, (file, resource, response.text)
                answered += 1
    assert answered > 60
