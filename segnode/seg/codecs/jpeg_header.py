"""The frame header of JPEG and JPEG-LS (ISO 10918-1 B.2.2, ISO 14495-1 C.2.2), read without decoding."""

import struct
from typing import Final

from segnode.errors import UnreadablePixels
from segnode.seg.codecs.frame import Declared

_START: Final = b"\xff\xd8"
# SOF0 to SOF15 without DHT, JPG and DAC, which have their codes among them, and SOF55 of JPEG-LS.
FRAME_HEADERS: Final = (frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}) | {0xF7}
_START_OF_SCAN: Final = 0xDA


def read_header(data: bytes) -> tuple[int, Declared]:
    """The marker of the first frame header, and what it declares. Raises UnreadablePixels."""
    if data[:2] != _START:
        raise UnreadablePixels("it does not start like a JPEG codestream")
    position = 2
    while position + 4 <= len(data):
        fill, marker, length = struct.unpack_from(">BBH", data, position)
        if fill != 0xFF or marker == _START_OF_SCAN:
            break
        if marker == 0xFF:
            position += 1
        elif marker in FRAME_HEADERS and position + 10 <= len(data):
            precision, rows, columns, components = struct.unpack_from(">BHHB", data, position + 4)
            return marker, Declared(rows, columns, components, precision)
        else:
            position += 2 + length
    raise UnreadablePixels("it has no frame header")
