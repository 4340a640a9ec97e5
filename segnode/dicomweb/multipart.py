"""multipart/related (RFC 2387, RFC 2046 5.1): messages taken apart as they come, within limits, and put together."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Final, Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from segnode.errors import BadRequest, TooLarge

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_LONGEST_BOUNDARY: Final = 70  # RFC 2046 5.1.1
_LONGEST_HEADERS: Final = 16 << 10
_LONGEST_PREAMBLE: Final = 16 << 10
_MOST_PARTS: Final = 100_000
_NO_LIMIT: Final = 1 << 40
_END: Final = b"\r\n"


class Parts(Protocol):
    """What parts are handed to, one after the other."""

    def begin(self, headers: Mapping[str, str]) -> None:
        """A part begins; its headers by name in lower case."""
        ...

    def write(self, block: bytes | memoryview) -> None:
        """The next bytes of the part."""
        ...

    def end(self) -> None:
        """The part is complete."""
        ...


class Body(Protocol):
    """A body that is fed in blocks, and handed on in parts."""

    def feed(self, block: bytes) -> None:
        """Take the next bytes. Raises BadRequest, TooLarge."""
        ...

    def finish(self) -> None:
        """There are no more bytes. Raises BadRequest when that is not the end of the message."""
        ...


class OnePart:
    """A body that is one part."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._has_begun = False

    def feed(self, block: bytes) -> None:
        """Take the next bytes."""
        if block and not self._has_begun:
            self._has_begun = True
            self._parts.begin({})
        self._parts.write(block)

    def finish(self) -> None:
        """There are no more bytes. Raises BadRequest when there were none."""
        if not self._has_begun:
            raise BadRequest("the body is empty")
        self._parts.end()


class Multipart:
    """A message of parts, fed in blocks of any size; a preamble and an epilogue are passed over.

    Raises BadRequest for a boundary that is none, and TooLarge for one of more than 70 characters.
    """

    def __init__(self, boundary: str, parts: Parts) -> None:
        if len(boundary) > _LONGEST_BOUNDARY:
            raise TooLarge(f"the boundary is longer than {_LONGEST_BOUNDARY} characters (RFC 2046)")
        self._parts = parts
        self._has_ended = False
        self._count = -1  # the preamble is a part to the parser, and none to us
        self._size = 0
        self._headers: list[tuple[bytearray, bytearray]] = []
        try:
            delimiter = boundary.encode("ascii")
            callbacks = self._callbacks()
            self._parser = MultipartParser(delimiter, callbacks, max_header_count=_NO_LIMIT, max_header_size=_NO_LIMIT)
            # The parser knows no preamble: it gets one as a part of its own, which goes to nobody.
            self._parser.write(b"--" + delimiter + b"\r\n\r\n\r\n")
        except (FormParserError, UnicodeEncodeError) as error:
            raise BadRequest("the boundary is not usable: it has characters that RFC 2046 does not allow") from error

    def feed(self, block: bytes) -> None:
        """Take the next bytes of the message. Raises BadRequest, TooLarge, and what the parts raise."""
        try:
            self._parser.write(block)
        except FormParserError as error:
            raise BadRequest("the body is not multipart/related: a boundary or the header of a part is broken") from error

    def finish(self) -> None:
        """There are no more bytes. Raises BadRequest when the message has not come to its end."""
        if not self._has_ended:
            raise BadRequest("the body ends before its last boundary")

    def _callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_header_begin": self._begin_header,
            "on_header_field": self._add_to_name,
            "on_header_value": self._add_to_value,
            "on_headers_finished": self._finish_headers,
            "on_part_data": self._write,
            "on_part_end": self._end,
            "on_end": self._end_message,
        }

    def _begin(self) -> None:
        self._count += 1
        self._size = 0
        self._headers = []
        if self._count > _MOST_PARTS:
            raise TooLarge(f"the message has more than {_MOST_PARTS} parts: send it in several requests")

    def _begin_header(self) -> None:
        self._headers.append((bytearray(), bytearray()))

    def _add_to_name(self, data: bytes, start: int, end: int) -> None:
        self._add(self._headers[-1][0], data[start:end])

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._add(self._headers[-1][1], data[start:end])

    def _add(self, text: bytearray, more: bytes) -> None:
        self._size += len(more)
        if self._size > _LONGEST_HEADERS:
            raise TooLarge(f"the header of a part is longer than {_LONGEST_HEADERS} bytes")
        text += more

    def _finish_headers(self) -> None:
        if self._count:
            pairs = ((name.decode("latin-1").lower(), value.decode("latin-1").strip()) for name, value in self._headers)
            self._parts.begin(dict(pairs))

    def _write(self, data: bytes, start: int, end: int) -> None:
        if self._count:
            self._parts.write(memoryview(data)[start:end])
            return
        self._size += end - start
        if self._size > _LONGEST_PREAMBLE:
            raise BadRequest(f"there is no boundary in the first {_LONGEST_PREAMBLE} bytes of the body")

    def _end(self) -> None:
        if self._count:
            self._parts.end()

    def _end_message(self) -> None:
        self._has_ended = True


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
    return chain.from_iterable(sources(parts, boundary))


def sources(parts: Iterable[Part], boundary: str) -> Iterator[Iterable[bytes]]:
    """What that body comes from: the blocks of each part, and what stands between them."""
    end = b""
    for part in parts:
        yield (end + part.head(boundary),)
        yield part.blocks
        end = _END
    yield (end + _last(boundary),)


def message_size(parts: Iterable[Part], boundary: str) -> int:
    """How many bytes that body has."""
    return sum(len(part.head(boundary)) + part.size + len(_END) for part in parts) + len(_last(boundary))


def _last(boundary: str) -> bytes:
    return f"--{boundary}--\r\n".encode()
