"""The resources of WADO-RS (PS3.18 10.4): requests translated, answered by what is held."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, repeat
from typing import Final

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from segnode.dicom.xml import native_xml
from segnode.dicomweb import blocks, wado
from segnode.dicomweb.accept import Representation, choose, in_any_syntax, require
from segnode.dicomweb.answers import Answers, Recent
from segnode.dicomweb.bulk_data import OFFERS, PIXEL_DATA_PLACE, PIXEL_PLACES, BulkData, is_compressed, places_of, value_blocks
from segnode.dicomweb.decoding import Decoders
from segnode.dicomweb.frames import Frames, frames_of
from segnode.dicomweb.left_out import LeftOut
from segnode.dicomweb.media_types import DICOM, JSON, XML
from segnode.dicomweb.metadata import Metadata, entity_tag, location, matches
from segnode.dicomweb.multipart import Part
from segnode.dicomweb.request import accepted, asks_for_ranges, byte_range, root_of, uids_of
from segnode.errors import NotAcceptable, NotFound
from segnode.store.index import Index, Instance, uid_of
from segnode.store.objects import ObjectStore

_JSON: Final = Representation(JSON, multipart=False)
_XML: Final = Representation(XML)
_STUDY, _SERIES = "/studies/{study}", "/studies/{study}/series/{series}"
_INSTANCE: Final = f"{_SERIES}/instances/{{instance}}"


@dataclass(frozen=True)
class Retrieval:
    """What is held, its metadata, frames and bulk data, as resources under the DICOMweb root."""

    index: Index
    objects: ObjectStore
    metadata: Metadata
    decoders: Decoders
    answers: Answers
    recent: Recent = field(default_factory=Recent)

    def routes(self) -> list[Route]:
        """What is to be mounted."""
        of_each_level = {
            "": self._objects,
            "/metadata": self._metadata,
            "/bulkdata": self._all_bulk_data,
            "/pixeldata": self._pixel_data,
        }
        return [
            # First: of these most are asked for, and routes are tried one after the other.
            Route(f"{_INSTANCE}/frames/{{frames}}", self.answers.endpoint(self._frames)),
            *(
                Route(path + name, self.answers.endpoint(answer))
                for path in (_STUDY, _SERIES, _INSTANCE)
                for name, answer in of_each_level.items()
            ),
            Route(f"{_INSTANCE}/bulkdata/{{place:path}}", self.answers.endpoint(self._bulk_data)),
        ]

    def _objects(self, request: Request) -> Response:
        ranges, instances, root = accepted(request), self._held(request), root_of(request)
        left_out = LeftOut()
        wanted = dict(left_out.each(instances, lambda instance: (instance, wado.representation(ranges, instance)), uid_of))
        give = partial(wado.give, self.objects, self.decoders, ranges)
        if len(instances) == 1 and not wanted[instances[0]].multipart:
            return self._whole(instances[0], give(instances[0], wanted[instances[0]]))
        parts = left_out.each(wanted, lambda instance: give(instance, wanted[instance]).part(location(instance, root)), uid_of)
        if any(form.transfer_syntax != instance.transfer_syntax_uid for instance, form in wanted.items()):
            return left_out.begin(self.answers.multipart(DICOM, parts), root)
        return left_out.begin(self.answers.multipart_of_files(DICOM, list(parts)), root)

    def _whole(self, instance: Instance, given: wado.Given) -> Response:
        """An object by itself; as it is held also ranges of it, and the server sends the file."""
        kind, headers = given.representation.content_type, {"Vary": "Accept"}
        if given.path is not None:
            return _HeldFile(given.path, headers={**headers, "ETag": f'"{instance.digest[:32]}"'}, media_type=kind)
        response = self.answers.streamed(given.blocks, kind, given.size)
        response.headers.update(headers)
        return response

    def _frames(self, request: Request) -> Response:
        (instance,) = self._held(request)
        frames = frames_of(instance, self.objects.path(instance.object_key), self.decoders)
        return self._some_frames(request, frames, frames.numbers(request.path_params["frames"]))

    def _some_frames(self, request: Request, frames: Frames, numbers: Sequence[int]) -> Response:
        instance = frames.instance
        what = f"frames of SOP instance {instance.sop_instance_uid}"
        ranges, offers = accepted(request), frames.offers(len(numbers))
        wanted = require(ranges, offers, what)
        try:
            return self._frames_as(request, frames, numbers, wanted)
        except NotAcceptable:
            of_stored = [o for o in offers if o.transfer_syntax == frames.instance.transfer_syntax_uid]
            stored = choose(in_any_syntax(ranges), [replace(o, also="") for o in of_stored])
            if stored is None or stored.media_type == wanted.media_type:
                raise
            return self._frames_as(request, frames, numbers, stored)

    def _frames_as(self, request: Request, frames: Frames, numbers: Sequence[int], wanted: Representation) -> Response:
        if not wanted.multipart:
            return Response(frames.read(numbers[0], wanted), media_type=wanted.content_type)
        url = location(frames.instance, root_of(request))

        def part(number: int) -> Part:
            frame = frames.read(number, wanted)
            return Part(wanted.content_type, f"{url}/frames/{number}", len(frame), (frame,))

        return self.answers.multipart(wanted.media_type, map(part, numbers))

    def _bulk_data(self, request: Request) -> Response:
        """A value by its path."""
        (instance,) = self._held(request)
        return self._value(request, instance, request.path_params["place"])

    def _all_bulk_data(self, request: Request) -> Response:
        return self._values(request, self._held(request), only_pixels=False)

    def _pixel_data(self, request: Request) -> Response:
        """That of one object as by its path, so that it need not be in multipart."""
        instances, root = self._held(request), root_of(request)
        if len(instances) == 1:
            (document,) = self.metadata.of(instances, root)
            place = next((place for place in places_of(json.loads(document)) if place in PIXEL_PLACES), None)
            if place is not None:
                return self._value(request, instances[0], place)
        return self._values(request, instances, only_pixels=True)

    def _values(self, request: Request, instances: Sequence[Instance], *, only_pixels: bool) -> Response:
        root, left_out = root_of(request), LeftOut()
        held = BulkData(self.objects, self.metadata, self.decoders, accepted(request), root)
        parts = held.parts(instances, left_out, only_pixels=only_pixels)
        first = next(parts)  # there is one, or it raises
        return left_out.begin(self.answers.multipart(first.content_type.partition(";")[0], chain([first], parts)), root)

    def _value(self, request: Request, instance: Instance, place: str) -> Response:
        """A value; of compressed pixel data the frames."""
        if place.upper() == PIXEL_DATA_PLACE and is_compressed(instance):
            frames = frames_of(instance, self.objects.path(instance.object_key), self.decoders)
            return self._some_frames(request, frames, range(1, frames.count + 1))
        wanted = require(accepted(request), OFFERS, f"bulk data of SOP instance {instance.sop_instance_uid}")
        size, made = value_blocks(self.objects, self.decoders, instance, place)
        if not wanted.multipart:
            return self._whole_value(request, f'"{instance.digest[:32]} {place}"', wanted.content_type, size, made)
        url = f"{location(instance, root_of(request))}/bulkdata/{place}"
        return self.answers.multipart_of_files(wanted.media_type, [Part(wanted.content_type, url, size, made)])

    def _whole_value(self, request: Request, tag: str, kind: str, size: int, made: Iterable[bytes]) -> Response:
        """A value by itself, or a range of its bytes."""
        wanted = byte_range(request, size, tag)
        begin, end = wanted or (0, size)
        response = self.answers.streamed(blocks.cut(made, begin, end) if wanted else made, kind, end - begin)
        response.headers.update({"Accept-Ranges": "bytes", "ETag": tag, "Vary": "Accept"})
        if wanted:
            response.status_code = 206
            response.headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        return response

    def _metadata(self, request: Request) -> Response:
        wanted = require(accepted(request), (_JSON, _XML), "metadata")
        instances, root = self._held(request), root_of(request)
        tag = entity_tag(instances, root, wanted.media_type)
        headers = {"ETag": tag, "Vary": "Accept"}
        if matches(request.headers.get("if-none-match", ""), tag):
            return Response(status_code=304, headers=headers)
        if kept := self.recent.find(tag):
            return Response(kept, media_type=wanted.media_type, headers=headers)
        left_out = LeftOut()
        readable = self.metadata.ready(instances, left_out)
        documents = self.metadata.of(readable, root)
        if wanted == _XML:
            response = self.answers.multipart(wanted.media_type, map(_xml_part, readable, documents, repeat(root)))
        else:
            response = self.answers.gathered(_array(documents), wanted.media_type)
            if not left_out.is_any:
                self.recent.keep(tag, response)
        if not left_out.is_any:  # what is left out now may be there the next time
            response.headers.update(headers)
        return left_out.begin(response, root)

    def _held(self, request: Request) -> list[Instance]:
        instances = self.index.instances(**uids_of(request))
        if not instances:
            raise NotFound("nothing is held under that URL")
        return instances


class _HeldFile(FileResponse):
    """A file, or ranges of it. Starlette refuses a Range header that is to be passed over."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with it."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        kept = [(name, text) for name, text in headers if name != b"range" or asks_for_ranges(text.decode("latin-1"))]
        await super().__call__({**scope, "headers": kept}, receive, send)


def _xml_part(instance: Instance, document: bytes, root: str) -> Part:
    xml = native_xml(json.loads(document))
    return Part(_XML.content_type, f"{location(instance, root)}/metadata", len(xml), (xml,))


def _array(documents: Iterable[bytes]) -> Iterator[bytes]:
    """A JSON array of these."""
    between = b"["
    for document in documents:
        yield between + document
        between = b","
    yield b"]"
