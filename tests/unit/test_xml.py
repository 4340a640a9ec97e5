"""The Native DICOM Model (PS3.19 A.1), held against DCMTK's."""

import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRLittleEndian

from segnode.dicom.dataset_json import dataset_json
from segnode.dicom.xml import native_xml, read_native_xml
from segnode.testing.part10 import encode_part10

NAMESPACE = "{http://dicom.nema.org/PS3.19/models/NativeDICOM}"
NUMBERS = ("DS", "IS", "FL", "FD")


def told(element: ET.Element, vr: str = "") -> object:
    """An element with what is in it; numbers as numbers, to six places, bulk data only by its being there."""
    kind = element.tag.removeprefix(NAMESPACE)
    if kind in ("BulkData", "InlineBinary"):
        return "binary"
    if kind == "Value" and vr in NUMBERS:
        return element.get("number"), f"{float(element.text or 0):.6g}"
    attributes = {name: value for name, value in element.attrib.items() if "space" not in name}
    inside = [told(child, element.get("vr", "")) for child in element if not is_group_length(child)]
    return kind, attributes, inside or (element.text or "").strip()


def image() -> Dataset:
    """Names in several scripts, an empty item, markup, private attributes."""
    made = dcmread(str(get_testdata_file("CT_small.dcm")))
    made.SpecificCharacterSet = "ISO_IR 192"
    made.PatientName = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    made.ReferencedImageSequence = [Dataset(), Dataset()]
    made.ReferencedImageSequence[1].ReferencedSOPInstanceUID = "1.2.3"
    made.StudyDescription = "a < b & 'c'"
    return made


def is_group_length(element: ET.Element) -> bool:
    """Whether it says how long a group was in another encoding."""
    return element.get("tag", "")[4:] == "0000"


def test_it_is_what_dcmtk_writes(dcmtk, tmp_path: Path) -> None:
    """Every attribute in its place: tag, VR, keyword, private creator, items, names and values, those of numbers as numbers."""
    (tmp_path / "image.dcm").write_bytes(encode_part10(image(), ExplicitVRLittleEndian))
    require_same(tmp_path / "image.dcm", dcmtk("dcm2xml"))


@pytest.mark.parametrize("name", ["dcmqi/partial_overlaps.dcm", "highdicom/seg_image_ct_binary.dcm", "highdicom/sm_image.dcm"])
def test_published_objects_are_what_dcmtk_writes(sample, dcmtk, name: str) -> None:
    """So are those of other people's writers."""
    require_same(sample(name), dcmtk("dcm2xml"))


def require_same(file: Path, dcm2xml: str) -> None:
    """What we write of a file must be what DCMTK does."""
    theirs = subprocess.run([dcm2xml, "-nat", "+Xn", file], capture_output=True, check=True).stdout
    assert told(ET.fromstring(native_xml(dataset_json(dcmread(file), str)))) == told(ET.fromstring(theirs))


def test_private_elements_and_what_xml_cannot_write() -> None:
    """A private element is named by its creator, without its block; markup, control characters and ends of lines do no harm."""
    dataset = Dataset()
    dataset.ImageComments = "one\ftwo\r\nthree"
    dataset.private_block(0x0045, "O'<Connor>&", create=True).add_new(0x02, "LO", 'a<b>&"\x01')
    (comments, _, element) = ET.fromstring(native_xml(dataset_json(dataset, str)))
    assert (element.get("tag"), element.get("privateCreator")) == ("00450002", "O'<Connor>&")
    assert comments[0].text == "one\ufffdtwo\r\nthree"
    assert element[0].text == 'a<b>&"\ufffd'


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "rtplan.dcm", "reportsi.dcm", "liver_1frame.dcm"])
def test_what_is_written_is_read_as_it_was(name: str) -> None:
    """Every attribute, item, name and value of published objects, private ones too; decimal numbers as text."""
    written = native_xml(dataset_json(dcmread(str(get_testdata_file(name))), str))
    assert native_xml(read_native_xml(written)) == written


def test_private_attributes_get_the_blocks_of_their_creators() -> None:
    """The one that is reserved, and for a creator without one the next that is free."""
    one, other = (
        f'<DicomAttribute tag="00450002" vr="LO" privateCreator="{who}"><Value number="1">x</Value></DicomAttribute>'
        for who in "AB"
    )
    reserved = '<DicomAttribute tag="00450010" vr="LO"><Value number="1">B</Value></DicomAttribute>'
    document = read_native_xml(f"<NativeDicomModel>{one}{other}{reserved}</NativeDicomModel>".encode())
    assert {tag: content["Value"] for tag, content in document.items()} == {
        "00450010": ["B"],
        "00450011": ["A"],
        "00451002": ["x"],
        "00451102": ["x"],
    }


def test_values_stand_at_their_numbers() -> None:
    """What is left out between two values is empty."""
    values = '<Value number="1">A</Value><Value number="3">C</Value>'
    xml = f'<NativeDicomModel><DicomAttribute tag="00080008" vr="CS">{values}</DicomAttribute></NativeDicomModel>'
    assert read_native_xml(xml.encode())["00080008"]["Value"] == ["A", None, "C"]


@pytest.mark.parametrize(
    "xml",
    [
        b"",
        b"<NativeDicomModel>",
        b"<other/>",
        b'<!DOCTYPE NativeDicomModel [<!ENTITY a "b">]><NativeDicomModel>&a;</NativeDicomModel>',
        b'<!DOCTYPE NativeDicomModel SYSTEM "file:///etc/passwd"><NativeDicomModel/>',
        b'<NativeDicomModel><DicomAttribute tag="x" vr="CS"/></NativeDicomModel>',
        b'<NativeDicomModel><DicomAttribute tag="00080008" vr="CS"><Value number="99999"/></DicomAttribute></NativeDicomModel>',
        b'<?xml version="1.0" encoding="none"?><NativeDicomModel/>',
        b"<NativeDicomModel>" + b'<DicomAttribute tag="00081140" vr="SQ"><Item number="1">' * 5000,
    ],
)
def test_what_is_no_native_model_is_refused(xml: bytes) -> None:
    """Also what has a DTD, whatever that says, and numbers that no value has."""
    with pytest.raises(ValueError):  # noqa: PT011  it is what the function raises
        read_native_xml(xml)
