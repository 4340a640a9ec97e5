"""Objects in native encoding, for those who take no other: decoded, which loses nothing more; nothing is compressed here."""

import struct
import zlib
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from typing import Final

from pydicom import Dataset, dcmread, dcmwrite
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, ExplicitVRBigEndian, ImplicitVRLittleEndian

from segnode.dicom.dataset_json import WORDS, little_endian
from segnode.dicom.elements import PIXEL_DATA
from segnode.dicom.header import require_whole
from segnode.dicom.jpeg_lossless import use_jpeg_lossless
from segnode.errors import Refusal, UnreadablePixels

# What pydicom and decoders do for objects that are not what they say.
OF_BAD_OBJECTS: Final = (
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


def in_native(part10: Path | BytesIO, transfer_syntax_uid: str) -> bytes:
    """The object of a Part 10 file as one in explicit or implicit VR little endian: the same attributes and UIDs.

    What was compressed with loss stays marked so. Raises UnreadablePixels where it cannot be decoded or is not whole, or is big
    endian and has values of unknown VR, whose bytes nobody can put in order.
    """
    use_jpeg_lossless()
    try:
        with part10.open("rb") if isinstance(part10, Path) else nullcontext(part10) as file:
            require_whole(file)  # to pydicom what is cut off is an object whose last value is short
            file.seek(0)
            dataset = dcmread(file)
        _decode(dataset)
        native = BytesIO()
        dataset.file_meta.TransferSyntaxUID = UID(transfer_syntax_uid)
        dcmwrite(native, dataset, implicit_vr=transfer_syntax_uid == ImplicitVRLittleEndian, little_endian=True)
    except (*OF_BAD_OBJECTS, Refusal) as error:
        raise UnreadablePixels(f"it cannot be had in native encoding: {error}") from error
    return native.getvalue()


def _decode(dataset: Dataset) -> None:
    """Decode the pixels of a data set in its place. Raises ValueError, and whatever pydicom does."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax == ExplicitVRBigEndian:
        _put_in_order(dataset)
    if not syntax.is_compressed or "PixelData" not in dataset:
        return
    if dataset.get("PlanarConfiguration") == 1:  # a codestream has its own (PS3.5 8.2), and pydicom believes what is said
        dataset.PlanarConfiguration = 0
    # In the colour space that it is in: another would round every pixel.
    dataset.decompress(as_rgb=False, generate_instance_uid=False)
    if dataset.PhotometricInterpretation == "YBR_FULL_422":  # what comes out of the decoder has all its chrominance
        dataset.PhotometricInterpretation = "YBR_FULL"
    for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):  # of the encoding, not of the object
        if keyword in dataset:
            del dataset[keyword]


def _put_in_order(dataset: Dataset) -> None:
    """Swap the words of what is binary in a big endian data set; what is a number or text to pydicom it sees to itself."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                _put_in_order(item)
        elif element.VR == "UN" and element.value:
            raise ValueError(f"{element.tag} is of unknown VR and big endian: its bytes cannot be put in order")
        elif element.VR in WORDS and element.value:
            word = WORDS[element.VR]
            if element.VR == "OW" and element.tag == PIXEL_DATA:
                word = max(word, dataset.BitsAllocated // 8)
            element.value = little_endian(element.value, word)
