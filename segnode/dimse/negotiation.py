"""Negotiation of presentation contexts (PS3.8 9.3.2, PS3.7 D.3): what a peer proposes, and what of that is accepted.

pynetdicom takes 0.2 s to decode a request of 128 contexts in every transfer syntax, and more to copy what is supported.
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from pydicom.uid import UID, ImplicitVRLittleEndian
from pynetdicom.presentation import SCP_SCU_ROLES, PresentationContext

from segnode.dimse.services import Service

ACCEPTED: Final = 0
USER_REJECTION: Final = 1
ABSTRACT_SYNTAX_NOT_SUPPORTED: Final = 3
TRANSFER_SYNTAXES_NOT_SUPPORTED: Final = 4

_FIXED_FIELDS: Final = 74  # of A-ASSOCIATE-RQ, before its items (PS3.8 table 9-11)
_APPLICATION_CONTEXT: Final = 0x10
_PRESENTATION_CONTEXT: Final = 0x20
_PRESENTATION_CONTEXT_ANSWER: Final = 0x21
_ABSTRACT_SYNTAX: Final = 0x30
_TRANSFER_SYNTAX: Final = 0x40
_USER_INFORMATION: Final = 0x50
_USER_ITEMS: Final = range(0x51, 0x59)  # from the maximum length to the user identity (PS3.7 D.3.3)
_DEFAULT_ROLES: Final = (False, True)


class BadRequest(ValueError):
    """An A-ASSOCIATE-RQ that is not written as PS3.8 9.3.2 says."""


@dataclass(frozen=True)
class Proposal:
    """A presentation context as it is proposed."""

    context_id: int
    abstract_syntax: bytes
    transfer_syntaxes: frozenset[bytes]


Roles = Mapping[str, tuple[bool, bool]]


def split_request(pdu: bytes) -> tuple[bytes, list[Proposal]]:
    """An A-ASSOCIATE-RQ without its presentation contexts, and these. Raises BadRequest."""
    if len(pdu) < _FIXED_FIELDS:
        raise BadRequest("the request ends in its fixed fields")
    rest = bytearray(pdu[:_FIXED_FIELDS])
    proposals: dict[int, Proposal] = {}
    known: dict[bytes, frozenset[bytes]] = {}  # most requests have the same syntaxes in every context
    for kind, value, whole in _items(pdu[_FIXED_FIELDS:]):
        if kind == _PRESENTATION_CONTEXT:
            proposal = _proposal(value, known)
            if proposal.context_id in proposals:
                raise BadRequest("two presentation contexts have the same ID")
            proposals[proposal.context_id] = proposal
        elif kind == _USER_INFORMATION:
            rest += _known_user_information(value)
        elif kind == _APPLICATION_CONTEXT:
            rest += whole
    rest[2:6] = struct.pack(">I", len(rest) - 6)
    return bytes(rest), list(proposals.values())


def _known_user_information(value: bytes) -> bytes:
    """A user information item without what is none of its sub-items: that is ignored (PS3.8 9.3.1); pynetdicom aborts."""
    known = b"".join(whole for kind, _, whole in _items(value) if kind in _USER_ITEMS)
    return struct.pack(">BxH", _USER_INFORMATION, len(known)) + known


def _proposal(value: bytes, known: dict[bytes, frozenset[bytes]]) -> Proposal:
    context_id = value[0] if len(value) > 4 else 0
    if context_id % 2 == 0:
        raise BadRequest("the ID of a presentation context is not odd")
    kind, abstract_syntax, whole = next(_items(value[4:]))
    if kind != _ABSTRACT_SYNTAX:
        raise BadRequest("a presentation context does not begin with an abstract syntax")
    syntaxes = value[4 + len(whole) :]
    if syntaxes not in known:
        known[syntaxes] = frozenset(_uid(syntax) for kind, syntax, _ in _items(syntaxes) if kind == _TRANSFER_SYNTAX)
    return Proposal(context_id, _uid(abstract_syntax), known[syntaxes])


def join_answer(pdu: bytes, contexts: Iterable[PresentationContext]) -> bytes:
    """An A-ASSOCIATE-AC that has no presentation contexts, with these (PS3.8 table 9-17: behind the application context)."""
    behind = _FIXED_FIELDS + 4 + int.from_bytes(pdu[_FIXED_FIELDS + 2 : _FIXED_FIELDS + 4], "big")
    whole = bytearray(pdu[:behind])
    for context in contexts:
        syntax = context.transfer_syntax[0].encode()
        whole += struct.pack(">BxHBxBx", _PRESENTATION_CONTEXT_ANSWER, 8 + len(syntax), context.context_id, context.result)
        whole += struct.pack(">BxH", _TRANSFER_SYNTAX, len(syntax)) + syntax
    whole += pdu[behind:]
    whole[2:6] = struct.pack(">I", len(whole) - 6)
    return bytes(whole)


def _items(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """The items of a PDU, or of an item: type, value, and all of its bytes."""
    at = 0
    while at < len(data):
        value_at = at + 4
        if value_at > len(data):
            raise BadRequest("the request ends in the header of an item")
        end = value_at + int.from_bytes(data[at + 2 : value_at], "big")
        if end > len(data):
            raise BadRequest("an item is longer than what it is in")
        yield data[at], data[value_at:end], data[at:end]
        at = end


def _uid(value: bytes) -> bytes:
    return value.rstrip(b"\0 ")


@dataclass(frozen=True)
class _Supported:
    """A SOP class that is served, and in which transfer syntaxes, best first."""

    service: Service
    abstract_syntax: UID
    transfer_syntaxes: Mapping[bytes, UID]


class Negotiator:
    """Says which of the proposed presentation contexts are accepted, in which transfer syntax and roles."""

    def __init__(self, services: Iterable[Service]) -> None:
        self._supported: dict[bytes, _Supported] = {}
        for service in services:
            syntaxes = {uid.encode(): UID(uid) for uid in service.transfer_syntaxes}
            for uid in service.sop_classes:
                self._supported[uid.encode()] = _Supported(service, UID(uid), syntaxes)

    def negotiate(
        self, proposals: Iterable[Proposal], asked: Roles, may: Callable[[Service], bool]
    ) -> tuple[list[PresentationContext], Roles]:
        """The contexts, accepted or not, and the roles that are answered; `asked` are those that the peer proposed.

        A service that the peer may not use, or in no role that it proposes, is a user rejection.
        """
        contexts, answered = [], {}
        for proposal in proposals:
            supported = self._supported.get(proposal.abstract_syntax)
            context = _answer(proposal, supported, asked, may)
            contexts.append(context)
            if supported and supported.service.roles and context.result == ACCEPTED:
                uid = str(supported.abstract_syntax)
                if uid in asked:  # a role that was not proposed cannot be answered
                    answered[uid] = tuple(map(bool.__and__, asked[uid], supported.service.roles))
        return sorted(contexts, key=lambda context: int(context.context_id or 0)), answered  # type: ignore[return-value]


def _answer(
    proposal: Proposal, supported: _Supported | None, asked: Roles, may: Callable[[Service], bool]
) -> PresentationContext:
    if supported is None:
        return _context(proposal, ABSTRACT_SYNTAX_NOT_SUPPORTED)
    if not may(supported.service):
        return _context(proposal, USER_REJECTION)
    chosen = next((uid for name, uid in supported.transfer_syntaxes.items() if name in proposal.transfer_syntaxes), None)
    if chosen is None:
        return _context(proposal, TRANSFER_SYNTAXES_NOT_SUPPORTED)
    roles = _DEFAULT_ROLES
    if supported.service.roles and supported.abstract_syntax in asked:
        roles = SCP_SCU_ROLES[asked[supported.abstract_syntax]][supported.service.roles][2:]
    if roles == (False, False):
        return _context(proposal, USER_REJECTION)
    return _context(proposal, ACCEPTED, supported.abstract_syntax, chosen, roles)


def _context(
    proposal: Proposal,
    result: int,
    abstract_syntax: UID | None = None,
    transfer_syntax: UID = ImplicitVRLittleEndian,
    roles: tuple[bool, bool] = (False, False),
) -> PresentationContext:
    """Of a context that is not accepted the transfer syntax means nothing (PS3.8 9.3.3.2)."""
    context = PresentationContext()
    context.result = result
    # Its setters take each UID apart again.
    context._context_id = proposal.context_id
    context._abstract_syntax = abstract_syntax or UID(proposal.abstract_syntax.decode("ascii", "replace"))
    context._transfer_syntax = [transfer_syntax]
    context._as_scu, context._as_scp = roles
    return context
