"""Any Segmentation that highdicom writes is read with its labels where highdicom has them in the patient; overlap is found."""

from io import BytesIO
from itertools import permutations, product

import highdicom
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as numpy_arrays
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from segnode.dicom.uids import derived_uid
from segnode.errors import NotAVolume, OverlappingSegments
from segnode.seg import arrays
from segnode.seg.read import read_segmentation

AXES = [
    np.eye(3)[list(order)] * np.array(signs)[:, np.newaxis]
    for order in permutations(range(3))
    for signs in product((1, -1), repeat=3)
]


def source_image(uid: str = "1.2.5") -> Dataset:
    """The header that a segmentation is made from."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, derived_uid("image", "1")
    image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = "1.2.3", "1.2.4", uid
    image.PatientName, image.PatientID, image.Rows, image.Columns = "A^B", "1", 4, 4
    image.PatientBirthDate = image.PatientSex = image.AccessionNumber = image.StudyID = ""
    image.StudyDate = image.StudyTime = image.ReferringPhysicianName = ""
    image.Modality, image.PixelSpacing, image.SliceThickness = "CT", ["0.7", "0.9"], "2"
    image.ImageOrientationPatient, image.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 0]
    return image


def segment(number: int) -> highdicom.seg.SegmentDescription:
    """A segment that a person drew."""
    return highdicom.seg.SegmentDescription(number, f"segment {number}", codes.SCT.Organ, codes.SCT.Liver, "MANUAL")


def written(array: np.ndarray, kind: str, count: int, directions: np.ndarray, **how: object) -> bytes:
    """A file of highdicom with slices, rows and columns along these directions; `array` may be stacked."""
    volume = highdicom.Volume.from_components(
        array=array,
        spacing=[2.5, 0.7, 0.9],
        direction=directions.T,
        position=[5.0, -7.0, 11.0],
        coordinate_system="PATIENT",
        frame_of_reference_uid="1.2.5",
        channels={"SegmentNumber": range(1, count + 1)} if array.ndim == 4 else None,
    )
    seg = highdicom.seg.Segmentation(
        [source_image()],
        volume,
        kind,
        [segment(number) for number in range(1, count + 1)],
        "2.25.1",
        1,
        "2.25.2",
        1,
        "maker",
        "model",
        "1",
        "2",
        **how,
    )
    file = BytesIO()
    seg.save_as(file)
    return file.getvalue()


def in_patient(array: np.ndarray, affine: np.ndarray) -> set[tuple[float, ...]]:
    """Where every value that is not 0 lies, in mm."""
    indices = np.argwhere(array)
    mm = np.concatenate([indices[:, :3], np.ones((len(indices), 1))], axis=1) @ affine.T
    rest = indices[:, 3:]
    rows = np.concatenate([np.round(mm[:, :3] * 20), rest, array[array != 0][:, np.newaxis]], axis=1)
    return {tuple(row) for row in rows.tolist()}


def rotation(vector: tuple[float, float, float]) -> np.ndarray:
    """The rotation of an angle about an axis, both in one vector (Rodrigues)."""
    angle = np.linalg.norm(vector)
    x, y, z = np.array(vector) / angle if angle else (0, 0, 0)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


@st.composite
def labelled(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Labels with empty slices among them, and how many segments there are."""
    count = draw(st.integers(1, 5))
    # highdicom 0.28 writes BINARY frames of fewer than 8 pixels so that nobody can read them.
    shape = draw(st.tuples(st.integers(2, 6), st.integers(2, 12), st.integers(4, 12)))
    labels = draw(numpy_arrays(np.uint8, shape, elements=st.integers(0, count)))
    labels[draw(st.lists(st.integers(0, shape[0] - 1), max_size=3))] = 0
    labels[0, 0, 0] = labels[-1, -1, -1] = 1
    return labels, count


ANGLE = st.floats(-3, 3, allow_nan=False)
DIRECTIONS = st.one_of(st.sampled_from(AXES), st.tuples(ANGLE, ANGLE, ANGLE).map(rotation))


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP", "FRACTIONAL"])
@settings(max_examples=25)
@given(case=labelled(), directions=DIRECTIONS, omit=st.booleans())
def test_labels_are_where_highdicom_has_them(kind: str, case, directions: np.ndarray, omit: bool) -> None:
    """On all 48 axis orientations and oblique ones, with frames left out: volume, stacked and labelmap."""
    labels, count = case
    more = {"max_fractional_value": 1} if kind == "FRACTIONAL" else {}
    data = written(labels, kind, count, directions, omit_empty_frames=omit, **more)
    ours = read_segmentation(data)
    theirs = highdicom.seg.Segmentation.from_dataset(dcmread(BytesIO(data)))
    volume, expected = arrays.volume(ours), theirs.get_volume(combine_segments=True)
    assert in_patient(volume.array, volume.affine) == in_patient(expected.array, expected.affine)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions.T * (2.5, 0.7, 0.9), (5, -7, 11)
    assert in_patient(volume.array, volume.affine) == in_patient(labels, affine)
    stacked, all_of_them = arrays.stacked_volume(ours), theirs.get_volume()
    assert in_patient(stacked.array, stacked.affine) == in_patient(all_of_them.array, all_of_them.affine)


@pytest.mark.parametrize("number", range(len(AXES)))
def test_every_axis_orientation(number: int) -> None:
    """Nothing is mirrored on any of the 48: three voxels that no symmetry maps onto each other."""
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[0, 0, 0], labels[1, 3, 2], labels[3, 1, 5] = 1, 2, 3
    volume = arrays.volume(read_segmentation(written(labels, "LABELMAP", 3, AXES[number])))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = AXES[number].T * (2.5, 0.7, 0.9), (5, -7, 11)
    assert in_patient(volume.array, volume.affine) == in_patient(labels, affine)


@settings(max_examples=25)
@given(data=st.data())
def test_overlap_is_found_and_counted(data: st.DataObject) -> None:
    """Every pair of segments that share voxels is named with how many, largest first; without any there is a labelmap."""
    count = data.draw(st.integers(2, 4))
    shape = data.draw(st.tuples(st.integers(1, 3), st.integers(2, 7), st.integers(4, 7)))
    chance = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    masks = (chance.random((*shape, count)) < data.draw(st.sampled_from([0.02, 0.1, 0.4]))).astype(np.uint8)
    masks[0, 0, 0] = [1] + [0] * (count - 1)
    ours = read_segmentation(written(masks, "BINARY", count, np.eye(3)[[2, 1, 0]]))
    counts = {
        (a + 1, b + 1): int((masks[..., a] & masks[..., b]).sum())
        for a in range(count)
        for b in range(a + 1, count)
        if (masks[..., a] & masks[..., b]).any()
    }
    stacked = arrays.stacked_volume(ours).array
    first = np.flatnonzero(masks.any(axis=(1, 2, 3)))
    np.testing.assert_array_equal(stacked, masks[first[0] : first[-1] + 1])
    if not counts:
        expected = (masks * np.arange(1, count + 1, dtype=np.uint8)).sum(axis=-1)
        np.testing.assert_array_equal(arrays.volume(ours).array, expected[first[0] : first[-1] + 1])
        return
    with pytest.raises(OverlappingSegments) as error:
        arrays.labelmap(ours)
    for (one, other), voxels in sorted(counts.items(), key=lambda pair: -pair[1])[:5]:
        assert f"{one} and {other} in {voxels} voxels" in str(error.value)


def encoded(data: bytes, *, implicit: bool, undefined: bool) -> bytes:
    """The file with another encoding of the same values."""
    dataset = dcmread(BytesIO(data))
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    if undefined:
        make_undefined(dataset)
    file = BytesIO()
    dataset.save_as(file, implicit_vr=implicit, little_endian=True)
    return file.getvalue()


def make_undefined(dataset: Dataset) -> None:
    """Every sequence and item without a length."""
    for element in dataset:
        if element.VR == "SQ":
            element.is_undefined_length = True
            for item in element.value:
                item.is_undefined_length_sequence_item = True
                make_undefined(item)


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize(("implicit", "undefined"), [(True, False), (True, True), (False, True)])
def test_every_encoding_says_the_same(kind: str, implicit: bool, undefined: bool) -> None:
    """Implicit VR and undefined lengths give the value that explicit ones give."""
    labels = np.random.default_rng(1).integers(0, 4, (4, 9, 7)).astype(np.uint8)
    data = written(labels, kind, 3, np.eye(3))
    other = encoded(data, implicit=implicit, undefined=undefined)
    assert (b"\xfe\xff\x0d\xe0" in other) == undefined
    one, two = read_segmentation(data), read_segmentation(other)
    assert one.segments == two.segments
    assert str(one.header.PatientName) == str(two.header.PatientName)
    assert one.table.sources == two.table.sources
    assert one.table.dimension_index_values == two.table.dimension_index_values
    np.testing.assert_array_equal(one.table.positions, two.table.positions)
    np.testing.assert_array_equal(arrays.volume(one).array, arrays.volume(two).array)
    np.testing.assert_array_equal(arrays.volume(one).affine, arrays.volume(two).affine)


def changed(change, kind: str = "BINARY", labels: np.ndarray | None = None) -> bytes:
    """A file of five slices in which `change` has been at the data set."""
    if labels is None:
        labels = np.zeros((5, 4, 6), np.uint8)
        labels[np.arange(5), 1, np.arange(5)] = 1
    dataset = dcmread(BytesIO(written(labels, kind, 1, np.eye(3)[[2, 1, 0]])))
    change(dataset)
    file = BytesIO()
    dataset.save_as(file)
    return file.getvalue()


def measures(dataset: Dataset) -> Dataset:
    """The shared pixel measures."""
    return dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]


@pytest.mark.parametrize("between", ["5", "-2.5", "0", "", "1e300", "nan", "0.3", "7.1", None])
def test_wrong_spacing_between_slices_moves_nothing(between: str | None) -> None:
    """Absent, wrong, negative or no number: the positions say where the slices are."""

    def change(dataset: Dataset) -> None:
        del measures(dataset).SpacingBetweenSlices
        if between is not None:
            element = measures(dataset)
            element.add_new("SpacingBetweenSlices", "LO", between)
            element["SpacingBetweenSlices"].VR = "LO"

    expected, found = (arrays.volume(read_segmentation(changed(how))) for how in (lambda _: None, change))
    np.testing.assert_array_equal(found.array, expected.array)
    np.testing.assert_allclose(found.affine, expected.affine)


def test_frames_in_any_order_are_one_volume() -> None:
    """Descending and shuffled frames give what ascending ones give."""

    def shuffle(order: list[int]):
        def change(dataset: Dataset) -> None:
            groups = dataset.PerFrameFunctionalGroupsSequence
            frames = np.frombuffer(dataset.PixelData, np.uint8).reshape(5, 4, 6)
            dataset.PerFrameFunctionalGroupsSequence = [groups[place] for place in order]
            dataset.PixelData = frames[order].tobytes()

        return change

    expected, *others = (
        arrays.volume(read_segmentation(changed(shuffle(order), "LABELMAP")))
        for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3])
    )
    for found in others:
        np.testing.assert_array_equal(found.array, expected.array)
        np.testing.assert_array_equal(found.affine, expected.affine)


def move(frame: int, by: tuple[float, float, float]):
    """Moves a frame in the patient."""

    def change(dataset: Dataset) -> None:
        position = dataset.PerFrameFunctionalGroupsSequence[frame].PlanePositionSequence[0]
        moved = np.array(position.ImagePositionPatient, float) + by
        position.ImagePositionPatient = [f"{value:.6f}" for value in moved]

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (move(2, (1, 0, 0)), "shifted against each other by up to 1.00 mm"),
        (move(2, (0, 0.5, 0)), "shifted against each other by up to 0.50 mm"),
        (move(2, (0, 0, 0.6)), "on no regular grid along their normal"),
        (move(2, (0, 0, -2.48)), "on no regular grid along their normal"),
        (move(4, (0, 0, 1e8)), "on no regular grid"),
        (move(4, (0, 0, 1e12)), "ImagePositionPatient .* of frame 5 is missing or not three numbers"),
        (lambda d: setattr(measures(d), "PixelSpacing", [0, 1]), "PixelSpacing is missing .* or is not two positive"),
        (lambda d: setattr(measures(d), "PixelSpacing", [-1, 1]), "PixelSpacing"),
        (lambda d: setattr(measures(d), "PixelSpacing", []), "PixelSpacing"),
        (lambda d: delattr(measures(d), "PixelSpacing"), "PixelSpacing"),
    ],
)
def test_frames_that_are_no_grid_are_refused(change, reason: str) -> None:
    """A shift, a tilt, uneven slices, a place that is none, and pixels without a size: said with the attribute."""
    ours = read_segmentation(changed(change))
    with pytest.raises(NotAVolume, match=reason):
        arrays.volume(ours)
    assert arrays.stacked(ours).shape[1:] == (4, 6, 1)


def test_frames_that_begin_elsewhere_are_not_laid_onto_each_other() -> None:
    """Two segments at one height whose frames do not begin in one point are two planes."""
    masks = np.ones((1, 3, 3, 2), np.uint8)
    masks[..., 1] = 0
    masks[0, 1, 1] = [0, 1]
    dataset = dcmread(BytesIO(written(masks, "BINARY", 2, np.eye(3)[[2, 1, 0]])))
    move(1, (5, 0, 0))(dataset)
    file = BytesIO()
    dataset.save_as(file)
    ours = read_segmentation(file.getvalue())
    assert arrays.labelmap(ours).shape == (2, 3, 3)
    with pytest.raises(NotAVolume, match="shifted"):
        arrays.volume(ours)


def test_two_frames_of_a_segment_in_one_place_are_refused() -> None:
    """As the frames of a time series are; two within a hundredth of a millimetre are in one place."""
    for distance in (-2.5, -2.495):
        ours = read_segmentation(changed(move(3, (0, 0, distance))))
        with pytest.raises(OverlappingSegments, match="frames . and . are both of segment 1 in one place"):
            arrays.labelmap(ours)
        with pytest.raises(OverlappingSegments, match="frames . and . are both"):
            arrays.stacked(ours)


def test_slices_of_a_microscope_are_apart() -> None:
    """Slices 2.5 micrometres apart are slices, where a hundredth of a millimetre is one place for a CT."""

    def shrink(dataset: Dataset) -> None:
        pixel = measures(dataset)
        pixel.PixelSpacing, pixel.SliceThickness, pixel.SpacingBetweenSlices = [0.0007, 0.0009], 0.0025, 0.0025
        for number, groups in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            groups.PlanePositionSequence[0].ImagePositionPatient = [0, 0, f"{number * 0.0025:.6f}"]

    volume = arrays.volume(read_segmentation(changed(shrink)))
    assert volume.array.shape == (5, 4, 6)
    np.testing.assert_allclose(volume.affine[:3, 0], [0, 0, 0.0025])


def test_rounded_positions_are_a_grid() -> None:
    """Positions that were rounded to a tenth of a millimetre, of slices 0.703125 mm apart, are not drifting slices."""
    labels = np.zeros((40, 4, 6), np.uint8)
    labels[:, 1, 1] = 1

    def round_off(dataset: Dataset) -> None:
        del measures(dataset).SpacingBetweenSlices
        for number, groups in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            groups.PlanePositionSequence[0].ImagePositionPatient = [0, 0, f"{number * 0.703125:.2f}"]

    volume = arrays.volume(read_segmentation(changed(round_off, labels=labels)))
    assert volume.array.shape == (40, 4, 6)
    assert volume.affine[2, 0] == pytest.approx(0.703125, abs=1e-3)


def test_one_frame_is_a_volume() -> None:
    """Its slice is as thick as is said."""

    def thick(dataset: Dataset) -> None:
        measures(dataset).SpacingBetweenSlices = 2.5

    volume = arrays.volume(read_segmentation(changed(thick, labels=np.ones((1, 4, 6), np.uint8))))
    assert volume.array.shape == (1, 4, 6)
    np.testing.assert_allclose(volume.affine[:3, 0], [0, 0, 2.5])


@pytest.mark.parametrize("same", [True, False])
def test_orientation_of_each_frame(same: bool) -> None:
    """Orientations that differ by what was rounded away are one; others are no volume."""

    def turn(dataset: Dataset) -> None:
        del dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
        for number, groups in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            item = Dataset()
            angle = number * (1e-5 if same else 0.1)
            item.ImageOrientationPatient = [
                f"{v:.6f}" for v in (np.cos(angle), np.sin(angle), 0, -np.sin(angle), np.cos(angle), 0)
            ]
            groups.PlaneOrientationSequence = [item]

    ours = read_segmentation(changed(turn))
    if same:
        assert arrays.volume(ours).array.shape == (5, 4, 6)
        return
    with pytest.raises(NotAVolume, match="ImageOrientationPatient differs from frame to frame"):
        arrays.volume(ours)


def test_frame_of_two_images_follows_neither() -> None:
    """A frame that was derived from two of the images that are asked for belongs to no one of them."""

    def derive(dataset: Dataset) -> None:
        for groups in dataset.PerFrameFunctionalGroupsSequence:
            derivation, *sources = (Dataset() for _ in range(3))
            for number, source in enumerate(sources):
                source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = CTImageStorage, f"1.2.{number}"
            derivation.SourceImageSequence = sources
            groups.DerivationImageSequence = [derivation]

    ours = read_segmentation(changed(derive))
    with pytest.raises(NotAVolume, match="frame 1 belongs to several of those that are asked for"):
        arrays.by_source_instances(ours, ["1.2.0", "1.2.1"])


@pytest.mark.parametrize("value", [0, 1])
def test_tiles_that_overlap_must_agree(value: int) -> None:
    """Where two tiles hold one voxel of the total pixel matrix, none wins."""

    def tile(dataset: Dataset) -> None:
        dataset.TotalPixelMatrixRows, dataset.TotalPixelMatrixColumns, dataset.NumberOfFrames = 4, 9, 2
        del dataset.PerFrameFunctionalGroupsSequence[2:]
        for column, groups in zip((1, 4), dataset.PerFrameFunctionalGroupsSequence, strict=True):
            place = Dataset()
            place.RowPositionInTotalImagePixelMatrix, place.ColumnPositionInTotalImagePixelMatrix = 1, column
            groups.PlanePositionSlideSequence = [place]
        frames = np.ones((2, 4, 6), np.uint8)
        frames[1, 2, 1] = value
        dataset.PixelData = frames.tobytes()

    ours = read_segmentation(changed(tile, "LABELMAP"))
    if value:
        np.testing.assert_array_equal(arrays.total_pixel_matrix(ours), np.ones((4, 9)))
        return
    with pytest.raises(OverlappingSegments, match="the tile at row 1, column 4 contradicts one that it overlaps"):
        arrays.total_pixel_matrix(ours)


def test_number_that_no_frame_can_hold_is_empty() -> None:
    """A LABELMAP of 8 bits may describe a segment 300; no voxel is in it."""
    labels = np.ones((2, 4, 6), np.uint8)

    def describe(dataset: Dataset) -> None:
        dataset.SegmentSequence.append(dcmread(BytesIO(written(labels, "LABELMAP", 1, np.eye(3)))).SegmentSequence[-1])
        dataset.SegmentSequence[-1].SegmentNumber = 300

    ours = read_segmentation(changed(describe, "LABELMAP", labels))
    assert arrays.labelmap(ours).dtype == np.uint16
    np.testing.assert_array_equal(arrays.labelmap(ours), np.ones((2, 4, 6)))
    np.testing.assert_array_equal(arrays.stacked(ours, arrays.select(ours, [300, 1]))[0, 0, 0], [0, 1])
