"""The HTTP server: granian inside this process, so that nothing is left of it when the process ends."""

import asyncio
import signal
import socket
import threading
from collections.abc import Callable
from typing import Final

from granian._granian import SocketHolder
from granian.constants import Interfaces
from granian.log import LogLevels
from granian.server.embed import Server
from starlette.types import ASGIApp

_BACKLOG: Final = 1024
_FINISH_S: Final = 3.0


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


def serve_http(application: ASGIApp, listening: socket.socket, ready: Callable[[], None], give_up: Callable[[], None]) -> None:
    """Serve on a listening socket until SIGTERM or SIGINT; `ready` is called before.

    `give_up` is called, in a thread of its own, when requests have not come to their end three seconds after.
    """
    asyncio.run(_serve(application, listening, ready, give_up))


async def _serve(
    application: ASGIApp, listening: socket.socket, ready: Callable[[], None], give_up: Callable[[], None]
) -> None:
    server = _SharingServer(application, listening)
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
