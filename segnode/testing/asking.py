"""A DICOMweb client that costs as little as it can, for measuring servers: one connection, answers read into one buffer."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Final

_PATIENCE_S: Final = 120
_ROOM: Final = 1 << 20
_FAILED: Final = 300


class NotAnswered(Exception):
    """A server has not answered as it should."""


@dataclass(frozen=True)
class Answer:
    """An answer: its body, and the seconds to its last byte."""

    content_type: str
    body: memoryview
    took: float

    def parts(self) -> Iterator[bytes]:
        """The contents of the parts of multipart/related. Raises NotAnswered where it is none."""
        boundary = self.content_type.partition("boundary=")[2].partition(";")[0].strip('"').encode()
        if not boundary:
            raise NotAnswered(f"not multipart: {self.content_type}")
        for part in bytes(self.body).split(b"--" + boundary)[1:-1]:
            yield part[part.index(b"\r\n\r\n") + 4 : -2]


class Connection:
    """A connection to a server of loopback that is kept open. An answer's body is there until the next is asked for."""

    def __init__(self, port: int) -> None:
        self._http = HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
        self._buffer = bytearray(_ROOM)

    def get(self, path: str, accept: str = "*/*") -> Answer:
        """GET. Raises NotAnswered."""
        return self._ask("GET", path, None, {"Accept": accept})

    def post(self, path: str, body: bytes, content_type: str) -> Answer:
        """POST. Raises NotAnswered."""
        return self._ask("POST", path, body, {"Accept": "application/dicom+json", "Content-Type": content_type})

    def close(self) -> None:
        """Close it."""
        self._http.close()

    def _ask(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        try:
            return self._asked(method, path, body, headers)
        except ConnectionError:  # what is not used for a while is closed by some servers
            self._http.close()
            return self._asked(method, path, body, headers)

    def _asked(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        start = time.perf_counter()
        self._http.request(method, path, body, headers)
        response = self._http.getresponse()
        size = 0
        while read := response.readinto(memoryview(self._buffer)[size:]):
            size += read
            if size == len(self._buffer):
                self._buffer = self._buffer + bytes(size)
        took = time.perf_counter() - start
        answer = Answer(response.headers.get("content-type", ""), memoryview(self._buffer)[:size], took)
        if response.status >= _FAILED:
            raise NotAnswered(f"{method} {path}: HTTP {response.status}: {bytes(answer.body[:500])!r}")
        return answer
