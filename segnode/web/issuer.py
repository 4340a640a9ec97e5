"""The tokens of an OIDC issuer: signed by one of its keys (RFC 7519, RFC 7517), made out for this node, and valid now."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from ssl import SSLContext
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import jwt
import structlog

from segnode.config import IssuerConfig, is_loopback
from segnode.connections import trouble, trusting
from segnode.errors import IssuerSilent, NotAuthenticated

_log = structlog.get_logger()

_METADATA: Final = "/.well-known/openid-configuration"
# By kind of key, what a signature may be: none that is made with a secret, since the keys of an issuer are known to all.
_ALGORITHMS: Final[Mapping[str, Sequence[str]]] = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "OKP": ("EdDSA",),
}
# What the library lets through of a token that a stranger has put together: numbers beyond all bounds, values in values.
_UNREADABLE: Final = (ValueError, TypeError, ArithmeticError, AttributeError, RecursionError)
_LEEWAY_S: Final = 30.0  # that clocks may differ
_ANSWER_S: Final = 5.0  # for all of its answers together, however little of them comes at a time
_LONGEST_ANSWER: Final = 1 << 20
_FRESH_S: Final = 600.0  # after that a key that the issuer has withdrawn is forgotten
_PAUSE_S: Final = 10.0  # between two requests to the issuer, whatever tokens are shown


@dataclass(frozen=True)
class Key:
    """A public key, and the algorithms that it may be used with."""

    public: Any
    algorithms: Sequence[str]


class Issuer:
    """An issuer, whose keys are had by discovery, kept, and asked for again now and then, or when a token names another.

    All in one event loop. While it does not answer, the keys that are known count.
    """

    def __init__(self, config: IssuerConfig, tls: SSLContext, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self._tls = tls
        self._clock = clock
        self._keys: Mapping[str | None, Key] = {}
        self._is_silent = False  # as it was asked last
        self._fresh_until = self._next = clock()
        self._asking: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """What it is called."""
        return self.config.issuer.rstrip("/")

    async def scopes(self, token: str) -> frozenset[str]:
        """What a token opens. Raises NotAuthenticated, or IssuerSilent where its key is not known and cannot be had."""
        try:
            key = await self._key(jwt.get_unverified_header(token).get("kid"))
            claims = jwt.decode(
                token,
                key.public,
                algorithms=key.algorithms,
                audience=self.config.audience,
                issuer=[self.name, f"{self.name}/"],
                leeway=_LEEWAY_S,
                options={"require": ["exp", "iss", "aud"]},
            )
        except (jwt.PyJWTError, *_UNREADABLE) as error:
            raise NotAuthenticated(f"the token is not valid: {_wrong(error)}", "invalid_token") from error
        return _words(claims.get("scope")) | _words(claims.get("scp"))

    async def keys(self) -> Mapping[str | None, Key]:
        """Its keys, by their ids, as it gives them out now. Raises IssuerSilent."""
        try:
            async with (
                asyncio.timeout(_ANSWER_S),
                httpx.AsyncClient(verify=self._tls, timeout=_ANSWER_S, follow_redirects=False) as client,
            ):
                known = await _document(client, self.name + _METADATA)
                if str(known.get("issuer")).rstrip("/") != self.name:
                    raise IssuerSilent(f"{self.name}{_METADATA} does not describe that issuer: see web.oidc.issuer")
                where = known.get("jwks_uri")
                if not isinstance(where, str) or not _is_private(where):
                    raise IssuerSilent(f"{self.name} gives its keys out where they can be changed on their way, or nowhere")
                found = _keys(await _document(client, where))
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise IssuerSilent(f"{self.name} cannot be asked for its keys: {trouble(error)}") from error
        if not found:
            raise IssuerSilent(f"{self.name} has no keys that tokens can be checked with")
        return found

    async def _key(self, kid: Any) -> Key:
        found = self._known(kid)
        if found is None:
            if (asking := self._asked()) is not None:
                await asyncio.shield(asking)  # others wait for it too
            found = self._known(kid)
        elif self._clock() >= self._fresh_until:
            self._asked()
        if found is not None:
            return found
        if self._is_silent:  # the log says why: who shows any token is not told whom this node asks
            raise IssuerSilent(
                "the token cannot be checked now, as its issuer does not say with which keys it signs: ask again"
            )
        raise NotAuthenticated("the token is not valid: its issuer has no such key", "invalid_token")

    def _known(self, kid: Any) -> Key | None:
        if kid is None and len(self._keys) == 1:  # one that has a single key need not name it
            return next(iter(self._keys.values()))
        return self._keys.get(kid) if isinstance(kid, str) else None

    def _asked(self) -> "asyncio.Task[None] | None":
        """The request for keys that goes on; begun now, if the last one was long enough ago."""
        if self._asking is not None and not self._asking.done():
            return self._asking
        if self._clock() < self._next:
            return None
        self._next = self._clock() + _PAUSE_S
        self._asking = asyncio.get_running_loop().create_task(self._ask())
        return self._asking

    async def _ask(self) -> None:
        try:
            self._keys = await self.keys()
        except IssuerSilent as error:
            self._is_silent = True
            _log.error("the keys of the issuer of tokens are not renewed", reason=str(error), known=len(self._keys))
        else:
            self._is_silent = False
            self._fresh_until = self._clock() + _FRESH_S


def token_issuer(config: IssuerConfig, folder: Path) -> Issuer:
    """The issuer whose tokens are taken. Raises ConfigError where its authorities cannot be read."""
    return Issuer(config, trusting(config.ca, folder, "web.oidc.ca", httpx.create_ssl_context))


async def _document(client: httpx.AsyncClient, url: str) -> Mapping[str, Any]:
    body = bytearray()
    async with client.stream("GET", url, headers={"Accept": "application/json"}) as response:
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > _LONGEST_ANSWER:
                raise IssuerSilent(f"{url} answers more than {_LONGEST_ANSWER} bytes: see web.oidc.issuer")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not response.is_success or not isinstance(found, dict):
        raise IssuerSilent(f"{url} answers HTTP {response.status_code}, and no JSON object: see web.oidc.issuer")
    return found


def _is_private(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))


def _keys(document: Mapping[str, Any]) -> Mapping[str | None, Key]:
    """The keys of a JWK set that tokens are signed with; what is of another kind is left out (RFC 7517 5)."""
    found: dict[str | None, Key] = {}
    listed = document.get("keys")
    for jwk in listed if isinstance(listed, list) else ():
        if not isinstance(jwk, dict) or jwk.get("use", "sig") != "sig":
            continue
        if not isinstance(jwk.get("kid"), str | None):
            continue
        allowed = _ALGORITHMS.get(str(jwk.get("kty")), ())
        algorithms = [name for name in allowed if name == jwk.get("alg", name)]
        try:
            public = jwt.PyJWK(jwk).key if algorithms else None
        except (jwt.PyJWTError, *_UNREADABLE):
            continue
        if public is not None:
            found[jwk.get("kid")] = Key(public, algorithms)
    return found


def _wrong(error: Exception) -> str:
    """What is wrong with a token; it and its claims are not repeated."""
    for kind, words in _WRONG.items():
        if isinstance(error, kind):
            return words
    return "it is no signed token"


_WRONG: Final[Mapping[type[Exception], str]] = {
    jwt.ExpiredSignatureError: "it has expired",
    jwt.ImmatureSignatureError: "it is not valid yet",
    jwt.InvalidAudienceError: "it is made out for another audience",
    jwt.InvalidIssuerError: "it is of another issuer",
    jwt.MissingRequiredClaimError: "it does not say who made it out, for whom, or until when",
    jwt.InvalidSignatureError: "its signature is not that of its issuer",
    jwt.InvalidAlgorithmError: "it is not signed in a way that is allowed",
    jwt.InvalidKeyError: "it is not signed in a way that is allowed",
}


def _words(scope: Any) -> frozenset[str]:
    """The scopes of a claim: words in a text (RFC 8693 4.2), or a list of them."""
    if isinstance(scope, str):
        return frozenset(scope.split())
    return frozenset(word for word in scope if isinstance(word, str)) if isinstance(scope, list) else frozenset()
