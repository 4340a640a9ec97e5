"""Who is let in by HTTP, and to what: decided before anything of a request's body is read."""

import hmac
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Final, Protocol, get_args

import structlog
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope
from structlog.contextvars import bound_contextvars

from segnode.config import Scope, WebConfig, is_loopback
from segnode.errors import AccessDenied, NotAllowed, NotAuthenticated, WrongHost
from segnode.web.api_keys import PREFIX, key_hash
from segnode.web.app import explain

_log = structlog.get_logger()

_ALL: Final = frozenset(get_args(Scope))
# What asks whether a process is to be started again has no key, and is told nothing but that.
_OPEN: Final = frozenset(("/health/live", "/health/ready"))
_READING: Final = frozenset(("GET", "HEAD", "OPTIONS"))
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750 2.1
_HOST = re.compile(r"(?P<name>[^:\[\]]+|\[(?P<address>[0-9A-Fa-f:.]+)\])(:[0-9]*)?")
# What viewers send and read beyond what a browser lets every page send and read (Fetch, 2.2.2).
_SENT: Final = ("Authorization", "Content-Type", "If-None-Match", "Range")
_READ: Final = (
    "Accept-Ranges",
    "Content-Location",
    "Content-Range",
    "ETag",
    "Retry-After",
    "Warning",
    "WWW-Authenticate",
)
_METHODS: Final = ("DELETE", "GET", "HEAD", "OPTIONS", "POST")
_RETRY_AFTER_S: Final = 10


class TokenIssuer(Protocol):
    """What makes out tokens."""

    @property
    def name(self) -> str:
        """What logs call it."""

    async def scopes(self, token: str) -> frozenset[str]:
        """What a token opens. Raises NotAuthenticated, IssuerSilent."""


@dataclass(frozen=True)
class Caller:
    """Who asks, as logs have it (a key or an issuer, never a person), and what is open to them."""

    name: str
    scopes: frozenset[str]


@dataclass(frozen=True)
class Access:
    """Who is let in."""

    web: WebConfig
    issuer: TokenIssuer | None

    async def caller(self, request: Request) -> Caller:
        """Who asks. Raises NotAuthenticated, WrongHost, IssuerSilent."""
        if self.web.asks_for_tokens:
            return await self._shown(_bearer(request.headers.getlist("authorization")))
        if self.web.client_ca:  # without a certificate of that authority there is no connection
            return Caller("certificate", _ALL)
        _require_loopback_name(request.headers.getlist("host"))
        return Caller("loopback", _ALL)

    async def _shown(self, token: str) -> Caller:
        if token.startswith(PREFIX):
            shown = key_hash(token)
            # Each is compared, and to its end: how long it takes tells nothing of a hash.
            found = [key for key in self.web.api_keys if hmac.compare_digest(key.hash, shown)]
            if found:
                return Caller(f"key {found[0].name}", frozenset(found[0].scopes))
        elif self.issuer is not None:
            return Caller(f"token of {self.issuer.name}", await self.issuer.scopes(token))
        raise NotAuthenticated("the key or token is none that is known here", "invalid_token")


class Guard:
    """An application behind the access that is configured; `current` gives that as it is now.

    An ASGI application and no middleware of Starlette's own kind, which would stand between answers and the server.
    """

    def __init__(self, application: ASGIApp, current: Callable[[], Access]) -> None:
        self._application = application
        self._current = current
        self._access: Access | None = None
        self._answer: ASGIApp = application

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Answer a request, or have the application do so."""
        access = self._current()
        if access is not self._access:
            self._access, self._answer = access, _with_origins(partial(self._admit, access), access.web.origins)
        await self._answer(scope, receive, send)

    async def _admit(self, access: Access, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["path"] in _OPEN:
            await self._application(scope, receive, send)
            return
        request = Request(scope)
        try:
            caller = await access.caller(request)
            _require_scope(caller, request.method)
        except AccessDenied as denied:
            await _refuse(request, denied)(scope, receive, send)
            return
        with bound_contextvars(caller=caller.name):
            await self._application(scope, receive, send)


def _with_origins(application: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """The application, which pages of these origins may ask; what a browser asks beforehand is answered without a key."""
    if not origins:
        return application
    return CORSMiddleware(
        application, allow_origins=origins, allow_methods=_METHODS, allow_headers=_SENT, expose_headers=_READ, max_age=3600
    )


def _require_scope(caller: Caller, method: str) -> None:
    needed: Scope = "dicom.read" if method in _READING else "dicom.write"
    if needed not in caller.scopes:
        raise NotAllowed(f"{method} needs the scope {needed}, which this key or token does not have", needed)


def _refuse(request: Request, denied: AccessDenied) -> ASGIApp:
    response = explain(request, denied)
    if isinstance(denied, NotAuthenticated):
        response.headers["WWW-Authenticate"] = _challenge(error=denied.error)
    elif isinstance(denied, NotAllowed):
        response.headers["WWW-Authenticate"] = _challenge(error="insufficient_scope", scope=denied.scope)
    elif response.status_code == 503:
        response.headers["Retry-After"] = str(_RETRY_AFTER_S)
    host = request.client.host if request.client else ""
    _log.warning("not let in", status=response.status_code, reason=str(denied), method=request.method, host=host)
    return response


def _challenge(**parameters: str) -> str:
    """The challenge of RFC 6750 3; one who has shown nothing is told no error."""
    said = "".join(f', {name}="{value}"' for name, value in parameters.items() if value)
    return f'Bearer realm="segnode"{said}'


def _bearer(values: Sequence[str]) -> str:
    """The key or token in the Authorization header. Raises NotAuthenticated."""
    if not values:
        raise NotAuthenticated("a key or a token is needed: Authorization: Bearer …")
    scheme, _, token = values[0].partition(" ")
    if len(values) > 1 or scheme.lower() != "bearer" or not _TOKEN.fullmatch(token.strip()):
        raise NotAuthenticated("what is in Authorization is not one bearer token (RFC 6750 2.1)")
    return token.strip()


def _require_loopback_name(hosts: Sequence[str]) -> None:
    """Raise WrongHost where the request is for a host of another name.

    A page of any site can have its name lead to 127.0.0.1 and then ask this node as if it were that site (DNS rebinding); but
    it cannot have the browser say another name than its own.
    """
    if len(hosts) != 1 or not _is_loopback_name(hosts[0]):
        raise WrongHost(
            "this node asks nobody who they are, so it answers to localhost, 127.0.0.1 and [::1] only: reach it by one of"
            " these names, or give [web] api_keys or oidc"
        )


@lru_cache(maxsize=16)
def _is_loopback_name(host: str) -> bool:
    match = _HOST.fullmatch(host)
    return match is not None and is_loopback(match["address"] or match["name"])
