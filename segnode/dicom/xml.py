"""The Native DICOM Model (PS3.19 A.1): a data set as XML, written and read."""

import re
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any, Final, NoReturn
from xml.etree.ElementTree import Element, ParseError, SubElement, TreeBuilder, XMLParser, tostring

from pydicom.datadict import keyword_for_tag

from segnode.dicom.json import Json

_NAMESPACE: Final = "http://dicom.nema.org/PS3.19/models/NativeDICOM"
_NAME_COMPONENTS: Final = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")
_NAME_GROUPS: Final = ("Alphabetic", "Ideographic", "Phonetic")
_WHOLE: Final = ("IS", "SL", "SS", "SV", "UL", "US", "UV")
_FRACTION: Final = ("FD", "FL")
_TAG: Final = re.compile("[0-9A-Fa-f]{8}")
_FIRST_BLOCK, _LAST_BLOCK = 0x10, 0xFF  # of private attributes (PS3.5 7.8.1)
_MOST_VALUES: Final = 1 << 16
# What XML 1.0 cannot hold (2.2), not even escaped: DICOM text may have form feeds and escapes.
_NO_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def native_xml(document: Json) -> bytes:
    """DICOM JSON as a Native DICOM Model document in UTF-8.

    The tag of a private attribute has no block, which its creator tells. What XML cannot hold becomes U+FFFD.
    """
    root = Element("NativeDicomModel", {"xmlns": _NAMESPACE, "xml:space": "preserve"})
    _add_attributes(root, document)
    xml: bytes = tostring(root, encoding="UTF-8", xml_declaration=True)
    return xml.replace(b"\r", b"&#13;")  # unescaped it is read as \n (XML 2.11)


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


def read_native_xml(xml: bytes) -> Json:
    """A Native DICOM Model document as DICOM JSON; what is no value of its VR stays text.

    A private attribute gets the block of its creator. Raises ValueError for what is none, and for a document with a DTD.
    """
    parser = XMLParser(target=_WithoutDtd())  # noqa: S314  a DTD, and so an entity, is refused
    try:
        parser.feed(xml)
        root: Element = parser.close()
        if _name(root) != "NativeDicomModel":
            raise ValueError("the document is not a NativeDicomModel")
        return _read_attributes(root)
    except (ParseError, LookupError, RecursionError) as error:
        raise ValueError("not XML that can be read") from error


class _WithoutDtd(TreeBuilder):
    """What makes elements of a document, unless it has a DTD."""

    def doctype(self, *_: object) -> NoReturn:
        """Raise ValueError."""
        raise ValueError("the document has a DTD")


def _name(element: Element) -> str:
    """Without its namespace, which not all write."""
    return element.tag.rpartition("}")[2]


def _children(element: Element, name: str) -> Iterator[Element]:
    return (child for child in element if _name(child) == name)


def _read_attributes(parent: Element) -> Json:
    """Raises ValueError."""
    found = [(attribute.get("tag", ""), attribute) for attribute in _children(parent, "DicomAttribute")]
    if not all(_TAG.fullmatch(tag) for tag, _ in found):
        raise ValueError("a DicomAttribute has no tag of eight hexadecimal digits")
    document = {tag.upper(): _read_content(each) for tag, each in found if not each.get("privateCreator")}
    for tag, each in found:
        if creator := each.get("privateCreator"):
            block = _block_of(document, tag[:4].upper(), creator)
            document[f"{tag[:4].upper()}{block:02X}{tag[6:].upper()}"] = _read_content(each)
    return document


def _block_of(document: Json, group: str, creator: str) -> int:
    """The block of a private creator, which is reserved where it is not (PS3.5 7.8.1). Raises ValueError."""
    for block in range(_FIRST_BLOCK, _LAST_BLOCK + 1):
        reserved = document.setdefault(f"{group}00{block:02X}", {"vr": "LO", "Value": [creator]})
        if reserved.get("Value") == [creator]:
            return block
    raise ValueError("a group has more private creators than blocks")


def _read_content(attribute: Element) -> Json:
    vr = attribute.get("vr", "UN")
    for child in attribute:
        if _name(child) == "BulkData":
            return {"vr": vr, "BulkDataURI": child.get("uri", "")}
        if _name(child) == "InlineBinary":
            return {"vr": vr, "InlineBinary": "".join((child.text or "").split())}
    values = _read_values(vr, attribute)
    return {"vr": vr, "Value": values} if values else {"vr": vr}


def _read_values(vr: str, attribute: Element) -> list[Any]:
    """Values in the places that their numbers say. Raises ValueError."""
    places: dict[int, Any] = {}
    for place, child in zip(count(1), (c for c in attribute if _name(c) in ("Value", "PersonName", "Item"))):
        places[int(child.get("number", place))] = _read_value(vr, child)
    if places and not 0 < min(places) <= max(places) <= _MOST_VALUES + len(places):
        raise ValueError("a value has a number that is none")
    return [places.get(place) for place in range(1, max(places, default=0) + 1)]


def _read_value(vr: str, value: Element) -> Any:
    if _name(value) == "Item":
        return _read_attributes(value)
    if _name(value) == "PersonName":
        return {_name(group): _read_name(group) for group in value if _name(group) in _NAME_GROUPS}
    text = value.text or ""
    try:
        return int(text) if vr in _WHOLE else float(text) if vr in _FRACTION else text
    except ValueError:
        return text


def _read_name(group: Element) -> str:
    components = {_name(component): component.text or "" for component in group}
    return "^".join(components.get(name, "") for name in _NAME_COMPONENTS).rstrip("^")
