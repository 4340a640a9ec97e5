"""STOW-RS (PS3.18 10.5): the body goes to disk part by part, and each object is received as its part ends."""

import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import structlog

from segnode.dicom.json import Json, attributes_json, sequence_json
from segnode.dicom.status import OUT_OF_RESOURCES, STATUS_OF
from segnode.dicomweb.media_types import DICOM, JSON, XML, parse_media_type
from segnode.dicomweb.metadata_parts import MetadataParts
from segnode.dicomweb.multipart import Body, Multipart, OnePart, Parts
from segnode.errors import BadRequest, NotDicom, ObjectTooLong, Refusal, TooLarge, UnsupportedMedia
from segnode.pipeline.associations import Associations
from segnode.pipeline.receive import Examined, Receiver, examine
from segnode.store.index import Instance, Sender
from segnode.store.objects import Spool

_log = structlog.get_logger()

_LARGEST_BODY: Final = 64 << 30
_LONGEST_REASON: Final = 64
# Objects that come within a moment are kept together, unless one is so long that it is worth the effort alone.
_KEPT_TOGETHER: Final = 8
_KEPT_ALONE: Final = 8 << 20
_A_MOMENT_S: Final = 0.01
# Of such groups, the one that is kept, one that waits and one that grows.
_MOST_GROUPS: Final = 3
_TAKEN: Final = f'the body must be multipart/related of type="{DICOM}" or type="{JSON}" or "{XML}", or {DICOM}'


@dataclass(frozen=True)
class Stored:
    """What became of the parts of a request."""

    instances: Sequence[Instance]
    refusals: Sequence[Refusal]

    @property
    def http_status(self) -> int:
        """200 all stored, 202 some, 409 none, 503 none for want of room (PS3.18 table 10.5.3-1)."""
        if not self.refusals:
            return 200
        if self.instances:
            return 202
        full = all(STATUS_OF[type(r)] == OUT_OF_RESOURCES and not isinstance(r, ObjectTooLong) for r in self.refusals)
        return 503 if full else 409

    def document(self, root: str) -> Json:
        """The Store Instances Response (PS3.18 I.2) as DICOM JSON; `root` is the URL that studies are under."""
        studies = {instance.study_instance_uid for instance in self.instances}
        document = attributes_json({"RetrieveURL": f"{root}/studies/{studies.pop()}" if len(studies) == 1 else ""})
        if self.instances:
            document |= sequence_json("ReferencedSOPSequence", [_referenced(i, root) for i in self.instances])
        named = [refusal for refusal in self.refusals if refusal.identity]
        nameless = [refusal for refusal in self.refusals if not refusal.identity]
        if named:
            document |= sequence_json("FailedSOPSequence", [_failed(refusal) for refusal in named])
        if nameless:
            document |= sequence_json("OtherFailuresSequence", [_failed(refusal) for refusal in nameless])
        return document


def _referenced(instance: Instance, root: str) -> Json:
    study, series, sop = instance.study_instance_uid, instance.series_instance_uid, instance.sop_instance_uid
    return attributes_json(
        {
            "ReferencedSOPClassUID": instance.sop_class_uid,
            "ReferencedSOPInstanceUID": sop,
            "RetrieveURL": f"{root}/studies/{study}/series/{series}/instances/{sop}",
        }
    )


def _failed(refusal: Refusal) -> Json:
    attributes: dict[str, str] = {}
    if refusal.identity:
        attributes["ReferencedSOPClassUID"], attributes["ReferencedSOPInstanceUID"] = refusal.identity
    attributes["FailureReason"] = str(STATUS_OF[type(refusal)])
    attributes["ErrorComment"] = str(refusal)[:_LONGEST_REASON]
    return attributes_json(attributes)


class _Group:
    """Objects that are kept at once: they share a commit, and are written to the disk side by side.

    One that comes alone need not wait for others that may take long.
    """

    def __init__(self, first: Examined) -> None:
        self._lock = threading.Lock()
        self._is_whole = threading.Event()
        self._examined: list[Examined] = []
        self.take(first)

    def take(self, examined: Examined) -> bool:
        """Add an object; not where the group is whole."""
        with self._lock:
            if self._is_whole.is_set():
                return False
            self._examined.append(examined)
            if len(self._examined) == _KEPT_TOGETHER or examined.spool.size > _KEPT_ALONE:
                self._is_whole.set()
            return True

    def close(self) -> None:
        """Nothing more is to be added."""
        with self._lock:
            self._is_whole.set()

    def whole(self) -> Sequence[Examined]:
        """All objects, once there are as many as may be, or a moment has passed."""
        self._is_whole.wait(_A_MOMENT_S)
        self.close()
        return self._examined

    def discard(self) -> None:
        """Delete the files that are not kept."""
        for examined in self._examined:
            examined.spool.discard()


class _Reception:
    """What becomes of the objects of one request; the objects behind one that is refused go on."""

    def __init__(self, receiver: Receiver, associations: Associations, study: str | None, sender: Sender) -> None:
        self.objects = receiver.objects
        self._receiver = receiver
        self._associations = associations
        self._association = associations.begin()
        self._study = study
        self._sender = sender
        self._went_well = False
        self._instances: list[Instance] = []
        self._refusals: list[Refusal] = []
        self._keeping: deque[tuple[_Group, Future[None]]] = deque()
        self._keeper = ThreadPoolExecutor(1)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was received or refused yet."""
        return not (self._instances or self._refusals or self._keeping)

    def receive_in_turn(self, spool: Spool) -> None:
        """Keep a complete object after those before it, while more of the message comes. Raises Refusal."""
        spool.complete()
        examined = examine(spool)
        if not (self._keeping and self._keeping[-1][0].take(examined)):
            group = _Group(examined)
            self._keeping.append((group, self._keeper.submit(copy_context().run, self._keep, group)))
        if len(self._keeping) > _MOST_GROUPS:
            self._settle_one()

    def settle(self) -> None:
        """Have everything kept, or refused, that came whole."""
        while self._keeping:
            self._settle_one()

    def _settle_one(self) -> None:
        group, kept = self._keeping.popleft()
        group.close()
        try:
            kept.result()
        finally:
            group.discard()

    def _keep(self, group: "_Group") -> None:
        for outcome in self._receiver.receive_all(group.whole(), self._study, self._association, self._sender):
            if isinstance(outcome, Refusal):
                self.refuse(outcome)
            else:
                self._instances.append(outcome)

    def receive(self, spool: Spool) -> None:
        """Keep a complete object. Raises Refusal."""
        spool.complete()
        self._instances.append(self._receiver.receive(spool, self._study, self._association, self._sender))

    def refuse(self, refusal: Refusal) -> None:
        """Note that an object is not kept, and why."""
        self._receiver.meter.refused(STATUS_OF[type(refusal)])
        self._refusals.append(refusal)

    def finish(self) -> Stored:
        """The outcome, when the message has come to its end."""
        self.settle()
        self._went_well = not self._refusals
        return Stored(self._instances, self._refusals)

    def close(self) -> None:
        """Nothing more comes; what came whole is kept also when the sender is gone."""
        try:
            self.settle()
        finally:
            self._keeper.shutdown(cancel_futures=True)
            for group, _ in self._keeping:
                group.discard()
            for reason, number in Counter(map(str, self._refusals)).items():  # a line each would be a way to fill the disk
                _log.warning("refused", reason=reason, objects=number)
            self._associations.end(self._association, well=self._went_well)


class _Objects:
    """Parts that are Part 10 files, whatever their headers say; one that is refused ends with a failure item."""

    def __init__(self, reception: _Reception) -> None:
        self._reception = reception
        self._spool: Spool | None = None
        self._refusal: Refusal | None = None

    def begin(self, _headers: Mapping[str, str]) -> None:
        self._spool = self._refusal = None

    def write(self, block: bytes | memoryview) -> None:
        if self._refusal is None:
            self._attempt(lambda: self._append(block))

    def end(self) -> None:
        if self._refusal is None:
            self._attempt(self._receive)
        if self._refusal is not None:
            self._reception.refuse(self._refusal)
        self.close()

    def finish(self) -> None:
        """Each part was received as it ended."""

    def close(self) -> None:
        if self._spool is not None:
            self._spool.discard()

    def _append(self, block: bytes | memoryview) -> None:
        if self._spool is None:
            self._spool = self._reception.objects.spool()
        self._spool.write(block)

    def _receive(self) -> None:
        if self._spool is None:
            raise NotDicom("not a DICOM file: the part is empty")
        self._reception.receive_in_turn(self._spool)
        self._spool = None

    def _attempt(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Refusal as refusal:
            self._refusal = refusal


class _Store(Parts, Protocol):
    """What the parts of a message are kept by."""

    def finish(self) -> None:
        """The message is complete. Raises BadRequest."""
        ...

    def close(self) -> None:
        """Drop what is not kept."""
        ...


class StoreRequest:
    """The body of one request, fed in blocks; what was received by then stays received when the body breaks off.

    Its series are not complete before it is closed. Raises UnsupportedMedia, TooLarge and BadRequest for a Content-Type
    that cannot be taken.
    """

    def __init__(
        self, receiver: Receiver, associations: Associations, content_type: str, study: str | None, sender: Sender
    ) -> None:
        self._reception = _Reception(receiver, associations, study, sender)
        self._size = 0
        self._is_broken = False
        media = parse_media_type(content_type)
        is_multipart = media.name == "multipart/related"
        kind = parse_media_type(media.parameters.get("type", DICOM)).name if is_multipart else media.name
        if kind not in (DICOM, JSON, XML):
            raise UnsupportedMedia(_TAKEN)
        reception = self._reception
        self._store: _Store = (
            _Objects(reception)
            if kind == DICOM
            else MetadataParts(kind, reception.objects, reception.receive, reception.refuse)
        )
        if is_multipart and not media.parameters.get("boundary"):
            raise BadRequest("Content-Type has no boundary: multipart/related needs one (RFC 2387)")
        self._body: Body = Multipart(media.parameters["boundary"], self._store) if is_multipart else OnePart(self._store)

    def feed(self, *blocks: bytes) -> None:
        """Take the next bytes of the body; blocks while they are written. Raises BadRequest, TooLarge."""
        for block in blocks:
            self._size += len(block)
            require_size(self._size)
            if not self._is_broken:
                self._unless_broken(partial(self._body.feed, block))

    def finish(self) -> Stored:
        """The outcome, at the end of the body. Raises BadRequest when nothing in it could be read."""
        if not self._is_broken:
            self._unless_broken(self._body.finish)
        if not self._is_broken:
            self._unless_broken(self._store.finish)
        if self._reception.is_empty:
            raise BadRequest("the message has no parts")
        return self._reception.finish()

    def close(self) -> None:
        """Drop what is not complete; nothing more comes."""
        self._store.close()
        self._reception.close()

    def _unless_broken(self, step: Callable[[], None]) -> None:
        """Where a message is broken behind objects that were received, that is a failure beside them."""
        try:
            step()
        except BadRequest as error:
            self._reception.settle()
            if self._reception.is_empty:
                raise
            self._is_broken = True
            self._reception.refuse(NotDicom(str(error)))


def require_size(size: int) -> None:
    """Raise TooLarge for a body of more bytes than one request may have."""
    if size > _LARGEST_BODY:
        raise TooLarge(f"the body is longer than {_LARGEST_BODY} bytes: send it in several requests")
