"""Sequences that are read in one pass over their bytes say what pydicom reads in them, which would write the same bytes."""

import struct
from io import BytesIO

from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from segnode.errors import NotASegmentation
from segnode.seg.plain_sequences import plain_items, written_items
from segnode.seg.segment_sequence import read_segments
from segnode.seg.segmentation import DescribedSegment
from segnode.seg.values import items_of

SEGMENTS, NUMBER, LABEL, COLOUR = 0x00620002, 0x00620004, 0x00620005, 0x0062000D
CHARACTER_SET = 0x00080005
CODES = (0x00620003, 0x0062000F, 0x00620011, 0x00082218, 0x00082220, 0x00082228, 0x00620007, 0x00660000 | 0x36)
TEXTS = (LABEL, 0x00620006, 0x00620008, 0x00620009, 0x00620020, 0x00620021, 0x00080100, 0x00080102, 0x00080104, 0x00080119)
LONG = (b"SQ", b"UT", b"UC", b"UR", b"UN")


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    """An element in explicit VR little endian."""
    length = b"\0\0" + struct.pack("<I", len(value)) if vr in LONG else struct.pack("<H", len(value))
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr + length + value


def item(value: bytes) -> bytes:
    """An item of a sequence."""
    return b"\xfe\xff\x00\xe0" + struct.pack("<I", len(value)) + value


def outcome(data: bytes, *, in_one_pass: bool) -> tuple[DescribedSegment, ...] | None:
    """The segments of a data set; None where it is refused."""
    header = read_dataset(BytesIO(data), is_implicit_VR=False, is_little_endian=True)
    try:
        if not in_one_pass:
            items_of(header, "SegmentSequence")  # what was asked for is pydicom's
        return read_segments(header, "LABELMAP")
    except NotASegmentation:
        return None


plain = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8).map(str.encode)
odd = st.sampled_from([b"a\\b", b" a", b"a  ", b"a\0", b"a\n", b"A\xc4", b"\x1b$B!", b"a~"])
texts = st.builds(
    lambda tag, vr, value: element(tag, vr, value + b" " * (len(value) % 2)),
    st.sampled_from(TEXTS),
    st.sampled_from((b"LO", b"SH", b"CS", b"UI", b"ST", b"UT", b"UC", b"UR")),
    plain,
)


def ordered(*elements_of_item: list[bytes]) -> bytes:
    """The elements of an item by their tags, each once."""
    by_tag = {struct.unpack_from("<HH", each): each for elements in elements_of_item for each in elements}
    return b"".join(each for _, each in sorted(by_tag.items()))


codes = st.recursive(
    st.lists(texts, max_size=4).map(ordered),
    lambda inner: st.builds(
        lambda tag, items, more: ordered([element(tag, b"SQ", b"".join(map(item, items)))], more),
        st.sampled_from(CODES),
        st.lists(inner, max_size=2),
        st.lists(texts, max_size=3),
    ),
    max_leaves=6,
)
labels = st.builds(
    element,
    st.just(LABEL),
    st.sampled_from((b"LO", b"UC", b"UI", b"ST", b"DS", b"UN")),
    odd | odd | plain | st.binary(max_size=6),
)
numbers = st.integers(0, 5).map(lambda number: element(NUMBER, b"US", struct.pack("<H", number)))
sequences = st.builds(lambda tag, code: element(tag, b"SQ", item(code)), st.sampled_from(CODES), codes)
colours = st.sampled_from([b"", element(COLOUR, b"US", struct.pack("<3H", 1, 2, 3)), element(COLOUR, b"US", bytes(4))])
plain_segments = st.builds(
    lambda number, colour, label, code: item(ordered([number, *filter(None, [colour])], label, code)),
    numbers,
    colours,
    st.lists(texts, max_size=3),
    st.lists(sequences, max_size=3),
)
segments = st.builds(lambda *parts: item(b"".join(parts)), numbers, labels, colours)
character_sets = st.sampled_from(
    [
        b"",
        element(CHARACTER_SET, b"CS", b"ISO_IR 100"),
        element(CHARACTER_SET, b"CS", b"ISO_IR 192"),
        element(CHARACTER_SET, b"CS", b"ISO_IR 13 "),
        element(CHARACTER_SET, b"CS", b"\\ISO 2022 IR 87 "),
    ]
)


@settings(max_examples=250)
@given(character_sets, st.lists(segments | plain_segments, min_size=1, max_size=3))
@example(b"", [item(element(NUMBER, b"US", b"\1\0") + element(LABEL, b"LO", b"Liver "))] * 2)
def test_segments_are_pydicoms(character_set: bytes, items: list[bytes]) -> None:
    """Whatever items hold: text of any character set, several values, VRs that are not the attribute's, a number twice."""
    data = character_set + element(SEGMENTS, b"SQ", b"".join(items))
    assert outcome(data, in_one_pass=True) == outcome(data, in_one_pass=False)


@settings(max_examples=250)
@given(st.lists(plain_segments, min_size=1, max_size=3), st.data())
def test_damage_is_seen_as_pydicom_sees_it(items: list[bytes], draw: st.DataObject) -> None:
    """One byte of the sequence is another: lengths that do not fit, items that are none, VRs that do not exist."""
    value = bytearray(b"".join(items))
    value[draw.draw(st.integers(0, len(value) - 1))] = draw.draw(st.integers(0, 255))
    data = element(SEGMENTS, b"SQ", bytes(value))
    assert outcome(data, in_one_pass=True) == outcome(data, in_one_pass=False)


@settings(max_examples=250)
@given(st.lists(plain_segments | segments, min_size=1, max_size=3))
@example([item(element(LABEL, b"LO", b"Liver ") + element(NUMBER, b"US", b"\1\0"))])  # in the wrong order
@example([item(element(NUMBER, b"US", b"\1\0") * 2)])
@example([item(element(0x00620000, b"UT", b"of a group") + element(NUMBER, b"US", b"\1\0"))])
def test_plain_is_what_pydicom_writes(items: list[bytes]) -> None:
    """What is copied instead of being decoded and written again is the same, byte by byte."""
    value = b"".join(items)
    data = element(SEGMENTS, b"SQ", value)
    dataset = read_dataset(BytesIO(data), is_implicit_VR=False, is_little_endian=True)
    written = DicomBytesIO()
    written.is_implicit_VR, written.is_little_endian = False, True
    if plain_items(value):
        for _ in dataset.iterall():  # decodes every element
            pass
        write_dataset(written, dataset)
        assert written.getvalue() == data
    event("plain" if plain_items(value) else "not plain")
    assert b"".join(written_items(value)) == value
