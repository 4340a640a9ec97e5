"""The HTTP server: granian inside this process, so that nothing is left of it when the process ends."""

import asyncio
import signal
import socket
from collections.abc import Callable
from typing import Final

from granian.constants import Interfaces
from granian.log import LogLevels
from granian.server.embed import Server
from starlette.types import ASGIApp

from segnode.config import Address

_RETRY_S: Final = 0.02


def serve_http(application: ASGIApp, address: Address, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT; `ready` is called when the port answers. Raises OSError when it is taken."""
    require_free(address)
    asyncio.run(_serve(application, address, ready))


async def _serve(application: ASGIApp, address: Address, ready: Callable[[], None]) -> None:
    server = Server(
        application,
        address=address.host,
        port=address.port,
        interface=Interfaces.ASGINL,
        websockets=False,
        log_level=LogLevels.error,
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    serving = asyncio.create_task(server.serve())
    answering = asyncio.create_task(_until_it_answers(address))
    await asyncio.wait((serving, answering), return_when=asyncio.FIRST_COMPLETED)
    if answering.done():
        ready()
    await serving


def require_free(address: Address) -> None:
    """Raise OSError when a port cannot be listened on.

    Granian shares a port with whoever shares it: a second node must not take half of another's requests.
    """
    family = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0][0]
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address.host, address.port))


async def _until_it_answers(address: Address) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection(address.host, address.port)
        except OSError:
            await asyncio.sleep(_RETRY_S)
        else:
            writer.close()
            return
