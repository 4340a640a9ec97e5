"""Functional groups of one length, whose elements are found once for all that are laid out alike, say what was written."""

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from segnode.dicom.transfer_syntaxes import Encoding
from segnode.seg.frame_groups import ItemElements, SourceImage, read_frame_groups

DERIVATION = 0x00089124
REFERENCED_IMAGES = 0x00081140
SOURCES = 0x00082112
SOP_CLASS = 0x00081150
SOP_INSTANCE = 0x00081155
FRAME_NUMBERS = 0x00081160
UNDEFINED = 0xFFFFFFFF
# Few and short values, so that groups of one length have their elements in one place, in others, or have other elements.
UIDS = st.sampled_from(("1.2", "1.2.3", "1.2.4"))
SOURCE = st.tuples(UIDS, UIDS, st.sampled_from(((), (1,), (1, 2))))
# With the length of a value in a sequence that is not asked for, and lies before what is.
GROUPS = st.lists(st.tuples(st.lists(SOURCE, min_size=1, max_size=2), st.sampled_from((0, 2))), min_size=2, max_size=12)
# What is of undefined length: nothing, the sequence that is not asked for, or all.
UNDEFINED_LENGTHS = st.sampled_from(((False, False), (False, True), (True, True)))


def element(tag: int, vr: bytes, value: bytes, encoding: Encoding) -> bytes:
    """An element, or without a VR an item or delimiter; a sequence of 12 bytes of header."""
    start = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    if encoding.implicit_vr or not vr:
        return start + struct.pack("<I", len(value)) + value
    return start + vr + struct.pack("<H", len(value)) + value


def sequence(tag: int, items: list[bytes], encoding: Encoding, undefined: bool) -> bytes:
    """A sequence of items, both of known or of undefined length."""
    start = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + (b"" if encoding.implicit_vr else b"SQ\0\0")
    if not undefined:
        value = b"".join(element(0xFFFEE000, b"", item, encoding) for item in items)
        return start + struct.pack("<I", len(value)) + value
    begin, end = struct.pack("<HHI", 0xFFFE, 0xE000, UNDEFINED), struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
    value = b"".join(begin + item + end for item in items)
    return start + struct.pack("<I", UNDEFINED) + value + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def text(value: str) -> bytes:
    """A value of even length."""
    return value.encode() + b"\0" * (len(value) % 2)


@settings(max_examples=300)
@given(GROUPS, UNDEFINED_LENGTHS, st.booleans())
def test_every_group_says_what_was_written(written, undefined: tuple[bool, bool], implicit: bool) -> None:
    """The sources of each frame are its own, whichever the others have, and however they lie in the bytes."""
    encoding = Encoding(implicit_vr=implicit)
    groups = {}
    for place, (sources, before) in enumerate(written):
        items = []
        for sop_class, instance, frames in sources:
            inner = element(SOP_CLASS, b"UI", b"9" * before, encoding)
            item = sequence(REFERENCED_IMAGES, [inner], encoding, undefined[1])
            item += element(SOP_CLASS, b"UI", text(sop_class), encoding) + element(
                SOP_INSTANCE, b"UI", text(instance), encoding
            )
            if frames:
                item += element(FRAME_NUMBERS, b"IS", text("\\".join(map(str, frames))), encoding)
            items.append(item)
        inside = sequence(SOURCES, items, encoding, undefined[0])
        groups[place] = sequence(DERIVATION, [inside], encoding, undefined[0])
    read = read_frame_groups(ItemElements(len(groups), {DERIVATION: groups}), encoding)
    assert [group.sources for group in read] == [
        tuple(SourceImage(sop_class, instance, frames) for sop_class, instance, frames in sources) for sources, _ in written
    ]


def test_what_follows_an_undefined_length_is_looked_for_in_each_group() -> None:
    """Two groups whose headers are the same but for one inside a sequence of undefined length: in one it ends earlier."""
    encoding, end = Encoding(), struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    # In an item of this length it is a value; behind an empty item it ends the sequence, and the last value is `end`.
    either = end + element(FRAME_NUMBERS, b"IS", b"1 ", encoding) + element(0x00091010, b"UI", end, encoding)[: -len(end)]
    uids = element(SOP_CLASS, b"UI", b"1.2\0", encoding) + element(SOP_INSTANCE, b"UI", b"1.3\0", encoding)
    groups = {}
    for place, length in enumerate((len(either), 0)):
        start = struct.pack("<HH4sI", 0x0008, 0x1140, b"SQ", UNDEFINED) + struct.pack("<HHI", 0xFFFE, 0xE000, length)
        inside = sequence(SOURCES, [start + either + end + uids], encoding, undefined=False)
        groups[place] = sequence(DERIVATION, [inside], encoding, undefined=False)
    read = read_frame_groups(ItemElements(2, {DERIVATION: groups}), encoding)
    assert [group.sources for group in read] == [(SourceImage("1.2", "1.3", ()),), (SourceImage("1.2", "1.3", (1,)),)]
