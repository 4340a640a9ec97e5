"""The SIZ marker segment of JPEG 2000 (ISO 15444-1 A.5.1), which HTJ2K shares, read without decoding."""

import struct
from typing import Final

from segnode.errors import UnreadablePixels
from segnode.seg.codecs.frame import Declared

_START: Final = b"\xff\x4f\xff\x51"
_SIZ: Final = struct.Struct(">HH8IHBBB")
_LATEST_START: Final = 4096
# A decoder allocates kilobytes for every tile before it has seen one.
_MOST_TILES: Final = 4096


def read_header(data: bytes) -> tuple[int, Declared]:
    """Where the codestream starts, and what it declares. Raises UnreadablePixels.

    Writers are known that put the boxes of a JP2 file around it; what they say is to be ignored (PS3.5 8.2.4).
    """
    start = data.find(_START, 0, _LATEST_START)
    if start < 0 or start + 4 + _SIZ.size > len(data):
        raise UnreadablePixels("it does not start like a JPEG 2000 codestream")
    _, _, width, height, left, top, tile_width, tile_height, tile_left, tile_top, components, depth, across, down = (
        _SIZ.unpack_from(data, start + 4)
    )
    if depth & 0x80 or (across, down) != (1, 1):
        raise UnreadablePixels("its pixels are signed or subsampled, which those of a segmentation are not")
    tiles = _tiles(width, tile_left, tile_width) * _tiles(height, tile_top, tile_height)
    if not 1 <= tiles <= _MOST_TILES:
        raise UnreadablePixels(f"it is cut into {tiles} tiles, of which 1 to {_MOST_TILES} are read")
    return start, Declared(height - top, width - left, components, depth + 1)


def _tiles(end: int, first: int, size: int) -> int:
    return -(-(end - first) // size) if size else 0
