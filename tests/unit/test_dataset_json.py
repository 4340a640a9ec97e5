"""DICOM JSON of whole data sets, and the values that it names (PS3.18 F)."""

import base64
import json

import pytest
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from segnode.dicom.dataset_json import dataset_json
from segnode.dicom.elements import read_meta
from segnode.dicom.values import value_at
from segnode.dicomweb.decoding_child import document_of
from segnode.errors import NotFound
from segnode.testing.part10 import encode_part10

LARGE = bytes(range(256)) * 32


def nested() -> Dataset:
    """A data set with large and small binary values, one of them in an item."""
    item = Dataset()
    item.EncapsulatedDocument = LARGE
    made = Dataset()
    made.SOPInstanceUID, made.SOPClassUID = "1.2.3", "1.2"
    made.SpecificCharacterSet, made.PatientName = "ISO_IR 100", "M\u00fcller^\u00c4nne"
    made.SourceImageSequence = [Dataset(), item]
    made.RedPaletteColorLookupTableData = b"\x01\x02\x03\x04"
    made.AnnotationGroupSequence = []
    return made


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_large_values_are_named_and_small_ones_little_endian(syntax: str, tmp_path) -> None:
    """The path of a URI leads to the value, whatever the encoding; text is UTF-8; an empty sequence has no Value."""
    dataset = nested()
    if syntax == ExplicitVRBigEndian:
        dataset.RedPaletteColorLookupTableData = b"\x02\x01\x04\x03"
    part10 = encode_part10(dataset, syntax)
    (tmp_path / "file").write_bytes(part10)
    document = json.loads(document_of(tmp_path / "file", "http://node/x"))
    (_, item) = document["00082112"]["Value"]
    assert item["00420011"] == {"vr": "OB", "BulkDataURI": "http://node/x/bulkdata/00082112/2/00420011"}
    start, end, _ = value_at(part10, read_meta(part10)[1], syntax, "00082112/2/00420011")
    assert part10[start:end] == LARGE
    assert base64.b64decode(document["00281201"]["InlineBinary"]) == b"\x01\x02\x03\x04"
    assert document["00100010"]["Value"] == [{"Alphabetic": "M\u00fcller^\u00c4nne"}]
    assert document["00080005"]["Value"] == ["ISO_IR 192"]
    assert document["006A0002"] == {"vr": "SQ"}


@pytest.mark.parametrize(
    "path", ["00420011", "00082112/3/00420011", "00082112/2/00420010", "..", "00082112/0/00420011", "x" * 999]
)
def test_a_path_that_leads_nowhere_is_not_found(path: str) -> None:
    """No such tag, no such item, no path: each is not found."""
    part10 = encode_part10(nested(), ExplicitVRLittleEndian)
    with pytest.raises(NotFound):
        value_at(part10, read_meta(part10)[1], ExplicitVRLittleEndian, path)


def test_numbers_that_json_has_not_are_null() -> None:
    """NaN is no JSON."""
    dataset = Dataset()
    dataset.RealWorldValueSlope = float("nan")
    document = dataset_json(dataset, str)
    assert document["00409225"] == {"vr": "FD", "Value": [None]}


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize(
    ("keyword", "text", "values"),
    [
        ("WindowCenter", "1.5\\\\-3e2 ", [1.5, None, -300]),
        ("WindowCenter", "1,5", ["1,5"]),
        ("WindowCenter", "1e999 ", ["1e999"]),
        ("SelectorISValue", " 7\\+08\\", [7, 8, None]),
        ("SelectorISValue", "5.5\\5.0\\x", ["5.5", 5, "x"]),
        ("SelectorISValue", "99999999999999999999", [99999999999999999999]),
        ("OtherPatientNames", "A^B\\\\=I", [{"Alphabetic": "A^B"}, None, {"Ideographic": "I"}]),
    ],
)
def test_of_several_values_none_is_lost(implicit: bool, keyword: str, text: str, values: list[object]) -> None:
    """One that is empty is null, and a number that is none of JSON, or of its VR, stays the text that it is (PS3.18 F.2.3)."""
    dataset = Dataset()
    tag = Tag(keyword)
    dataset[tag] = RawDataElement(tag, None if implicit else dictionary_VR(tag), len(text), text.encode(), 0, implicit, True)
    assert dataset_json(dataset, str)[f"{tag:08X}"] == {"vr": dictionary_VR(tag), "Value": values}


@pytest.mark.parametrize("name", ["dcmqi/partial_overlaps.dcm", "highdicom/sm_image.dcm", "pydicom-data/liver_expb.dcm"])
def test_published_samples_are_as_pydicom_tells_them(sample, name: str) -> None:
    """But for pixel data, which is named, and what the standard has otherwise: every element is there, sequences whole."""
    document = dataset_json(dcmread(sample(name), stop_before_pixels=True), str)
    expected = dcmread(sample(name), stop_before_pixels=True).to_json_dict()
    empty = {tag for tag, element in expected.items() if element.get("Value") == []}
    assert {tag: element for tag, element in document.items() if tag not in empty} == {
        tag: element for tag, element in expected.items() if tag not in empty
    }
