"""Objects in native encoding, for those who take no other: decoded, which loses nothing more; nothing is compressed here."""

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Final

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, ExplicitVRBigEndian, ImplicitVRLittleEndian

from segnode.dicom.jpeg_lossless import use_jpeg_lossless
from segnode.errors import UnreadablePixels

# What pydicom and decoders do for objects that are not what they say.
_OF_BAD_OBJECTS: Final = (
    ArithmeticError,
    AttributeError,
    EOFError,
    InvalidDicomError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


def in_native(path: Path, transfer_syntax_uid: str) -> bytes:
    """The object of a Part 10 file as one in explicit or implicit VR little endian: the same attributes and UIDs.

    What was compressed with loss stays marked so. Raises UnreadablePixels where it cannot be decoded, or is big endian.
    """
    use_jpeg_lossless()
    try:
        dataset = dcmread(path)
        _decode(dataset)
        file = BytesIO()
        dataset.file_meta.TransferSyntaxUID = UID(transfer_syntax_uid)
        dataset.save_as(file, implicit_vr=transfer_syntax_uid == ImplicitVRLittleEndian, little_endian=True)
    except _OF_BAD_OBJECTS as error:
        raise UnreadablePixels(f"it cannot be had in native encoding: {error}") from error
    return file.getvalue()


def _decode(dataset: Dataset) -> None:
    """Decode the pixels of a data set in its place. Raises ValueError for big endian, and whatever pydicom does."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax == ExplicitVRBigEndian:
        raise ValueError("the bytes of big endian values that are no numbers cannot be put in order")
    if not syntax.is_compressed or "PixelData" not in dataset:
        return
    # In the colour space that it is in: another would round every pixel.
    dataset.decompress(as_rgb=False, generate_instance_uid=False)
    if dataset.PhotometricInterpretation == "YBR_FULL_422":  # what comes out of the decoder has all its chrominance
        dataset.PhotometricInterpretation = "YBR_FULL"
    for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):  # of the encoding, not of the object
        if keyword in dataset:
            del dataset[keyword]
