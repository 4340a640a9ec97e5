"""De-identification by the Basic Profile: whatever attribute says something of somebody, it does not afterwards."""

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import DataElement, Dataset, dcmread, dcmwrite
from pydicom.datadict import DicomDictionary, keyword_for_tag
from pydicom.dataset import FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from segnode.dicom.deidentify import deidentified, replaced_uid

MARKED = {
    "AE": "MARKER",
    "AS": "099Y",
    "DA": "19991231",
    "DT": "19991231235959",
    "LO": "Marker",
    "LT": "Marker",
    "OB": b"Marker",
    "OW": b"Marker",
    "PN": "Marker^Marker",
    "SH": "Marker",
    "ST": "Marker",
    "TM": "235959.9",
    "UC": "Marker",
    "UI": "1.2.3.99999.8",
    "UN": b"Marker",
    "UR": "http://Marker",
    "UT": "Marker",
}
SECRETS = (b"Marker", b"MARKER", b"099Y", b"19991231", b"235959", b"1.2.3.99999")
# Of a kind of device, of what pixels mean, and of codes: what the profile lets be.
MAY_STAY = {
    "CodeMeaning",
    "CodeValue",
    "CodingSchemeDesignator",
    "CodingSchemeVersion",
    "ConvolutionKernel",
    "LongCodeValue",
    "Manufacturer",
    "ManufacturerModelName",
    "ModalityLUTType",
    "RescaleType",
    "StackID",
    "URNCodeValue",
}


def every_text() -> Dataset:
    """A data set of every attribute that the dictionary knows whose value is text or bytes."""
    made = Dataset()
    for tag, (vr, *_) in DicomDictionary.items():
        keyword = keyword_for_tag(tag)
        if vr not in MARKED or not keyword or Tag(tag).group in (0, 2) or keyword in MAY_STAY:
            continue
        if keyword.endswith(("SOPClassUID", "PixelData", "LUTData", "LookupTableData")):
            continue
        made.add(DataElement(tag, vr, MARKED[vr]))
    return made


def written(dataset: Dataset) -> bytes:
    """Its bytes as a file."""
    file = BytesIO()
    dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def image(content: Dataset) -> Dataset:
    """An object with this content."""
    made = Dataset()
    made.update(content)
    made.SOPClassUID, made.SOPInstanceUID = CTImageStorage, "1.2.3.99999.9"
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return made


def test_no_attribute_of_the_dictionary_tells() -> None:
    """Texts, dates, ages, UIDs and bytes, at the top and in items of items."""
    content = every_text()
    assert len(content) > 1000
    for sequence in ("ReferencedImageSequence", "SharedFunctionalGroupsSequence"):
        outer = Dataset()
        outer.DerivationImageSequence = [every_text()]
        content[Tag(sequence)] = DataElement(Tag(sequence), "SQ", [outer])
    made = written(deidentified(image(content), "key", "0000001"))
    assert not [secret for secret in SECRETS if secret in made]
    assert dcmread(BytesIO(made)).PatientID == "0000001"


def test_curves_overlays_and_private_elements_go() -> None:
    """Of repeating groups too."""
    content = every_text()
    for tag, vr in ((0x50000022, "LO"), (0x50023000, "OW"), (0x60020022, "LO"), (0x601E3000, "OW"), (0x00110010, "LO")):
        content.add(DataElement(tag, vr, MARKED[vr]))
    content.add(DataElement(0x00111001, "SL", 5))
    kept = deidentified(image(content), "key", "1")
    assert not [element for element in kept if element.tag.group & 0xFF00 in (0x5000, 0x6000) or element.tag.is_private]


@pytest.mark.parametrize("signed", [0, 1])
def test_an_overlay_in_bits_that_are_not_stored_goes(signed: int) -> None:
    """And what stands behind the pixels; the values stay."""
    content = Dataset()
    content.Rows, content.Columns, content.SamplesPerPixel, content.PhotometricInterpretation = 2, 3, 1, "MONOCHROME2"
    content.BitsAllocated, content.BitsStored, content.HighBit, content.PixelRepresentation = 16, 12, 11, signed
    values = np.array([[0, 1, 2047], [-1, -2048, 5]] if signed else [[0, 1, 4095], [2048, 7, 9]])
    overlay = (values & 0xFFF) | 0x5000
    content.PixelData = overlay.astype("<u2").tobytes() + b"Marker"
    kept = deidentified(image(content), "key", "1")
    assert kept.PixelData == values.astype("<i2" if signed else "<u2").tobytes()


def test_what_is_required_is_there_though_it_says_nothing() -> None:
    """Empty, or a dummy (Table E.1-1: Z, Z/D, X/Z/D)."""
    kept = deidentified(image(every_text()), "key", "1")
    assert all(kept[keyword].is_empty for keyword in ("StudyDate", "AccessionNumber", "PatientBirthDate", "StudyID"))
    assert (kept.ContentDate, kept.SeriesDate, kept.AcquisitionDateTime) == ("19000101", "19000101", "19000101000000")
    assert "InstitutionAddress" not in kept


def test_codes_and_what_pixels_are_read_by_stay() -> None:
    """The type of rescaled values, the code of a region, the numbers of geometry."""
    content = Dataset()
    content.RescaleType, content.RescaleSlope, content.PixelSpacing = "HU", "2", [1, 2]
    region = Dataset()
    region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = "10200004", "SCT", "Liver"
    content.AnatomicRegionSequence = [region]
    kept = deidentified(image(content), "key", "1")
    assert (kept.RescaleType, kept.RescaleSlope, list(kept.PixelSpacing)) == ("HU", 2, [1, 2])
    assert kept.AnatomicRegionSequence[0].CodeMeaning == "Liver"


@given(st.lists(st.from_regex(r"1\.2\.[1-9][0-9]{0,20}", fullmatch=True), unique=True, min_size=2), st.text(min_size=1))
def test_uids_are_replaced_by_others_and_by_the_same_for_the_same(uids: list[str], key: str) -> None:
    """With one key; with another they are others."""
    made = [replaced_uid(uid, key) for uid in uids]
    assert len(set(made)) == len(uids)
    assert not set(made) & set(uids)
    assert made == [replaced_uid(uid, key) for uid in uids]
    assert not set(made) & {replaced_uid(uid, key + "'") for uid in uids}
    assert all(uid.is_valid for uid in made)


def test_uids_of_the_standard_stay() -> None:
    """SOP classes, coding schemes and well-known frames of reference tell of nobody."""
    assert replaced_uid("1.2.840.10008.1.4.1.1", "key") == "1.2.840.10008.1.4.1.1"
