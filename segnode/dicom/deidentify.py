"""De-identification: the Basic Application Level Confidentiality Profile without options (PS3.15 E.2), and stricter than it.

Beyond the profile's table goes every text that it does not list, dates, ages and binary values among it, but for the few that
say how pixels are to be read; every UID that the standard does not define is replaced.
"""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Final

import numpy as np
from pydicom import DataElement, Dataset
from pydicom._uid_dict import UID_dictionary
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.pixels.utils import get_expected_length
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from segnode.dicom.codes import Code
from segnode.dicom.native_pixels import of_stored_bits
from segnode.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, derived_uid

BASIC_PROFILE: Final = Code("DCM", "113100", "Basic Application Confidentiality Profile")

_TEXTS: Final = frozenset(("AE", "AS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UR", "UT"))
_BYTES: Final = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "UN"))
# Texts and bytes that the profile lets be, and that pixels or codes cannot be read without, or that tell of a kind of device.
_KEPT: Final = frozenset(
    (
        "BluePaletteColorLookupTableData",
        "CodeMeaning",
        "CodeValue",
        "CodingSchemeDesignator",
        "CodingSchemeVersion",
        "ConvolutionKernel",
        "DoubleFloatPixelData",
        "FloatPixelData",
        "GreenPaletteColorLookupTableData",
        "LUTData",
        "LongCodeValue",
        "Manufacturer",
        "ManufacturerModelName",
        "ModalityLUTType",
        "PixelData",
        "RedPaletteColorLookupTableData",
        "RescaleType",
        "StackID",
        "URNCodeValue",
    )
)
_DUMMIES: Final[Mapping[str, str]] = {
    "AE": "REMOVED",
    "AS": "000Y",
    "CS": "REMOVED",
    "DA": "19000101",
    "DS": "0",
    "DT": "19000101000000",
    "IS": "0",
    "TM": "000000",
    "UR": "urn:removed",
}
_NUMBERS: Final = frozenset(("FD", "FL", "SL", "SS", "SV", "UL", "US", "UV"))


def deidentified(image: Dataset, key: str, patient_id: str) -> Dataset:
    """An object without who it is of: PatientID and PatientName are `patient_id`, UIDs derive from theirs and the key.

    The same UIDs become the same, with the same key, wherever they are referred to. Overlays in bits of native pixels that are
    not stored, and what is behind them, go; burned-in annotation stays.
    """
    out = _cleaned(image, key)
    _clean_pixels(out, image.file_meta.TransferSyntaxUID)
    out.PatientID = out.PatientName = patient_id
    out.PatientIdentityRemoved = "YES"
    out.LongitudinalTemporalInformationModified = "REMOVED"
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = (
        BASIC_PROFILE.value,
        BASIC_PROFILE.scheme,
        BASIC_PROFILE.meaning,
    )
    out.DeidentificationMethodCodeSequence = [item]
    out.file_meta = FileMetaDataset()
    out.file_meta.MediaStorageSOPClassUID = out.SOPClassUID
    out.file_meta.MediaStorageSOPInstanceUID = out.SOPInstanceUID
    out.file_meta.TransferSyntaxUID = image.file_meta.TransferSyntaxUID
    out.file_meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    out.file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return out


def replaced_uid(uid: str, key: str) -> UID:
    """The UID that stands for another one; those that the standard defines stay."""
    return UID(uid) if uid in UID_dictionary else derived_uid("de-identified", key, uid)


@cache
def _actions() -> Mapping[str, str]:
    """What is done with an attribute, by keyword: of the actions that the profile gives to choose from, the last.

    That keeps what the strictest type of attribute needs, and loses as much.
    """
    lines = (files("segnode.dicom") / "basic_profile.txt").read_text(encoding="utf-8").splitlines()
    rows = (line.split() for line in lines if not line.startswith("#"))
    return {keyword: action.rpartition("/")[2].rstrip("*") for keyword, action in rows}


def _cleaned(dataset: Dataset, key: str) -> Dataset:
    out = Dataset()
    for element in dataset:
        cleaned = _clean(element, key)
        if cleaned is not None:
            out.add(cleaned)
    return out


def _clean(element: DataElement, key: str) -> DataElement | None:
    """What an element becomes; None where it goes."""
    tag, vr = element.tag, element.VR
    keyword = "" if _is_foreign(tag) else keyword_for_tag(tag)
    action = _actions().get(keyword, "" if keyword else "X")
    if action == "X" or (not action and keyword not in _KEPT and vr in (*_TEXTS, *_BYTES)):
        return None
    if action == "Z":
        return DataElement(tag, vr, Sequence() if vr == "SQ" else None)
    if vr == "UI":
        return element if keyword.endswith("SOPClassUID") else DataElement(tag, vr, _uids(element.value, key))
    if action == "D":
        return _dummy(tag, vr)
    if vr == "SQ":
        return DataElement(tag, vr, Sequence([_cleaned(item, key) for item in element.value or ()]))
    return element


def _clean_pixels(image: Dataset, syntax: UID) -> None:
    bits = image.get("BitsAllocated")
    if "PixelData" not in image or bits not in (8, 16) or syntax not in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        return
    dtype = np.dtype(f"<{'ui'[int(image.PixelRepresentation or 0)]}{bits // 8}")
    count = get_expected_length(image, unit="pixels")
    # Chroma may be subsampled: then there are fewer.
    values = np.frombuffer(image.PixelData, dtype, min(count, len(image.PixelData) // dtype.itemsize))
    if image.get("HighBit") == image.get("BitsStored", 0) - 1:
        values = of_stored_bits(values, image)
    image.PixelData = values.tobytes() + bytes(values.nbytes % 2)


def _is_foreign(tag: BaseTag) -> bool:
    """Whether a tag is private, of a repeating group (curves, overlays), or a group's length."""
    return tag.is_private or tag.group & 0xFF00 in (0x5000, 0x6000) or tag.element == 0


def _dummy(tag: BaseTag, vr: str) -> DataElement | None:
    """A value that says nothing; a sequence goes, as in images none of those that are to have one is required."""
    if vr in ("SQ", *_BYTES):
        return None
    return DataElement(tag, vr, 0 if vr in _NUMBERS else _DUMMIES.get(vr, "removed"))


def _uids(value: object, key: str) -> object:
    if not value:
        return value
    if isinstance(value, MultiValue):
        return [replaced_uid(str(each), key) for each in value]
    return replaced_uid(str(value), key)
