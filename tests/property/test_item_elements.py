"""The elements of items of functional groups, which are cut many at once, are those that were written."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from segnode.dicom.elements import elements
from segnode.dicom.transfer_syntaxes import Encoding
from segnode.seg.frame_groups import item_elements

SEQUENCES = (0x00089124, 0x00209111, 0x00209113, 0x0062000A)
UNDEFINED = 0xFFFFFFFF
# Few and short values, so that items of one length have their elements in one place, in others, or have other elements.
ITEMS = st.lists(st.dictionaries(st.sampled_from(SEQUENCES), st.sampled_from((0, 2, 4)), max_size=4), max_size=12)


def header(tag: int, vr: bytes, length: int) -> bytes:
    """The header of a sequence, or, without a VR, of an item or delimiter."""
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF) + (vr + b"\0\0" if vr else b"") + struct.pack("<I", length)


@given(ITEMS, st.booleans())
def test_elements_are_those_of_each_item(written: list[dict[int, int]], undefined: bool) -> None:
    """Each item has the elements that were written into it, whichever lengths and elements the others have."""
    expected: dict[int, dict[int, bytes]] = {}
    value = b""
    for place, lengths in enumerate(written):
        item = b""
        for tag, length in lengths.items():
            element = header(tag, b"SQ", 8 + length) + header(0xFFFEE000, b"", length) + bytes([place] * length)
            expected.setdefault(tag, {})[place] = element
            item += element
        value += header(0xFFFEE000, b"", UNDEFINED if undefined else len(item)) + item
        value += header(0xFFFEE00D, b"", 0) if undefined else b""
    data = header(0x52009230, b"SQ", len(value)) + value
    found = item_elements(data, next(elements(data, 0, len(data), Encoding())))
    assert (found.count, found.by_tag) == (len(written), expected)
