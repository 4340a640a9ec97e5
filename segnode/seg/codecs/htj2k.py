"""High-Throughput JPEG 2000 lossless (PS3.5 A.4.4): written by OpenJPH through imagecodecs, read by OpenJPEG.

OpenJPH 0.26 fills its tables when it first encodes, and does not guard that: of two threads that begin at once, one writes
a codestream that nobody can read.

OpenJPH is not used for reading: imagecodecs 2026.3 drops its errors, so that a damaged frame is read as another one, and a
few changed bytes keep it busy for minutes.
"""

from threading import Lock

import imagecodecs
import numpy as np
import numpy.typing as npt

from segnode.seg.codecs import jpeg_2000
from segnode.seg.codecs.frame import FrameToEncode

# OpenJPEG tells the two apart by what is in the codestream.
decode = jpeg_2000.decode


_filling = Lock()
_filled: list[bool] = []


def encode(frame: FrameToEncode | npt.NDArray[np.integer]) -> bytes:
    """One reversible codestream of a (rows, columns) frame of 8 or 16 bits, signed too; imagecodecs writes none of 1 bit."""
    if not _filled:
        _fill_tables()
    return _encode(frame)


def _fill_tables() -> None:
    with _filling:
        _encode(np.arange(256, dtype=np.uint8).reshape(16, 16))
        _encode(np.arange(256, dtype=np.uint16).reshape(16, 16))
        _filled.append(True)


def _encode(frame: FrameToEncode | npt.NDArray[np.integer]) -> bytes:
    return bytes(imagecodecs.htj2k_encode(np.ascontiguousarray(frame), reversible=True))
