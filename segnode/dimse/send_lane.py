"""A lane for C-STORE beside pynetdicom's reactor: objects go out as they are, straight from their files.

pynetdicom negotiates, releases and aborts the association, and does whatever else is asked in it. While an object is on its
way its reactor is kept from the socket: requests are packed here, data sets are read into the PDUs that they leave in, and the
response is read here too; any other message that comes meanwhile is pynetdicom's.
"""

import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from pynetdicom.association import Association
from pynetdicom.events import Event

from segnode.dicom.status import require_stored
from segnode.dicom.uids import uid_name
from segnode.dimse import messages
from segnode.dimse.object_pdus import Packer, opened
from segnode.dimse.store_messages import Originator, StoreResponse, read_store_response, store_request
from segnode.errors import BrokeOff, DeliveryFailed, DeliveryRefused, FormRefused

MAXIMUM_PDU: Final = 131072  # that the node takes; and that are sent to who sets no limit
_LONGEST_SENT: Final = 1 << 20
_LONGEST_COMMAND: Final = 1 << 16
_LAST_MESSAGE_ID: Final = 0xFFFF
_LOOK_UP_S: Final = 0.25
_OUT_OF_TURN_S: Final = 0.01
_ESTABLISHED: Final = "Sta6"  # of PS3.8 9.2: ready for data
_NOT_NOW: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class SendLane:
    """Sends by C-STORE in one association, one object after the other; `attach` is told when its connection opens."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._association: Any = None
        self._contexts: dict[tuple[str, str], int] = {}
        self._message_id = 0
        self._packer = Packer(0)

    def attach(self, opened: Event) -> None:
        """Put the lane beside the reactor of an association whose connection has opened, before that reads from it."""
        dul: Any = opened.assoc.dul
        read = dul._is_transport_event

        def read_in_turn() -> bool:
            # One that waits for its turn would be woken after each object, and keep the next one waiting.
            if not self._turn.acquire(blocking=False):
                time.sleep(_OUT_OF_TURN_S)
                return False
            try:
                return bool(read())
            finally:
                self._turn.release()

        dul._is_transport_event = read_in_turn
        dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def use(self, association: Association) -> "SendLane":
        """Send in an association that is established, and that this was attached to. Raises DeliveryRefused."""
        self._association = association
        self._contexts = {
            (str(context.abstract_syntax), str(context.transfer_syntax[0])): int(context.context_id or 0)
            for context in association.accepted_contexts
            if context.as_scu
        }
        limit = min(association.dimse.maximum_pdu_size or MAXIMUM_PDU, _LONGEST_SENT)
        if limit < messages.SHORTEST_PDU:
            raise DeliveryRefused(f"its maximum PDU length of {limit} leaves no room for any message")
        self._packer = Packer(messages.fragment_size(limit))
        return self

    def accepts(self, sop_class_uid: str, transfer_syntax_uid: str) -> bool:
        """Whether the class was accepted with the transfer syntax."""
        return (sop_class_uid, transfer_syntax_uid) in self._contexts

    def store(self, part10: Path | bytes, originator: Originator | None = None) -> str:
        """Send a Part 10 file as it is; what was answered, when that says that it was stored.

        Raises FormRefused, also for one that cannot be read or has no presentation context, AlreadyThere, DeliveryRefused,
        DeliveryDeferred, and BrokeOff, after which the association is no more.
        """
        response = self.send(part10, originator)
        return require_stored(response.status, f"status 0x{response.status:04X} {response.comment}".rstrip())

    def send(self, part10: Path | bytes, originator: Originator | None = None) -> StoreResponse:
        """As `store`, for who makes of the answer what it will. Raises FormRefused, DeliveryRefused, BrokeOff."""
        with opened(part10) as (meta, data_set):
            context_id = self._contexts.get((meta.sop_class_uid, meta.transfer_syntax_uid))
            if context_id is None:
                raise FormRefused(f"{uid_name(meta.sop_class_uid)} in {uid_name(meta.transfer_syntax_uid)} was not negotiated")
            self._message_id = self._message_id % _LAST_MESSAGE_ID + 1
            command = store_request(meta.sop_class_uid, meta.sop_instance_uid, self._message_id, originator)
            return self._exchange(self._packer.blocks(context_id, command, data_set))

    def store_each(self, files: Sequence[Path]) -> Iterator[str | DeliveryFailed]:
        """Send files one after the other; see the port Passage."""
        for file in files:
            try:
                yield self.store(file)
            except DeliveryFailed as failure:
                yield failure
                if isinstance(failure, BrokeOff):
                    return

    def _exchange(self, blocks: Iterator[memoryview]) -> StoreResponse:
        """Send a request, and wait for the response. Raises BrokeOff, DeliveryRefused."""
        association = self._association
        if not association.is_established:
            raise BrokeOff("the association broke off before the object was acknowledged")
        try:
            with self._in_turn(association.dimse_timeout):
                return _Exchange(association, self._message_id).run(blocks)
        except BaseException:
            association.abort()
            raise

    @contextmanager
    def _in_turn(self, within: float | None) -> Iterator[None]:
        """While the reactor leaves the socket alone. Raises BrokeOff where it is still reading something that does not end."""
        if not self._turn.acquire(timeout=-1 if within is None else within):
            raise BrokeOff("the association broke off: what was sent there does not end")
        try:
            yield
        finally:
            self._turn.release()


class _Exchange:
    """One C-STORE while it has the socket of its association."""

    def __init__(self, association: Any, message_id: int) -> None:
        self._association = association
        self._dul = association.dul
        self._message_id = message_id
        self._pdu = bytearray()
        self._command: list[bytes] = []
        self._kept: list[bytes] = []  # the PDUs of a message that may be pynetdicom's
        self._response: StoreResponse | None = None
        self._polls = select.poll()

    def run(self, blocks: Iterator[memoryview]) -> StoreResponse:
        """Send the blocks; what was answered. Raises BrokeOff, and what the blocks raise: then the connection is cut."""
        connection = self._dul.socket and self._dul.socket.socket
        if connection is None or self._dul.state_machine.current_state != _ESTABLISHED:
            raise BrokeOff("the association broke off before the object was acknowledged")
        is_whole = False
        try:
            connection.setblocking(False)
            self._polls.register(connection, select.POLLIN)
            for block in blocks:
                self._receive(connection)
                self._send(connection, block)
            is_whole = True
            self._await(connection)
            connection.setblocking(True)
        except BaseException as error:
            with suppress(OSError):
                if is_whole:  # else it would be taken for a part of what was being sent
                    connection.send(messages.ABORT_PDU)
                connection.shutdown(socket.SHUT_RDWR)
            if isinstance(error, OSError):
                what = error.strerror or type(error).__name__
                raise BrokeOff(f"the association broke off before the object was acknowledged ({what})") from error
            raise
        if self._response is None:
            raise BrokeOff("the association broke off before the object was acknowledged")
        return self._response

    def _send(self, connection: socket.socket, block: memoryview) -> None:
        deadline = _deadline(self._association.network_timeout)
        while block:
            try:
                block = block[connection.send(block) :]
                deadline = _deadline(self._association.network_timeout)
            except _NOT_NOW:
                reads = select.POLLIN if self._response is None else 0
                self._wait(connection, reads | select.POLLOUT, deadline, "it takes nothing more")
                self._receive(connection)
        self._dul._idle_timer.restart()

    def _await(self, connection: socket.socket) -> None:
        deadline = _deadline(self._association.dimse_timeout)
        while self._response is None:
            if not self._receive(connection):
                self._wait(connection, select.POLLIN, deadline, "no answer")
        self._dul._idle_timer.restart()

    def _wait(self, connection: socket.socket, events: int, deadline: float, what: str) -> None:
        """Return when there is something to do on the connection. Raises BrokeOff in the end, or when it was aborted here."""
        self._polls.modify(connection, events)
        while True:
            if not self._association.is_established:
                raise BrokeOff("the association was aborted here before the object was acknowledged")
            left = deadline - time.monotonic()
            if left <= 0:
                raise BrokeOff(f"the association broke off before the object was acknowledged: {what} in time")
            if self._polls.poll(min(left, _LOOK_UP_S) * 1000):
                return

    def _receive(self, connection: socket.socket) -> bool:
        """Take the PDUs that have come, if any, until the response is there; whether there were bytes. Raises BrokeOff."""
        came = False
        while self._response is None:
            wanted = messages.PDU_HEADER.size
            if len(self._pdu) >= wanted:
                wanted += self._length()
            try:
                received = connection.recv(wanted - len(self._pdu))
            except _NOT_NOW:
                return came
            if not received:
                raise BrokeOff("the association broke off before the object was acknowledged: the connection was closed")
            came = True
            self._pdu += received
            if len(self._pdu) >= messages.PDU_HEADER.size and len(self._pdu) == messages.PDU_HEADER.size + self._length():
                pdu, self._pdu = bytes(self._pdu), bytearray()
                self._take(pdu)
        return came

    def _length(self) -> int:
        """The length of the PDU whose header has come. Raises BrokeOff where it is none that may come now."""
        kind, length = messages.PDU_HEADER.unpack_from(self._pdu)
        if kind == messages.A_ABORT:
            raise BrokeOff("the association broke off before the object was acknowledged: it was aborted there")
        if kind == messages.A_RELEASE_RQ:
            raise BrokeOff("the association broke off before the object was acknowledged: it is to be released")
        if kind != messages.P_DATA or length > MAXIMUM_PDU:
            raise BrokeOff(f"what comes instead of an answer is none: a PDU of type {kind:02X} and length {length}")
        return int(length)

    def _take(self, pdu: bytes) -> None:
        """Take a P-DATA-TF PDU: the response, or what is pynetdicom's. Raises BrokeOff."""
        self._kept.append(pdu)
        try:
            items = list(messages.fragments(pdu[messages.PDU_HEADER.size :]))
        except ValueError as error:
            raise BrokeOff(f"what it answers is no message (PS3.8 9.3.5): {error}") from error
        for _, is_command, is_last, fragment in items:
            if not is_command:
                self._hand_over()
                return
            self._command.append(bytes(fragment))
            if sum(map(len, self._command)) > _LONGEST_COMMAND:
                raise BrokeOff("what comes instead of an answer is a command set without an end")
            if is_last:
                self._answered(read_store_response(b"".join(self._command)))

    def _answered(self, response: StoreResponse | None) -> None:
        if response is None:
            self._hand_over()
            return
        if response.message_id != self._message_id:
            raise BrokeOff(f"it answers message {response.message_id}, and not {self._message_id}, which was sent")
        self._response = response
        self._command, self._kept = [], []

    def _hand_over(self) -> None:
        """Give what has come to pynetdicom, which gets to it when the object is sent."""
        for kept in self._kept:
            try:
                pdu, event = self._dul._decode_pdu(bytearray(kept))
            except Exception as error:  # pynetdicom raises anything
                raise BrokeOff("what comes instead of an answer is no message") from error
            self._dul._recv_pdu.put(pdu)
            self._dul.event_queue.put(event)
        self._command, self._kept = [], []


def _deadline(within: float | None) -> float:
    return float("inf") if within is None else time.monotonic() + within
