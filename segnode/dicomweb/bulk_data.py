"""Bulk data (PS3.18 10.4.1.1.5): the values that metadata name and do not hold."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from segnode.dicom.elements import PIXEL_DATA, read_meta
from segnode.dicom.frame_places import PIXELS
from segnode.dicom.json import Json
from segnode.dicom.transfer_syntaxes import NATIVE
from segnode.dicom.values import value_at
from segnode.dicomweb import blocks
from segnode.dicomweb.accept import MediaRange, Representation, require
from segnode.dicomweb.decoding import Decoders
from segnode.dicomweb.frames import Frames, frames_of
from segnode.dicomweb.left_out import LeftOut
from segnode.dicomweb.media_types import OCTETS
from segnode.dicomweb.metadata import Metadata, location
from segnode.dicomweb.multipart import Part
from segnode.errors import NotAcceptable, NotDicom, NotFound, UnreadablePixels
from segnode.seg.read import map_file
from segnode.store.index import Instance, uid_of
from segnode.store.objects import ObjectStore

PIXEL_DATA_PLACE: Final = f"{PIXEL_DATA:08X}"
PIXEL_PLACES: Final = tuple(f"{tag:08X}" for tag in PIXELS)
# In multipart first: that is what there is without being asked for.
OFFERS: Final = tuple(Representation(OCTETS, str(ExplicitVRLittleEndian), multipart) for multipart in (True, False))
_SEVERAL: Final = 2


def is_compressed(instance: Instance) -> bool:
    """Whether its pixel data is a sequence of fragments."""
    return instance.transfer_syntax_uid not in NATIVE


def value_blocks(objects: ObjectStore, decoders: Decoders, instance: Instance, place: str) -> tuple[int, Iterable[bytes]]:
    """The length of a value, and its bytes, little endian. Raises NotFound, NotAcceptable."""
    path, syntax = objects.path(instance.object_key), instance.transfer_syntax_uid
    begin, end, word = 0, 0, 0
    try:
        data = map_file(path)
        if syntax != DeflatedExplicitVRLittleEndian:
            begin, end, word = value_at(data, read_meta(data)[1], syntax, place)
        if word == 1:
            return end - begin, blocks.Span(path, begin, end - begin)
        # It is to be inflated, or words of it are to be swapped.
        return blocks.of_written(objects.incoming, partial(decoders.write_value, path, place))
    except FileNotFoundError as error:
        raise NotFound("the object has been deleted") from error
    except (NotDicom, UnreadablePixels) as error:
        raise NotAcceptable(f"SOP instance {instance.sop_instance_uid} cannot be read ({error}): ask for it whole") from error


@dataclass(frozen=True)
class BulkData:
    """The bulk data of several objects, as a client accepts them: of compressed pixel data the frames."""

    objects: ObjectStore
    metadata: Metadata
    decoders: Decoders
    ranges: Sequence[MediaRange]
    root: str

    def parts(self, instances: Iterable[Instance], left_out: LeftOut, *, only_pixels: bool) -> Iterator[Part]:
        """Value by value, or only the pixel data. Raises NotFound where there is none, NotAcceptable."""
        is_any = False
        for values in left_out.some(instances, lambda instance: self._values(instance, only_pixels=only_pixels), uid_of):
            for part in left_out.some(values, _Value.part, lambda value: value.instance.sop_instance_uid):
                is_any = True
                yield part
        if not is_any:
            left_out.explain()
            raise NotFound("there is no pixel data" if only_pixels else "there is no bulk data")

    def _values(self, instance: Instance, *, only_pixels: bool) -> "list[_Value]":
        (document,) = self.metadata.of([instance], self.root)
        places = [place for place in places_of(json.loads(document)) if place in PIXEL_PLACES or not only_pixels]
        return [value for place in places for value in self._of_place(instance, place)]

    def _of_place(self, instance: Instance, place: str) -> "Iterator[_Value]":
        path = self.objects.path(instance.object_key)
        if place != PIXEL_DATA_PLACE or not is_compressed(instance):
            yield _Value(self, instance, place)
            return
        frames = frames_of(instance, path, self.decoders)
        for number in range(1, frames.count + 1):
            yield _Value(self, instance, place, frames, number)


@dataclass(frozen=True)
class _Value:
    """What is a part of an answer: a value, or a frame of it."""

    of: BulkData
    instance: Instance
    place: str
    frames: Frames | None = None
    number: int = 0

    def part(self) -> Part:
        """It as a client accepts it. Raises NotFound, NotAcceptable."""
        url = location(self.instance, self.of.root)
        what = f"bulk data of SOP instance {self.instance.sop_instance_uid}"
        if self.frames is not None:
            wanted = require(self.of.ranges, self.frames.offers(_SEVERAL), what)
            frame = self.frames.read(self.number, wanted)
            return Part(wanted.content_type, f"{url}/frames/{self.number}", len(frame), (frame,))
        wanted = require(self.of.ranges, OFFERS[:1], what)
        size, made = value_blocks(self.of.objects, self.of.decoders, self.instance, self.place)
        return Part(wanted.content_type, f"{url}/bulkdata/{self.place}", size, made)


def places_of(document: Json) -> list[str]:
    """The paths of all that metadata name and do not hold, of items of sequences too."""
    found = []
    for element in document.values():
        if "BulkDataURI" in element:
            found.append(str(element["BulkDataURI"]).partition("/bulkdata/")[2])
        elif element["vr"] == "SQ":
            found += [place for item in element.get("Value", ()) for place in places_of(item)]
    return found
