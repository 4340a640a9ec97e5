"""Hostile bytes: whatever comes, it is read or refused."""

from io import BytesIO

from hypothesis import given, settings
from hypothesis import strategies as st

from segnode.dicom.header import read_header
from segnode.errors import Refusal

PREFIX = b"\0" * 128 + b"DICM"


@given(st.binary(max_size=400))
def test_random_bytes_are_refused(data: bytes) -> None:
    """Random bytes behind a DICOM prefix end in a refusal, never in another error."""
    try:
        read_header(BytesIO(PREFIX + data))
    except Refusal:
        return
    raise AssertionError


@settings(max_examples=300)
@given(data=st.data())
def test_mutated_objects_are_read_or_refused(data: st.DataObject, phantom) -> None:
    """A few changed bytes in a real object end in a header or in a refusal."""
    mutated = bytearray((phantom.folder / "0001.dcm").read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        mutated[data.draw(st.integers(128, 1600))] = data.draw(st.integers(0, 255))
    try:
        header = read_header(BytesIO(mutated))
    except Refusal:
        return
    assert header.sop_instance_uid
