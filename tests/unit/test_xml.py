"""The Native DICOM Model (PS3.19 A.1), held against DCMTK's."""

import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRLittleEndian

from segnode.dicom.dataset_json import dataset_json
from segnode.dicom.xml import native_xml
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
    """A private element is named by its creator, without its block; markup and control characters do no harm."""
    dataset = Dataset()
    dataset.ImageComments = "one\ftwo\nthree"
    dataset.private_block(0x0045, "O'<Connor>&", create=True).add_new(0x02, "LO", 'a<b>&"\x01')
    (comments, _, element) = ET.fromstring(native_xml(dataset_json(dataset, str)))
    assert (element.get("tag"), element.get("privateCreator")) == ("00450002", "O'<Connor>&")
    assert comments[0].text == "one\ufffdtwo\nthree"
    assert element[0].text == 'a<b>&"\ufffd'
