"""A DICOMweb server of other people: how it is reached, who it is told that asks, and how long it may take."""

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from ssl import SSLContext
from typing import Final

import httpx

from segnode.config import DestinationConfig
from segnode.connections import tls_context, trouble
from segnode.dicomweb.credentials import GRANT, credentials

_CONNECT_S: Final = 10.0
_PROXY_WANTS_TO_KNOW: Final = "407"


@dataclass(frozen=True)
class DicomWebPeer:
    """A DICOMweb root; `timeout_s` is how many seconds an answer may take. Nothing of it that is secret is shown."""

    root: str
    timeout_s: float = 120.0
    auth: httpx.Auth | None = field(default=None, repr=False)
    tls: SSLContext | None = field(default=None, repr=False)
    proxy: str | None = None

    def within(self, seconds: float) -> "DicomWebPeer":
        """The same, where an answer may take so long at most."""
        return replace(self, timeout_s=min(self.timeout_s, seconds))

    def client(self) -> httpx.Client:
        """What asks it. It follows no redirect: what it knows would go to another host."""
        tls = self.tls or _trusted()
        by_tls = self.proxy is not None and self.proxy.startswith("https://")
        return httpx.Client(
            auth=self.auth,
            verify=tls,
            proxy=httpx.Proxy(self.proxy, ssl_context=tls) if self.proxy and by_tls else self.proxy,
            timeout=httpx.Timeout(self.timeout_s, connect=min(_CONNECT_S, self.timeout_s)),
            headers={"Accept": "application/dicom+json"},
            follow_redirects=False,
        )

    def url(self, path: str) -> str:
        """The URL of a resource."""
        return f"{self.root.rstrip('/')}{path}"

    def trouble(self, error: httpx.RequestError | httpx.InvalidURL) -> str:
        """Why it gave no answer."""
        who = self.root
        if isinstance(error, httpx.RequestError) and GRANT in error.request.extensions:
            who = f"{error.request.url}, which is to give a token for {self.root},"
        if isinstance(error, httpx.DecodingError):
            return f"{who} answers with what cannot be decoded"
        by = f" by the proxy {self.proxy}" if self.proxy else ""
        if isinstance(error, httpx.ProxyError) and str(error).startswith(_PROXY_WANTS_TO_KNOW):
            return f"{who} cannot be reached{by}: it wants to know who asks (HTTP 407)"
        return f"{who} cannot be reached{by}: {trouble(error)}"


def dicomweb_peer(config: DestinationConfig, folder: Path) -> DicomWebPeer:
    """The DICOMweb server of a destination, with its secrets read. Raises ConfigError where one cannot be."""
    tls = tls_context(config, folder, httpx.create_ssl_context) if config.ca or config.certificate else None
    auth = credentials(config.auth, folder, f"destination {config.name}: auth") if config.auth else None
    return DicomWebPeer(config.to, config.timeout, auth, tls, config.proxy)


@cache
def _trusted() -> SSLContext:
    """The certificates that are trusted; reading them takes longer than sending a small object."""
    return httpx.create_ssl_context()
