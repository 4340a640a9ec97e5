"""What Accept headers ask for, and which of several representations they get (PS3.18 8.7.3)."""

import pytest

from segnode.dicomweb.accept import Representation, choose, parse_accept, require
from segnode.errors import NotAcceptable

EXPLICIT, JPEG_LS = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.80"
DICOM = [
    Representation("application/dicom", syntax, multipart) for multipart in (True, False) for syntax in (JPEG_LS, EXPLICIT)
]
STORED = Representation("image/jls", JPEG_LS, also="application/octet-stream")
NATIVE = Representation("application/octet-stream", EXPLICIT)
ALONE = Representation("application/octet-stream", EXPLICIT, multipart=False)
FRAMES = [STORED, NATIVE, ALONE]


@pytest.mark.parametrize(
    ("accept", "multipart", "syntax"),
    [
        ("", True, EXPLICIT),
        ("*/*", True, EXPLICIT),
        ('multipart/related; type="application/dicom"', True, EXPLICIT),
        ("multipart/related; type=application/dicom; transfer-syntax=*", True, JPEG_LS),
        (f'multipart/related; type="application/dicom"; transfer-syntax={JPEG_LS}', True, JPEG_LS),
        (f'multipart/related; type="application/dicom; transfer-syntax={JPEG_LS}"', True, JPEG_LS),
        ('multipart/related; type="application/dicom"; transfer-syntax=9.9, application/dicom', False, EXPLICIT),
        ("application/dicom", False, EXPLICIT),
        ("text/html, application/dicom; transfer-syntax=*", False, JPEG_LS),
        ("Application/DICOM; q=0.4, multipart/related; type=application/dicom; q=0.5", True, EXPLICIT),
        ("*/*, application/dicom; q=0", True, EXPLICIT),
    ],
)
def test_instances(accept: str, multipart: bool, syntax: str) -> None:
    """Without a transfer syntax it is explicit little endian; * is as it is held; q and order decide between entries."""
    chosen = choose(parse_accept(accept), DICOM)
    assert chosen is not None
    assert (chosen.multipart, chosen.transfer_syntax) == (multipart, syntax)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", NATIVE),
        ('multipart/related; type="application/octet-stream"', NATIVE),
        ("multipart/related; type=application/octet-stream; transfer-syntax=*", STORED),
        (f"multipart/related; type=application/octet-stream; transfer-syntax={EXPLICIT}", NATIVE),
        ("multipart/related; type=image/jls", STORED),
        ("multipart/related; type=image/x-jls", STORED),
        ("multipart/related; type=image/*; transfer-syntax=*", STORED),
        (f"multipart/related; type=image/jls; transfer-syntax={JPEG_LS}, */*; q=0.1", STORED),
        ("multipart/related; type=image/jp2, multipart/related; type=application/octet-stream; q=0.1", NATIVE),
        ("application/octet-stream", ALONE),
    ],
)
def test_frames(accept: str, expected: Representation) -> None:
    """OHIF's form gets what is stored, under its own media type; older names of media types are understood."""
    assert choose(parse_accept(accept), FRAMES) == expected


@pytest.mark.parametrize(
    "accept",
    [
        "text/html",
        "application/dicom+json",
        'multipart/related; type="image/jpeg"',
        "application/dicom; transfer-syntax=1.2.840.10008.1.2.4.50",
        "application/dicom; q=0",
    ],
)
def test_what_instances_are_not_given_as(accept: str) -> None:
    """Anything else is not acceptable, and the error says what can be had."""
    with pytest.raises(NotAcceptable, match=f'type="application/dicom"; transfer-syntax={JPEG_LS}'):
        require(parse_accept(accept), DICOM, "it")


def test_query_parameter_outranks_the_header() -> None:
    """`accept` in the URL decides, also where its + came as a space."""
    json = Representation("application/dicom+json", multipart=False)
    assert choose(parse_accept("text/html", "application/dicom json"), [json]) == json


def test_what_no_header_can_hold_asks_for_nothing() -> None:
    """A query may have any character: it is not acceptable, and no error of ours."""
    assert choose(parse_accept("", "Ā/Ā; q=Ā"), DICOM) is None
