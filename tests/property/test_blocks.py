"""Blocks: what is sent out of one piece of memory is what the sources give, of files what was asked for of them."""

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from segnode.dicomweb.blocks import Span, filled

CONTENT = bytes(range(256))
PLACES = st.tuples(st.integers(0, 256), st.integers(0, 300))


@given(st.lists(st.one_of(st.lists(st.binary(max_size=40)), PLACES)), st.integers(1, 64))
def test_a_room_that_is_filled_over_and_over_holds_all_bytes_of_blocks_and_files_in_their_order(
    asked: list[list[bytes] | tuple[int, int]], most: int
) -> None:
    """Whatever lies across its end; and of a file nothing beyond what was asked for, or beyond its end."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "object"
        path.write_bytes(CONTENT)
        sources = [each if isinstance(each, list) else Span(path, *each) for each in asked]
        room = bytearray(most)
        sent = b"".join(bytes(room[:size]) for size in filled(sources, room))
    expected = [b"".join(each) if isinstance(each, list) else CONTENT[each[0] : sum(each)] for each in asked]
    assert sent == b"".join(expected)
