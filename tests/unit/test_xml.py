"""The Native DICOM Model."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file

from segnode.dicom.xml import native_xml
from segnode.testing.part10 import encode_part10


def attributes(xml: bytes) -> list[tuple[str, object]]:
    """Every element with what is above it; numbers as numbers, bulk data left out."""
    found: list[tuple[str, object]] = []

    def walk(element: ET.Element, above: str, vr: str) -> None:
        named = f"{above}/{element.tag.split('}')[-1]}{sorted(element.items())}"  # theirs has no namespace
        text = (element.text or "").strip()
        found.append((named, f"{float(text):.6g}" if text and vr in ("DS", "FL", "FD") else text))
        for child in element:
            walk(child, named, element.get("vr", vr))

    walk(ET.fromstring(xml), "", "")
    return [item for item in found if "BulkData" not in item[0] and "InlineBinary" not in item[0]]


def test_reads_as_dcmtk_has_it(dcmtk: Callable[[str], str], tmp_path: Path) -> None:
    """What dcm2xml writes of names in several scripts, sequences and private attributes is what we write."""
    image = dcmread(str(get_testdata_file("CT_small.dcm")))
    image.SpecificCharacterSet = "ISO_IR 192"
    image.PatientName = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    image.ReferencedImageSequence = [Dataset(), Dataset()]
    image.ReferencedImageSequence[1].ReferencedSOPInstanceUID = "1.2.3"
    image.StudyDescription = "a < b & 'c'"
    file = tmp_path / "image.dcm"
    file.write_bytes(encode_part10(image, "1.2.840.10008.1.2.1"))
    theirs = subprocess.run([dcmtk("dcm2xml"), "--native-format", str(file)], capture_output=True, check=True).stdout
    assert attributes(native_xml(image)) == attributes(theirs)


def test_what_xml_cannot_hold_is_replaced() -> None:
    """A form feed, which DICOM text may have, ends in a document that is read."""
    dataset = Dataset()
    dataset.ImageComments = "one\ftwo\nthree"
    (value,) = ET.fromstring(native_xml(dataset)).iter("{http://dicom.nema.org/PS3.19/models/NativeDICOM}Value")
    assert value.text == "one\ufffdtwo\nthree"
