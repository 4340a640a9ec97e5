"""The DICOMweb resources: requests translated, answered by STOW and QIDO; WADO has its own."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from structlog.contextvars import bound_contextvars

from segnode.dicom.query import Level
from segnode.dicom.xml import native_xml
from segnode.dicomweb import qido
from segnode.dicomweb.accept import Representation, require
from segnode.dicomweb.capabilities import other_methods
from segnode.dicomweb.media_types import JSON, XML
from segnode.dicomweb.retrieve import Retrieval, accepted, root_of
from segnode.dicomweb.stow import StoreRequest, require_size
from segnode.pipeline.associations import Associations
from segnode.pipeline.receive import Receiver
from segnode.store.documents import Documents
from segnode.store.index import Sender

_ANSWERS: Final = (Representation(JSON, multipart=False), Representation(XML, multipart=False))
_BLOCK: Final = 1 << 17


@dataclass(frozen=True)
class DicomWeb:
    """The resources under one root, on one store.

    A sender who has sent nothing for `patience_s` seconds is gone: its series would not be complete while it is waited for.
    """

    receiver: Receiver
    associations: Associations
    documents: Documents
    patience_s: float = 60.0

    def routes(self) -> list[Route]:
        """What is to be mounted under the DICOMweb root."""
        study, series = "/studies/{study}", "/studies/{study}/series/{series}"
        served = [
            Route("/studies", self._store, methods=["POST"]),
            Route(study, self._store, methods=["POST"]),
            Route("/studies", self._search("studies")),
            Route("/series", self._search("series")),
            Route("/instances", self._search("instances")),
            Route(f"{study}/series", self._search("series")),
            Route(f"{study}/instances", self._search("instances")),
            Route(f"{series}/instances", self._search("instances")),
            *Retrieval(self.receiver, self.documents).routes(),
        ]
        return [*served, *other_methods(served)]

    async def _store(self, request: Request) -> Response:
        answer = require(accepted(request), _ANSWERS, "the response").media_type
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
        document = stored.document(root_of(request))
        if answer == XML:
            return Response(native_xml(document), stored.http_status, media_type=XML)
        return _json(document, stored.http_status)

    def _search(self, level: Level) -> Callable[[Request], Response]:
        def search(request: Request) -> Response:
            names = {"study": "StudyInstanceUID", "series": "SeriesInstanceUID"}
            within = {names[name]: uid for name, uid in request.path_params.items()}
            wanted = qido.parse_search(level, within, request.query_params.multi_items())
            root = root_of(request)
            found, remaining = qido.search(self.receiver.index, self.receiver.objects, wanted, root)
            body = b"[" + b",".join(found) + b"]"
            response = Response(body, media_type=JSON) if found else Response(status_code=204)
            for warning in qido.warnings(wanted, remaining, root):
                response.headers.append("Warning", warning)
            return response

        return search


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


def _json(document: Any, status: int = 200) -> Response:
    return Response(json.dumps(document, ensure_ascii=False, separators=(",", ":")), status, media_type=JSON)
