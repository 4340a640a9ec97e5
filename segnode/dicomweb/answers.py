"""Answers as they are made and sent: in threads of their own, in blocks, and never whole in memory."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Final
from uuid import uuid4

from anyio import CapacityLimiter, WouldBlock, to_thread
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Send

from segnode.dicomweb import blocks
from segnode.dicomweb.multipart import Part, message, message_size, sources
from segnode.store.filesystem import room_for

# Retrievals wait for each other here, so that those that decode keep no other request from its thread.
_MOST_AT_ONCE: Final = 32
# How many of those that lie in memory whole are kept.
_MOST_KEPT: Final = 16
# What is got ready before an answer begins: until then whatever goes wrong has a status and a text.
_AHEAD: Final = 16 << 20
_IN_MEMORY: Final = 1 << 20
_LARGE_PIECE: Final = 1 << 20
_SMALL_PIECE: Final = 1 << 16
_MOST_IN_LARGE_PIECES: Final = 16


@dataclass(frozen=True)
class Answers:
    """What turns blocks and parts into answers; `folder` is where those wait that are large."""

    folder: Path
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_MOST_AT_ONCE))
    at_once: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_MOST_AT_ONCE))
    in_large_pieces: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_MOST_IN_LARGE_PIECES))

    def endpoint(self, answer: Callable[[Request], Response]) -> Callable[[Request], Any]:
        """What answers requests, in a thread."""

        async def endpoint(request: Request) -> Response:
            # anyio's threads take longer than a frame.
            return await asyncio.get_running_loop().run_in_executor(self.threads, copy_context().run, answer, request)

        return endpoint

    def gathered(self, made: Iterator[bytes], media_type: str) -> Response:
        """The first blocks are got ready before anything is sent; where these are all, the answer has a length.

        What is large waits for its reader on disk: one who reads slowly holds no memory. Raises what making them raises.
        """
        first = b"".join(_some(made, _IN_MEMORY))
        if len(first) < _IN_MEMORY:
            return Response(first, media_type=media_type)
        with ExitStack() as unless_sent:
            with room_for("an answer"):
                ready = unless_sent.enter_context(TemporaryFile(dir=self.folder))
            complete, size = _write_ahead(ready, chain([first], made)), ready.tell()
            ready.seek(0)
            unless_sent.pop_all()
        return self._streamed((blocks.of_file(ready), made), media_type, size if complete else None)

    def multipart(self, media_type: str, parts: Iterable[Part]) -> Response:
        """Parts of a media type, gathered."""
        boundary = uuid4().hex
        return self.gathered(message(parts, boundary), _related(media_type, boundary))

    def multipart_of_files(self, media_type: str, parts: Sequence[Part]) -> Response:
        """Parts that lie there already, sent from where they lie."""
        boundary = uuid4().hex
        return self._streamed(sources(parts, boundary), _related(media_type, boundary), message_size(parts, boundary))

    def streamed(self, made: Iterable[bytes], media_type: str, size: int) -> Response:
        """Blocks as they are made, `size` bytes in all."""
        return self._streamed((made,), media_type, size)

    def _streamed(self, made: Iterable[Iterable[bytes]], media_type: str, size: int | None) -> Response:
        headers = {} if size is None else {"Content-Length": str(size)}
        return _Streamed(self._in_threads(made), headers=headers, media_type=media_type)  # type: ignore[arg-type]

    async def _in_threads(self, made: Iterable[Iterable[bytes]]) -> AsyncIterator[bytes | bytearray]:
        """Pieces for the server, which holds some of what it is given until they are read: smaller ones where many read."""
        with self._piece_size() as most:
            room = bytearray(most)
            filled = blocks.filled(made, room)
            while size := await to_thread.run_sync(next, filled, 0, limiter=self.at_once):
                yield room if size == most else bytes(room[:size])

    @contextmanager
    def _piece_size(self) -> Iterator[int]:
        reader = object()
        try:
            self.in_large_pieces.acquire_on_behalf_of_nowait(reader)
        except WouldBlock:
            yield _SMALL_PIECE
            return
        try:
            yield _LARGE_PIECE
        finally:
            self.in_large_pieces.release_on_behalf_of(reader)


class Recent:
    """The bodies of answers that were given last, of a MiB at most each, by their ETags; for any thread."""

    def __init__(self) -> None:
        self._bodies: dict[str, bytes] = {}
        self._changing = threading.Lock()

    def find(self, tag: str) -> bytes | None:
        """The body of that ETag, if it is kept."""
        return self._bodies.get(tag)

    def keep(self, tag: str, response: Response) -> None:
        """Keep the body of an answer, unless it is made as it is sent."""
        if isinstance(response, StreamingResponse):
            return
        with self._changing:
            self._bodies[tag] = bytes(response.body)
            if len(self._bodies) > _MOST_KEPT:
                del self._bodies[next(iter(self._bodies))]


class _Streamed(StreamingResponse):
    """Pieces that are sent as they are, bytearrays too: the server copies these before it says that it has them.

    A memoryview of one it would copy a byte at a time.
    """

    async def stream_response(self, send: Send) -> None:
        """Send them."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for piece in self.body_iterator:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _related(media_type: str, boundary: str) -> str:
    return f'multipart/related; type="{media_type}"; boundary={boundary}'


def _some(made: Iterator[bytes], worth: int) -> list[bytes]:
    """The next blocks, until they have so many bytes."""
    some, size = list[bytes](), 0
    for block in made:
        some.append(block)
        size += len(block)
        if size >= worth:
            break
    return some


def _write_ahead(file: IO[bytes], made: Iterator[bytes]) -> bool:
    """Write blocks to a file until there is much of them; whether these were all. Raises OutOfResources."""
    while some := _some(made, _IN_MEMORY):
        with room_for("an answer"):
            file.writelines(some)
        if file.tell() > _AHEAD:
            return False
    return True
