"""Jobs over HTTP: seen and steered by programs, in the documents of `segnode jobs --json`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from segnode.config import readable_problem
from segnode.errors import BadRequest
from segnode.pipeline.job_document import job_document
from segnode.pipeline.replay import Replayed, replay
from segnode.pipeline.rules import AnyRule
from segnode.pipeline.sweep import ImageValues
from segnode.store.index import Index
from segnode.store.jobs import STATES, Job, Jobs
from segnode.web.openapi import ErrorDocument, JobQuery, ReplayRequest, openapi_document

_LONGEST_BODY: Final = 1 << 16


@dataclass(frozen=True)
class Api:
    """The resources under /api, on one store; `rules` gives the rules as they are configured now."""

    index: Index
    jobs: Jobs
    rules: Callable[[], Sequence[AnyRule]]
    image_values: ImageValues
    clock: Callable[[], float]

    def routes(self) -> list[Route]:
        """What is to be mounted under /api."""
        return [
            Route("/openapi.json", self._describe),
            Route("/jobs", self._list),
            Route("/jobs/replay", self._replay, methods=["POST"]),
            Route("/jobs/{id}", self._show),
            Route("/jobs/{id}/retry", self._steer(self.jobs.retry), methods=["POST"]),
            Route("/jobs/{id}/release", self._steer(self.jobs.release), methods=["POST"]),
            Route("/jobs/{id}/cancel", self._steer(self.jobs.cancel), methods=["POST"]),
        ]

    def _describe(self, _request: Request) -> Response:
        return _json(openapi_document())

    def _list(self, request: Request) -> Response:
        query = _parse_query(request)
        state = None if query.state is msgspec.UNSET else query.state
        return _json([job_document(job, self.index) for job in self.jobs.newest(state, query.limit, query.offset)])

    def _show(self, request: Request) -> Response:
        return _json(job_document(self._named(request), self.index))

    def _steer(self, act: Callable[[str, float], None]) -> Callable[[Request], Response]:
        def steer(request: Request) -> Response:
            _require_json(request)
            job = self._named(request)
            act(job.id, self.clock())
            return _json(job_document(self.jobs.job(job.id), self.index))

        return steer

    async def _replay(self, request: Request) -> Response:
        _require_json(request)
        asked = _parse_replay(await _short_body(request))
        return _json(await run_in_threadpool(self._replayed, asked))

    def _replayed(self, asked: ReplayRequest) -> list[Replayed]:
        rules, values = self.rules(), self.image_values
        return replay(self.index, self.jobs, rules, values, asked.series, self.clock(), dry_run=asked.dry_run)

    def _named(self, request: Request) -> Job:
        return self.jobs.beginning(request.path_params["id"])


def error_answer(message: str, status: int) -> Response:
    """The answer to a request that was not done."""
    return _json(ErrorDocument(message), status)


def _json(document: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(document), status, media_type="application/json")


def _require_json(request: Request) -> None:
    # A page of another site may have a browser post a form or plain text here without asking anybody. For this media
    # type the browser asks the node first, and the node does not say yes: so no foreign page steers it.
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise HTTPException(415, "the request must say Content-Type: application/json")


def _parse_query(request: Request) -> JobQuery:
    asked = dict(request.query_params)
    for name in asked:
        if name not in JobQuery.__struct_fields__:
            raise BadRequest(f"{name!r} is not a parameter; allowed: {', '.join(JobQuery.__struct_fields__)}")
    if asked.get("state", STATES[0]) not in STATES:
        raise BadRequest(f"{asked['state']!r} is not a state; allowed: {', '.join(STATES)}")
    try:
        return msgspec.convert(asked, JobQuery, strict=False)
    except msgspec.ValidationError as error:
        raise BadRequest(readable_problem(error)) from error


def _parse_replay(body: bytes) -> ReplayRequest:
    try:
        return msgspec.json.decode(body, type=ReplayRequest)
    except msgspec.ValidationError as error:
        raise BadRequest(readable_problem(error)) from error
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from error


async def _short_body(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _LONGEST_BODY:
            raise HTTPException(413, f"the body is longer than {_LONGEST_BODY} bytes")
    return bytes(body)
