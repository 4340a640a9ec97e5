"""What a DICOMweb server is told of who asks: a token (RFC 6750), a password (RFC 7617), or tokens of an OIDC issuer."""

import math
import re
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote_plus

import httpx

from segnode.config import AuthConfig, OidcConfig
from segnode.errors import ConfigError, NotLetIn

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
# The error codes of RFC 6749 5.2; whatever else an answer holds is not shown.
_ERRORS: Final = frozenset(
    ("invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type", "invalid_scope")
)
_EARLIER_S: Final = 30.0
# What marks a request that is for a token, and not for what is asked: it fails otherwise.
GRANT: Final = "segnode.grant"
_METADATA: Final = "/.well-known/openid-configuration"

_Flow = Generator[httpx.Request, httpx.Response]


def credentials(config: AuthConfig, folder: Path, path: str) -> httpx.Auth:
    """What is added to requests, its secret read. Raises ConfigError with the path of the key."""
    if config.basic:
        return httpx.BasicAuth(config.basic.user, config.basic.password.read(folder, f"{path}.basic.password"))
    if config.oidc:
        return OidcTokens(config.oidc, config.oidc.client_secret.read(folder, f"{path}.oidc.client_secret"))
    if config.bearer is None:
        raise ConfigError(f"{path}: one way is needed; allowed: bearer, basic or oidc")
    token = config.bearer.read(folder, f"{path}.bearer")
    if not _TOKEN.fullmatch(token):
        raise ConfigError(f"{path}.bearer: what is there is no token: letters, digits and -._~+/ only (RFC 6750 2.1)")
    return BearerToken(token)


class BearerToken(httpx.Auth):
    """A token that stays."""

    def __init__(self, token: str) -> None:
        self._token = token

    def auth_flow(self, request: httpx.Request) -> _Flow:
        """Show it."""
        request.headers["Authorization"] = f"Bearer {self._token}"
        yield request


@dataclass(frozen=True)
class _Token:
    """A token, and until when it is used, by the monotonic clock."""

    text: str = field(repr=False)
    until: float


class OidcTokens(httpx.Auth):
    """Tokens for the client's own credentials (RFC 6749 4.4): kept until shortly before they expire, shared by threads."""

    def __init__(self, config: OidcConfig, secret: str) -> None:
        self._config = config
        self._secret = secret
        self._lock = threading.Lock()
        self._token: _Token | None = None

    def sync_auth_flow(self, request: httpx.Request) -> _Flow:
        """Show a token; to one that is not taken another follows, once. Raises NotLetIn where none is had."""
        extensions = {**request.extensions, GRANT: True}  # among them how long it may take
        token = yield from self._current(None, extensions)
        request.headers["Authorization"] = f"Bearer {token.text}"
        response = yield request
        if response.status_code == httpx.codes.UNAUTHORIZED:
            token = yield from self._current(token, extensions)
            request.headers["Authorization"] = f"Bearer {token.text}"
            yield request

    def _current(self, refused: _Token | None, extensions: dict[str, Any]) -> Generator[httpx.Request, httpx.Response, _Token]:
        """The token that is kept, if it still holds and is not the one that was refused; else a new one."""
        with self._lock:
            if self._token is None or self._token is refused or time.monotonic() >= self._token.until:
                self._token = None
                self._token = yield from self._new(extensions)
            return self._token

    def _new(self, extensions: dict[str, Any]) -> Generator[httpx.Request, httpx.Response, _Token]:
        url, in_body = str(self._config.token_url), False
        if self._config.issuer:
            url, in_body = yield from self._discovered(extensions)
        asked = {"grant_type": "client_credentials", "scope": self._config.scope, "audience": self._config.audience}
        client = (self._config.client_id, self._secret)
        if in_body:
            asked |= {"client_id": client[0], "client_secret": client[1]}
        request = httpx.Request(
            "POST",
            url,
            data={key: value for key, value in asked.items() if value},
            headers={"Accept": "application/json"},
            extensions=extensions,
        )
        if not in_body:  # as RFC 6749 2.3.1 has it: encoded as a form is
            (request,) = httpx.BasicAuth(*map(quote_plus, client)).auth_flow(request)
        now = time.monotonic()
        response = yield request
        answer = _document(response)
        text = answer.get("access_token")
        if not response.is_success:
            said = f" {answer['error']}" if str(answer.get("error")) in _ERRORS else ""
            raise NotLetIn(
                f"{url} gives no token: HTTP {response.status_code}{said}: see client_id, client_secret and scope in `auth`"
            )
        is_bearer = str(answer.get("token_type", "bearer")).lower() == "bearer"
        if not (isinstance(text, str) and _TOKEN.fullmatch(text) and is_bearer):
            raise NotLetIn(
                f"{url} answers HTTP {response.status_code}, and no bearer token: see that this is where tokens are had"
            )
        try:
            lasts = float(answer["expires_in"])
        except (KeyError, TypeError, ValueError, OverflowError):  # until it is refused
            return _Token(text, math.inf)
        return _Token(text, now + lasts - min(_EARLIER_S, lasts / 10))

    def _discovered(self, extensions: dict[str, Any]) -> Generator[httpx.Request, httpx.Response, tuple[str, bool]]:
        """Where the issuer gives tokens, and whether it wants the secret in the body (OpenID Connect Discovery 4)."""
        issuer = str(self._config.issuer).rstrip("/")
        response = yield httpx.Request("GET", issuer + _METADATA, headers={"Accept": "application/json"}, extensions=extensions)
        known = _document(response)
        url = known.get("token_endpoint")
        if not response.is_success or not isinstance(url, str) or str(known.get("issuer")).rstrip("/") != issuer:
            raise NotLetIn(f"{issuer}{_METADATA} (HTTP {response.status_code}) does not describe that issuer: see `issuer`")
        if not url.startswith("https://") and (issuer.startswith("https://") or not url.startswith("http://")):
            raise NotLetIn(f"{issuer} gives tokens where a secret is not encrypted: no token is asked for")
        ways = known.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        return url, "client_secret_basic" not in ways and "client_secret_post" in ways


def _document(response: httpx.Response) -> dict[str, Any]:
    try:
        response.read()
        found = response.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
