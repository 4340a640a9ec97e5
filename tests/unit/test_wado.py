"""What content types ask for."""

import pytest

from segnode.dicomweb.stow import boundary_of
from segnode.errors import BadRequest


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
