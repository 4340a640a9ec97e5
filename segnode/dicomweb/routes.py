"""The DICOMweb resources: requests translated, answered by STOW and QIDO; those of WADO have modules of their own."""

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
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
from segnode.dicomweb.answers import Answers
from segnode.dicomweb.capabilities import other_methods
from segnode.dicomweb.decoding import Decoders
from segnode.dicomweb.media_types import JSON, XML
from segnode.dicomweb.metadata import Metadata
from segnode.dicomweb.multipart import Part, message
from segnode.dicomweb.openapi import openapi_document
from segnode.dicomweb.pictures import Pictures
from segnode.dicomweb.rendered import Rendered
from segnode.dicomweb.request import accepted, root_of
from segnode.dicomweb.retrieve import Retrieval
from segnode.dicomweb.stow import StoreRequest, require_size
from segnode.pipeline.associations import Associations
from segnode.pipeline.delete import Deleter
from segnode.pipeline.receive import Receiver
from segnode.store.documents import Documents
from segnode.store.index import Sender

_ANSWERS: Final = (Representation(JSON, multipart=False), Representation(XML, multipart=False))
_MATCHES: Final = (Representation(JSON, multipart=False), Representation(XML))
_BLOCK: Final = 1 << 17
_MOST_GATHERED: Final = 1 << 19


@dataclass(frozen=True)
class DicomWeb:
    """The resources under one root, on one store.

    Without a `deleter` nothing is deleted. A sender who has sent nothing for `patience_s` seconds is gone: its series would
    not be complete while it is waited for.
    """

    receiver: Receiver
    associations: Associations
    documents: Documents
    deleter: Deleter | None = None
    patience_s: float = 60.0

    def routes(self) -> list[Route]:
        """What is to be mounted under the DICOMweb root."""
        study, series = "/studies/{study}", "/studies/{study}/series/{series}"
        objects, index = self.receiver.objects, self.receiver.index
        decoders, answers = Decoders(os.cpu_count() or 1), Answers(objects.incoming)
        metadata = Metadata(objects, index, self.documents, decoders)
        search = partial(self._search, metadata)
        served = [
            *Retrieval(index, objects, metadata, decoders, answers).routes(),
            Route("/studies", self._store, methods=["POST"]),
            Route(study, self._store, methods=["POST"]),
            Route("/studies", search("studies")),
            Route("/series", search("series")),
            Route("/instances", search("instances")),
            Route(f"{study}/series", search("series")),
            Route(f"{study}/instances", search("instances")),
            Route(f"{series}/instances", search("instances")),
            *Rendered(Pictures(index, objects, decoders), answers).routes(),
            Route("/openapi.json", lambda _: _json(openapi_document(deletes=self.deleter is not None))),
        ]
        if self.deleter is not None:
            delete = self._delete(self.deleter)
            paths = (study, series, f"{series}/instances/{{instance}}")
            served += [Route(path, delete, methods=["DELETE"]) for path in paths]
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
                await _feed(store, request, self.patience_s)
                stored = await run_in_threadpool(store.finish)
            finally:
                await run_in_threadpool(store.close)
        document = stored.document(root_of(request))
        if answer == XML:
            return Response(native_xml(document), stored.http_status, media_type=XML)
        return _json(document, stored.http_status)

    def _delete(self, deleter: Deleter) -> Callable[[Request], Response]:
        def delete(request: Request) -> Response:
            deleter.delete(**request.path_params)
            return Response(status_code=204)

        return delete

    def _search(self, metadata: Metadata, level: Level) -> Callable[[Request], Response]:
        def search(request: Request) -> Response:
            names = {"study": "StudyInstanceUID", "series": "SeriesInstanceUID"}
            within = {names[name]: uid for name, uid in request.path_params.items()}
            wanted = qido.parse_search(level, within, request.query_params.multi_items())
            root = root_of(request)
            kind = require(accepted(request), _MATCHES, "matches").media_type
            found, remaining = qido.search(self.receiver.index, metadata, wanted, root)
            response = _matches(found, kind) if found else Response(status_code=204)
            for warning in qido.warnings(wanted, remaining, root):
                response.headers.append("Warning", warning)
            return response

        return search


def _matches(found: Sequence[bytes], kind: str) -> Response:
    """Matches as one JSON array, or each as a part of its own."""
    headers = {"Vary": "Accept"}
    if kind == JSON:
        return Response(b"[" + b",".join(found) + b"]", media_type=JSON, headers=headers)
    documents = (json.loads(match) for match in found)
    parts = ((native_xml(document), document["00081190"]["Value"][0]) for document in documents)
    boundary = uuid4().hex
    body = message((Part(kind, url, len(xml), (xml,)) for xml, url in parts), boundary)
    related = f'multipart/related; type="{kind}"; boundary={boundary}'
    return Response(b"".join(body), media_type=related, headers=headers)


async def _feed(store: StoreRequest, request: Request, patience_s: float) -> None:
    """Have a body taken in a thread, in pieces that are worth the change; while one is taken, the next may grow.

    Raises HTTPException when nothing comes for too long, and what taking it raises.
    """
    some, size, pieces = list[bytes](), 0, request.stream()
    taking: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    taking.set_result(None)
    try:
        while (piece := await _next(pieces, patience_s)) is not None:
            some.append(piece)
            size += len(piece)
            if size >= (_BLOCK if taking.done() else _MOST_GATHERED):
                await taking
                taking = asyncio.create_task(run_in_threadpool(store.feed, *some))
                some, size = [], 0
    finally:
        await taking
    await run_in_threadpool(store.feed, *some)


async def _next(pieces: AsyncGenerator[bytes, None], patience_s: float) -> bytes | None:
    try:
        async with asyncio.timeout(patience_s):
            return await anext(pieces, None)
    except TimeoutError as error:
        raise HTTPException(408, f"nothing has come for {patience_s:g} seconds: send it again") from error


def _json(document: Any, status: int = 200) -> Response:
    return Response(json.dumps(document, ensure_ascii=False, separators=(",", ":")), status, media_type=JSON)
