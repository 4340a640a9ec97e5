"""The resources of WADO-RS (PS3.18 10.4): requests translated, answered by what is held."""

import json
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, repeat
from typing import Any, Final
from uuid import uuid4

from anyio import CapacityLimiter, to_thread
from pydicom.uid import ExplicitVRLittleEndian
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route

from segnode.dicom.xml import native_xml
from segnode.dicomweb import wado
from segnode.dicomweb.accept import MediaRange, Representation, parse_accept, require
from segnode.dicomweb.bulk_data import PIXEL_DATA_PLACE, is_compressed, value_blocks
from segnode.dicomweb.decoding import Decoders
from segnode.dicomweb.frames import Frames, frames_of
from segnode.dicomweb.media_types import DICOM, JSON, OCTETS, XML
from segnode.dicomweb.metadata import Metadata, entity_tag, location, matches
from segnode.dicomweb.multipart import Part, message, message_size
from segnode.errors import NotFound
from segnode.pipeline.receive import Receiver
from segnode.store.documents import Documents
from segnode.store.index import Instance

_JSON: Final = Representation(JSON, multipart=False)
_XML: Final = Representation(XML)
# Retrievals wait for each other here, so that those that decode keep no other request from its thread.
_MOST_AT_ONCE: Final = 32
# What is got ready before an answer begins: until then whatever goes wrong has a status and a text.
_AHEAD: Final = 16 << 20


@dataclass(frozen=True)
class Retrieval:
    """The resources of what is held, under the DICOMweb root."""

    receiver: Receiver
    documents: Documents
    decoders: Decoders = field(default_factory=lambda: Decoders(os.cpu_count() or 1))
    at_once: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_MOST_AT_ONCE))

    def routes(self) -> list[Route]:
        """What is to be mounted."""
        study, series = "/studies/{study}", "/studies/{study}/series/{series}"
        instance = series + "/instances/{instance}"
        return [
            *(Route(path, self._answered(self._objects)) for path in (study, series, instance)),
            *(Route(f"{path}/metadata", self._answered(self._metadata)) for path in (study, series, instance)),
            Route(f"{instance}/frames/{{frames}}", self._answered(self._frames)),
            Route(f"{instance}/bulkdata/{{place:path}}", self._answered(self._bulk_data)),
        ]

    def _answered(self, answer: Callable[[Request], Response]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            return await to_thread.run_sync(answer, request, limiter=self.at_once)

        return endpoint

    def _objects(self, request: Request) -> Response:
        ranges, instances, root = accepted(request), self._held(request), root_of(request)
        wanted = [wado.representation(ranges, instance) for instance in instances]
        give = partial(wado.give, self.receiver.objects, self.decoders)
        if len(instances) == 1 and not wanted[0].multipart:
            return self._whole(instances[0], give(instances[0], wanted[0]))
        parts = (give(instance, form).part(location(instance, root)) for instance, form in zip(instances, wanted, strict=True))
        if any(form.transfer_syntax != i.transfer_syntax_uid for i, form in zip(instances, wanted, strict=True)):
            return self._multipart(DICOM, parts)
        boundary, held = uuid4().hex, list(parts)
        return StreamingResponse(
            self._in_threads(message(held, boundary)),
            media_type=f'multipart/related; type="{DICOM}"; boundary={boundary}',
            headers={"Content-Length": str(message_size(held, boundary))},
        )

    def _whole(self, instance: Instance, given: wado.Given) -> Response:
        """An object by itself; as it is held also ranges of it, and the server sends the file."""
        kind, headers = given.representation.content_type, {"Vary": "Accept"}
        if given.path is not None:
            return FileResponse(given.path, headers={**headers, "ETag": f'"{instance.digest[:32]}"'}, media_type=kind)
        headers["Content-Length"] = str(given.size)
        return StreamingResponse(self._in_threads(given.blocks), headers=headers, media_type=kind)

    def _frames(self, request: Request) -> Response:
        listed = request.path_params.pop("frames")
        frames = self._frames_of(request)
        return self._some_frames(request, frames, frames.numbers(listed))

    def _frames_of(self, request: Request) -> Frames:
        (instance,) = self._held(request)
        return frames_of(instance, self.receiver.objects.path(instance.object_key), self.decoders)

    def _some_frames(self, request: Request, frames: Frames, numbers: Sequence[int]) -> Response:
        instance = frames.instance
        what = f"frames of SOP instance {instance.sop_instance_uid}"
        wanted = require(accepted(request), frames.offers(len(numbers)), what)
        if not wanted.multipart:
            return Response(frames.read(numbers[0], wanted), media_type=wanted.content_type)
        url = location(instance, root_of(request))

        def part(number: int) -> Part:
            frame = frames.read(number, wanted)
            return Part(wanted.content_type, f"{url}/frames/{number}", len(frame), (frame,))

        return self._multipart(wanted.media_type, map(part, numbers))

    def _bulk_data(self, request: Request) -> Response:
        """A value by its path; of compressed pixel data the frames."""
        place = request.path_params.pop("place")
        (instance,) = self._held(request)
        path = self.receiver.objects.path(instance.object_key)
        if place.upper() == PIXEL_DATA_PLACE and is_compressed(instance):
            frames = self._frames_of(request)
            return self._some_frames(request, frames, range(1, frames.count + 1))
        offers = [Representation(OCTETS, str(ExplicitVRLittleEndian), multipart) for multipart in (True, False)]
        wanted = require(accepted(request), offers, f"bulk data of SOP instance {instance.sop_instance_uid}")
        size, blocks = value_blocks(instance, path, place, self.decoders)
        if not wanted.multipart:
            return self._gathered(blocks, wanted.content_type)
        url = f"{location(instance, root_of(request))}/bulkdata/{place}"
        return self._multipart(wanted.media_type, iter([Part(wanted.content_type, url, size, blocks)]))

    def _metadata(self, request: Request) -> Response:
        wanted = require(accepted(request), (_JSON, _XML), "metadata")
        instances, root = self._held(request), root_of(request)
        tag = entity_tag(instances, root, wanted.media_type)
        headers = {"ETag": tag, "Vary": "Accept"}
        if matches(request.headers.get("if-none-match", ""), tag):
            return Response(status_code=304, headers=headers)
        metadata = Metadata(self.receiver.objects, self.receiver.index, self.documents, self.decoders)
        documents = metadata.of(instances, root)
        if wanted == _XML:
            response = self._multipart(wanted.media_type, map(_xml_part, instances, documents, repeat(root)))
        else:
            response = self._gathered(_array(documents), wanted.media_type)
        response.headers.update(headers)
        return response

    def _held(self, request: Request) -> list[Instance]:
        instances = self.receiver.index.instances(**request.path_params)
        if not instances:
            raise NotFound("nothing is held under that URL")
        return instances

    def _multipart(self, media_type: str, parts: Iterable[Part]) -> Response:
        boundary = uuid4().hex
        return self._gathered(message(parts, boundary), f'multipart/related; type="{media_type}"; boundary={boundary}')

    def _gathered(self, blocks: Iterator[bytes], media_type: str) -> Response:
        """The first blocks are got ready before anything is sent; where these are all, the answer has a length."""
        ready, size = list[bytes](), 0
        for block in blocks:
            ready.append(block)
            size += len(block)
            if size > _AHEAD:
                return StreamingResponse(self._in_threads(chain(ready, blocks)), media_type=media_type)
        return Response(b"".join(ready), media_type=media_type)

    async def _in_threads(self, blocks: Iterator[bytes]) -> AsyncIterator[bytes]:
        while (block := await to_thread.run_sync(next, blocks, None, limiter=self.at_once)) is not None:
            yield block


def accepted(request: Request) -> list[MediaRange]:
    """What a request accepts."""
    return parse_accept(request.headers.get("accept", ""), request.query_params.get("accept", ""))


def root_of(request: Request) -> str:
    """The URL of the DICOMweb root as the client knows it."""
    return f"{request.url.scheme}://{request.url.netloc}{request.scope['root_path']}"


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
