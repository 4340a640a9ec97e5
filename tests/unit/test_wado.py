"""What QIDO parameters mean, and the media types of STOW."""

import pytest

from segnode.dicomweb.qido import parse_query
from segnode.dicomweb.stow import boundary_of
from segnode.errors import BadRequest


def test_query_takes_keywords_and_tags_and_tells_what_it_ignores() -> None:
    """Attributes may be given either way; limit and offset are numbers; what is not indexed is reported."""
    query = parse_query("series", [("00100020", "A"), ("Modality", "CT"), ("limit", "5"), ("offset", "2"), ("PatientAge", "3")])
    assert (query.keys, query.limit, query.offset) == ({"PatientID": "A", "Modality": "CT"}, 5, 2)
    assert query.ignored == ["PatientAge"]


@pytest.mark.parametrize("parameter", [("limit", "-1"), ("limit", "x"), ("offset", "1e9"), ("a b", "1"), ("limit", "²")])
def test_nonsense_is_a_bad_request(parameter: tuple[str, str]) -> None:
    """What is no number and no attribute is the client's error."""
    with pytest.raises(BadRequest):
        parse_query("studies", [parameter])


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
