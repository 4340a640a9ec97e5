"""Bulk data (PS3.18 10.4.1.1.5): the values that metadata name and do not hold."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from segnode.dicom.elements import PIXEL_DATA, Buffer, read_meta
from segnode.dicom.values import value_at
from segnode.dicomweb.decoding import Decoders
from segnode.errors import NotAcceptable, NotDicom, NotFound, UnreadablePixels
from segnode.seg.read import map_file
from segnode.store.index import Instance

PIXEL_DATA_PLACE: Final = f"{PIXEL_DATA:08X}"
_UNCOMPRESSED: Final = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
)
_BLOCK: Final = 1 << 20


def is_compressed(instance: Instance) -> bool:
    """Whether its pixel data is a sequence of fragments."""
    return instance.transfer_syntax_uid not in _UNCOMPRESSED


def value_blocks(instance: Instance, path: Path, place: str, decoders: Decoders) -> tuple[int, Iterator[bytes]]:
    """The length of a value, and its bytes, little endian. Raises NotFound, NotAcceptable."""
    syntax = instance.transfer_syntax_uid
    begin, end, word = 0, 0, 0
    try:
        data = map_file(path)
        if syntax != DeflatedExplicitVRLittleEndian:
            begin, end, word = value_at(data, read_meta(data)[1], syntax, place)
        if word == 1:
            return end - begin, _blocks(data, begin, end)
        value = decoders.value(path, place)  # to be inflated, or words of it to be swapped
    except FileNotFoundError as error:
        raise NotFound("the object has been deleted") from error
    except (NotDicom, UnreadablePixels) as error:
        raise NotAcceptable(f"SOP instance {instance.sop_instance_uid} cannot be read ({error}): ask for it whole") from error
    return len(value), iter([value])


def _blocks(data: Buffer, begin: int, end: int) -> Iterator[bytes]:
    for start in range(begin, end, _BLOCK):
        yield bytes(data[start : min(start + _BLOCK, end)])
