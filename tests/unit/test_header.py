"""The header walk, against files that pydicom writes and files that are broken."""

import io
import tracemalloc
import zlib
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
)

from segnode.dicom.header import Header, read_header
from segnode.errors import BadIdentifier, Mismatch, NotDicom, Refusal
from segnode.testing.part10 import encode_part10


def small(**attributes) -> Dataset:
    """A data set with the identity an object needs."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, "1.2.3.4"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.5"
    dataset.Rows, dataset.Columns, dataset.Modality = 2, 3, "CT"
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def part10(dataset: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    """A Part 10 file, whatever is wrong with it."""
    return encode_part10(dataset, syntax)


def read(data: bytes) -> Header:
    """The header of bytes."""
    return read_header(io.BytesIO(data))


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
def test_every_encoding_gives_the_same_header(syntax: UID) -> None:
    """Explicit, implicit, big endian and deflated data sets say the same."""
    item = Dataset()
    item.CodeMeaning = "x" * 1000
    header = read(part10(small(PatientName="A^B", NumberOfFrames="7", ProcedureCodeSequence=[item]), syntax))
    assert (header.sop_class_uid, header.sop_instance_uid) == (CTImageStorage, "1.2.3.4")
    assert (header.study_instance_uid, header.series_instance_uid) == ("1.2.3", "1.2.3.5")
    assert header.transfer_syntax_uid == syntax
    assert header.attributes == {"Rows": "2", "Columns": "3", "Modality": "CT", "PatientName": "A^B", "NumberOfFrames": "7"}


def code(value: str) -> Dataset:
    """An item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", f"meaning of {value}"
    return item


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
@pytest.mark.parametrize("undefined_length", [False, True])
def test_items_are_read_in_every_encoding(syntax: UID, undefined_length: bool) -> None:
    """What is indexed of segments comes by path, of code sequences the first item; whatever ends items and sequences."""
    segment = Dataset()
    segment.SegmentNumber, segment.SegmentLabel = 300, "Größe"
    segment.SegmentedPropertyTypeCodeSequence = [code("1"), code("2")]
    segment.is_undefined_length_sequence_item = undefined_length
    dataset = small(SpecificCharacterSet="ISO_IR 192", SegmentSequence=[segment, Dataset()])
    dataset["SegmentSequence"].is_undefined_length = undefined_length
    type_of = "SegmentedPropertyTypeCodeSequence."
    assert read(part10(dataset, syntax)).items["SegmentSequence"] == [
        {
            "SegmentNumber": "300",
            "SegmentLabel": "Größe",
            f"{type_of}CodeValue": "1",
            f"{type_of}CodingSchemeDesignator": "SCT",
            f"{type_of}CodeMeaning": "meaning of 1",
        },
        {},
    ]


def test_sequence_that_is_broken_says_nothing(tmp_path: Path) -> None:
    """An object is no worse for a sequence whose items end beyond it; there is just nothing of it."""
    data = part10(small(SegmentSequence=[code("1")]))
    item = data.index(b"\xfe\xff\x00\xe0")
    assert read(data[: item + 4] + b"\xff\x00\x00\x00" + data[item + 8 :]).items["SegmentSequence"] == []


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 192", "Grün^Øyvind"),
        ("ISO_IR 100", "Grün^Ana"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        ("nonsense", "A^B"),
    ],
)
def test_text_is_decoded_by_its_character_set(character_set, name: str) -> None:
    """Names come out as Unicode whatever character set they were written in."""
    data = part10(small(SpecificCharacterSet=character_set, PatientName=name))
    assert read(data).attributes["PatientName"] == name


@pytest.mark.parametrize("keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("value", ["", "abc", "1..2", "1.2.", "../../etc/passwd", "1." * 33 + "1"])
@pytest.mark.filterwarnings("ignore")
def test_identifier_that_is_none_is_named(keyword: str, value: str) -> None:
    """A UID that is missing, empty, too long or no UID is refused by its keyword."""
    dataset = small()
    setattr(dataset, keyword, value)
    with pytest.raises(BadIdentifier) as error:
        read(part10(dataset))
    assert error.value.attribute == keyword


def test_file_meta_of_another_object_is_a_mismatch() -> None:
    """When the file meta information names another instance, the object is refused."""
    with pytest.raises(Mismatch, match="SOPInstanceUID"):
        read(part10(small()).replace(b"1.2.3.4\0", b"1.2.3.9\0", 1))


@pytest.mark.parametrize("data", [b"", b"DICM", b"\0" * 200, b"GET / HTTP/1.1\r\n\r\n" * 20, b"\0" * 128 + b"DICM"])
def test_what_is_not_dicom_is_refused(data: bytes) -> None:
    """Bytes without a DICOM prefix, or with nothing behind it, are no object."""
    with pytest.raises(Refusal):
        read(data)


def test_truncation_is_found_wherever_it_is() -> None:
    """A file cut anywhere before its last element is refused; never read as if it were whole."""
    whole = part10(small(SeriesDescription="d" * 40))
    whole_header = read(whole)
    for end in range(133, len(whole)):
        try:
            header = read(whole[:end])
        except Refusal:
            continue
        assert header.attributes.items() <= whole_header.attributes.items()


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEGLSLossless])
def test_truncated_pixel_data_is_found(syntax: UID) -> None:
    """Pixel data that ends before its length, or its last fragment, says is refused: half an image is no image."""
    dataset = small(BitsAllocated=8)
    pixels = bytes(1000)
    dataset.PixelData = encapsulate([pixels]) if syntax.is_encapsulated else pixels
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = syntax.is_encapsulated
    whole = part10(dataset, syntax)
    assert read(whole).attributes["Rows"] == "2"
    for missing in (9, 10, 500, 999):
        with pytest.raises(NotDicom, match=r"ends inside .*(PixelData|pixel data)"):
            read(whole[:-missing])
    if syntax.is_encapsulated:
        assert read(whole[:-8]).attributes["Rows"] == "2"


def nested(depth: int) -> bytes:
    """A data set with sequences of undefined length in each other."""
    start = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    end = b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0"
    return start * depth + end * depth


def test_deep_nesting_costs_nothing() -> None:
    """Sequences 100,000 deep are walked past: there is no recursion to exhaust."""
    data = part10(small())
    study = data.index(b"\x20\x00\x0d\x00UI")
    assert read(data[:study] + nested(100_000) + data[study:]).study_instance_uid == "1.2.3"
    with pytest.raises(NotDicom, match="inside a sequence"):
        read(data[:study] + nested(100)[:-8])


def test_deflated_bomb_stays_small() -> None:
    """A deflated data set of a gigabyte is inflated no further than a header may be long."""
    deflater = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    head = part10(small(), DeflatedExplicitVRLittleEndian)
    start = head.index(b"1.2.840.10008.1.2.1.99") + 22
    bomb = deflater.compress(b"\x08\x00\x08\x00UN\0\0\0\0\0\x40")
    bomb += b"".join(deflater.compress(bytes(1 << 20)) for _ in range(1024)) + deflater.flush()
    tracemalloc.start()
    with pytest.raises(Refusal):
        read(head[:start] + bomb)
    assert tracemalloc.get_traced_memory()[1] < 150 * 1024 * 1024
    tracemalloc.stop()


def test_deflated_data_set_that_is_cut_off_is_none() -> None:
    """Wherever it ends before its end: inside the pixels, where the header is whole, too."""
    whole = part10(small(PixelData=bytes(range(256)) * 64, BitsAllocated=8), DeflatedExplicitVRLittleEndian)
    assert read(whole).attributes["Rows"] == "2"
    assert read(whole + b"\0").attributes["Rows"] == "2"
    for cut in (3, 40, 200):
        with pytest.raises(NotDicom, match="ends inside the deflated data set"):
            read(whole[:-cut])


def test_what_follows_a_deflated_data_set_is_not_read() -> None:
    """However long it is, it takes no memory."""
    file = io.BytesIO(part10(small(), DeflatedExplicitVRLittleEndian) + bytes(64 << 20))
    tracemalloc.start()
    assert read_header(file).attributes["Rows"] == "2"
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_published_files_give_what_pydicom_gives(sample) -> None:
    """For every sample that has the identity an object needs, the header says what pydicom says."""
    compared = 0
    for path in sorted(p for p in sample("").rglob("*") if p.is_file() and p.suffix in ("", ".dcm", ".seg")):
        try:
            with path.open("rb") as file:
                header = read_header(file)
        except Refusal:
            continue
        expected = dcmread(path, stop_before_pixels=True)
        assert header.sop_instance_uid == expected.SOPInstanceUID
        for keyword in ("PatientName", "Modality", "Rows", "Columns", "SeriesDescription", "StudyDate", "NumberOfFrames"):
            assert header.attributes.get(keyword, "") == str(expected.get(keyword) or "").strip(), (path, keyword)
        compared += 1
    assert compared > 20


def test_reading_moves_no_more_than_it_must(tmp_path: Path) -> None:
    """The pixel data is not read: a file of 1 GiB costs what its header costs."""
    data = part10(small())
    path = tmp_path / "large.dcm"
    with path.open("wb") as file:
        file.write(data + b"\xe0\x7f\x10\x00OW\0\0" + (1 << 30).to_bytes(4, "little"))
        file.truncate(len(data) + 12 + (1 << 30))
    tracemalloc.start()
    with path.open("rb") as file:
        assert read_header(file).sop_instance_uid == "1.2.3.4"
    assert tracemalloc.get_traced_memory()[1] < 4 * 1024 * 1024
    tracemalloc.stop()
