"""JPEG Lossless for pydicom (PS3.5 A.4.1), which has no decoder of a free licence for what scanners have long written."""

import threading
from typing import Final

import numpy as np
from pydicom.pixels.decoders.base import DecodeRunner, JPEGLosslessDecoder, JPEGLosslessSV1Decoder
from pydicom.uid import JPEGLossless, JPEGLosslessSV1

_PLUGIN: Final = ("segnode", (__name__, "decode_frame"))
_END: Final = b"\xff\xd9"
_one_at_a_time = threading.Lock()

# What pydicom asks of a plugin.
DECODER_DEPENDENCIES: Final = {JPEGLossless: ("imagecodecs",), JPEGLosslessSV1: ("imagecodecs",)}


def is_available(uid: str) -> bool:
    """Whether a transfer syntax is decoded here."""
    return uid in DECODER_DEPENDENCIES


def use_jpeg_lossless() -> None:
    """Have pydicom decode JPEG Lossless from now on; once is enough."""
    with _one_at_a_time:
        for decoder in (JPEGLosslessDecoder, JPEGLosslessSV1Decoder):
            if _PLUGIN[0] not in decoder.available_plugins:
                decoder.add_plugin(*_PLUGIN)


def decode_frame(src: bytes, runner: DecodeRunner) -> bytes:
    """The pixels of a grey codestream, by libjpeg-turbo, little endian. Raises ValueError for any other, or a damaged one."""
    import imagecodecs  # noqa: PLC0415  decoded where it occurs: the doors do without

    # Where the data end before it, libjpeg-turbo makes up the rest of the frame.
    if not src.rstrip(b"\0").endswith(_END):
        raise ValueError("the JPEG codestream has no end")
    frame = np.asarray(imagecodecs.jpeg8_decode(src))
    if frame.shape != (runner.rows, runner.columns):
        raise ValueError(f"the JPEG codestream is of {frame.shape} samples, not of {runner.rows} x {runner.columns}")
    bits, unused = frame.itemsize * 8, frame.itemsize * 8 - runner.bits_stored
    if runner.pixel_representation == 1 and unused > 0:
        # Of a negative value the codestream has the bits that are stored, and nothing above them.
        signed = frame.view(f"i{frame.itemsize}") << unused
        frame = signed >> unused
    runner.set_option("bits_allocated", bits)
    return frame.astype(frame.dtype.newbyteorder("<"), copy=False).tobytes()
