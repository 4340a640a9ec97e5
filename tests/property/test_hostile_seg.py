"""Hostile Segmentations: always one of our errors, naming the attribute where there is one, or arrays of the right shape."""

import resource
import struct
import time
import zlib
from functools import cache
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGLSLossless

from segnode.errors import NotASegmentation, NotDicom, SegnodeError, UnreadablePixels
from segnode.seg import arrays
from segnode.seg.codecs import jpeg_ls
from segnode.seg.read import read_segmentation
from tests.property.test_read import encoded, written

PART_10 = b"\0" * 128 + b"DICM"


@cache
def valid(kind: str = "BINARY") -> bytes:
    """Three slices of two segments."""
    labels = np.random.default_rng(1).integers(0, 3, (3, 4, 6)).astype(np.uint8)
    more = {"max_fractional_value": 1} if kind == "FRACTIONAL" else {}
    return written(labels, kind, 2, np.eye(3)[[2, 1, 0]], **more)


def read_all(data: bytes) -> str:
    """Everything that is read of a file; returns the name of the error, and stops for any that is not ours."""
    try:
        found = read_segmentation(data)
    except SegnodeError as error:
        return type(error).__name__
    shape = (found.rows, found.columns)
    outcome = "read"
    for back in (arrays.labelmap, arrays.stacked, arrays.volume, arrays.total_pixel_matrix, arrays.source_images):
        try:
            array = back(found)
        except SegnodeError as error:
            outcome = type(error).__name__
            continue
        if back is arrays.labelmap or back is arrays.stacked:
            assert array.shape[1:3] == shape
    return outcome


def changed(change, kind: str = "BINARY") -> bytes:
    """The valid file after `change` has been at its data set."""
    dataset = dcmread(BytesIO(valid(kind)))
    change(dataset)
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=False)
    return file.getvalue()


def put(keyword: str, vr: str, value: object, where=lambda dataset: dataset):
    """Puts a value of another VR than its own into an attribute."""

    def change(dataset: Dataset) -> None:
        item = where(dataset)
        if keyword in item:
            del item[keyword]
        item.add_new(keyword, vr, value)

    return change


def first(dataset: Dataset) -> Dataset:
    """The groups of the first frame."""
    return dataset.PerFrameFunctionalGroupsSequence[0]


def segment(dataset: Dataset) -> Dataset:
    """The first segment."""
    return dataset.SegmentSequence[0]


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP", "FRACTIONAL"])
def test_truncated_anywhere(kind: str) -> None:
    """A file that ends at any byte is refused; with undefined lengths as well."""
    for data in (valid(kind), encoded(valid(kind), implicit=False, undefined=True)):
        pixels = data.rindex(b"\xe0\x7f\x10\x00")
        for end in (*range(0, pixels, 37), *range(pixels, len(data) - 1)):
            assert read_all(data[:end]) in ("NotDicom", "NotASegmentation", "UnreadablePixels"), end


@settings(max_examples=150)
@given(
    kind=st.sampled_from(["BINARY", "LABELMAP", "FRACTIONAL"]),
    undefined=st.booleans(),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_changed_bytes(kind: str, undefined: bool, changes) -> None:
    """Bytes that are changed anywhere after the prefix end in our errors or in arrays."""
    data = bytearray(encoded_once(kind, undefined))
    for place, value in changes:
        data[132 + int(place * (len(data) - 132))] = value
    read_all(bytes(data))


def places(dataset: Dataset, path: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    """The way to every attribute: tags and numbers of items, of which two of each sequence."""
    found = []
    for element in dataset:
        found.append((*path, element.tag))
        if element.VR == "SQ":
            for number, item in enumerate(element.value[:2]):
                found += places(item, (*path, element.tag, number))
    return found


WRONG_VALUES = [
    None,
    ("LO", ""),
    ("LO", "abc"),
    ("LO", ["nan", "1", "2"]),
    ("LO", ["1e308", "-1e308", "1e-300"]),
    ("LO", ["1"] * 7),
    ("LO", "999999999"),
    ("US", 0),
    ("US", [1, 2]),
    ("UL", 4294967295),
    ("SS", -5),
    ("SQ", []),
    ("OB", b"\0\1"),
    ("FD", float("inf")),
    ("AT", 0x00100010),
]


@settings(max_examples=80)
@given(
    kind=st.sampled_from(["BINARY", "LABELMAP", "FRACTIONAL"]),
    where=st.floats(0, 1, exclude_max=True),
    wrong=st.sampled_from(WRONG_VALUES),
)
def test_any_attribute_of_any_kind(kind: str, where: float, wrong: tuple[str, object] | None) -> None:
    """Every attribute, however deep, is missing or holds something else: our errors, or arrays."""

    def change(dataset: Dataset) -> None:
        ways = places(dataset)
        *way, tag = ways[int(where * len(ways))]
        item = dataset
        for sequence, number in zip(way[::2], way[1::2], strict=True):
            item = item[sequence].value[number]
        del item[tag]
        if wrong is not None and (tag != 0x7FE00010 or wrong[0] == "OB"):
            item.add_new(tag, *wrong)

    read_all(changed(change, kind))


@cache
def encoded_once(kind: str, undefined: bool) -> bytes:
    """The valid file, with or without lengths."""
    return encoded(valid(kind), implicit=False, undefined=undefined)


@pytest.mark.parametrize(
    ("change", "attribute"),
    [
        (put("NumberOfFrames", "IS", "2147483647"), "NumberOfFrames"),
        (put("NumberOfFrames", "IS", "4000000"), "NumberOfFrames"),
        (put("NumberOfFrames", "IS", "2"), "NumberOfFrames"),
        (put("NumberOfFrames", "LO", "many"), "NumberOfFrames"),
        (put("NumberOfFrames", "LO", "-1"), "NumberOfFrames"),
        (lambda d: delattr(d, "NumberOfFrames"), "NumberOfFrames"),
        (put("Rows", "US", 65535), "Rows"),
        (put("Rows", "US", 0), "Rows"),
        (put("Columns", "US", [4, 5]), "Columns"),
        (put("BitsAllocated", "US", 8), "BitsAllocated"),
        (put("SamplesPerPixel", "US", 3), "SamplesPerPixel"),
        (put("SegmentationType", "CS", "BINRAY"), "SegmentationType"),
        (put("SegmentationType", "CS", ["BINARY", "LABELMAP"]), "SegmentationType"),
        (put("SOPClassUID", "UI", "1.2.840.10008.5.1.4.1.1.2"), "SOPClassUID"),
        (lambda d: delattr(d, "SOPInstanceUID"), "SOPInstanceUID"),
        (lambda d: delattr(d, "PixelData"), "PixelData"),
        (lambda d: delattr(d, "SegmentSequence"), "SegmentSequence"),
        (lambda d: setattr(d, "SegmentSequence", []), "SegmentSequence"),
        (put("SegmentSequence", "LO", "none"), "SegmentSequence"),
        (put("SegmentNumber", "LO", "one", segment), "SegmentNumber"),
        (put("SegmentNumber", "US", [1, 2], segment), "SegmentNumber"),
        (put("SegmentNumber", "US", 2, segment), "SegmentNumber"),
        (put("SegmentNumber", "US", 0, segment), "SegmentNumber"),
        (put("SegmentNumber", "UL", 70000, segment), "SegmentNumber"),
        (lambda d: delattr(segment(d), "SegmentNumber"), "SegmentNumber"),
        (lambda d: delattr(first(d), "SegmentIdentificationSequence"), "ReferencedSegmentNumber"),
        (
            put("ReferencedSegmentNumber", "US", 9, lambda d: first(d).SegmentIdentificationSequence[0]),
            "ReferencedSegmentNumber",
        ),
        (lambda d: delattr(d, "PerFrameFunctionalGroupsSequence"), "ReferencedSegmentNumber"),
        (put("TotalPixelMatrixRows", "LO", "wide"), "TotalPixelMatrixRows"),
        (put("MaximumFractionalValue", "LO", "half"), "MaximumFractionalValue"),
        (put("PixelPaddingValue", "UL", 70000), "PixelPaddingValue"),
    ],
)
def test_attribute_that_is_wrong_is_named(change, attribute: str) -> None:
    """Missing, empty, ill-typed and contradicting attributes."""
    with pytest.raises((NotASegmentation, UnreadablePixels), match=attribute):
        read_segmentation(changed(change))


@pytest.mark.parametrize(
    ("keyword", "vr", "value", "where"),
    [
        ("ImagePositionPatient", "DS", [1, 2], lambda d: first(d).PlanePositionSequence[0]),
        ("ImagePositionPatient", "LO", ["nan", "1", "2"], lambda d: first(d).PlanePositionSequence[0]),
        ("ImagePositionPatient", "LO", ["inf", "1", "2"], lambda d: first(d).PlanePositionSequence[0]),
        ("ImagePositionPatient", "LO", ["here", "1", "2"], lambda d: first(d).PlanePositionSequence[0]),
        ("ImagePositionPatient", "LO", ["1e300", "1", "2"], lambda d: first(d).PlanePositionSequence[0]),
        ("ImageOrientationPatient", "LO", ["nan"] * 6, lambda d: shared(d).PlaneOrientationSequence[0]),
        ("ImageOrientationPatient", "DS", [0] * 6, lambda d: shared(d).PlaneOrientationSequence[0]),
        ("ImageOrientationPatient", "DS", [1, 0, 0], lambda d: shared(d).PlaneOrientationSequence[0]),
        ("ImageOrientationPatient", "DS", [2, 0, 0, 0, 0.5, 0], lambda d: shared(d).PlaneOrientationSequence[0]),
        ("PixelSpacing", "DS", [], lambda d: shared(d).PixelMeasuresSequence[0]),
        ("PixelSpacing", "DS", [0, 0], lambda d: shared(d).PixelMeasuresSequence[0]),
        ("PixelSpacing", "DS", [-1, 1], lambda d: shared(d).PixelMeasuresSequence[0]),
        ("PixelSpacing", "LO", ["nan", "inf"], lambda d: shared(d).PixelMeasuresSequence[0]),
        ("PixelSpacing", "DS", [1, 1, 1], lambda d: shared(d).PixelMeasuresSequence[0]),
    ],
)
def test_geometry_that_is_none_is_named(keyword: str, vr: str, value: object, where) -> None:
    """No volume is made of it, and nothing else is raised."""
    data = changed(put(keyword, vr, value, where))
    with pytest.raises(SegnodeError, match=keyword):
        arrays.volume(read_segmentation(data))
    read_all(data)


def shared(dataset: Dataset) -> Dataset:
    """The groups that frames share."""
    return dataset.SharedFunctionalGroupsSequence[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda d: delattr(d, "DimensionIndexSequence"),
        lambda d: delattr(d, "SharedFunctionalGroupsSequence"),
        lambda d: delattr(first(d), "PlanePositionSequence"),
        lambda d: delattr(first(d), "FrameContentSequence"),
        put("DimensionIndexValues", "UL", [1], lambda d: first(d).FrameContentSequence[0]),
        put("DimensionIndexValues", "LO", "abc", lambda d: first(d).FrameContentSequence[0]),
        put("PlanePositionSequence", "LO", "nowhere!", first),
        put("SegmentLabel", "OB", b"\xff\xfe", segment),
        put("PatientWeight", "LO", "heavy"),
        put("TotalPixelMatrixRows", "UL", 4000000000),
        put("DimensionIndexPointer", "UI", "1.2", lambda d: d.DimensionIndexSequence[0]),
    ],
)
@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_what_is_missing_or_other_ends_in_our_errors(change, kind: str) -> None:
    """Whatever is read of it."""
    read_all(changed(change, kind))


def test_value_that_nothing_describes_is_refused() -> None:
    """A LABELMAP with a value that is in no item of SegmentSequence does not lose it."""
    data = changed(lambda d: setattr(d, "PixelData", b"\x09" + d.PixelData[1:]), "LABELMAP")
    with pytest.raises(NotASegmentation, match=r"SegmentSequence does not describe: \[9\]"):
        arrays.labelmap(read_segmentation(data))


def nested(depth: int, *, undefined: bool) -> bytes:
    """A private sequence within itself, in explicit little endian."""
    data = b""
    for _ in range(depth):
        length = (0xFFFFFFFF, 0xFFFFFFFF) if undefined else (len(data), len(data) + 8)
        end = (struct.pack("<HHI", 0xFFFE, 0xE00D, 0), struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)) if undefined else (b"", b"")
        item = struct.pack("<HHI", 0xFFFE, 0xE000, length[0]) + data + end[0]
        data = struct.pack("<HH2sHI", 0x0009, 0x1001, b"SQ", 0, length[1]) + item + end[1]
    return data


@pytest.mark.parametrize("undefined", [True, False])
@pytest.mark.parametrize("depth", [400, 5000])
def test_nested_sequences(depth: int, undefined: bool) -> None:
    """In the header and in the groups of a frame, hundreds and thousands deep, with and without lengths."""
    depth = depth if undefined else min(depth, 2000)
    data, deep = valid(), nested(depth, undefined=undefined)
    place = data.index(struct.pack("<HH", 0x0010, 0x0010))
    start = time.monotonic()
    assert read_all(data[:place] + deep + data[place:]) in ("read", "NotASegmentation", "NotAVolume")
    head = data.index(struct.pack("<HH", 0x5200, 0x9230))
    pixels = data.rindex(b"\xe0\x7f\x10\x00")
    items = [b"\xfe\xff\x00\xe0" + struct.pack("<I", len(deep)) + deep] * 6
    groups = data[head : head + 8] + struct.pack("<I", sum(map(len, items))) + b"".join(items)
    assert read_all(data[:head] + groups + data[pixels:]) == "NotASegmentation"
    assert time.monotonic() - start < 10


def peak_megabytes() -> float:
    """The most memory this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def deflated(data: bytes, extra: bytes = b"") -> bytes:
    """The file with a deflated data set."""
    dataset = dcmread(BytesIO(data))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    file = BytesIO()
    dataset.save_as(file)
    return file.getvalue() + extra


def test_deflated_files() -> None:
    """Whole it is read; cut or not deflated it is refused; with bytes behind it is read."""
    data = deflated(valid())
    assert read_all(data) == read_all(valid())
    np.testing.assert_array_equal(arrays.volume(read_segmentation(data)).array, arrays.volume(read_segmentation(valid())).array)
    start = data.index(DeflatedExplicitVRLittleEndian.encode()) + len(DeflatedExplicitVRLittleEndian)
    for end in range(start + 2, len(data) - 12, 11):
        with pytest.raises(NotDicom):
            read_segmentation(data[:end])
    assert read_all(data + b"\0") == read_all(valid())


def test_bombs_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deflated data set of zeros, frames that a few bytes stand for, and a volume of one far slice."""
    monkeypatch.setattr("segnode.seg.read._LARGEST_INFLATED", 1 << 26)
    before = peak_megabytes()
    deflater = zlib.compressobj(9, wbits=-15)
    bomb = deflater.compress(bytes(1 << 28)) + deflater.flush()
    meta = deflated(valid())
    start = meta.index(DeflatedExplicitVRLittleEndian.encode()) + len(DeflatedExplicitVRLittleEndian) + 1
    with pytest.raises(NotDicom, match="inflates to more than"):
        read_segmentation(meta[: start - start % 2] + bomb)
    with pytest.raises(UnreadablePixels, match="GiB: ask for fewer"):
        arrays.labelmap(read_segmentation(changed(many_large_frames, "LABELMAP")))
    with pytest.raises(UnreadablePixels, match="GiB: ask for fewer|codestream"):
        arrays.total_pixel_matrix(read_segmentation(changed(put_large_matrix, "LABELMAP")))
    assert peak_megabytes() - before < 600


def many_large_frames(dataset: Dataset) -> None:
    """Three frames that are said to be of 40000 x 40000 pixels natively would need as many bytes; deflated they need few."""
    dataset.Rows = dataset.Columns = 16000
    dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
    count = 40
    groups = dataset.PerFrameFunctionalGroupsSequence[0]
    dataset.PerFrameFunctionalGroupsSequence = [groups] * count
    dataset.NumberOfFrames = count
    for number in range(count):
        clone = Dataset()
        clone.update(groups)
        position = Dataset()
        position.ImagePositionPatient = [0, 0, number]
        clone.PlanePositionSequence = [position]
        dataset.PerFrameFunctionalGroupsSequence[number] = clone
    dataset.PixelData = encapsulate([jpeg_ls.encode(np.zeros((4, 4), np.uint8))] * count)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True


def put_large_matrix(dataset: Dataset) -> None:
    """A total pixel matrix of 16 * 10^18 pixels."""
    dataset.TotalPixelMatrixRows = dataset.TotalPixelMatrixColumns = 4000000000
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        place = Dataset()
        place.RowPositionInTotalImagePixelMatrix = place.ColumnPositionInTotalImagePixelMatrix = 1
        groups.PlanePositionSlideSequence = [place]
    del dataset.PerFrameFunctionalGroupsSequence[1:]
    dataset.NumberOfFrames = 1


def test_codestream_of_other_dimensions_is_refused() -> None:
    """Rows and Columns are what the codestream must be of."""

    def compress(dataset: Dataset) -> None:
        dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
        count = int(dataset.NumberOfFrames)
        dataset.PixelData = encapsulate([jpeg_ls.encode(np.zeros((6, 4), np.uint8))] * count)
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True

    found = read_segmentation(changed(compress, "LABELMAP"))
    with pytest.raises(UnreadablePixels, match="frame 1 of PixelData: .* of 6 x 4 pixels, where Rows x Columns is 4 x 6"):
        arrays.labelmap(found)


def test_sequences_of_unknown_vr_are_read() -> None:
    """UN with and without a length holds implicit VR (PS3.5 6.2.2): the groups of frames are found in it."""
    implicit = encoded(valid(), implicit=True, undefined=False)
    explicit = valid()
    tag = struct.pack("<HH", 0x5200, 0x9230)
    begin = implicit.index(tag)
    length = struct.unpack_from("<I", implicit, begin + 4)[0]
    value = implicit[begin + 8 : begin + 8 + length]
    head = explicit.index(tag)
    pixels = explicit.rindex(b"\xe0\x7f\x10\x00")
    expected = read_segmentation(explicit)
    for size, end in ((length, b""), (0xFFFFFFFF, struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))):
        unknown = tag + b"UN\0\0" + struct.pack("<I", size) + value + end
        found = read_segmentation(explicit[:head] + unknown + explicit[pixels:])
        assert found.table.sources == expected.table.sources
        np.testing.assert_array_equal(found.table.positions, expected.table.positions)
        np.testing.assert_array_equal(found.table.segment_numbers, expected.table.segment_numbers)


@pytest.mark.parametrize("data", [b"", b"DICM", bytes(200), PART_10, PART_10 + b"\x02\0", PART_10 + bytes(range(100))])
def test_what_is_no_dicom_is_refused(data: bytes) -> None:
    """Nothing, too little, and something else."""
    with pytest.raises(NotDicom):
        read_segmentation(data)


def test_no_message_holds_what_a_patient_is_called() -> None:
    """The value of an attribute that cannot be decoded is not in the message."""
    with pytest.raises(NotASegmentation) as error:
        read_segmentation(changed(put("SegmentNumber", "LO", "Doe^Jane", segment)))
    assert "Doe" not in str(error.value)
