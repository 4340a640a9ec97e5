"""The Retrieve SCP (PS3.4 C.4.2 and C.4.3): C-GET and C-MOVE of what is held, each object in a form that its receiver takes.

As it is held where that is accepted; else natively, or a SEG in another of its forms. What cannot be sent is counted as
failed, and listed.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Final, NamedTuple, Protocol

import structlog
from pydicom.datadict import tag_for_keyword
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from segnode.config import FormName
from segnode.dicom.native import in_native
from segnode.dicom.packed import header
from segnode.dicom.query import LEVELS, Exactly, Query
from segnode.dicom.status import (
    ALL_SUBOPERATIONS_FAILED,
    CANCELLED,
    CANNOT_UNDERSTAND,
    DATA_SET_MISMATCH,
    MOVE_DESTINATION_UNKNOWN,
    PENDING,
    SOME_SUBOPERATIONS_FAILED,
    SUCCESS,
    TOO_MANY_MATCHES,
    meaning_of,
)
from segnode.dicom.uids import SEGMENTATION_CLASSES
from segnode.dimse import messages
from segnode.dimse.exchange import Exchange, Prepared
from segnode.dimse.identifier import SEARCHED, UNIQUE_KEYS, named, read_identifier
from segnode.dimse.peer import DimsePeer
from segnode.dimse.scu import storing
from segnode.dimse.send_lane import SendLane
from segnode.dimse.store_messages import Originator
from segnode.errors import (
    BadQuery,
    BadRequest,
    BrokeOff,
    DeliveryDeferred,
    DeliveryRefused,
    FormRefused,
    NotDicom,
    UnreadablePixels,
)
from segnode.pipeline.ports import Segmentation
from segnode.seg.forms import FORMS
from segnode.store.index import Index, Instance
from segnode.store.objects import ObjectStore

_log = structlog.get_logger()

_MOST_MATCHES: Final = 0xFFFF  # their number has two bytes
_TELL_EVERY_S: Final = 0.1
_MOST_CONTEXTS: Final = 128
_NATIVE: Final = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))
_UIDS: Final = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_FAILED_LIST: Final = tag_for_keyword("FailedSOPInstanceUIDList") or 0
# What is not compressed first: whoever asks for a SEG by C-GET, and does not take it as it is held, is the likelier to read it.
_PLAIN_FIRST: Final = tuple(sorted(FORMS, key=lambda form: str(FORMS[form].transfer_syntax_uid) not in _NATIVE))

Kind = tuple[str, str]  # SOP class and transfer syntax


class MoveDestination(NamedTuple):
    """Where objects may be moved, and the forms of a SEG that it is offered, best first."""

    peer: DimsePeer
    forms: Sequence[FormName]


class _Made(NamedTuple):
    """An object in a form that it can be sent in."""

    sop_class_uid: str
    sop_instance_uid: str
    part10: Path | bytes


class _Way(Protocol):
    """How objects get to their receiver. Both raise OSError when the peer that asked is gone."""

    def accepts(self, kind: Kind) -> bool:
        """Whether the receiver takes objects of a kind."""
        ...

    def store(self, made: _Made, kind: Kind) -> int:
        """Send an object; the status that it is answered with. Raises DeliveryDeferred when the receiver is gone."""
        ...

    def tell(self, counts: "_Counts") -> None:
        """Tell the peer that asked how far it is, now or soon."""
        ...

    def expect(self, instance: Instance) -> None:
        """An object comes next; it may be read before it is its turn, where it is taken as it is held."""
        ...


@dataclass
class _Counts:
    """How many sub-operations remain, have completed, and completed with a warning; and what could not be sent."""

    remaining: int
    completed: int = 0
    warning: int = 0
    failed: list[str] = field(default_factory=list)

    def add(self, instance: Instance, status: int | None) -> None:
        """Count a sub-operation by the status that it was answered with; None where it could not be done."""
        self.remaining -= 1
        if status is None or meaning_of(status) != "stored":
            self.failed.append(instance.sop_instance_uid)
        elif status == SUCCESS:
            self.completed += 1
        else:
            self.warning += 1

    def elements(self) -> dict[int, messages.Value]:
        """What a response says of them (PS3.4 C.4.2.1.7); what remains only where something does."""
        counts: dict[int, messages.Value] = {
            messages.COMPLETED: self.completed,
            messages.FAILED: len(self.failed),
            messages.WARNING: self.warning,
        }
        return {messages.REMAINING: self.remaining, **counts} if self.remaining else counts

    @property
    def status(self) -> int:
        """With what the retrieval ends."""
        if self.remaining:
            return CANCELLED
        if not self.failed and not self.warning:
            return SUCCESS
        return SOME_SUBOPERATIONS_FAILED if self.completed or self.warning else ALL_SUBOPERATIONS_FAILED


@dataclass(frozen=True)
class RetrieveDoor:
    """Answers C-GET and C-MOVE with what is held; `destination` finds by AE title where objects may be moved."""

    index: Index
    objects: ObjectStore
    segmentation: Callable[[Instance], Segmentation]
    destination: Callable[[str], MoveDestination | None]
    _making: threading.Lock = field(default_factory=threading.Lock)

    def get(self, exchange: Exchange) -> None:
        """Answer C-GET."""
        with _refusing(exchange):
            instances = self._found(exchange)
            counts, way = _Counts(len(instances)), _SameAssociation(exchange, self.objects)
            self._send_some(exchange, instances, _PLAIN_FIRST, way, counts)
            _end(exchange, counts)

    def move(self, exchange: Exchange) -> None:
        """Answer C-MOVE."""
        with _refusing(exchange):
            destination = self.destination(str(getattr(exchange.request, "MoveDestination", None) or "").strip())
            if destination is None:
                exchange.refuse(MOVE_DESTINATION_UNKNOWN, "no DIMSE destination has that AE title")
                return
            instances = self._found(exchange)
            counts = _Counts(len(instances))
            self._move_all(exchange, instances, destination, counts)
            _end(exchange, counts)

    def _found(self, exchange: Exchange) -> list[Instance]:
        """What is asked for. Raises BadQuery, BadRequest, _TooMany."""
        identifier = read_identifier(exchange)
        level = SEARCHED[identifier.level]
        query = Query(level, identifier.within, {UNIQUE_KEYS[identifier.level]: Exactly(tuple(named(identifier)))})
        keywords = _UIDS[: LEVELS.index(level) + 1]
        found: list[Instance] = []
        for row in self.index.matches(query, keywords):
            found += self.index.instances(*(row.attributes[keyword] for keyword in keywords))
            if len(found) > _MOST_MATCHES:
                raise _TooManyError
        return found

    def _move_all(
        self, exchange: Exchange, instances: Sequence[Instance], destination: MoveDestination, counts: _Counts
    ) -> None:
        """Send objects in as many associations as it takes; one that breaks off has failed only what was being sent."""
        left = instances
        while left and not exchange.is_cancelled:
            portion, kinds = _portion(left, destination.forms)
            try:
                with storing(destination.peer, kinds) as lane:
                    way = _OtherAssociation(exchange, lane)
                    tried = self._send_some(exchange, portion, destination.forms, way, counts)
            except (DeliveryDeferred, DeliveryRefused) as trouble:
                _log.warning("a destination is not reached", reason=str(trouble))
                for instance in left:
                    counts.add(instance, None)
                return
            left = left[tried:]

    def _send_some(
        self, exchange: Exchange, instances: Sequence[Instance], forms: Sequence[FormName], way: _Way, counts: _Counts
    ) -> int:
        """Send objects until the peer cancels, or the receiver is gone; how many were tried."""
        for tried, instance in enumerate(instances):
            if exchange.is_cancelled:
                return tried
            if tried + 1 < len(instances):
                way.expect(instances[tried + 1])
            try:
                counts.add(instance, self._send(instance, forms, way))
            except DeliveryDeferred as trouble:
                _log.warning("a destination is gone", sop_instance_uid=instance.sop_instance_uid, reason=str(trouble))
                counts.add(instance, None)
                return tried + 1
            way.tell(counts)
        return len(instances)

    def _send(self, instance: Instance, forms: Sequence[FormName], way: _Way) -> int | None:
        """Send an object in the first form that is taken; the status that it was answered with, None if it was not sent."""
        status, reasons = None, list[str]()
        for kind, form in _kinds(instance, forms):
            if not way.accepts(kind):
                continue
            try:
                status = way.store(self._make(instance, kind, form), kind)
            except (FormRefused, UnreadablePixels, NotDicom, FileNotFoundError) as problem:
                reasons.append(str(problem))
                continue
            if meaning_of(status) != "form":
                break
            reasons.append(f"status 0x{status:04X}")
        if status is None or meaning_of(status) != "stored":
            why = "; ".join(reasons) or ("not accepted at negotiation" if status is None else f"status 0x{status:04X}")
            _log.warning("an object is not retrieved", sop_instance_uid=instance.sop_instance_uid, reason=why)
        return status

    def _make(self, instance: Instance, kind: Kind, form: FormName | None) -> _Made:
        """An object as a kind. Raises FormRefused, UnreadablePixels."""
        held, (_, syntax) = _as_held(self.objects, instance), kind
        if form is None and syntax == instance.transfer_syntax_uid:
            return held
        with self._making:  # it may take as much memory as an object has pixels
            if form is None:
                return held._replace(part10=in_native(self.objects.path(instance.object_key), syntax))
            made = self.segmentation(instance).in_form(form)
            return _Made(made.sop_class_uid, made.sop_instance_uid, made.part10)


def _as_held(objects: ObjectStore, instance: Instance) -> _Made:
    return _Made(instance.sop_class_uid, instance.sop_instance_uid, objects.path(instance.object_key))


class _SameAssociation:
    """C-GET: objects go to who asks, where it is the SCP of their class."""

    def __init__(self, exchange: Exchange, objects: ObjectStore) -> None:
        contexts = [context for context in exchange.association.accepted_contexts if context.as_scu]
        self._contexts = {(str(c.abstract_syntax), str(c.transfer_syntax[0])): c.context_id or 0 for c in contexts}
        self._exchange = exchange
        self._objects = objects
        self._expected: Instance | None = None
        self._prepared: dict[tuple[str, Kind], Prepared] = {}
        self._told_at = monotonic()

    def accepts(self, kind: Kind) -> bool:
        """Whether the peer takes objects of a kind."""
        return kind in self._contexts

    def store(self, made: _Made, kind: Kind) -> int:
        """Send an object; the next is read while this is kept."""
        read = self._prepared.get((made.sop_instance_uid, kind))
        prepared = read or self._exchange.prepare(self._contexts[kind], *made)
        self._prepared = {}
        return self._exchange.store(prepared, self._prepare)

    def tell(self, counts: _Counts) -> None:
        """Tell it now and then: it knows what it has got."""
        if monotonic() - self._told_at >= _TELL_EVERY_S and counts.remaining:
            self._exchange.send(self._exchange.command(PENDING, counts.elements(), has_identifier=False))
            self._told_at = monotonic()

    def expect(self, instance: Instance) -> None:
        """Have it read while the object before it is kept."""
        self._expected = instance if self.accepts((instance.sop_class_uid, instance.transfer_syntax_uid)) else None

    def _prepare(self) -> None:
        if self._expected is not None:
            held = _as_held(self._objects, self._expected)
            kind = (self._expected.sop_class_uid, self._expected.transfer_syntax_uid)
            with suppress(FormRefused):  # it is looked at again when it is its turn
                self._prepared = {(held.sop_instance_uid, kind): self._exchange.prepare(self._contexts[kind], *held)}
            self._expected = None


class _OtherAssociation:
    """C-MOVE: objects go to a destination, and how far it is to who asks."""

    def __init__(self, exchange: Exchange, lane: SendLane) -> None:
        self._exchange = exchange
        self._lane = lane
        self._originator = Originator(exchange.calling_ae, exchange.message_id)

    def accepts(self, kind: Kind) -> bool:
        """Whether the destination takes objects of a kind."""
        return self._lane.accepts(*kind)

    def store(self, made: _Made, kind: Kind) -> int:  # noqa: ARG002  it says so itself
        """Send an object; it says who has asked for it. Raises BrokeOff, FormRefused."""
        try:
            return self._lane.send(made.part10, self._originator).status
        except DeliveryRefused as unread:  # what was begun cannot be ended: the association is no more
            raise BrokeOff(str(unread)) from unread

    def tell(self, counts: _Counts) -> None:
        """Tell it now."""
        if counts.remaining:
            self._exchange.send(self._exchange.command(PENDING, counts.elements(), has_identifier=False))

    def expect(self, instance: Instance) -> None:
        """It is read when it is its turn."""


class _TooManyError(Exception):
    """More matches than can be counted."""


@contextmanager
def _refusing(exchange: Exchange) -> Iterator[None]:
    """Say what keeps a request from being answered. Raises OSError when the peer is gone."""
    try:
        yield
    except BadQuery as problem:
        exchange.refuse(DATA_SET_MISMATCH, str(problem), problem.attribute)
    except BadRequest as problem:
        exchange.refuse(CANNOT_UNDERSTAND, str(problem))
    except _TooManyError:
        exchange.refuse(TOO_MANY_MATCHES, f"more than {_MOST_MATCHES} objects match: ask for fewer")
    except OSError:
        raise
    except Exception:  # noqa: BLE001  the border of an association: the peer is told, and the node serves on
        _log.exception("retrieving broke")
        exchange.refuse(CANNOT_UNDERSTAND, "unforeseen error; the node's log has the details")


def _end(exchange: Exchange, counts: _Counts) -> None:
    """Send the last response, with the UIDs of what failed."""
    failed = "\\".join(counts.failed).encode()
    failed += b"\0" * (len(failed) % 2)
    identifier = header(_FAILED_LIST, "UI", failed, implicit=exchange.is_implicit) + failed if failed else b""
    exchange.send(exchange.response(counts.status, identifier, counts.elements()))
    _log.info(
        "objects are retrieved",
        calling_ae=exchange.calling_ae,
        status=f"0x{counts.status:04X}",
        completed=counts.completed,
        warning=counts.warning,
        failed=len(counts.failed),
        remaining=counts.remaining,
    )


def _kinds(instance: Instance, forms: Sequence[FormName]) -> list[tuple[Kind, FormName | None]]:
    """What an object can be sent as, in turn: as it is held, a SEG in its forms, anything natively."""
    of_class, held = instance.sop_class_uid, instance.transfer_syntax_uid
    kinds: dict[Kind, FormName | None] = {(of_class, held): None}
    if of_class in SEGMENTATION_CLASSES:
        same = [form for form in _PLAIN_FIRST[:4] if FORMS[form].sop_class_uid == of_class]
        for form in (*same, *forms):
            kinds.setdefault((str(FORMS[form].sop_class_uid), str(FORMS[form].transfer_syntax_uid)), form)
    return [*kinds.items(), *(((of_class, syntax), None) for syntax in _NATIVE if syntax != held)]


def _portion(instances: Sequence[Instance], forms: Sequence[FormName]) -> tuple[Sequence[Instance], set[Kind]]:
    """The first of some objects, no more kinds of them than an association has room for."""
    kinds: set[Kind] = set()
    for number, instance in enumerate(instances):
        more = kinds | {kind for kind, _ in _kinds(instance, forms)}
        if len(more) > _MOST_CONTEXTS:
            return instances[:number], kinds
        kinds = more
    return instances, kinds
