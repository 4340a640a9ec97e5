"""Requests of a peer that are answered by hand: while that goes on, the socket of their association is this thread's.

pynetdicom takes a millisecond and more to build a response. So it goes on to receive requests, and to negotiate, release and
abort; what is sent in answer to C-FIND, C-GET and C-MOVE is packed here. It touches these of the pynetdicom that is pinned:
`Association._serve_request` and `_accepted_cx`, `DULServiceProvider._is_transport_event`, `_decode_pdu`, `_recv_pdu`,
`event_queue` and `_idle_timer`, `DIMSEServiceProvider.cancel_req`.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import structlog
from pydicom.datadict import tag_for_keyword
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_FIND_RQ, C_GET_RQ, C_MOVE_RQ
from pynetdicom.dimse_primitives import C_FIND, C_GET, C_MOVE
from pynetdicom.events import Event
from pynetdicom.presentation import PresentationContext

from segnode.dicom.elements import Buffer
from segnode.dimse import messages
from segnode.dimse.guarded_socket import LONGEST_MESSAGE, GuardedSocket, PeerCut, PeerGone, Stopped
from segnode.dimse.object_pdus import Packer, opened
from segnode.dimse.store_messages import store_request
from segnode.errors import DeliveryRefused

# How long a peer may take to answer.
_PATIENCE_S: Final = 120.0
# How long pynetdicom's thread is kept from the socket before it looks whether something else is to be done.
_TAKEN_S: Final = 0.05

_log = structlog.get_logger()

Request = C_FIND | C_GET | C_MOVE


class Exchange:
    """A request, and the way to answer it; whatever is sent or waited for here raises OSError where the peer is gone."""

    def __init__(
        self, association: Association, guarded: GuardedSocket, request: Request, context: PresentationContext
    ) -> None:
        self.association = association
        self.request = request
        self.context = context
        self.message_id = int(request.MessageID or 0)
        self._socket = guarded
        self._size = messages.fragment_size(association.requestor.maximum_length or 0)
        self._is_cancelled = False
        self._command = bytearray()
        self._left = 0
        self._packer = Packer(self._size)
        self._stored: dict[int, int] = {}
        self._numbers = 0

    @property
    def calling_ae(self) -> str:
        """Who asks."""
        return self.association.requestor.ae_title.strip()

    @property
    def is_implicit(self) -> bool:
        """Whether data sets of this exchange are in implicit VR; else they are in explicit. Both are little endian."""
        return bool(self.context.transfer_syntax[0].is_implicit_VR)

    @property
    def is_cancelled(self) -> bool:
        """Whether the peer has said C-CANCEL by now."""
        while self._socket.is_readable(0):
            self._hear()
        return self._is_cancelled or self.message_id in self.association.dimse.cancel_req

    def response(self, status: int, identifier: bytes = b"", more: Mapping[int, messages.Value] | None = None) -> bytes:
        """The PDUs of a response, with what it has in its command set beside the status."""
        return self.command(status, more, has_identifier=bool(identifier)) + (self.pdus(identifier) if identifier else b"")

    def command(self, status: int, more: Mapping[int, messages.Value] | None = None, *, has_identifier: bool) -> bytes:
        """The PDUs of the command set of a response; those of its identifier come after it."""
        elements = {
            messages.AFFECTED_SOP_CLASS_UID: str(self.request.AffectedSOPClassUID),
            messages.COMMAND_FIELD: _COMMAND_FIELDS[type(self.request)] | messages.RESPONSE,
            messages.MESSAGE_ID_BEING_RESPONDED_TO: self.message_id,
            messages.DATA_SET_TYPE: messages.DATA_SET if has_identifier else messages.NO_DATA_SET,
            messages.STATUS: status,
            **(more or {}),
        }
        return messages.pdus(self.context.context_id or 0, messages.command_set(elements), self._size, is_command=True)

    def pdus(self, identifier: bytes) -> bytes:
        """The PDUs of an identifier."""
        return messages.pdus(self.context.context_id or 0, identifier, self._size, is_command=False)

    def refuse(self, status: int, reason: str, attribute: str | None = None) -> None:
        """Send a response that fails the request, and says why."""
        more: dict[int, messages.Value] = {messages.ERROR_COMMENT: reason[: messages.LONGEST_COMMENT]}
        tag = tag_for_keyword(attribute) if attribute else None
        if tag is not None:
            more[messages.OFFENDING_ELEMENT] = tag
        _log.warning("a query is refused", reason=reason, status=f"0x{status:04X}", calling_ae=self.calling_ae)
        self.send(self.response(status, more=more))

    def send(self, packed: Buffer) -> None:
        """Send PDUs."""
        self._socket.send_all(packed)

    def prepare(self, context_id: int, sop_class_uid: str, sop_instance_uid: str, part10: Path | bytes) -> "Prepared":
        """A C-STORE request for the data set of a Part 10 file, to be sent before another is prepared. Raises FormRefused."""
        self._numbers = self._numbers % 0xFFFF + 1
        command = store_request(sop_class_uid, sop_instance_uid, self._numbers)
        return Prepared(self._numbers, self._packer, context_id, command, part10)

    def store(self, prepared: "Prepared", meanwhile: Callable[[], None]) -> int:
        """Send a C-STORE request; the status that it is answered with.

        `meanwhile` is called when it is sent: while the peer keeps an object, the next can be read.
        """
        try:
            for some in prepared:
                self.send(some)
        except DeliveryRefused as unread:  # what was begun cannot be ended
            self.association.abort(block=False)
            raise ConnectionAbortedError(str(unread)) from unread
        meanwhile()
        while prepared.number not in self._stored:
            self._hear()
        return self._stored.pop(prepared.number)

    def _hear(self) -> None:
        """Take a PDU of the peer, or wait for one: the answer to what was sent, C-CANCEL; or else it is pynetdicom's."""
        try:
            kind, length = self._socket.next_pdu(_PATIENCE_S)
        except (PeerGone, Stopped) as end:
            raise ConnectionAbortedError(str(end)) from end
        except PeerCut as cut:
            self.association.abort(block=False)
            raise ConnectionAbortedError(str(cut)) from cut
        pdu = self._socket.recv(messages.PDU_HEADER.size + length)
        if max(self._left, len(self._command)) > LONGEST_MESSAGE:  # which is not looked at before this exchange ends
            self.association.abort(block=False)
            raise ConnectionAbortedError("the peer sends on and on while it is answered")
        if kind != messages.P_DATA:
            self._leave(pdu)
            raise ConnectionAbortedError("the peer ends the association")
        try:
            items = list(messages.fragments(memoryview(pdu)[messages.PDU_HEADER.size :]))
        except ValueError:
            self._leave(pdu)
            raise ConnectionAbortedError("the peer sends what is no PDU") from None
        if not all(is_command for _, is_command, _, _ in items):
            self._leave(pdu)
            return
        for _, _, is_last, fragment in items:
            self._command += fragment
            if is_last:
                command, self._command = self._command, bytearray()
                if not self._understands(command):
                    self._leave(pdu)

    def _understands(self, command: Buffer) -> bool:
        try:
            values = messages.read_command_set(command)
        except ValueError:
            return False
        kind, about = (messages.number_in(values, n) for n in (messages.COMMAND_FIELD, messages.MESSAGE_ID_BEING_RESPONDED_TO))
        if kind == messages.C_CANCEL_RQ:
            self._is_cancelled = self._is_cancelled or about == self.message_id
        elif kind == messages.C_STORE_RQ | messages.RESPONSE:
            self._stored[about] = messages.number_in(values, messages.STATUS)
        else:
            return False
        return True

    def _leave(self, pdu: bytearray) -> None:
        """Have pynetdicom make of a PDU what it would have made of it."""
        self._left += len(pdu)
        dul = self.association.dul
        try:
            decoded, event = dul._decode_pdu(pdu)
        except Exception:  # noqa: BLE001  as pynetdicom does for whatever is no PDU
            dul.event_queue.put("Evt19")
            return
        dul.event_queue.put(event)
        dul._recv_pdu.put(decoded)


class Prepared:
    """A C-STORE request, of which the first block is at hand; `number` is its message ID."""

    def __init__(self, number: int, packer: Packer, context_id: int, command: bytes, part10: Path | bytes) -> None:
        self.number = number
        self._blocks = _blocks(packer, context_id, command, part10)
        self._first = next(self._blocks)

    def __iter__(self) -> Iterator[Buffer]:
        """The blocks, once. Raises DeliveryRefused when the file cannot be read to its end."""
        yield self._first
        yield from self._blocks


def _blocks(packer: Packer, context_id: int, command: bytes, part10: Path | bytes) -> Iterator[Buffer]:
    with opened(part10) as (_, data_set):
        yield from packer.blocks(context_id, command, data_set)


Serve = Callable[[Exchange], None]


def answer_by_hand(association: Association, serve: Mapping[tuple[type[Any], str], Serve]) -> None:
    """Have `serve` answer the requests of these kinds and SOP classes, in a context of that, with the socket as its own."""
    dul, stock, is_transport_event = association.dul, association._serve_request, association.dul._is_transport_event
    guarded = dul.socket
    if not isinstance(guarded, GuardedSocket):
        return
    reading, is_free = threading.Lock(), threading.Event()
    is_free.set()

    def read_unless_taken() -> bool:
        if not is_free.wait(_TAKEN_S):
            return False
        with reading:
            return is_free.is_set() and is_transport_event()

    def serve_request(message: Any, context_id: int) -> None:
        context = association._accepted_cx.get(context_id)
        served = serve.get((type(message), str(context.abstract_syntax))) if context is not None else None
        is_of_context = context is not None and getattr(message, "AffectedSOPClassUID", None) == context.abstract_syntax
        if served is None or context is None or not is_of_context or not message.is_valid_request:
            stock(message, context_id)
            return
        is_free.clear()
        guarded.waker.wake()
        try:
            with reading:
                _serve(served, Exchange(association, guarded, message, context))
        finally:
            is_free.set()
        dul._idle_timer.restart()
        association.dimse.cancel_req = {}

    dul._is_transport_event = read_unless_taken  # type: ignore[method-assign]
    association._serve_request = serve_request  # type: ignore[method-assign, assignment]
    association.bind(evt.EVT_DIMSE_RECV, _forget_cancel)


def _serve(serve: Serve, exchange: Exchange) -> None:
    """Where the peer is gone, pynetdicom finds that as well; one that only hangs is cut off."""
    try:
        serve(exchange)
    except TimeoutError:
        exchange.association.abort(block=False)
    except OSError as error:
        _log.info("a peer is gone before it had its answer", reason=str(error))


def _forget_cancel(event: Event) -> None:
    """A C-CANCEL that came before a request is of another one, which had the same number."""
    if isinstance(event.message, (C_FIND_RQ, C_GET_RQ, C_MOVE_RQ)):
        event.assoc.dimse.cancel_req.pop(event.message.command_set.get("MessageID"), None)


_COMMAND_FIELDS: Final = {C_FIND: messages.C_FIND_RQ, C_GET: messages.C_GET_RQ, C_MOVE: 0x0021}
