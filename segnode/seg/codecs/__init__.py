"""Frame codecs, one module each, and the transfer syntaxes they belong to.

`encode(frame) -> bytes` writes one encapsulated frame, `decode(data, shape) -> frame` reads it; nothing lossy is written.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from segnode.dicom.transfer_syntaxes import DEFLATED_IMAGE_FRAME, ENCAPSULATED_UNCOMPRESSED
from segnode.seg.codecs import deflate_frames, htj2k, jpeg_2000, jpeg_lossless, jpeg_ls, native, rle
from segnode.seg.codecs.frame import FrameDecoder, FrameEncoder, FrameShape

__all__ = ["CODECS", "DECODERS", "LOSSY", "Codec", "CodecName", "FrameShape"]

CodecName = Literal["native", "implicit", "deflate", "deflate-frames", "rle", "jpeg-ls", "jpeg-2000", "htj2k"]


@dataclass(frozen=True)
class Codec:
    """How frames are written: natively where `encode` is None, else encapsulated; `bits` are the BitsAllocated it can write."""

    name: CodecName
    transfer_syntax_uid: UID
    encode: FrameEncoder | None = None
    bits: tuple[int, ...] = (1, 8, 16)

    @property
    def encapsulated(self) -> bool:
        """Whether PixelData is a sequence of fragments."""
        return self.encode is not None


CODECS: Final[Mapping[CodecName, Codec]] = {
    codec.name: codec
    for codec in (
        Codec("native", ExplicitVRLittleEndian),
        Codec("implicit", ImplicitVRLittleEndian),
        Codec("deflate", DeflatedExplicitVRLittleEndian),
        Codec("deflate-frames", UID(DEFLATED_IMAGE_FRAME), deflate_frames.encode),
        Codec("rle", RLELossless, rle.encode),
        Codec("jpeg-ls", JPEGLSLossless, jpeg_ls.encode, (8, 16)),
        Codec("jpeg-2000", JPEG2000Lossless, jpeg_2000.encode),
        Codec("htj2k", HTJ2KLossless, htj2k.encode, (8, 16)),
    )
}

# Not among them: JPEG XL, as imagecodecs stretches values of fewer bits than 8 or 16 without saying so; lossy JPEG, which
# makes labels of neighbouring ones; video.
DECODERS: Final[Mapping[str, FrameDecoder]] = {
    ENCAPSULATED_UNCOMPRESSED: native.decode,
    DEFLATED_IMAGE_FRAME: deflate_frames.decode,
    RLELossless: rle.decode,
    JPEGLossless: jpeg_lossless.decode,
    JPEGLosslessSV1: jpeg_lossless.decode,
    JPEGLSLossless: jpeg_ls.decode,
    JPEGLSNearLossless: jpeg_ls.decode,
    JPEG2000Lossless: jpeg_2000.decode,
    JPEG2000: jpeg_2000.decode,
    HTJ2KLossless: htj2k.decode,
    HTJ2KLosslessRPCL: htj2k.decode,
    HTJ2K: htj2k.decode,
}

# May have changed the labels. Their frames decode to what was sent; whether that is taken is for the reader to say.
LOSSY: Final = frozenset((JPEGLSNearLossless, JPEG2000, HTJ2K))
