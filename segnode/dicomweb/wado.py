"""Objects by WADO-RS (PS3.18 10.4.1.1.1 to 3): as they are held, or in another transfer syntax that loses nothing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Final

from pydicom.uid import ExplicitVRLittleEndian

from segnode.dicom.uids import uid_name
from segnode.dicomweb import blocks
from segnode.dicomweb.accept import MediaRange, Representation, choose, in_any_syntax, require
from segnode.dicomweb.decoding import Decoders
from segnode.dicomweb.media_types import DICOM
from segnode.dicomweb.multipart import Part
from segnode.errors import NotAcceptable, NotFound, UnreadablePixels
from segnode.seg.codecs import CODECS
from segnode.store.index import Instance
from segnode.store.objects import ObjectStore

# What is asked for is written, but for native: that is what there is without being asked for.
_WRITTEN: Final = tuple(
    str(CODECS[name].transfer_syntax_uid) for name in ("rle", "jpeg-ls", "jpeg-2000", "htj2k", "deflate-frames")
)


@dataclass(frozen=True)
class Given:
    """An object as it is given: its bytes, and where they lie if it is given as it is held."""

    representation: Representation
    size: int
    blocks: Iterable[bytes]
    path: Path | None = None

    def part(self, location: str) -> Part:
        """It as a part of a message."""
        return Part(self.representation.content_type, location, self.size, self.blocks)


def representation(ranges: Sequence[MediaRange], instance: Instance) -> Representation:
    """What an instance is given as: as it is held, native, or in a lossless syntax that is asked for. Raises NotAcceptable."""
    chosen = _chosen(tuple(ranges), instance.transfer_syntax_uid)
    return chosen or require(ranges, _offers(instance.transfer_syntax_uid), f"SOP instance {instance.sop_instance_uid}")


@lru_cache(maxsize=64)
def _chosen(ranges: Sequence[MediaRange], transfer_syntax_uid: str) -> Representation | None:
    return choose(ranges, _offers(transfer_syntax_uid))


def _offers(transfer_syntax_uid: str) -> list[Representation]:
    syntaxes = dict.fromkeys((transfer_syntax_uid, str(ExplicitVRLittleEndian), *_WRITTEN))
    return [Representation(DICOM, syntax, multipart) for multipart in (True, False) for syntax in syntaxes]


def give(
    objects: ObjectStore, decoders: Decoders, ranges: Sequence[MediaRange], instance: Instance, wanted: Representation
) -> Given:
    """An instance as that; as it is held where it cannot be written, and no transfer syntax was asked for.

    Raises NotFound, NotAcceptable.
    """
    path = objects.path(instance.object_key)
    if wanted.transfer_syntax == instance.transfer_syntax_uid:
        return _as_held(path, instance, wanted)
    try:
        size, made = blocks.of_written(objects.incoming, partial(decoders.write, path, wanted.transfer_syntax))
    except UnreadablePixels as error:
        held = choose(in_any_syntax(ranges), [replace(wanted, transfer_syntax=instance.transfer_syntax_uid)])
        if held is not None:
            return _as_held(path, instance, held)
        raise NotAcceptable(
            f"SOP instance {instance.sop_instance_uid} is held in {uid_name(instance.transfer_syntax_uid)}"
            f" and cannot be given in another transfer syntax ({error}): ask for transfer-syntax=*"
        ) from error
    return Given(wanted, size, made)


def _as_held(path: Path, instance: Instance, wanted: Representation) -> Given:
    if not path.exists():
        raise NotFound("the object has been deleted")
    return Given(wanted, instance.size, blocks.Span(path, 0, instance.size), path)
