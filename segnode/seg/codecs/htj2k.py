"""High-Throughput JPEG 2000 lossless (PS3.5 A.4.4): written by OpenJPH through imagecodecs, read by OpenJPEG.

OpenJPH is not used for reading: imagecodecs 2026.3 drops its errors, so that a damaged frame is read as another one, and a
few changed bytes keep it busy for minutes.
"""

import imagecodecs
import numpy as np

from segnode.seg.codecs import jpeg_2000
from segnode.seg.codecs.frame import FrameToEncode

# OpenJPEG tells the two apart by what is in the codestream.
decode = jpeg_2000.decode


def encode(frame: FrameToEncode) -> bytes:
    """One reversible codestream of a (rows, columns) frame of 8 or 16 bits; imagecodecs writes none of 1 bit."""
    return bytes(imagecodecs.htj2k_encode(np.ascontiguousarray(frame), reversible=True))
