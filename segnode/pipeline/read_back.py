"""Reading back: whether what an archive gives out is what it was sent."""

from io import BytesIO
from typing import Final

from pydicom import DataElement, Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian

from segnode.dicom.native import in_native
from segnode.errors import DeliveryRefused, SegnodeError
from segnode.seg.diff import diff
from segnode.seg.read import read_segmentation

# Archives correct identification and patient (groups 0008 and 0010); from here on an object is what was sent, or another.
_FIRST_COMPARED: Final = 0x0018
_PADDING: Final = 0xFFFC


def require_same_labels(sop_instance_uid: str, sent: bytes, held: bytes, where: str) -> None:
    """Raise DeliveryRefused when the SEG that an archive holds under the UID has other labels than the one that was sent."""
    try:
        found = read_segmentation(held)
        same = found.sop_instance_uid == sop_instance_uid and diff(read_segmentation(sent), found).is_equal
    except SegnodeError as error:
        raise _incomparable(sop_instance_uid, where, str(error)) from error
    if not same:
        raise _another(sop_instance_uid, where, "with other labels")


def require_same_content(sop_instance_uid: str, sent: bytes, held: bytes, where: str) -> None:
    """Raise DeliveryRefused when an object that is no SEG lacks, or has otherwise, what was sent.

    Its UID and every element from group 0018 on are compared; what the archive has added is let pass. What was sent compressed
    and is held natively is compared so; decoders of what is lossy, or in colour, need not agree.
    """
    try:
        ours, theirs = dcmread(BytesIO(sent)), dcmread(BytesIO(held))
        syntaxes = _compression(ours), _compression(theirs)
        is_encoded_anew = "PixelData" in ours and syntaxes[0] != syntaxes[1]
        if is_encoded_anew and not syntaxes[1]:
            ours = dcmread(BytesIO(in_native(BytesIO(sent), ExplicitVRLittleEndian)))
        same = theirs.get("SOPInstanceUID") == sop_instance_uid and _has_all_of(ours, theirs)
        is_exact = ours.get("LossyImageCompression") != "01" and ours.get("SamplesPerPixel", 1) == 1
    except Exception as error:  # pydicom raises anything on what is no DICOM
        raise _incomparable(sop_instance_uid, where, f"{type(error).__name__} when it is read") from error
    if is_encoded_anew and not same and (syntaxes[1] or not is_exact):
        raise _incomparable(sop_instance_uid, where, "it gives out its pixels in another encoding")
    if not same:
        raise _another(sop_instance_uid, where, "with other content")


def _has_all_of(ours: Dataset, theirs: Dataset) -> bool:
    compared = [element for element in ours if _FIRST_COMPARED <= element.tag.group < _PADDING]
    return all(element.tag in theirs and _is_same(element, theirs[element.tag]) for element in compared)


def _is_same(ours: DataElement, theirs: DataElement) -> bool:
    # Without its VR (implicit, UN) what a private element holds cannot be compared.
    return ours.value == theirs.value or (ours.tag.is_private and ours.VR != theirs.VR)


def _compression(dataset: Dataset) -> str:
    syntax = dataset.file_meta.TransferSyntaxUID
    return str(syntax) if syntax.is_compressed else ""


def _incomparable(uid: str, where: str, reason: str) -> DeliveryRefused:
    return DeliveryRefused(f"what {where} holds as {uid} cannot be compared: {reason}")


def _another(uid: str, where: str, how: str) -> DeliveryRefused:
    return DeliveryRefused(f"{where} holds another object as {uid}, {how}: have it removed there, then retry")
