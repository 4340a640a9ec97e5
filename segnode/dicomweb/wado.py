"""Objects by WADO-RS (PS3.18 10.4.1.1.1 to 3): as they are held, or in another transfer syntax that loses nothing."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final
from uuid import uuid4

from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

from segnode.dicom.uids import uid_name
from segnode.dicomweb.accept import MediaRange, Representation, require
from segnode.dicomweb.decoding import Decoders
from segnode.dicomweb.media_types import DICOM
from segnode.dicomweb.multipart import Part
from segnode.errors import NotAcceptable, NotFound, UnreadablePixels
from segnode.seg.codecs import CODECS
from segnode.store.index import Instance
from segnode.store.objects import ObjectStore

# What is asked for is written, but for native: that is what there is without being asked for.
_WRITTEN: Final = tuple(str(CODECS[name].transfer_syntax_uid) for name in ("rle", "jpeg-ls", "jpeg-2000"))
_BLOCK: Final = 1 << 20


@dataclass(frozen=True)
class Given:
    """An object as it is given: its bytes, and where they lie if it is given as it is held."""

    representation: Representation
    size: int
    blocks: Iterator[bytes]
    path: Path | None = None

    def part(self, location: str) -> Part:
        """It as a part of a message."""
        return Part(self.representation.content_type, location, self.size, self.blocks)


def representation(ranges: Sequence[MediaRange], instance: Instance) -> Representation:
    """What an instance is given as: as it is held, native, or in a lossless syntax that is asked for. Raises NotAcceptable."""
    stored = instance.transfer_syntax_uid
    syntaxes = [stored]
    if stored != ExplicitVRBigEndian:
        syntaxes += [str(ExplicitVRLittleEndian), *_WRITTEN]
    offers = [Representation(DICOM, syntax, multipart) for multipart in (True, False) for syntax in dict.fromkeys(syntaxes)]
    return require(ranges, offers, f"SOP instance {instance.sop_instance_uid}")


def give(objects: ObjectStore, decoders: Decoders, instance: Instance, wanted: Representation) -> Given:
    """An instance as that. Raises NotFound, NotAcceptable."""
    path = objects.path(instance.object_key)
    if wanted.transfer_syntax == instance.transfer_syntax_uid:
        if not path.exists():
            raise NotFound("the object has been deleted")
        return Given(wanted, instance.size, _blocks(path), path)
    written = objects.incoming / uuid4().hex
    try:
        decoders.write(path, wanted.transfer_syntax, written)
    except UnreadablePixels as error:
        raise NotAcceptable(
            f"SOP instance {instance.sop_instance_uid} is held in {uid_name(instance.transfer_syntax_uid)}"
            f" and cannot be given in another transfer syntax ({error}): ask for transfer-syntax=*"
        ) from error
    file = written.open("rb")
    written.unlink()  # it goes when nobody reads it any longer
    return Given(wanted, os.fstat(file.fileno()).st_size, _blocks_of(file))


def _blocks(path: Path) -> Iterator[bytes]:
    yield from _blocks_of(path.open("rb"))


def _blocks_of(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while block := file.read(_BLOCK):
            yield block
