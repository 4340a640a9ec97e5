"""The storage lane: C-STORE requests are received by the thread that reads them, past pynetdicom's message machinery.

In an open association (Sta6 of PS3.8 9.2.1) a PDU that begins with the whole command of a C-STORE-RQ is the lane's, and so
is the rest of that message: its data set goes to disk as it comes, and the answer is packed by hand. Every other PDU, and
so negotiation, release, abort and all other services, is read by pynetdicom out of the same buffer.
"""

import struct
from collections.abc import Callable
from typing import Final

import structlog
from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider

from segnode.dimse.guarded_socket import PDU_DEADLINE_S, GuardedSocket, PeerCut, PeerGone, Stopped, guard
from segnode.dimse.incoming import Incoming
from segnode.dimse.messages import COMMAND, LAST, P_DATA
from segnode.dimse.store_messages import Answer, StoreRequest, part10_start, read_store_request, store_response
from segnode.store.objects import ObjectStore

_log = structlog.get_logger()

_PDU_HEADER, _PDV_HEADER = 6, 6
# A peer that takes less is answered by pynetdicom, which splits messages.
_SHORTEST_MAXIMUM: Final = 1024
# How long the lane waits for the next message before it lets pynetdicom look around.
_NEXT_WITHIN_S: Final = 0.05

Receive = Callable[[Association, Incoming], Answer]


class StorageLane:
    """Reads for one association in place of pynetdicom's `_read_pdu_data`."""

    def __init__(self, association: Association, sock: GuardedSocket, objects: ObjectStore, receive: Receive) -> None:
        self._association = association
        self._socket = sock
        self._objects = objects
        self._receive = receive
        self._dul: DULServiceProvider = association.dul
        self._read_one = self._dul._read_pdu_data

    def read(self) -> None:
        """Read what has begun to come: messages of the lane as long as they follow each other, or one PDU for pynetdicom."""
        if self._dul.state_machine.current_state == "Sta13":
            self._socket.drain()
            return
        try:
            while self._read():
                self._dul._idle_timer.restart()
                if not self._dul.to_provider_queue.empty() or not self._socket.is_readable(_NEXT_WITHIN_S):
                    return
        except PeerGone:
            self._dul.event_queue.put("Evt17")
        except PeerCut as reason:
            peer = self._association.requestor
            _log.warning("association cut", reason=str(reason), host=str(peer.address), calling_ae=peer.ae_title)
            self._dul.event_queue.put("Evt19")
        except Stopped:
            return  # pynetdicom says so to the peer

    def _read(self) -> bool:
        """Read a message of the lane, or a PDU for pynetdicom; whether it was the first."""
        kind, length = self._socket.next_pdu()
        found = self._request(length) if kind == P_DATA and self._is_open() else None
        if found is None:
            self._read_one()
            return False
        self._store(*found, length)
        return True

    def _is_open(self) -> bool:
        """Whether a message may begin."""
        maximum = self._association.requestor.maximum_length
        takes = not maximum or maximum >= _SHORTEST_MAXIMUM
        return takes and self._dul.state_machine.current_state == "Sta6" and self._association.dimse.message is None

    def _request(self, length: int) -> tuple[int, StoreRequest, int] | None:
        """Context and request where the PDU begins with a whole C-STORE-RQ command, and how long that is."""
        if length < _PDV_HEADER:
            return None
        buffer, start = self._socket.buffer, self._socket.start + _PDU_HEADER
        size, context_id, control = struct.unpack_from(">IBB", buffer, start)
        if control != COMMAND | LAST or size + 4 > length:
            return None
        request = read_store_request(bytes(buffer[start + _PDV_HEADER : start + 4 + size]))
        context = self._association._accepted_cx.get(context_id)
        if request is None or context is None or context.abstract_syntax != request.sop_class_uid:
            return None
        return context_id, request, 4 + size

    def _store(self, context_id: int, request: StoreRequest, offset: int, length: int) -> None:
        """Receive the message that a PDU in the buffer begins, and answer it."""
        syntax = self._association._accepted_cx[context_id].transfer_syntax[0]
        incoming = Incoming(self._objects)
        try:
            incoming.write(part10_start(request, str(syntax)))
            is_whole = self._take(context_id, incoming, offset, length)
            while not is_whole:
                kind, length = self._socket.next_pdu(self._association.network_timeout or PDU_DEADLINE_S)
                if kind != P_DATA:  # it breaks off: pynetdicom knows what follows
                    self._read_one()
                    return
                self._dul._idle_timer.restart()
                is_whole = self._take(context_id, incoming, 0, length)
            answer = self._receive(self._association, incoming)
        finally:
            incoming.close()
        self._socket.send(store_response(context_id, request, answer))

    def _take(self, context_id: int, incoming: Incoming, offset: int, length: int) -> bool:
        """Write the fragments of a data set in the PDU in the buffer, from an offset on; whether the last is among them."""
        buffer = self._socket.buffer
        start = self._socket.start + _PDU_HEADER
        position, end = start + offset, start + length
        is_last = False
        while position < end:
            if is_last or position + _PDV_HEADER > end:
                raise PeerCut("a PDU has something behind the last fragment of a data set")
            size, number, control = struct.unpack_from(">IBB", buffer, position)
            following = position + 4 + size
            if size < 2 or following > end or number != context_id or control & COMMAND:
                raise PeerCut("a data set's fragments are not followed by the next one of it (PS3.8 E)")
            incoming.write(buffer[position + _PDV_HEADER : following])
            is_last = bool(control & LAST)
            position = following
        self._socket.consume(_PDU_HEADER + length)
        return is_last


def open_lane(association: Association, objects: ObjectStore, receive: Receive, maximum_pdu: int) -> None:
    """Put a guarded socket and a storage lane into an association that has not started. Raises PeerGone."""
    lane = StorageLane(association, guard(association, maximum_pdu), objects, receive)
    association.dul._read_pdu_data = lane.read  # type: ignore[method-assign]
