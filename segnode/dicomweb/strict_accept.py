"""Requests that do not say what they accept, answered as PS3.18 has it: most nodes, and most clients, are more lenient."""

from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from segnode.errors import NotAcceptable

# What is answered to the others has no payload, or one of one form.
_NEGOTIATED: Final = ("GET", "HEAD", "POST")


@dataclass(frozen=True)
class StrictAccept:
    """In front of the DICOMweb resources."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises NotAcceptable where there is neither an Accept header nor the query parameter `accept`."""
        request = Request(scope)
        says = request.headers.get("accept", "").strip() or request.query_params.get("accept", "").strip()
        if request.method in _NEGOTIATED and not says:
            raise NotAcceptable("the request has no Accept: it must say what it accepts here, and */* will do")
        await self.app(scope, receive, send)
