"""The Native DICOM Model (PS3.19 A.1), held against DCMTK's."""

import subprocess
from xml.etree import ElementTree as ET

import pytest
from pydicom import Dataset, dcmread

from segnode.dicom.dataset_json import dataset_json
from segnode.dicom.xml import native_xml

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


def is_group_length(element: ET.Element) -> bool:
    """Whether it says how long a group was in another encoding."""
    return element.get("tag", "")[4:] == "0000"


@pytest.mark.parametrize("name", ["dcmqi/partial_overlaps.dcm", "highdicom/seg_image_ct_binary.dcm", "highdicom/sm_image.dcm"])
def test_it_is_what_dcmtk_writes(sample, dcmtk, name: str) -> None:
    """Every attribute in its place: tag, VR, keyword, private creator, items, names and values, those of numbers as numbers."""
    written = subprocess.run([dcmtk("dcm2xml"), "-nat", "+Xn", sample(name)], capture_output=True, check=True).stdout
    theirs = ET.fromstring(written)
    ours = ET.fromstring(native_xml(dataset_json(dcmread(sample(name)), str)))
    assert told(ours) == told(theirs)


def test_private_elements_and_what_xml_cannot_write() -> None:
    """A private element is named by its creator, without its block; markup and control characters do no harm."""
    dataset = Dataset()
    dataset.private_block(0x0045, "O'<Connor>&", create=True).add_new(0x02, "LO", 'a<b>&"\x01')
    (_, element) = ET.fromstring(native_xml(dataset_json(dataset, str)))
    assert (element.get("tag"), element.get("privateCreator")) == ("00450002", "O'<Connor>&")
    assert element[0].text == 'a<b>&"\ufffd'
