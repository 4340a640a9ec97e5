"""The Native DICOM Model (PS3.19 A.1) of a document of DICOM JSON: the same values, as XML."""

import re
from collections.abc import Iterator
from typing import Any, Final
from xml.sax.saxutils import escape, quoteattr

from pydicom.datadict import keyword_for_tag

from segnode.dicom.json import Json

_HEAD: Final = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<NativeDicomModel xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM" xml:space="preserve">'
)
_PARTS: Final = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")
# What XML 1.0 has no way to write.
_NO_CHARACTERS: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def native_xml(document: Json) -> bytes:
    """The XML of a data set."""
    return "".join((_HEAD, *_attributes(document), "</NativeDicomModel>")).encode()


def _attributes(document: Json) -> Iterator[str]:
    for tag, element in document.items():
        keyword = keyword_for_tag(int(tag, 16))
        name = f" keyword={quoteattr(keyword)}" if keyword else ""
        creator = _private_creator(document, tag)
        owner = f" privateCreator={quoteattr(_writable(creator))}" if creator else ""
        # The block of a private element is that of its creator, and not part of what it is (PS3.19 A.1.5).
        known_as = f"{tag[:4]}00{tag[6:]}" if creator else tag
        yield f'<DicomAttribute tag="{known_as}" vr="{element["vr"]}"{name}{owner}>'
        yield from _values(element)
        yield "</DicomAttribute>"


def _values(element: Json) -> Iterator[str]:
    if "BulkDataURI" in element:
        yield f"<BulkData uri={quoteattr(element['BulkDataURI'])}/>"
    elif "InlineBinary" in element:
        yield f"<InlineBinary>{element['InlineBinary']}</InlineBinary>"
    for number, value in enumerate(element.get("Value", ()), 1):
        if element["vr"] == "SQ":
            yield f'<Item number="{number}">'
            yield from _attributes(value)
            yield "</Item>"
        elif element["vr"] == "PN":
            yield f'<PersonName number="{number}">'
            yield from _name(value)
            yield "</PersonName>"
        elif value is not None and value != "":
            yield f'<Value number="{number}">{_text(value)}</Value>'


def _name(value: Any) -> Iterator[str]:
    for group in ("Alphabetic", "Ideographic", "Phonetic"):
        if isinstance(value, dict) and value.get(group):
            yield f"<{group}>"
            for part, text in zip(_PARTS, value[group].split("^"), strict=False):
                if text:
                    yield f"<{part}>{_text(text)}</{part}>"
            yield f"</{group}>"


def _private_creator(document: Json, tag: str) -> str:
    """Who owns a private element; nobody a public one, or the element that names the owner."""
    if int(tag[:4], 16) % 2 == 0 or int(tag[4:], 16) < 0x1000:
        return ""
    values = document.get(f"{tag[:4]}00{tag[4:6]}", {}).get("Value") or [""]
    return str(values[0])


def _text(value: Any) -> str:
    return escape(_writable(str(value)))


def _writable(text: str) -> str:
    return _NO_CHARACTERS.sub("\ufffd", text)
