"""JPEG 2000 lossless (PS3.5 A.4.4), by OpenJPEG through imagecodecs, which lets other threads run.

pylibjpeg-openjpeg 2.6 is not used: its encoder ends the process when two threads are in it.
"""

import imagecodecs
import numpy as np

from segnode.seg.codecs.frame import Frame, FrameShape, FrameToEncode, decoding, empty_frame, require_declared
from segnode.seg.codecs.jpeg_2000_header import read_header


def encode(frame: FrameToEncode) -> bytes:
    """One reversible codestream of a (rows, columns) frame of 1, 8 or 16 bits, unsigned, of that precision."""
    if frame.dtype == np.bool_:
        # Wavelets make a frame of 1 bit larger, and OpenJPEG ends with an error where it outgrows its buffer.
        return _encode(frame.view(np.uint8), bits=1, resolutions=1)
    return _encode(frame, bits=frame.dtype.itemsize * 8, resolutions=6)


def _encode(frame: FrameToEncode, bits: int, resolutions: int) -> bytes:
    return bytes(
        imagecodecs.jpeg2k_encode(
            np.ascontiguousarray(frame),
            level=0,
            codecformat="j2k",
            bitspersample=bits,
            resolutions=resolutions,
            reversible=True,
            mct=False,
        )
    )


def decode(data: bytes, shape: FrameShape) -> Frame:
    """The (rows, columns) frame of a codestream whose header is of that shape. Raises UnreadablePixels."""
    with decoding("JPEG 2000 codestream"):
        start, declared = read_header(data)
        require_declared(declared, shape)
        frame: Frame = imagecodecs.jpeg2k_decode(data[start:], out=empty_frame(declared))
        return frame.astype(shape.dtype, copy=False)
