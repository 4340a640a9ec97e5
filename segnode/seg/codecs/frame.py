"""A frame in memory and what is declared of it: Rows, Columns and BitsAllocated, that every codestream is held against.

A frame is a (rows, columns) array: uint8 for 1 and 8 bits, uint16 for 16. To be encoded with 1 bit it is given as bool,
which is a view of the same bytes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from segnode.errors import UnreadablePixels

Frame = npt.NDArray[np.unsignedinteger]
FrameToEncode = npt.NDArray[np.unsignedinteger] | npt.NDArray[np.bool_]
FrameEncoder = Callable[[FrameToEncode], bytes]

# Rows and Columns are US; the pixels of one compressed frame are limited, as a few bytes can stand for any number of them.
_LARGEST_SIDE: Final = 65535
_MOST_PIXELS: Final = 1 << 28


@dataclass(frozen=True)
class FrameShape:
    """Rows, Columns and BitsAllocated (1, 8 or 16) of every frame. Raises UnreadablePixels for any other value."""

    rows: int
    columns: int
    bits: int

    def __post_init__(self) -> None:
        for keyword, side in (("Rows", self.rows), ("Columns", self.columns)):
            if not 1 <= side <= _LARGEST_SIDE:
                raise UnreadablePixels(f"{keyword} is {side}: it must be 1 to {_LARGEST_SIDE}")
        if self.bits not in {1, 8, 16}:
            raise UnreadablePixels(f"BitsAllocated is {self.bits}: a segmentation has 1, 8 or 16")

    @property
    def pixels(self) -> int:
        """Pixels of a frame."""
        return self.rows * self.columns

    @property
    def size(self) -> int:
        """Bytes of a frame in native encoding that starts on a byte."""
        return (self.pixels * self.bits + 7) // 8

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """The type of a pixel in memory."""
        return np.dtype(np.uint16) if self.bits == 16 else np.dtype(np.uint8)


FrameDecoder = Callable[[bytes, FrameShape], Frame]


@dataclass(frozen=True)
class Declared:
    """What a codestream says of itself in its header."""

    rows: int
    columns: int
    components: int
    precision: int


def require_declared(declared: Declared, shape: FrameShape) -> None:
    """Refuse a codestream that is not of this shape, before it is decoded. Raises UnreadablePixels."""
    if (declared.rows, declared.columns) != (shape.rows, shape.columns):
        raise UnreadablePixels(
            f"the codestream is of {declared.rows} x {declared.columns} pixels,"
            f" where Rows x Columns is {shape.rows} x {shape.columns}"
        )
    if declared.components != 1:
        raise UnreadablePixels(
            f"the codestream has {declared.components} components, where a segmentation has 1 sample a pixel"
        )
    if not 1 <= declared.precision <= shape.bits:
        raise UnreadablePixels(f"the codestream has {declared.precision} bits a pixel, where BitsAllocated is {shape.bits}")
    require_decodable(shape)


def require_decodable(shape: FrameShape) -> None:
    """Refuse a shape that is too large for a compressed frame. Raises UnreadablePixels."""
    if shape.pixels > _MOST_PIXELS:
        raise UnreadablePixels(
            f"Rows x Columns is {shape.rows} x {shape.columns}: a compressed frame may have {_MOST_PIXELS} pixels"
        )


def empty_frame(declared: Declared) -> Frame:
    """What a codec decodes into: zeros, so that a codec that stops early shows nobody else's memory."""
    return np.zeros((declared.rows, declared.columns), np.uint16 if declared.precision > 8 else np.uint8)


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Whatever a codec's library raises is UnreadablePixels, which starts with the name of the codec."""
    try:
        yield
    except UnreadablePixels as error:
        raise UnreadablePixels(f"{name}: {error}") from error
    except Exception as error:
        raise UnreadablePixels(f"{name}: it cannot be decoded: {type(error).__name__} {error}") from error
