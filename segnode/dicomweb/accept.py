"""What a client accepts (PS3.18 8.7.3): media ranges with their parameters, and the best of what can be had."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from pydicom.uid import ExplicitVRLittleEndian

from segnode.dicomweb.media_types import JSON, parse_media_type
from segnode.errors import NotAcceptable

ANY_SYNTAX: Final = "*"
_ENTRY: Final = re.compile(r'(?:[^,"]|"[^"]*")+')
_MULTIPART: Final = ("multipart/related", "multipart/*")
# What these were called before they were registered, or by some clients.
_OTHER_NAMES: Final = {
    "image/x-jls": "image/jls",
    "image/x-dicom-rle": "image/dicom-rle",
    "image/jph": "image/jphc",
    "application/json": JSON,
}


@dataclass(frozen=True)
class Representation:
    """What something can be given as: a media type, alone or in multipart/related, in a transfer syntax if it has one.

    What is stored may go under another media type as well, for a client that asks for any transfer syntax of that.
    """

    media_type: str
    transfer_syntax: str = ""
    multipart: bool = True
    also: str = ""

    @property
    def content_type(self) -> str:
        """The media type with its transfer syntax, as a part or an answer of one part has it."""
        return f"{self.media_type}; transfer-syntax={self.transfer_syntax}" if self.transfer_syntax else self.media_type


@dataclass(frozen=True)
class MediaRange:
    """One entry of an Accept header; `multipart` is None where either will do."""

    media_type: str
    multipart: bool | None
    transfer_syntax: str
    quality: float

    def covers(self, offer: Representation) -> bool:
        """Whether it asks for this, or for something that this is a kind of."""
        if self.multipart not in (None, offer.multipart):
            return False
        if self.transfer_syntax and self.transfer_syntax not in (ANY_SYNTAX, offer.transfer_syntax):
            return False
        if self._names(offer.media_type):
            return bool(self.transfer_syntax) or _is_default(offer, self.media_type)
        return bool(self.transfer_syntax) and bool(offer.also) and self._names(offer.also)

    def _names(self, media_type: str) -> bool:
        kind = media_type.partition("/")[0]
        return self.media_type in ("*/*", f"{kind}/*", media_type)

    @property
    def precision(self) -> int:
        """How much it says: the most precise range that covers something decides about it (RFC 9110 12.5.1)."""
        wild = self.media_type.count("*")
        return 4 * (2 - wild) + 2 * (self.multipart is not None) + (self.transfer_syntax not in ("", ANY_SYNTAX))


def _is_default(offer: Representation, asked: str) -> bool:
    """Without a transfer syntax it is explicit little endian; of images the one that is stored."""
    return offer.transfer_syntax in ("", ExplicitVRLittleEndian) or asked.startswith("image/")


@lru_cache(maxsize=64)
def parse_accept(header: str, parameter: str = "") -> tuple[MediaRange, ...]:
    """The entries of an Accept header, or of the query parameter `accept`, which outranks it; all is taken without either."""
    # In a query + is a space.
    text = parameter.replace(" json", "+json").replace(" xml", "+xml") or header or "*/*"
    return tuple(_media_range(entry.strip()) for entry in _ENTRY.findall(text) if entry.strip())


def choose(ranges: Sequence[MediaRange], offers: Sequence[Representation]) -> Representation | None:
    """The offer of the greatest quality; of equal ones that which was asked for first, then that which is offered first."""
    return _chosen(tuple(ranges), tuple(offers))


@lru_cache(maxsize=64)
def _chosen(ranges: Sequence[MediaRange], offers: Sequence[Representation]) -> Representation | None:
    best: tuple[float, int, int] | None = None
    chosen = None
    for place, offer in enumerate(offers):
        covering = [(media_range.precision, -number) for number, media_range in enumerate(ranges) if media_range.covers(offer)]
        if covering:
            number = -max(covering)[1]
            rank = (ranges[number].quality, -number, -place)
            if rank[0] > 0 and (best is None or rank > best):
                best, chosen = rank, offer
    return chosen


def in_any_syntax(ranges: Sequence[MediaRange]) -> list[MediaRange]:
    """The same ranges, with any transfer syntax where they name none: for what cannot be had in the default one."""
    return [replace(each, transfer_syntax=each.transfer_syntax or ANY_SYNTAX) for each in ranges]


def require(ranges: Sequence[MediaRange], offers: Sequence[Representation], what: str) -> Representation:
    """What `choose` chooses. Raises NotAcceptable, which says what can be had."""
    chosen = choose(ranges, offers)
    if chosen is None:
        forms = (f'multipart/related; type="{o.media_type}"' if o.multipart else o.media_type for o in offers)
        syntaxes = (f"; transfer-syntax={o.transfer_syntax}" if o.transfer_syntax else "" for o in offers)
        had = dict.fromkeys(form + syntax for form, syntax in zip(forms, syntaxes, strict=True))
        raise NotAcceptable(f"{what} can be had as {', '.join(had)}")
    return chosen


def _media_range(entry: str) -> MediaRange:
    media = parse_media_type(entry)
    name, parameters = media.name, media.parameters
    multipart: bool | None = False
    if name == "*/*":
        multipart = None
    if name in _MULTIPART or (multipart is None and "type" in parameters):
        inner = parse_media_type(parameters.get("type", "*/*"))
        name, multipart = inner.name, True
        parameters = {**inner.parameters, **parameters}  # some put the transfer syntax into the type's quotes
    syntax = parameters.get("transfer-syntax", "").strip()
    return MediaRange(_OTHER_NAMES.get(name, name), multipart, syntax, _quality(parameters.get("q", "1")))


def _quality(text: str) -> float:
    """From 0 to 1; what is no such number asks as if nothing were said."""
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return 1.0
