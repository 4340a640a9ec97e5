"""The resources of WADO-RS (PS3.18 10.4): requests translated, answered by what is held."""

import json
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, Final
from uuid import uuid4

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from segnode.dicomweb import wado
from segnode.dicomweb.accept import MediaRange, parse_accept, require
from segnode.dicomweb.decoding import Decoders
from segnode.dicomweb.frames import frames_of
from segnode.dicomweb.multipart import Part, message
from segnode.errors import NotFound
from segnode.pipeline.receive import Receiver
from segnode.store.index import Instance

_JSON: Final = "application/dicom+json"
# Requests that decode wait for each other here, so that they keep no other request from its thread.
_MOST_DECODING: Final = 8
# What is got ready before an answer begins: until then whatever goes wrong has a status and a text.
_AHEAD: Final = 16 << 20


@dataclass(frozen=True)
class Retrieval:
    """The resources of what is held, under the DICOMweb root."""

    receiver: Receiver
    decoders: Decoders = field(default_factory=lambda: Decoders(os.cpu_count() or 1))
    decoding: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_MOST_DECODING))

    def routes(self) -> list[Route]:
        """What is to be mounted."""
        study, series = "/studies/{study}", "/studies/{study}/series/{series}"
        instance = series + "/instances/{instance}"
        return [
            *(Route(path, self._answered(self._objects)) for path in (study, series, instance)),
            *(Route(f"{path}/metadata", self._metadata) for path in (study, series, instance)),
            Route(f"{instance}/frames/{{frames}}", self._answered(self._frames)),
        ]

    def _answered(self, answer: Callable[[Request], Response]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            return await to_thread.run_sync(answer, request, limiter=self.decoding)

        return endpoint

    def _objects(self, request: Request) -> Response:
        ranges, instances = accepted(request), self._held(request)
        wanted = [wado.representation(ranges, instance) for instance in instances]
        part = partial(wado.part_of, self.receiver.objects, self.decoders)
        parts = (part(instance, form, _location(request, instance)) for instance, form in zip(instances, wanted, strict=True))
        if len(instances) == 1 and not wanted[0].multipart:
            (only,) = parts
            return StreamingResponse(iter(only.blocks), media_type=only.content_type)
        return self._multipart(wado.DICOM, parts)

    def _frames(self, request: Request) -> Response:
        ranges, listed = accepted(request), request.path_params.pop("frames")
        (instance,) = self._held(request)
        frames = frames_of(instance, self.receiver.objects.path(instance.object_key), self.decoders)
        numbers = frames.numbers(listed)
        wanted = require(ranges, frames.offers(len(numbers)), f"frames of SOP instance {instance.sop_instance_uid}")
        if not wanted.multipart:
            return Response(frames.read(numbers[0], wanted), media_type=wanted.content_type)

        def part(number: int) -> Part:
            frame = frames.read(number, wanted)
            return Part(wanted.content_type, f"{_location(request, instance)}/frames/{number}", len(frame), (frame,))

        return self._multipart(wanted.media_type, map(part, numbers))

    def _metadata(self, request: Request) -> Response:
        documents = [wado.instance_metadata(self.receiver.objects, instance) for instance in self._held(request)]
        return Response(json.dumps(documents, ensure_ascii=False, separators=(",", ":")), media_type=_JSON)

    def _held(self, request: Request) -> list[Instance]:
        instances = self.receiver.index.instances(**request.path_params)
        if not instances:
            raise NotFound("nothing is held under that URL")
        return instances

    def _multipart(self, media_type: str, parts: Iterable[Part]) -> Response:
        """The first parts are got ready before anything is sent; where these are all, the answer has a length."""
        boundary = uuid4().hex
        kind = f'multipart/related; type="{media_type}"; boundary={boundary}'
        remaining, ready, size = iter(parts), list[Part](), 0
        for part in remaining:
            ready.append(part)
            size += part.size
            if size > _AHEAD:
                return StreamingResponse(self._in_threads(message(chain(ready, remaining), boundary)), media_type=kind)
        return Response(b"".join(message(ready, boundary)), media_type=kind)

    async def _in_threads(self, blocks: Iterator[bytes]) -> AsyncIterator[bytes]:
        while (block := await to_thread.run_sync(next, blocks, b"", limiter=self.decoding)) != b"":
            yield block


def accepted(request: Request) -> list[MediaRange]:
    """What a request accepts."""
    return parse_accept(request.headers.get("accept", ""), request.query_params.get("accept", ""))


def root_of(request: Request) -> str:
    """The URL of the DICOMweb root as the client knows it."""
    return f"{request.url.scheme}://{request.url.netloc}{request.scope['root_path']}"


def _location(request: Request, instance: Instance) -> str:
    study, series, sop = instance.study_instance_uid, instance.series_instance_uid, instance.sop_instance_uid
    return f"{root_of(request)}/studies/{study}/series/{series}/instances/{sop}"
