"""JPEG-LS lossless (PS3.5 A.4.3), by CharLS through pyjpegls."""

import jpeg_ls
import numpy as np
import numpy.typing as npt


def encode(frame: npt.NDArray[np.unsignedinteger]) -> bytes:
    """One lossless codestream of a (rows, columns) frame of 8 or 16 bits."""
    return bytes(jpeg_ls.encode_array(np.ascontiguousarray(frame), lossy_error=0))
