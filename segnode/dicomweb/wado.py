"""WADO-RS (PS3.18 10.4): what is held, as it is held or in explicit little endian."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

from segnode.dicom.uids import uid_name
from segnode.dicomweb.accept import MediaRange, Representation, require
from segnode.dicomweb.decoding import Decoders
from segnode.dicomweb.multipart import Part
from segnode.errors import NotAcceptable, UnreadablePixels
from segnode.store.index import Instance
from segnode.store.objects import ObjectStore

DICOM: Final = "application/dicom"
_BLOCK: Final = 1 << 20


def representation(ranges: Sequence[MediaRange], instance: Instance) -> Representation:
    """What an instance is given as: as it is held, or in explicit little endian. Raises NotAcceptable."""
    stored = instance.transfer_syntax_uid
    syntaxes = [stored] if stored == ExplicitVRBigEndian else list(dict.fromkeys((stored, str(ExplicitVRLittleEndian))))
    offers = [Representation(DICOM, syntax, multipart) for multipart in (True, False) for syntax in syntaxes]
    return require(ranges, offers, f"SOP instance {instance.sop_instance_uid}")


def part_of(objects: ObjectStore, decoders: Decoders, instance: Instance, wanted: Representation, location: str) -> Part:
    """An instance as that. Raises NotAcceptable."""
    path = objects.path(instance.object_key)
    if wanted.transfer_syntax == instance.transfer_syntax_uid:
        return Part(wanted.content_type, location, instance.size, _file_blocks(path))
    try:
        data = decoders.explicit_little_endian(path)
    except UnreadablePixels as error:
        raise NotAcceptable(
            f"SOP instance {instance.sop_instance_uid} is held in {uid_name(instance.transfer_syntax_uid)}"
            f" and cannot be given in another transfer syntax ({error}): ask for transfer-syntax=*"
        ) from error
    return Part(wanted.content_type, location, len(data), (data,))


def _file_blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block
