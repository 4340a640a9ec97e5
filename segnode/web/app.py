"""The ASGI application: DICOMweb under /dicom-web, and one table from errors to HTTP statuses."""

from collections.abc import Mapping
from typing import Final

import structlog
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount

from segnode.dicomweb.routes import DicomWeb
from segnode.errors import BadRequest, NotAcceptable, NotFound, SegnodeError
from segnode.pipeline.receive import Receiver

_log = structlog.get_logger()

HTTP_STATUS_OF: Final[Mapping[type[SegnodeError], int]] = {BadRequest: 400, NotFound: 404, NotAcceptable: 406}


def create_app(receiver: Receiver) -> Starlette:
    """The application on one store."""
    handlers = {SegnodeError: _explain, ClientDisconnect: _nobody, Exception: _unforeseen}
    return Starlette(routes=[Mount("/dicom-web", routes=DicomWeb(receiver).routes())], exception_handlers=handlers)


def _explain(_request: Request, error: Exception) -> Response:
    status = HTTP_STATUS_OF.get(type(error), 500)  # type: ignore[arg-type]
    return PlainTextResponse(f"{error}\n", status)


def _nobody(_request: Request, _error: Exception) -> Response:
    return Response(status_code=400)


def _unforeseen(request: Request, error: Exception) -> Response:
    _log.error("request broke", method=request.method, exc_info=error)
    return PlainTextResponse("unforeseen error; the node's log has the details\n", 500)
