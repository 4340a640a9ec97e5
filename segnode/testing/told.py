"""A server that webhooks post to: it keeps what it is told, and answers as a test wants it to."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer

from segnode.testing.answering import answering


@dataclass
class Told:
    """What a server is told: header fields (in lower case) and body of every request; `answers` are its next status codes."""

    url: str
    answers: list[int] = field(default_factory=list)
    requests: list[tuple[Mapping[str, str], bytes]] = field(default_factory=list)


@contextmanager
def listening() -> Iterator[Told]:
    """A server that takes everything unless it is given other answers."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            told.requests.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(told.answers.pop(0) if told.answers else 204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing: tests look at what it was told."""

    with answering(HTTPServer(("127.0.0.1", 0), Handler)) as address:
        told = Told(f"http://{address}/hook")
        yield told
