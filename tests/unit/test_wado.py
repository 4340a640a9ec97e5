"""What Accept headers and content types ask for."""

import pytest

from segnode.dicomweb.stow import boundary_of
from segnode.dicomweb.wado import parse_accept
from segnode.errors import BadRequest, NotAcceptable

EXPLICIT = "1.2.840.10008.1.2.1"


@pytest.mark.parametrize(
    ("accept", "multipart", "syntaxes"),
    [
        ("", True, [EXPLICIT]),
        ("*/*", True, [EXPLICIT]),
        ('multipart/related; type="application/dicom"', True, [EXPLICIT]),
        ("multipart/related; type=application/dicom; transfer-syntax=*", True, ["*"]),
        (
            'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.80',
            True,
            ["1.2.840.10008.1.2.4.80"],
        ),
        ("application/dicom", False, [EXPLICIT]),
        ("text/html, application/dicom; transfer-syntax=*", False, ["*"]),
    ],
)
def test_accept(accept: str, multipart: bool, syntaxes: list[str]) -> None:
    """Without a transfer syntax it is explicit little endian; * is as it is held (PS3.18 8.7.3)."""
    wanted = parse_accept(accept)
    assert (wanted.multipart, list(wanted.transfer_syntaxes)) == (multipart, syntaxes)


@pytest.mark.parametrize("accept", ["text/html", "application/dicom+json", 'multipart/related; type="image/jpeg"'])
def test_what_instances_are_not_given_as(accept: str) -> None:
    """Other media types are not acceptable for instances."""
    with pytest.raises(NotAcceptable):
        parse_accept(accept)


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ('multipart/related; type="application/dicom"; boundary="a b"', "a b"),
        ("multipart/related; type=application/dicom; boundary=xyz", "xyz"),
        ("multipart/related; boundary=xyz", "xyz"),
        ("application/json", None),
        ("", None),
        ('multipart/related; type="application/dicom+json"; boundary=x', None),
    ],
)
def test_boundary(content_type: str, boundary: str | None) -> None:
    """Type and boundary may be quoted or not; other media types have none."""
    assert boundary_of(content_type) == boundary


def test_missing_boundary_is_a_bad_request() -> None:
    """multipart/related without a boundary cannot be read."""
    with pytest.raises(BadRequest, match="boundary"):
        boundary_of('multipart/related; type="application/dicom"')
