"""A bare ASGI responder on the node's HTTP server: it reads bytes of files and sends them, and no more. A floor to measure by.

    python -m segnode.testing.bare FOLDER PORT

GET /FILE?offset=N&size=N gives these bytes of a file in the folder; what is posted goes to a file, which is synchronised.
"""

import os
import socket
import sys
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Receive, Scope, Send

from segnode.web.server import serve_http

_BLOCK: Final = 1 << 20


def bare_responder(folder: Path) -> ASGIApp:
    """The application on the files of a folder."""

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            await _take(folder, receive)
            await _begin(send, 0)
            await send({"type": "http.response.body", "body": b""})
            return
        wanted = parse_qs(scope["query_string"].decode())
        place, left = (int(wanted[name][0]) for name in ("offset", "size"))
        file = os.open(folder / scope["path"].lstrip("/"), os.O_RDONLY)
        try:
            await _begin(send, left)
            while left:
                block = os.pread(file, min(left, _BLOCK), place)
                place, left = place + len(block), left - len(block)
                await send({"type": "http.response.body", "body": block, "more_body": left > 0})
        finally:
            os.close(file)

    return respond


async def _begin(send: Send, size: int) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})


async def _take(folder: Path, receive: Receive) -> None:
    with TemporaryFile(dir=folder) as file:
        more = True
        while more:
            message = await receive()
            file.write(message.get("body", b""))
            more = message.get("more_body", False)
        file.flush()
        os.fsync(file.fileno())


def main() -> None:
    """Serve until SIGTERM."""
    with socket.create_server(("127.0.0.1", int(sys.argv[2])), backlog=128) as listening:
        serve_http(bare_responder(Path(sys.argv[1])), listening, None, lambda: None, lambda: os._exit(0))


if __name__ == "__main__":
    main()
