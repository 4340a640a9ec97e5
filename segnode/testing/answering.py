"""A scripted server of the standard library that answers while a test runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import TCPServer
from threading import Thread
from typing import Final

_POLL_S: Final = 0.01  # how soon it notices that it is to end


@contextmanager
def answering(server: TCPServer) -> Iterator[str]:
    """Have a server answer in a thread of its own; host and port. At the end it is closed."""
    host, port = server.server_address[:2]
    with server:
        thread = Thread(target=server.serve_forever, args=(_POLL_S,))
        thread.start()
        try:
            yield f"{host!s}:{port}"
        finally:
            server.shutdown()
            thread.join()
