"""The HTTP server: granian inside this process, so that nothing is left of it when the process ends."""

import asyncio
import signal
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from granian._granian import SocketHolder
from granian.constants import Interfaces, SSLProtocols
from granian.http import HTTP1Settings, HTTP2Settings
from granian.log import LogLevels
from granian.server.embed import Server
from starlette.types import ASGIApp

from segnode.config import WebConfig
from segnode.connections import load_certificate, trusting

_BACKLOG: Final = 1024
_FINISH_S: Final = 3.0
# The header of a request: a search for a thousand UIDs fits. Beyond that it is answered 431 (or 414, for the URL alone).
# Bodies are read in pieces as long at most, each of which costs a change of threads: objects that are stored have many.
_LONGEST_HEADER: Final = 1 << 19
_HEADER_WITHIN_MS: Final = 30_000


@dataclass(frozen=True)
class Tls:
    """What the server shows by TLS, and whose certificates it asks for, where it asks for any."""

    certificate: Path
    key: Path
    client_ca: Path | None


def server_tls(web: WebConfig, folder: Path) -> Tls | None:
    """How the HTTP port speaks TLS, if it does; its files are named from a folder. Raises ConfigError."""
    if web.certificate is None:
        return None
    load_certificate(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), web.certificate, folder, "web.certificate")
    trusting(web.client_ca, folder, "web.client_ca")
    file, key = web.certificate.file, web.certificate.key or web.certificate.file
    return Tls(folder / file, folder / key, folder / web.client_ca if web.client_ca else None)


class _SharingServer(Server):
    """A server on a socket that listens already, and that other processes may share."""

    def __init__(self, application: ASGIApp, listening: socket.socket, tls: Tls | None) -> None:
        host, port = listening.getsockname()[:2]
        super().__init__(
            application,
            address=host,
            port=port,
            backlog=_BACKLOG,
            interface=Interfaces.ASGINL,
            websockets=False,
            log_level=LogLevels.error,
            http1_settings=HTTP1Settings(header_read_timeout=_HEADER_WITHIN_MS, max_buffer_size=_LONGEST_HEADER),
            http2_settings=HTTP2Settings(max_headers_size=_LONGEST_HEADER),
            ssl_cert=tls.certificate if tls else None,
            ssl_key=tls.key if tls else None,
            ssl_protocol_min=SSLProtocols.tls12,  # PS3.15 B.12, BCP 195
            ssl_ca=tls.client_ca if tls else None,
            ssl_client_verify=tls is not None and tls.client_ca is not None,
        )
        self._listening = listening

    def _init_shared_socket(self) -> None:
        self._ssp = None
        self._shd = SocketHolder(self._listening.fileno(), False, _BACKLOG)  # type: ignore[call-arg, assignment]


def serve_http(
    application: ASGIApp, listening: socket.socket, tls: Tls | None, ready: Callable[[], None], give_up: Callable[[], None]
) -> None:
    """Serve on a listening socket until SIGTERM or SIGINT; `ready` is called before.

    `give_up` is called, in a thread of its own, when requests have not come to their end three seconds after.
    """
    asyncio.run(_serve(application, listening, tls, ready, give_up))


async def _serve(
    application: ASGIApp, listening: socket.socket, tls: Tls | None, ready: Callable[[], None], give_up: Callable[[], None]
) -> None:
    # Connections have it from the socket they came by; else the end of an answer waits 40 ms for the client's word.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server = _SharingServer(application, listening, tls)
    patience = threading.Timer(_FINISH_S, give_up)
    patience.daemon = True

    def stop() -> None:
        server.stop()  # type: ignore[no-untyped-call]
        if not patience.is_alive():
            patience.start()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    ready()  # whoever connects from now on is in the socket's queue
    await server.serve()
    patience.cancel()
