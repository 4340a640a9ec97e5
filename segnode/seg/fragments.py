"""The fragments of an encapsulated PixelData element (PS3.5 A.4), read and written as bytes."""

import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

from segnode.errors import UnreadablePixels

_ITEM = 0xE000
_DELIMITER = 0xE0DD
_HEADER = struct.Struct("<HHI")


def frames_of_fragments(data: memoryview, number_of_frames: int) -> list[memoryview | bytes]:
    """The codestream of every frame, one a frame. Raises UnreadablePixels, naming NumberOfFrames or PixelData.

    A frame may be in several fragments where the basic offset table says so, or where it is the only one. The sequence
    delimiter may be missing.
    """
    items = list(_items(data))
    if not items:
        raise UnreadablePixels("PixelData does not start with a basic offset table")
    (_, table), *fragments = items
    if len(fragments) == number_of_frames:
        return [fragment for _, fragment in fragments]
    if number_of_frames == 1 and fragments:
        return [b"".join(fragment for _, fragment in fragments)]
    starts = _starts(fragments, table, number_of_frames)
    return [b"".join(fragment for _, fragment in fragments[first:last]) for first, last in pairwise(starts)]


def _items(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Where every item starts, and its bytes; the first is the basic offset table."""
    position = 0
    while position < len(data):
        if position + _HEADER.size > len(data):
            raise UnreadablePixels(f"PixelData ends within the header of the item at byte {position}")
        group, element, length = _HEADER.unpack_from(data, position)
        if (group, element) == (0xFFFE, _DELIMITER):
            return
        if (group, element) != (0xFFFE, _ITEM):
            raise UnreadablePixels(f"PixelData holds no item at byte {position}, where its transfer syntax has one")
        end = position + _HEADER.size + length
        if end > len(data):
            raise UnreadablePixels(f"PixelData ends within the item at byte {position}, which declares {length} bytes")
        yield position, data[position + _HEADER.size : end]
        position = end


def _starts(fragments: Sequence[tuple[int, memoryview]], table: memoryview, number_of_frames: int) -> list[int]:
    """The number of the fragment that each frame starts with, and that of the end."""
    if len(table) != 4 * number_of_frames or len(fragments) < number_of_frames:
        raise UnreadablePixels(
            f"PixelData holds {len(fragments)} fragments and a basic offset table of {len(table)} bytes,"
            f" from which the {number_of_frames} frames of NumberOfFrames cannot be told apart"
        )
    numbers = {position - fragments[0][0]: number for number, (position, _) in enumerate(fragments)}
    starts = [numbers.get(offset, -1) for (offset,) in struct.iter_unpack("<I", table)] + [len(fragments)]
    if starts[0] != 0 or any(first < 0 or first >= last for first, last in pairwise(starts)):
        raise UnreadablePixels("the basic offset table of PixelData does not name fragments in their order")
    return starts


def encapsulated(frames: Sequence[bytes]) -> bytes:
    """The value of PixelData: a fragment a frame, each of even length, without the sequence delimiter.

    That is written with the element. The basic offset table is empty where its 32 bits do not reach the last frame.
    """
    padded = [frame + b"\0" * (len(frame) % 2) for frame in frames]
    offsets = [0, *accumulate(len(frame) + _HEADER.size for frame in padded)][:-1]
    table = struct.pack(f"<{len(offsets)}I", *offsets) if offsets and offsets[-1] < 1 << 32 else b""
    return b"".join(part for item in (table, *padded) for part in (_HEADER.pack(0xFFFE, _ITEM, len(item)), item))
