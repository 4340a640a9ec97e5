"""The Native DICOM Model (PS3.19 A.1): a data set as XML."""

import re
from collections.abc import Mapping
from typing import Any, Final
from xml.etree.ElementTree import Element, SubElement, tostring

from pydicom.datadict import keyword_for_tag

from segnode.dicom.json import Json

_NAMESPACE: Final = "http://dicom.nema.org/PS3.19/models/NativeDICOM"
_NAME_COMPONENTS: Final = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")
_NAME_GROUPS: Final = ("Alphabetic", "Ideographic", "Phonetic")
# What XML 1.0 cannot hold (2.2), not even escaped: DICOM text may have form feeds and escapes.
_NO_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def native_xml(document: Json) -> bytes:
    """DICOM JSON as a Native DICOM Model document in UTF-8.

    The tag of a private attribute has no block, which its creator tells. What XML cannot hold becomes U+FFFD.
    """
    root = Element("NativeDicomModel", {"xmlns": _NAMESPACE, "xml:space": "preserve"})
    _add_attributes(root, document)
    xml: bytes = tostring(root, encoding="UTF-8", xml_declaration=True)
    return xml


def _add_attributes(parent: Element, document: Json) -> None:
    for tag, content in sorted(document.items()):
        attribute = SubElement(parent, "DicomAttribute", _identity(tag, content, document))
        _add_content(attribute, content)


def _identity(tag: str, content: Mapping[str, Any], document: Json) -> dict[str, str]:
    number = int(tag, 16)
    if not number & 0x10000:
        keyword = keyword_for_tag(number)
        return {"tag": tag, "vr": content["vr"], **({"keyword": keyword} if keyword else {})}
    block = number >> 8 & 0xFF
    creator = document.get(f"{tag[:4]}00{block:02X}", {}).get("Value", [None])[0] if block else None
    if not creator:
        return {"tag": tag, "vr": content["vr"]}
    return {"tag": f"{tag[:4]}00{tag[6:]}", "vr": content["vr"], "privateCreator": _text(creator)}


def _add_content(attribute: Element, content: Mapping[str, Any]) -> None:
    if "BulkDataURI" in content:
        SubElement(attribute, "BulkData", {"uri": _text(content["BulkDataURI"])})
    if "InlineBinary" in content:
        SubElement(attribute, "InlineBinary").text = content["InlineBinary"]
    for number, value in enumerate(content.get("Value", ()), 1):
        _add_value(attribute, content["vr"], str(number), value)


def _add_value(attribute: Element, vr: str, number: str, value: Any) -> None:
    """One value; one that is empty is left out, and the numbers of the others tell its place."""
    if vr == "SQ":
        _add_attributes(SubElement(attribute, "Item", {"number": number}), value or {})
    elif value is not None and vr == "PN":
        _add_person(SubElement(attribute, "PersonName", {"number": number}), value)
    elif value is not None:
        SubElement(attribute, "Value", {"number": number}).text = _text(value)


def _add_person(person: Element, name: Mapping[str, str]) -> None:
    for group in _NAME_GROUPS:
        if name.get(group):
            representation = SubElement(person, group)
            for component, text in zip(_NAME_COMPONENTS, name[group].split("^"), strict=False):
                if text:
                    SubElement(representation, component).text = _text(text)


def _text(value: Any) -> str:
    return _NO_XML.sub("\ufffd", str(value))
