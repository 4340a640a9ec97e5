"""Frames (PS3.18 10.4.1.1.6): each by itself, out of its object, without the rest of that being read."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Final

from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, HTJ2KLossless

from segnode.dicom.frame_places import FramePlaces, frame_places
from segnode.dicom.uids import uid_name
from segnode.dicomweb.accept import Representation
from segnode.dicomweb.decoding import Decoders
from segnode.dicomweb.media_types import OCTETS
from segnode.errors import BadRequest, NotAcceptable, NotDicom, NotFound, UnreadablePixels
from segnode.seg.read import map_file
from segnode.store.index import Instance

# PS3.18 table 8.7.3-5.
_MEDIA_TYPE_OF: Final = {
    "1.2.840.10008.1.2.4.50": "image/jpeg",
    "1.2.840.10008.1.2.4.51": "image/jpeg",
    "1.2.840.10008.1.2.4.57": "image/jpeg",
    "1.2.840.10008.1.2.4.70": "image/jpeg",
    "1.2.840.10008.1.2.4.80": "image/jls",
    "1.2.840.10008.1.2.4.81": "image/jls",
    "1.2.840.10008.1.2.4.90": "image/jp2",
    "1.2.840.10008.1.2.4.91": "image/jp2",
    "1.2.840.10008.1.2.4.92": "image/jpx",
    "1.2.840.10008.1.2.4.93": "image/jpx",
    "1.2.840.10008.1.2.4.110": "image/jxl",
    "1.2.840.10008.1.2.4.111": "image/jxl",
    "1.2.840.10008.1.2.4.112": "image/jxl",
    "1.2.840.10008.1.2.4.201": "image/jphc",
    "1.2.840.10008.1.2.4.202": "image/jphc",
    "1.2.840.10008.1.2.4.203": "image/jphc",
    "1.2.840.10008.1.2.5": "image/dicom-rle",
}
_NATIVE: Final = Representation(OCTETS, str(ExplicitVRLittleEndian))
_HTJ2K: Final = Representation("image/jphc", str(HTJ2KLossless))
_LIST: Final = re.compile(r"[0-9]{1,10}(,[0-9]{1,10})*")
_OBJECTS_REMEMBERED: Final = 64


@dataclass(frozen=True)
class Frames:
    """The frames of an object that is held."""

    instance: Instance
    path: Path
    places: FramePlaces | None
    decoders: Decoders

    def numbers(self, text: str) -> list[int]:
        """The frames that a URL lists, from 1 on, in its order. Raises BadRequest, NotFound."""
        if not _LIST.fullmatch(text):
            raise BadRequest("frames are given as a list of their numbers, from 1 on, separated by commas")
        numbers = [int(number) for number in text.split(",")]
        if 0 in numbers:
            raise BadRequest("frames are numbered from 1 on")
        # Of a deflated object it is known when it has been inflated, which is not done here.
        if self.places is not None and max(numbers) > self.places.number_of_frames:
            raise NotFound(f"SOP instance {self.instance.sop_instance_uid} has {self.places.number_of_frames} frames")
        return numbers

    @property
    def count(self) -> int:
        """How many there are; 1 where that is not known before the object is inflated."""
        return self.places.number_of_frames if self.places else 1

    def offers(self, count: int) -> Sequence[Representation]:
        """What so many frames can be had as: as stored, native little endian, and in HTJ2K; one also without multipart."""
        multipart, single = _offers(self.instance.transfer_syntax_uid)
        return (*multipart, *single) if count == 1 else multipart

    def read(self, number: int, wanted: Representation) -> bytes:
        """A frame as that. Raises NotFound, NotAcceptable."""
        try:
            if wanted.transfer_syntax not in (self.instance.transfer_syntax_uid, _NATIVE.transfer_syntax):
                return self.decoders.frame(self.path, number - 1, "htj2k")
            if wanted.media_type != OCTETS and self.places is not None:
                return self.places.codestream(map_file(self.path), number - 1)
            if self.places is not None and self.places.starts is None:
                return _native(self.path, self.places, number - 1)
            return self.decoders.frame(self.path, number - 1)
        except FileNotFoundError as error:
            raise NotFound("the object has been deleted") from error
        except UnreadablePixels as error:
            raise _unreadable(self.instance, f"frame {number} cannot be decoded: {error}") from error


def frames_of(instance: Instance, path: Path, decoders: Decoders) -> Frames:
    """The frames of an object. Raises NotFound where it has none, NotAcceptable where they cannot be told apart."""
    if instance.transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
        return Frames(instance, path, None, decoders)
    try:
        places = _places(path)
    except FileNotFoundError as error:
        raise NotFound("the object has been deleted") from error
    except (NotDicom, UnreadablePixels) as error:
        raise _unreadable(instance, str(error)) from error
    if places is None:
        raise NotFound(f"SOP instance {instance.sop_instance_uid} has no pixel data, and so no frames")
    return Frames(instance, path, places, decoders)


@cache
def _offers(syntax: str) -> tuple[Sequence[Representation], Sequence[Representation]]:
    """In multipart, and without it."""
    stored = Representation(_MEDIA_TYPE_OF[syntax], syntax, also=OCTETS) if syntax in _MEDIA_TYPE_OF else None
    multipart = [stored, _NATIVE] if stored else [_NATIVE]
    if syntax != _HTJ2K.transfer_syntax:
        multipart.append(_HTJ2K)
    return multipart, [replace(offer, multipart=False) for offer in multipart]


def _native(path: Path, places: FramePlaces, index: int) -> bytes:
    """A native frame; one whose bytes are as they are wanted is read at once, which is faster than by a mapping."""
    span = places.span(index)
    if span is None:
        return places.native(map_file(path), index)
    with path.open("rb", buffering=0) as file:
        frame = os.pread(file.fileno(), span[1] - span[0], span[0])
    # The system reads no more than 2 GiB at once.
    return frame if len(frame) == span[1] - span[0] else places.native(map_file(path), index)


@lru_cache(_OBJECTS_REMEMBERED)
def _places(path: Path) -> FramePlaces | None:
    """Objects do not change, and their paths are not used again."""
    return frame_places(map_file(path))


def _unreadable(instance: Instance, reason: str) -> NotAcceptable:
    held = uid_name(instance.transfer_syntax_uid)
    return NotAcceptable(
        f"SOP instance {instance.sop_instance_uid} is held in {held}, and {reason}:"
        " ask for its frames, or for the instance, with transfer-syntax=*"
    )
