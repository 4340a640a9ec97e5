"""Media types with their parameters, as Content-Type and Accept headers have them (RFC 9110 8.3.1)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from python_multipart.multipart import parse_options_header

DICOM: Final = "application/dicom"
JSON: Final = "application/dicom+json"
XML: Final = "application/dicom+xml"
OCTETS: Final = "application/octet-stream"


@dataclass(frozen=True)
class MediaType:
    """A media type in lower case, and its parameters by name in lower case; empty where a header names none."""

    name: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def parse_media_type(header: str) -> MediaType:
    """What a header says, quoted or not; a parameter that is not understood is left out."""
    name, parameters = parse_options_header(header.encode("latin-1", "replace"))  # a query may hold any character
    found = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in parameters.items() if key}
    return MediaType(name.decode("latin-1").strip().lower(), found)
