"""What a request says of what it asks for: by its path, its headers and its query."""

import re
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request

from segnode.dicomweb.accept import MediaRange, parse_accept

_RANGE: Final = re.compile(r"bytes=(?=.*[0-9])(?P<first>[0-9]{0,18})-(?P<last>[0-9]{0,18})", re.IGNORECASE)
_ONE_RANGE: Final = r"([0-9]{1,18}-[0-9]{0,18}|-[0-9]{1,18})"
_RANGES: Final = re.compile(rf"bytes=[ \t]*{_ONE_RANGE}([ \t]*,[ \t]*{_ONE_RANGE})*[ \t]*", re.IGNORECASE)
_LEVELS: Final = ("study", "series", "instance")


def accepted(request: Request) -> tuple[MediaRange, ...]:
    """What it accepts."""
    return parse_accept(request.headers.get("accept", ""), request.query_params.get("accept", ""))


def byte_range(request: Request, size: int, tag: str) -> tuple[int, int] | None:
    """Where the range of bytes that it asks for begins and ends; None where all are to be sent (RFC 9110 14.2, 13.1.5).

    That is so too where it asks for several ranges. Raises HTTPException (416) where none of these bytes is there.
    """
    match = _RANGE.fullmatch(request.headers.get("range", ""))
    if match is None or request.headers.get("if-range", tag) != tag:
        return None
    first, last = match["first"], match["last"]
    if not first:
        begin, end = max(size - int(last), 0), size
    else:
        begin, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < int(first):  # no range at all
            return None
    if begin >= end:
        raise HTTPException(416, f"there are {size} bytes", {"Content-Range": f"bytes */{size}"})
    return begin, end


def asks_for_ranges(header: str) -> bool:
    """Whether a Range header says ranges of bytes; one that says anything else is to be passed over (RFC 9110 14.1.1, 14.2)."""
    ends = (each.strip().partition("-")[::2] for each in header.partition("=")[2].split(","))
    return _RANGES.fullmatch(header) is not None and not any(first and last and int(last) < int(first) for first, last in ends)


def root_of(request: Request) -> str:
    """The URL of the DICOMweb root as the client knows it."""
    return f"{request.url.scheme}://{request.url.netloc}{request.scope['root_path']}"


def uids_of(request: Request) -> dict[str, str]:
    """The UIDs of its path, by `study`, `series` and `instance`, as far down as it goes."""
    return {level: request.path_params[level] for level in _LEVELS if level in request.path_params}
