"""The DICOMweb resources: requests translated, answered by STOW and QIDO; WADO has its own."""

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from structlog.contextvars import bound_contextvars

from segnode.dicomweb import qido
from segnode.dicomweb.retrieve import Retrieval, root_of
from segnode.dicomweb.stow import StoreRequest, boundary_of
from segnode.pipeline.associations import Associations
from segnode.pipeline.receive import Receiver
from segnode.store.documents import Documents
from segnode.store.index import Level, Sender

_JSON: Final = "application/dicom+json"
_BLOCK: Final = 1 << 20


@dataclass(frozen=True)
class DicomWeb:
    """The resources under one root, on one store."""

    receiver: Receiver
    associations: Associations
    documents: Documents

    def routes(self) -> list[Route]:
        """What is to be mounted under the DICOMweb root."""
        study, series = "/studies/{study}", "/studies/{study}/series/{series}"
        return [
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

    async def _store(self, request: Request) -> Response:
        boundary = boundary_of(request.headers.get("content-type", ""))
        if boundary is None:
            reason = 'the body must be multipart/related; type="application/dicom"'
            return Response(reason, 415, media_type="text/plain")
        sender = Sender(host=request.client.host if request.client else "")
        store = StoreRequest(self.receiver, self.associations, boundary, request.path_params.get("study"), sender)
        with bound_contextvars(request=uuid4().hex[:12]):
            try:
                async for block in _blocks(request):
                    await run_in_threadpool(store.feed, block)
                stored = store.finish()
            finally:
                await run_in_threadpool(store.close)
        return _json(stored.document(root_of(request)), stored.http_status)

    def _search(self, level: Level) -> Callable[[Request], Response]:
        def search(request: Request) -> Response:
            query = qido.parse_query(level, request.query_params.multi_items())
            names = {"study": "StudyInstanceUID", "series": "SeriesInstanceUID"}
            within = {names[name]: uid for name, uid in request.path_params.items()}
            found = qido.search(self.receiver.index, level, within, query, root_of(request))
            response = _json(found) if found else Response(status_code=204)
            if query.ignored:
                response.headers["Warning"] = f'299 segnode "these keys are not matched: {", ".join(query.ignored)}"'
            return response

        return search


async def _blocks(request: Request) -> AsyncIterator[bytes]:
    """The body in pieces that are worth a change of thread each."""
    gathered = bytearray()
    async for piece in request.stream():
        gathered += piece
        if len(gathered) >= _BLOCK:
            yield bytes(gathered)
            gathered.clear()
    yield bytes(gathered)


def _json(document: Any, status: int = 200) -> Response:
    return Response(json.dumps(document, ensure_ascii=False, separators=(",", ":")), status, media_type=_JSON)
