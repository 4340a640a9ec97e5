"""Re-encoding a Segmentation in another transfer syntax: the same object, the same pixels, other bytes."""

import numpy as np

from segnode.dicom.elements import Buffer, elements
from segnode.dicom.reencode import reencoded
from segnode.dicom.transfer_syntaxes import encoding_of
from segnode.errors import CannotConvert
from segnode.seg.codecs import Codec
from segnode.seg.part10 import part10_of_groups
from segnode.seg.pixels import MadeFrames, one_by_one, pixel_data
from segnode.seg.read import read_segmentation
from segnode.seg.segmentation import PerFrame
from segnode.seg.values import naming_what_is_wrong


def recode(data: Buffer, codec: Codec) -> bytes:
    """A Part 10 file in the transfer syntax of a codec; as it is, where it has that.

    Raises CannotConvert for bits that the codec has no frames of and for values that cannot be written anew, UnreadablePixels,
    and what read_segmentation raises.
    """
    source = read_segmentation(data)
    require_bits(codec, source.type, source.frames.shape.bits)
    if source.transfer_syntax_uid == codec.transfer_syntax_uid:
        return bytes(data)
    header = source.header
    for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):  # of the encoding, not of the object
        if keyword in header:
            del header[keyword]
    decode, is_bits = source.frames.decode, source.frames.shape.bits == 1
    frames = MadeFrames(
        np.dtype(np.bool_) if is_bits else source.frames.shape.dtype,
        len(source.frames),
        one_by_one(lambda index: decode(index).view(np.bool_) if is_bits else decode(index)),
    )
    with naming_what_is_wrong(header):
        return part10_of_groups(header, _groups(source.per_frame, codec), pixel_data(frames, codec), codec)


def _groups(per_frame: PerFrame | None, codec: Codec) -> bytes:
    """The value of PerFrameFunctionalGroupsSequence in the encoding of a codec; empty where there is none.

    Raises CannotConvert.
    """
    if per_frame is None:
        return b""
    data, sequence, wanted = per_frame.data, per_frame.sequence, encoding_of(codec.transfer_syntax_uid)
    try:
        whole = reencoded(bytes(data[sequence.begin : sequence.next]), sequence.encoding, wanted)
    except Exception as error:
        what = "PerFrameFunctionalGroupsSequence holds values that are not of their VR"
        raise CannotConvert(f"{what} ({type(error).__name__}): they cannot be written in another transfer syntax") from error
    written = next(elements(whole, 0, len(whole), wanted))
    return whole[written.start : written.end]


def require_bits(codec: Codec, kind: str, bits: int) -> None:
    """Raise CannotConvert where a codec has no frames of these bits."""
    if bits not in codec.bits:
        raise CannotConvert(
            f"{codec.name} has no frames of {bits} bit, which a {kind} has: take native, rle, jpeg-2000 or deflate-frames,"
            " or make a LABELMAP of it"
        )
