"""Constructing segmentations of every type and placement: read back by our reader and by highdicom, and nothing to find."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import highdicom
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import ComputedRadiographyImageStorage

from segnode.dicom.codes import Code
from segnode.dicom.uids import derived_uid
from segnode.errors import LabelError, NotAVolume, OverlappingSegments, SegnodeError
from segnode.seg import arrays
from segnode.seg.check import check
from segnode.seg.codecs import CODECS
from segnode.seg.colour import recommended_cielab
from segnode.seg.diff import diff
from segnode.seg.read import read_segmentation
from segnode.seg.segmentation import DescribedSegment, Segmentation
from segnode.seg.write import Identity, StoredAs, write_segmentation
from segnode.seg.write.placement import Placement, at_positions, on_frames, on_grid, on_images, on_slide
from segnode.seg.write.pyramid import write_pyramid

ORGAN, LIVER = Code("SCT", "123037004", "Anatomical structure"), Code("SCT", "10200004", "Liver")
IDENTITY = Identity(
    "2.25.1",
    "2.25.2",
    "made by a test",
    datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    "1234567890",
    "0.0.1",
    manufacturer="Foo Corp.",
    manufacturer_model_name="Multi-Organ Segmentation Algorithm",
    series_number=1,
)
TYPES = ("BINARY", "FRACTIONAL", "LABELMAP")


def manual(number: int, label: str = "liver", **more: object) -> DescribedSegment:
    """A segment that somebody drew."""
    return replace(DescribedSegment(number, label, ORGAN, LIVER, algorithm_type="MANUAL"), **more)


def series(count: int = 4, rows: int = 9, columns: int = 11) -> list[Dataset]:
    """Headers of a CT series in slice order, 2.5 mm apart."""
    images = []
    for index in range(count):
        image = Dataset()
        image.SOPClassUID, image.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", derived_uid("image", str(index))
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = "1.2.3", "1.2.4", "1.2.5"
        image.PatientName, image.PatientID, image.Rows, image.Columns = "A^B", "1", rows, columns
        image.PixelSpacing, image.SliceThickness = ["0.7", "0.9"], "2.5"
        image.ImageOrientationPatient, image.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-5, 7.25, 2.5 * index]
        images.append(image)
    return images


def assert_ascending(dataset: Dataset) -> None:
    """Elements are in the order of their tags, in every item (PS3.5 7.1); readers give up where they are not."""
    tags = list(dataset._dict)
    assert tags == sorted(tags)
    for element in dataset:
        for item in element.value if element.VR == "SQ" else ():
            assert_ascending(item)


def written(
    pixels: np.ndarray, placement: Placement, segments: Sequence[DescribedSegment], stored_as: StoredAs
) -> tuple[Segmentation, highdicom.seg.Segmentation]:
    """What our reader and highdicom read of a new SEG, which has nothing wrong."""
    part10 = write_segmentation(pixels, placement, segments, stored_as, IDENTITY)
    dataset = dcmread(BytesIO(part10))
    assert_ascending(dataset)
    assert check(dataset) == ()
    return read_segmentation(part10), highdicom.seg.Segmentation.from_dataset(dcmread(BytesIO(part10)))


@pytest.mark.parametrize("kind", TYPES)
def test_one_image_and_one_segment(kind) -> None:
    """A mask of one plane needs no axis of planes."""
    image = dcmread(get_testdata_file("CT_small.dcm"))
    mask = np.zeros((128, 128), np.uint8)
    mask[10:20, 10:20] = 1
    ours, theirs = written(mask, on_images([image]), [manual(1)], StoredAs(kind))
    np.testing.assert_array_equal(arrays.stacked(ours)[0, :, :, 0], mask)
    found = theirs.get_pixels_by_source_instance([image.SOPInstanceUID])
    np.testing.assert_array_equal(found[0, :, :, 0], mask)
    assert (ours.header.Manufacturer, ours.header.SeriesNumber) == ("Foo Corp.", 1)


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_a_series_in_any_order(kind) -> None:
    """Each plane lies on its image, in whatever order the images are given; frames follow the normal."""
    images = series()
    images = [images[index] for index in (2, 0, 3, 1)]
    labels = np.zeros((4, 9, 11), np.uint8)
    for index in range(4):
        labels[index, index : index + 3, 4] = 1 + index % 2
    ours, theirs = written(labels, on_images(images), [manual(1), manual(2, "bone")], StoredAs(kind, omit_empty_frames=False))
    uids = [image.SOPInstanceUID for image in images]
    np.testing.assert_array_equal(theirs.get_pixels_by_source_instance(uids, combine_segments=True), labels)
    np.testing.assert_array_equal(arrays.volume(ours).array, labels[[1, 3, 0, 2]])
    assert ours.header.DimensionOrganizationType == "3D"


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_frames_of_an_enhanced_image(kind, sample: Callable[[str], Path]) -> None:
    """Frames refer to frames, and lie where these do."""
    image = dcmread(sample("pydicom-data/eCT_Supplemental.dcm"), stop_before_pixels=True)
    mask = np.zeros((int(image.NumberOfFrames), image.Rows, image.Columns), np.bool_)
    mask[0, 3:9, 3:20] = mask[1, 5:7, 100:120] = True
    ours, theirs = written(mask, on_frames(image), [manual(1)], StoredAs(kind, "rle" if kind == "LABELMAP" else "native"))
    found = theirs.get_pixels_by_source_frame(image.SOPInstanceUID, [1, 2], combine_segments=True)
    np.testing.assert_array_equal(found, mask)
    np.testing.assert_array_equal(
        arrays.labelmap(ours, None, arrays.by_source_frames(ours, image.SOPInstanceUID, [1, 2])), mask
    )


@pytest.mark.parametrize("kind", TYPES)
def test_an_image_without_a_position(kind) -> None:
    """A radiograph has no frame of reference: the SEG has none, and its frames name the image."""
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = ComputedRadiographyImageStorage, "1.2.3.1"
    image.StudyInstanceUID, image.SeriesInstanceUID, image.Rows, image.Columns = "1.2.3", "1.2.4", 12, 13
    mask = np.zeros((1, 12, 13, 2), np.uint8)
    mask[0, 3:5, 4, 0] = mask[0, 7, 2:9, 1] = 1
    ours, theirs = written(mask, on_images([image]), [manual(1), manual(2, "bone")], StoredAs(kind))
    assert "FrameOfReferenceUID" not in ours.header
    np.testing.assert_array_equal(arrays.stacked(ours), mask)
    np.testing.assert_array_equal(theirs.get_pixels_by_source_instance(["1.2.3.1"]), mask)


def stacked_segments() -> np.ndarray:
    """Two segments that do not overlap."""
    mask = np.zeros((4, 9, 11, 2), np.uint8)
    mask[1:3, 2:5, 3:7, 0] = mask[2:, 6:8, 1:9, 1] = 1
    return mask


@pytest.mark.parametrize("kind", TYPES)
def test_stacked_segments_and_labels_say_the_same(kind) -> None:
    """Either form of the pixels can be stored as each type."""
    stacked = stacked_segments()
    labels = stacked[..., 0] + 2 * stacked[..., 1]
    images, segments = on_images(series()), [manual(1), manual(2, "bone")]
    assert write_segmentation(stacked, images, segments, StoredAs(kind), IDENTITY) == write_segmentation(
        labels, images, segments, StoredAs(kind), IDENTITY
    )
    ours, _ = written(stacked, images, segments, StoredAs(kind))
    assert ours.header.SegmentsOverlap == "NO"
    np.testing.assert_array_equal(arrays.stacked(ours), stacked[1:])


def test_overlapping_segments_are_binary_only() -> None:
    """Segments that share pixels are said to overlap, and are no labelmap."""
    stacked = stacked_segments()
    stacked[2, 2:8, 3, :] = 1
    ours, theirs = written(stacked, on_images(series()), [manual(1), manual(2)], StoredAs("BINARY"))
    assert ours.header.SegmentsOverlap == "YES"
    np.testing.assert_array_equal(theirs.get_volume().array.sum(), stacked.sum())
    with pytest.raises(OverlappingSegments, match="1 and 2"):
        write_segmentation(stacked, on_images(series()), [manual(1), manual(2)], StoredAs("LABELMAP"), IDENTITY)


@pytest.mark.parametrize(("fractional_type", "maximum"), [("PROBABILITY", 255), ("OCCUPANCY", 100)])
def test_probabilities(fractional_type, maximum) -> None:
    """Values from 0 to 1 come back within half a step; one segment needs no axis of segments."""
    mask = np.zeros((4, 9, 11))
    mask[1, 2:5, 3:6], mask[2, 6:8, 1:9], mask[3] = 0.5, 0.75, np.linspace(0, 1, 99).reshape(9, 11)
    stored_as = StoredAs("FRACTIONAL", "jpeg-ls", True, fractional_type, maximum)
    ours, theirs = written(mask, on_images(series()), [manual(1)], stored_as)
    assert ours.header.SegmentationFractionalType == fractional_type
    np.testing.assert_allclose(arrays.stacked(ours)[..., 0], mask[1:], atol=0.5 / maximum + 1e-6)
    np.testing.assert_allclose(
        np.sort(theirs.get_volume().array[..., 0], None), np.sort(mask[1:], None), atol=0.5 / maximum + 1e-6
    )


@pytest.mark.parametrize("kind", TYPES)
def test_a_grid_of_its_own(kind) -> None:
    """A volume need not lie on the images: it has its affine, and its frames were made from all of them."""
    angle = 0.3
    affine = np.eye(4)
    affine[:3, 0] = 4 * np.array([0, 0, 1])
    affine[:3, 1] = 1.5 * np.array([-np.sin(angle), np.cos(angle), 0])
    affine[:3, 2] = 1.25 * np.array([np.cos(angle), np.sin(angle), 0])
    affine[:3, 3] = 10, 20, 30
    mask = np.zeros((3, 20, 30), np.uint8)
    mask[0, 5:6, 5:16] = mask[2, 7:9, 3] = 1
    ours, theirs = written(mask, on_grid(series(), affine, 3), [manual(1)], StoredAs(kind, omit_empty_frames=False))
    assert {source.sop_instance_uid for source in ours.table.sources[0]} == {i.SOPInstanceUID for i in series()}
    if kind != "FRACTIONAL":
        found = arrays.volume(ours)
        np.testing.assert_array_equal(found.array, mask)
        np.testing.assert_allclose(found.affine, affine, atol=1e-9)
        volume = theirs.get_volume(combine_segments=True)
        grid = highdicom.Volume(
            mask, affine, coordinate_system="PATIENT", frame_of_reference_uid=volume.frame_of_reference_uid
        ).match_geometry(volume)
        np.testing.assert_array_equal(volume.array, grid.array)
    preserved = ours.header.SharedFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    assert preserved.SpatialLocationsPreserved == "NO"


def test_planes_at_positions() -> None:
    """Positions, orientation and spacing of planes are what is given, or the images'."""
    mask = np.zeros((2, 30, 20), np.uint8)
    mask[0, 5:16, 5:9] = mask[1, 2, 3] = 1
    positions = [[100.0, 50.0, -50.0], [100.0, 50.0, -48.0]]
    turned = {"orientation": [0.0, 1.0, 0.0, -1.0, 0.0, 0.0], "spacing": [2.0, 2.5], "slice_thickness": 2.0}
    ours, _ = written(mask, at_positions(series(), positions, **turned), [manual(1)], StoredAs("BINARY"))
    assert ours.table.positions.tolist() == positions
    assert (ours.table.orientations, ours.table.spacings) == ((tuple(turned["orientation"]),), ((2.0, 2.5),))
    ours, _ = written(mask, at_positions(series(), positions), [manual(1)], StoredAs("LABELMAP"))
    assert (ours.table.orientations, ours.table.spacings) == (((1, 0, 0, 0, 1, 0),), ((0.7, 0.9),))


@pytest.fixture
def slide() -> Dataset:
    """The header of a slide image: 25 tiles of 10 x 10 of a matrix of 50 x 50 pixels."""
    image, measures, origin, shared = Dataset(), Dataset(), Dataset(), Dataset()
    image.SOPClassUID, image.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.77.1.6", "1.2.3.9"
    image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = "1.2.3", "1.2.4", "1.2.5"
    image.Rows, image.Columns, image.NumberOfFrames, image.ContainerIdentifier = 10, 10, 25, "S1"
    image.TotalPixelMatrixRows = image.TotalPixelMatrixColumns = 50
    image.ImageOrientationSlide, image.DimensionOrganizationType = [0, -1, 0, -1, 0, 0], "TILED_FULL"
    origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = "20.5", "40"
    measures.PixelSpacing, measures.SliceThickness = ["0.0005", "0.0005"], "0.001"
    image.TotalPixelMatrixOriginSequence, shared.PixelMeasuresSequence = [origin], [measures]
    image.SharedFunctionalGroupsSequence = [shared]
    return image


def matrix() -> np.ndarray:
    """A mask of a total pixel matrix."""
    mask = np.zeros((50, 50), np.uint8)
    mask[38:43, 5:41] = 1
    return mask


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("tile_size", [None, (13, 17), (64, 64)])
def test_a_total_pixel_matrix(slide: Dataset, kind, full: bool, tile_size) -> None:
    """It is cut into tiles of the image's size or another; those that are empty are left out, unless all are to be there."""
    ours, theirs = written(matrix(), on_slide(slide, tile_size=tile_size, full=full), [manual(1)], StoredAs(kind))
    np.testing.assert_array_equal(arrays.total_pixel_matrix(ours), matrix())
    np.testing.assert_array_equal(theirs.get_total_pixel_matrix(combine_segments=True), matrix())
    assert ours.header.DimensionOrganizationType == ("TILED_FULL" if full else "TILED_SPARSE")
    assert ours.header.ContainerIdentifier == "S1"
    if tile_size is None:
        assert len(ours.frames) == (25 if full else 10)
        if not full:
            assert ours.table.sources[0][0].frame_numbers == (16,)
            # Row 31, column 1 lies 30 pixels along the column cosines, which point to -X.
            np.testing.assert_allclose(ours.table.positions[0], (20.5 - 30 * 0.0005, 40, 0))


@pytest.mark.parametrize(("tile_size", "preserved"), [(None, "YES"), ((13, 17), "NO")])
def test_full_tiles_share_what_they_were_made_from(slide: Dataset, tile_size, preserved: str) -> None:
    """They have no items of their own that could say it, and without it no common instance reference (PS3.3 A.51.3)."""
    ours, _ = written(matrix(), on_slide(slide, tile_size=tile_size, full=True), [manual(1)], StoredAs("BINARY"))
    (source,) = ours.header.SharedFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence
    assert (source.ReferencedSOPInstanceUID, source.SpatialLocationsPreserved) == (slide.SOPInstanceUID, preserved)


def test_tiles_one_by_one(slide: Dataset) -> None:
    """Frames of the slide image are placed like any frames."""
    tiles = np.zeros((25, 10, 10), np.uint8)
    tiles[7, 2:5, 3:9] = 1
    ours, theirs = written(tiles, on_frames(slide), [manual(1)], StoredAs("BINARY"))
    whole = np.zeros((50, 50), np.uint8)
    whole[12:15, 23:29] = 1
    np.testing.assert_array_equal(arrays.total_pixel_matrix(ours), whole)
    np.testing.assert_array_equal(theirs.get_total_pixel_matrix(combine_segments=True), whole)


def test_a_matrix_of_another_resolution(slide: Dataset) -> None:
    """A coarser matrix covers the same area; its first pixel may be put elsewhere."""
    mask = np.ones((25, 10), np.uint8)
    ours, _ = written(mask, on_slide(slide, (25, 10), origin=(1.5, 2)), [manual(1)], StoredAs("LABELMAP"))
    assert ours.table.spacings == ((0.001, 0.0025),)
    assert ours.header.TotalPixelMatrixOriginSequence[0].XOffsetInSlideCoordinateSystem == 1.5


@pytest.mark.parametrize("kind", TYPES)
def test_a_pyramid(slide: Dataset, kind) -> None:
    """Levels share the pyramid, the series and the area, and become coarser."""
    mask = matrix().astype(float) / 2 if kind == "FRACTIONAL" else matrix()
    levels = [
        dcmread(BytesIO(part10))
        for part10 in write_pyramid([mask], [slide], [manual(1)], StoredAs(kind), IDENTITY, factors=[2, 4], label="all")
    ]
    assert all(check(level) == () for level in levels)
    assert [level.TotalPixelMatrixRows for level in levels] == [50, 25, 12]
    assert [level.InstanceNumber for level in levels] == [1, 2, 3]
    assert len({level.PyramidUID for level in levels}) == len({level.SeriesInstanceUID for level in levels}) == 1
    assert len({level.SOPInstanceUID for level in levels}) == 3


def test_a_pyramid_of_given_levels(slide: Dataset) -> None:
    """Levels may be given, and images may be levels: then the finest matrix is enough."""
    coarse = deepcopy(slide)
    coarse.SOPInstanceUID, coarse.TotalPixelMatrixRows, coarse.TotalPixelMatrixColumns, coarse.NumberOfFrames = (
        "1.2.9",
        20,
        20,
        4,
    )
    given = [matrix(), matrix()[::2, ::2]]
    sizes = [
        [dcmread(BytesIO(p)).TotalPixelMatrixRows for p in write_pyramid(m, i, [manual(1)], StoredAs(), IDENTITY)]
        for m, i in (
            (given, [slide]),
            ([matrix()], [slide, coarse]),
            ([matrix(), np.ones((20, 20), np.uint8)], [slide, coarse]),
        )
    ]
    assert sizes == [[50, 25], [50, 20], [50, 20]]
    for wrong in ({"factors": [2, 2]}, {"factors": [0.5]}):
        with pytest.raises(LabelError):
            write_pyramid([matrix()], [slide], [manual(1)], StoredAs(), IDENTITY, **wrong)


def test_segments_come_back_as_they_were_described() -> None:
    """One value is written and read: codes, modifiers, regions, algorithm, tracking, colour."""
    code = [Code("99TEST", f"{number}" * 10, f"code {number}") for number in range(8)]
    segments = [
        DescribedSegment(
            1,
            "Łeber",
            code[0],
            code[1],
            modifiers=(code[2],),
            regions=(code[3], code[4]),
            algorithm_type="AUTOMATIC",
            algorithm_name="Auto-Tumor",
            tracking_id="lesion",
            tracking_uid="1.2.3.4",
            cielab=recommended_cielab((200, 10, 30)),
            algorithm_version="v1.0",
            algorithm_family=Code("DCM", "123110", "Artificial Intelligence"),
            region_modifiers=((code[5], code[6]), ()),
            primary_structures=(code[7],),
            description="seen in the arterial phase",
        ),
        manual(2, type=Code("99TEST", "x" * 30, "a long one")),
    ]
    for kind in TYPES:
        ours, _ = written(stacked_segments(), on_images(series()), segments, StoredAs(kind))
        assert list(ours.segments[:2]) == segments
        assert [segment.number for segment in ours.segments] == ([1, 2, 0] if kind == "LABELMAP" else [1, 2])
        assert ours.header.SpecificCharacterSet == "ISO_IR 192"


def test_a_palette() -> None:
    """Colours go into a palette with a profile, and out of the segments (PS3.3 A.51.3)."""
    segments = [manual(3, cielab=recommended_cielab((250, 5, 90))), manual(300)]
    labels = np.zeros((4, 9, 11), np.int64)
    labels[1, 2], labels[2, 3] = 3, 300
    ours, theirs = written(labels, on_images(series()), segments, StoredAs("LABELMAP", palette=True))
    assert ours.header.PhotometricInterpretation == "PALETTE COLOR"
    assert ours.header.ICCProfile[12:20] == b"scnrRGB "
    assert all(segment.cielab is None for segment in ours.segments)
    colours = theirs.get_frame(1, apply_palette_color_lut=True)
    np.testing.assert_allclose(colours[2, 0], (250, 5, 90), atol=2)


def by_codec() -> list[tuple[str, str]]:
    """Every type in every codec that holds it."""
    return [(kind, name) for kind in TYPES for name, codec in CODECS.items() if kind != "BINARY" or 1 in codec.bits]


@pytest.mark.parametrize(("kind", "codec"), by_codec())
@pytest.mark.parametrize("shape", [(9, 11), (70, 3), (1, 1)])
def test_every_codec(kind, codec, shape) -> None:
    """What is written in a codec has the same pixels; highdicom reads all but 1 bit in RLE and deflated frames."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, (4, *shape)).astype(np.uint8)
    labels[:, 0, 0] = 3
    segments = [manual(number) for number in (1, 2, 3)]
    placement = on_images(series(4, *shape))
    stored_as = StoredAs(kind, codec, omit_empty_frames=False)
    part10 = write_segmentation(labels, placement, segments, stored_as, IDENTITY)
    expected = np.stack([labels == number for number in (1, 2, 3)], axis=-1)
    np.testing.assert_array_equal(arrays.stacked(read_segmentation(part10)), expected)
    assert not [finding for finding in check(dcmread(BytesIO(part10))) if finding.severity == "error"]
    if codec not in ("deflate-frames", "htj2k") and (kind, codec) not in (("BINARY", "rle"), ("BINARY", "jpeg-2000")):
        theirs = highdicom.seg.Segmentation.from_dataset(dcmread(BytesIO(part10)))
        uids = [image.SOPInstanceUID for image in placement.images]
        np.testing.assert_array_equal(theirs.get_pixels_by_source_instance(uids), expected)


def wrong(**more: object) -> Callable[[], bytes]:
    """Writing with one thing made wrong."""
    given = {
        "pixels": stacked_segments(),
        "placement": lambda: on_images(series()),
        "segments": [manual(1), manual(2)],
        "stored_as": StoredAs("BINARY"),
    } | more
    return lambda: write_segmentation(given["pixels"], given["placement"](), given["segments"], given["stored_as"], IDENTITY)


def changed(**values: object) -> list[Dataset]:
    """A series whose second image differs."""
    images = series()
    for keyword, value in values.items():
        setattr(images[1], keyword, value)
    return images


LABELS = stacked_segments()[..., 0]


@pytest.mark.parametrize(
    ("write", "error", "says"),
    [
        (wrong(pixels=np.zeros((4, 9, 12), np.uint8)), LabelError, "9 rows and 12 columns"),
        (wrong(pixels=np.zeros((3, 9, 11), np.uint8)), LabelError, "3 planes"),
        (wrong(pixels=np.zeros(9, np.uint8)), LabelError, "1 axes"),
        (wrong(pixels=LABELS * 7), LabelError, r"no segment describes: \[7\]"),
        (wrong(pixels=LABELS.astype(np.int16) * -1), LabelError, r"\[-1\]"),
        (wrong(pixels=LABELS.astype(complex)), LabelError, "complex"),
        (wrong(pixels=stacked_segments() * 2), LabelError, "0 to 1"),
        (wrong(pixels=stacked_segments() * 0.5), LabelError, "threshold"),
        (wrong(pixels=stacked_segments() * np.nan, stored_as=StoredAs("FRACTIONAL")), LabelError, "0 to 1"),
        (wrong(pixels=stacked_segments()[..., :1]), LabelError, "1 segments are stacked and 2"),
        (wrong(segments=[manual(1), manual(3)]), LabelError, "LABELMAP"),
        (wrong(segments=[manual(2), manual(1)]), LabelError, "in their order"),
        (wrong(segments=[]), LabelError, "no segment"),
        (wrong(segments=[manual(1), manual(1)], stored_as=StoredAs()), LabelError, "twice"),
        (wrong(segments=[manual(1), manual(70000)], stored_as=StoredAs()), LabelError, "65535"),
        (wrong(segments=[manual(1), manual(2, "")]), LabelError, "SegmentLabel"),
        (wrong(segments=[manual(1), manual(2, "x" * 65)]), LabelError, "shorten"),
        (wrong(segments=[manual(1), manual(2, " ")]), LabelError, "SegmentLabel"),
        (wrong(segments=[manual(1), manual(2, "left\\right")]), LabelError, "SegmentLabel holds a backslash"),
        (wrong(segments=[manual(1), manual(2, type=Code("SCT", "1", "a\\b"))]), LabelError, "CodeMeaning holds a backslash"),
        (wrong(segments=[manual(1), manual(2, description="x" * 70000)]), LabelError, "SegmentDescription has 70000"),
        (wrong(segments=[manual(1), manual(2, cielab=(70000, 0, 0))]), LabelError, "RecommendedDisplayCIELabValue"),
        (wrong(segments=[manual(1), manual(2, algorithm_type="BY HAND")]), LabelError, "MANUAL"),
        (wrong(segments=[manual(1), manual(2, algorithm_type="AUTOMATIC")]), LabelError, "SegmentAlgorithmName"),
        (wrong(segments=[manual(1), manual(2, tracking_id="a")]), LabelError, "TrackingUID"),
        (wrong(segments=[manual(1), manual(2, region_modifiers=((ORGAN,),))]), LabelError, "region"),
        (wrong(stored_as=StoredAs("BINARY", "jpeg-ls")), LabelError, "take one of native"),
        (wrong(stored_as=StoredAs("LABELMAP", "jpeg")), LabelError, "never lossy"),
        (wrong(stored_as=StoredAs("SURFACE")), LabelError, "SegmentationType"),
        (wrong(stored_as=StoredAs("FRACTIONAL", maximum_fractional_value=256)), LabelError, "MaximumFractionalValue"),
        (wrong(stored_as=StoredAs("FRACTIONAL", fractional_type="ODDS")), LabelError, "SegmentationFractionalType"),
        (wrong(stored_as=StoredAs("BINARY", palette=True)), LabelError, "palette"),
        (wrong(placement=lambda: on_images([])), NotAVolume, "no source image"),
        (wrong(placement=lambda: on_images(changed(StudyInstanceUID="1.9"))), NotAVolume, "StudyInstanceUID"),
        (wrong(placement=lambda: on_images(changed(Rows=8))), NotAVolume, "Rows"),
        (wrong(placement=lambda: on_images(changed(PixelSpacing=[1, 1]))), NotAVolume, "PixelSpacing"),
        (wrong(placement=lambda: on_images(changed(ImageOrientationPatient=[0, 1, 0, 1, 0, 0]))), NotAVolume, "Orientation"),
        (wrong(placement=lambda: on_images(changed(ImagePositionPatient=[-5, 7.25, 0]))), NotAVolume, "one place"),
        (wrong(placement=lambda: on_images(changed(ImagePositionPatient=None))), NotAVolume, "ImagePositionPatient"),
        (wrong(placement=lambda: on_images(changed(NumberOfFrames=2))), NotAVolume, "multi-frame"),
        (wrong(placement=lambda: on_grid(series(), np.ones((4, 4)), 4)), NotAVolume, "perpendicular"),
        (wrong(placement=lambda: on_grid(series(), np.zeros((4, 4)), 4)), NotAVolume, "no length"),
        (wrong(placement=lambda: on_grid(series(), np.eye(3), 4)), NotAVolume, "4x4"),
        (wrong(placement=lambda: at_positions(series(), [[1, 2]])), NotAVolume, "three numbers"),
        (wrong(placement=lambda: at_positions(series(), [])), NotAVolume, "no plane"),
        (wrong(placement=lambda: at_positions(series(), [[1, 2, 3]], spacing=[0, 1])), NotAVolume, "above 0"),
        (wrong(placement=lambda: on_slide(series()[0])), NotAVolume, "total pixel matrix"),
    ],
)
def test_what_is_wrong_is_named(write, error: type[SegnodeError], says: str) -> None:
    """Input that cannot be written ends in an error that says what to do."""
    with pytest.raises(error, match=says):
        write()


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_more_than_255_segments(kind) -> None:
    """Numbers that 8 bits do not hold take 16 in a labelmap."""
    labels = np.arange(4 * 9 * 11).reshape(4, 9, 11) % 301
    ours, theirs = written(labels, on_images(series()), [manual(number) for number in range(1, 301)], StoredAs(kind))
    np.testing.assert_array_equal(arrays.labelmap(ours), labels)
    uids = [image.SOPInstanceUID for image in series()]
    np.testing.assert_array_equal(theirs.get_pixels_by_source_instance(uids, combine_segments=True), labels)
    assert ours.header.BitsAllocated == (1 if kind == "BINARY" else 16)


def test_when_all_is_empty_all_is_written() -> None:
    """A segmentation has one frame at least."""
    for kind in TYPES:
        ours, _ = written(np.zeros((4, 9, 11), np.uint8), on_images(series()), [manual(1)], StoredAs(kind))
        assert len(ours.frames) == 4


def test_uneven_planes_are_no_stack() -> None:
    """Planes with a gap are written as they lie, and not said to be 3D."""
    images = changed(ImagePositionPatient=[-5, 7.25, 3])
    ours, _ = written(
        stacked_segments(), on_images(images), [manual(1), manual(2)], StoredAs("BINARY", omit_empty_frames=False)
    )
    assert "DimensionOrganizationType" not in ours.header
    assert ours.table.spacing_between_slices is None


def test_published_slide(sample: Callable[[str], Path]) -> None:
    """highdicom's own example: ten tiles are not empty."""
    image = dcmread(sample("highdicom/sm_image.dcm"), stop_before_pixels=True)
    ours, theirs = written(matrix(), on_slide(image), [manual(1)], StoredAs("BINARY"))
    assert len(ours.frames) == 10
    np.testing.assert_array_equal(theirs.get_total_pixel_matrix(combine_segments=True), matrix())


def microscopic(shift: float = 0) -> list[Dataset]:
    """A series whose slices are 2 micrometres apart, each shifted against the one before it by so many mm."""
    images = series()
    for index, image in enumerate(images):
        image.PixelSpacing, image.SliceThickness = ["0.001", "0.0013"], "0.002"
        image.ImagePositionPatient = [shift * index, 0, 0.002 * index]
    return images


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_slices_of_a_microscope_are_apart(kind) -> None:
    """A hundredth of a millimetre is one place for a CT, and five slices here; a plane that one lacks is background."""
    labels = np.zeros((4, 9, 11), np.uint8)
    labels[0, 2:4, 3:7], labels[3, 5:8, 2:9] = 1, 1
    ours, theirs = written(labels, on_images(microscopic()), [manual(1)], StoredAs(kind, omit_empty_frames=False))
    np.testing.assert_array_equal(arrays.volume(ours).array, labels)
    np.testing.assert_allclose(arrays.volume(ours).affine[2, 0], 0.002)
    uids = [image.SOPInstanceUID for image in microscopic()]
    np.testing.assert_array_equal(theirs.get_pixels_by_source_instance(uids, combine_segments=True), labels)
    fewer, _ = written(labels, on_images(microscopic()), [manual(1)], StoredAs(kind))
    found = diff(ours, fewer)
    assert len(fewer.frames) == 2
    assert found.is_equal


def test_slices_of_a_microscope_that_are_shifted_are_no_volume() -> None:
    """A shift of less than a tenth of a millimetre can be many pixels; slices are apart along their normal."""
    ours, _ = written(np.ones((4, 9, 11), np.uint8), on_images(microscopic(0.01)), [manual(1)], StoredAs())
    assert ours.table.spacing_between_slices == 0.002
    with pytest.raises(NotAVolume, match="shifted"):
        arrays.volume(ours)


def test_text_in_sequences_goes_over_into_another_character_set(slide: Dataset) -> None:
    """A name that needs UTF-8 makes the whole object UTF-8; the source stays as it is."""
    slide.SpecificCharacterSet = "ISO_IR 100"
    specimen = Dataset()
    specimen.SpecimenShortDescription = "Präparat"
    slide.SpecimenDescriptionSequence = [specimen]
    file = BytesIO()
    slide.save_as(file, implicit_vr=False, little_endian=True)
    source = dcmread(file, force=True)
    made = write_segmentation(matrix(), on_slide(source), [manual(1, "脑")], StoredAs(), IDENTITY)
    for dataset in (dcmread(BytesIO(made)), source):
        assert dataset.SpecimenDescriptionSequence[0].SpecimenShortDescription == "Präparat"
    assert "Präparat".encode() in made
