"""The DICOMweb resources: requests translated, answered by STOW, QIDO and WADO."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from structlog.contextvars import bound_contextvars

from segnode.dicom.query import Level
from segnode.dicom.xml import native_xml
from segnode.dicomweb import qido, wado
from segnode.dicomweb.capabilities import other_methods
from segnode.dicomweb.stow import XML, StoreRequest, answer_media_type, require_size
from segnode.errors import NotFound
from segnode.pipeline.associations import Associations
from segnode.pipeline.receive import Receiver
from segnode.store.index import Instance, Sender

_JSON: Final = "application/dicom+json"
_BLOCK: Final = 1 << 17


@dataclass(frozen=True)
class DicomWeb:
    """The resources under one root, on one store.

    A sender who has sent nothing for `patience_s` seconds is gone: its series would not be complete while it is waited for.
    """

    receiver: Receiver
    associations: Associations
    patience_s: float = 60.0

    def routes(self) -> list[Route]:
        """What is to be mounted under the DICOMweb root."""
        study, series = "/studies/{study}", "/studies/{study}/series/{series}"
        instance = series + "/instances/{instance}"
        served = [
            Route("/studies", self._store, methods=["POST"]),
            Route(study, self._store, methods=["POST"]),
            Route("/studies", self._search("studies")),
            Route("/series", self._search("series")),
            Route("/instances", self._search("instances")),
            Route(f"{study}/series", self._search("series")),
            Route(f"{study}/instances", self._search("instances")),
            Route(f"{series}/instances", self._search("instances")),
            *(Route(path, self._retrieve) for path in (study, series, instance)),
            *(Route(f"{path}/metadata", self._metadata) for path in (study, series, instance)),
        ]
        return [*served, *other_methods(served)]

    async def _store(self, request: Request) -> Response:
        answer = answer_media_type(request.query_params.get("accept") or request.headers.get("accept", ""))
        announced = request.headers.get("content-length", "")
        require_size(int(announced) if announced.isdecimal() else 0)
        sender = Sender(host=request.client.host if request.client else "")
        content_type, study = request.headers.get("content-type", ""), request.path_params.get("study")
        store = StoreRequest(self.receiver, self.associations, content_type, study, sender)
        with bound_contextvars(request=uuid4().hex[:12]):
            try:
                async for block in _blocks(request, self.patience_s):
                    await run_in_threadpool(store.feed, block)
                stored = await run_in_threadpool(store.finish)
            finally:
                await run_in_threadpool(store.close)
        document = stored.document(_root(request))
        if answer == XML:
            return Response(native_xml(document), stored.http_status, media_type=XML)
        return _json(document, stored.http_status)

    def _search(self, level: Level) -> Callable[[Request], Response]:
        def search(request: Request) -> Response:
            names = {"study": "StudyInstanceUID", "series": "SeriesInstanceUID"}
            within = {names[name]: uid for name, uid in request.path_params.items()}
            wanted = qido.parse_search(level, within, request.query_params.multi_items())
            root = _root(request)
            found, remaining = qido.search(self.receiver.index, self.receiver.objects, wanted, root)
            body = b"[" + b",".join(found) + b"]"
            response = Response(body, media_type=_JSON) if found else Response(status_code=204)
            for warning in qido.warnings(wanted, remaining, root):
                response.headers.append("Warning", warning)
            return response

        return search

    def _retrieve(self, request: Request) -> Response:
        wanted = wado.parse_accept(request.headers.get("accept", ""))
        objects = self.receiver.objects
        instances = self._held(request)
        first = wado.instance_blocks(objects, instances[0], wanted)
        if not wanted.multipart and len(instances) == 1:
            return StreamingResponse(first[1], media_type=f"application/dicom; transfer-syntax={first[0]}")
        rest = (wado.instance_blocks(objects, instance, wanted) for instance in instances[1:])
        boundary = uuid4().hex
        blocks = wado.multipart_blocks((part for parts in ([first], rest) for part in parts), boundary)
        return StreamingResponse(blocks, media_type=f'multipart/related; type="application/dicom"; boundary={boundary}')

    def _metadata(self, request: Request) -> Response:
        return _json([wado.instance_metadata(self.receiver.objects, instance) for instance in self._held(request)])

    def _held(self, request: Request) -> list[Instance]:
        instances = self.receiver.index.instances(**request.path_params)
        if not instances:
            raise NotFound("nothing is held under that URL")
        return instances


async def _blocks(request: Request, patience_s: float) -> AsyncIterator[bytes]:
    """The body in pieces that are worth a change of thread each. Raises HTTPException when nothing comes for too long."""
    gathered, pieces = bytearray(), request.stream()
    while (piece := await _next(pieces, patience_s)) is not None:
        gathered += piece
        if len(gathered) >= _BLOCK:
            yield bytes(gathered)
            gathered.clear()
    yield bytes(gathered)


async def _next(pieces: AsyncGenerator[bytes, None], patience_s: float) -> bytes | None:
    try:
        async with asyncio.timeout(patience_s):
            return await anext(pieces, None)
    except TimeoutError as error:
        raise HTTPException(408, f"nothing has come for {patience_s:g} seconds: send it again") from error


def _root(request: Request) -> str:
    """The URL of the DICOMweb root as the client knows it."""
    return f"{request.url.scheme}://{request.url.netloc}{request.scope['root_path']}"


def _json(document: Any, status: int = 200) -> Response:
    return Response(json.dumps(document, ensure_ascii=False, separators=(",", ":")), status, media_type=_JSON)
