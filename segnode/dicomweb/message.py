"""multipart/related (RFC 2387): parts with their headers, whose length is known before they are sent."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

_END: Final = b"\r\n"


@dataclass(frozen=True)
class Part:
    """A part: its media type with its parameters, where it can be had by itself, and its bytes, which are of that length."""

    content_type: str
    location: str
    size: int
    blocks: Iterable[bytes]

    def head(self, boundary: str) -> bytes:
        """What stands before its bytes."""
        return (
            f"--{boundary}\r\nContent-Type: {self.content_type}\r\nContent-Location: {self.location}\r\n"
            f"Content-Length: {self.size}\r\n\r\n"
        ).encode()


def message(parts: Iterable[Part], boundary: str) -> Iterator[bytes]:
    """The body of these parts."""
    for part in parts:
        yield part.head(boundary)
        yield from part.blocks
        yield _END
    yield _last(boundary)


def message_size(parts: Iterable[Part], boundary: str) -> int:
    """How many bytes that body has."""
    return sum(len(part.head(boundary)) + part.size + len(_END) for part in parts) + len(_last(boundary))


def _last(boundary: str) -> bytes:
    return f"--{boundary}--\r\n".encode()
