"""The transfer syntaxes of the standard: how a data set is encoded, and which are offered."""

from dataclasses import dataclass
from typing import Final

from pydicom.uid import (
    AllTransferSyntaxes,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    MPEGTransferSyntaxes,
    RLELossless,
    SMPTEST211020UncompressedInterlacedActiveVideo,
    SMPTEST211020UncompressedProgressiveActiveVideo,
)

NATIVE: Final = frozenset(
    map(str, (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian))
)
DEFLATED_IMAGE_FRAME: Final = "1.2.840.10008.1.2.8.1"
JPEG_XL: Final = ("1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.4.111", "1.2.840.10008.1.2.4.112")
JPIP: Final = ("1.2.840.10008.1.2.4.94", "1.2.840.10008.1.2.4.95")
ENCAPSULATED_UNCOMPRESSED: Final = "1.2.840.10008.1.2.1.98"
VIDEO: Final = (
    *map(str, MPEGTransferSyntaxes),
    str(SMPTEST211020UncompressedProgressiveActiveVideo),
    str(SMPTEST211020UncompressedInterlacedActiveVideo),
)
JPEG_LOSSLESS_SV1: Final = "1.2.840.10008.1.2.4.70"


@dataclass(frozen=True)
class Encoding:
    """How the elements of a data set are written."""

    implicit_vr: bool = False
    little_endian: bool = True
    deflated: bool = False


_ENCODINGS = {
    str(ImplicitVRLittleEndian): Encoding(implicit_vr=True),
    str(ExplicitVRBigEndian): Encoding(little_endian=False),
    str(DeflatedExplicitVRLittleEndian): Encoding(deflated=True),
}


def encoding_of(transfer_syntax_uid: str) -> Encoding:
    """How a data set in this transfer syntax is written; all but three are explicit little endian (PS3.5 A)."""
    return _ENCODINGS.get(transfer_syntax_uid, Encoding())


def _in_order_of_preference() -> tuple[str, ...]:
    """Native before compressed, lossless before lossy: an SCP picks the first that the SCU offers in a context."""
    first = [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        RLELossless,
        JPEGLSTransferSyntaxes[0],
        JPEG2000TransferSyntaxes[0],
        JPEG_LOSSLESS_SV1,
        DEFLATED_IMAGE_FRAME,
        DeflatedExplicitVRLittleEndian,
        ENCAPSULATED_UNCOMPRESSED,
    ]
    rest = [*AllTransferSyntaxes, *JPEG_XL, *JPIP]
    return tuple(dict.fromkeys(str(uid) for uid in (*first, *rest)))


STORED_TRANSFER_SYNTAXES: Final = _in_order_of_preference()
