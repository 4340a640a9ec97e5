"""The ASGI application: DICOMweb, jobs, how the node is; and one table from errors to HTTP statuses."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount

from segnode.config import WebConfig
from segnode.dicomweb.routes import DicomWeb
from segnode.dicomweb.strict_accept import StrictAccept
from segnode.errors import (
    BadRequest,
    IssuerSilent,
    JobEnded,
    NotAcceptable,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    OutOfResources,
    SegnodeError,
    StillNeeded,
    TooLarge,
    UnsupportedMedia,
    WrongHost,
)
from segnode.pipeline.assemble import image_values
from segnode.pipeline.associations import Associations
from segnode.pipeline.delete import Deleter
from segnode.pipeline.receive import Receiver
from segnode.pipeline.rules import AnyRule
from segnode.store.documents import Documents
from segnode.store.jobs import Jobs
from segnode.store.leases import Leases
from segnode.store.measures import Measures
from segnode.web.api import Api, error_answer
from segnode.web.health import Health

_log = structlog.get_logger()

HTTP_STATUS_OF: Final[Mapping[type[SegnodeError], int]] = {
    BadRequest: 400,
    NotAuthenticated: 401,
    NotAllowed: 403,
    NotFound: 404,
    NotAcceptable: 406,
    JobEnded: 409,
    StillNeeded: 409,
    TooLarge: 413,
    UnsupportedMedia: 415,
    WrongHost: 421,
    IssuerSilent: 503,
    OutOfResources: 503,
}


def create_app(
    receiver: Receiver,
    associations: Associations,
    documents: Documents,
    jobs: Jobs,
    leases: Leases,
    measures: Measures,
    rules: Callable[[], Sequence[AnyRule]],
    web: WebConfig,
) -> Starlette:
    """The application on one store; `rules` gives the rules as they are configured now."""
    values = image_values(receiver.index, receiver.objects.path)
    handlers = {SegnodeError: explain, HTTPException: _refuse, ClientDisconnect: _nobody, Exception: _unforeseen}
    deleter = Deleter(receiver.objects, receiver.index, documents, jobs) if web.delete else None
    dicomweb = DicomWeb(receiver, associations, documents, deleter).routes()
    strict = [Middleware(StrictAccept)] if web.strict_accept else []
    routes = [
        Mount("/dicom-web", routes=dicomweb, middleware=strict),
        Mount("/api", routes=Api(receiver.index, jobs, rules, values, receiver.clock).routes()),
        *Health(receiver, jobs, leases, measures).routes(),
    ]
    return Starlette(routes=routes, exception_handlers=handlers)


def explain(request: Request, error: Exception) -> Response:
    """The answer to a request that an error of our own has ended."""
    return _error(request, str(error), HTTP_STATUS_OF.get(type(error), 500))  # type: ignore[arg-type]


def _refuse(request: Request, error: Exception) -> Response:
    response = _error(request, error.detail, error.status_code)  # type: ignore[attr-defined]
    response.headers.update(error.headers or {})  # type: ignore[attr-defined]
    return response


def _nobody(_request: Request, _error: Exception) -> Response:
    return Response(status_code=400)


def _unforeseen(request: Request, error: Exception) -> Response:
    _log.error("request broke", method=request.method, exc_info=error)
    return _error(request, "unforeseen error; the node's log has the details", 500)


def _error(request: Request, message: str, status: int) -> Response:
    """Under /api for programs, elsewhere for people."""
    if request.scope["path"].startswith("/api/"):
        return error_answer(message, status)
    return PlainTextResponse(f"{message}\n", status)
