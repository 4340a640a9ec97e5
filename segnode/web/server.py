"""The HTTP server: granian inside this process, so that nothing is left of it when the process ends."""

import asyncio
import signal
import socket
from collections.abc import Callable
from typing import Final

from granian._granian import SocketHolder
from granian.constants import Interfaces
from granian.log import LogLevels
from granian.server.embed import Server
from starlette.types import ASGIApp

_BACKLOG: Final = 1024


class _SharingServer(Server):
    """A server on a socket that listens already, and that other processes may share."""

    def __init__(self, application: ASGIApp, listening: socket.socket) -> None:
        host, port = listening.getsockname()[:2]
        super().__init__(
            application,
            address=host,
            port=port,
            backlog=_BACKLOG,
            interface=Interfaces.ASGINL,
            websockets=False,
            log_level=LogLevels.error,
        )
        self._listening = listening

    def _init_shared_socket(self) -> None:
        self._ssp = None
        self._shd = SocketHolder(self._listening.fileno(), False, _BACKLOG)  # type: ignore[call-arg, assignment]


def serve_http(application: ASGIApp, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Serve on a listening socket until SIGTERM or SIGINT; `ready` is called before."""
    asyncio.run(_serve(application, listening, ready))


async def _serve(application: ASGIApp, listening: socket.socket, ready: Callable[[], None]) -> None:
    server = _SharingServer(application, listening)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    ready()  # whoever connects from now on is in the socket's queue
    await server.serve()
