"""The socket of an association: large reads into a buffer, limits and deadlines, and nothing that polls.

pynetdicom's own reads as long a PDU as the peer says, waits for it for ever, and looks a thousand times a second whether
there is one. This one takes its place, and the queues and the event that the threads of an association wait on are
replaced by such as wake them.
"""

import mmap
import os
import queue
import select
import socket
import ssl
import struct
import threading
import time
from typing import Any, Final

from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import A_ABORT, A_P_ABORT
from pynetdicom.transport import AssociationSocket

from segnode.dicom.elements import Buffer
from segnode.dimse.messages import P_DATA
from segnode.errors import SegnodeError

# In longer ones of other kinds than P-DATA nothing sensible stands: 128 contexts with every transfer syntax have 0.2 MiB.
LONGEST_OTHER_PDU: Final = 1 << 20
# Of a message that is kept in memory until it is whole, as all are but those that bring objects. A request for storage
# commitment of a hundred thousand objects has 14 MB.
LONGEST_MESSAGE: Final = 1 << 24
# Of requests that wait for their answer; no peer needs more than one.
_MOST_WAITING: Final = 1000
# A PDU that has begun is there, or an answer is taken, within this, or the peer is cut.
PDU_DEADLINE_S: Final = 30.0
_HEADER: Final = 6
_KINDS: Final = range(1, 8)
# Room for the longest PDU there may be, and for what has come behind one of data.
_BUFFER: Final = LONGEST_OTHER_PDU + (1 << 18)
# How long a thread sleeps at most that nobody wakes: its timers are that late.
_LONGEST_SLEEP_S: Final = 1.0
# Of what still comes from a peer that was cut.
_MOST_DRAINED: Final = 1 << 20


class PeerGone(SegnodeError):
    """The peer has closed the connection, or it broke."""


class PeerCut(SegnodeError):
    """What the peer sends is not read on, and the association is aborted; the message says why."""


class Stopped(SegnodeError):
    """This side aborts the association."""


class _Waker:
    """Wakes a thread that polls; safe to be called when that is over."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def wake(self) -> None:
        with self._lock:
            if self.fd >= 0:
                os.eventfd_write(self.fd, 1)

    def forget(self) -> None:
        with self._lock:
            if self.fd >= 0:
                try:
                    os.eventfd_read(self.fd)
                except BlockingIOError:
                    return

    def close(self) -> None:
        with self._lock:
            if self.fd >= 0:
                os.close(self.fd)
            self.fd = -1

    __del__ = close


class GuardedSocket(AssociationSocket):
    """A connected socket of an accepted association."""

    def __init__(self, association: Association, connected: socket.socket, maximum_pdu: int) -> None:
        super().__init__(association, client_socket=connected)
        connected.setblocking(False)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.waker = _Waker()
        self.maximum_pdu = maximum_pdu
        # Of a mapping only what is used takes memory: idle associations have many.
        self.buffer = memoryview(mmap.mmap(-1, _BUFFER))
        self.start = self.end = 0
        self._connected = connected
        self._fd = connected.fileno()
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._poll.register(self.waker.fd, select.POLLIN)
        self._drained = 0

    @property
    def ready(self) -> bool:
        """Whether there is something to read, which is waited for as long as there is nothing else to be done."""
        if self.socket is None or not self._is_connected:
            return False
        if self.start < self.end:
            return True
        dul = self.assoc.dul
        closing = dul.state_machine.current_state in ("Sta1", "Sta13")
        busy = closing or not dul.event_queue.empty() or not dul.to_provider_queue.empty()
        return self.is_readable(0.0 if busy else _LONGEST_SLEEP_S)

    def is_readable(self, within: float) -> bool:
        """Whether there is something to read within so many seconds, unless the thread is woken before."""
        return self.start < self.end or self._comes(within)

    def _comes(self, within: float) -> bool:
        """Whether more comes than what is in the buffer."""
        if isinstance(self._connected, ssl.SSLSocket) and self._connected.pending():
            return True
        events = self._poll.poll(within * 1000)
        if any(fd != self._fd for fd, _ in events):
            self.waker.forget()
        return any(fd == self._fd for fd, _ in events)

    def next_pdu(self, within: float = PDU_DEADLINE_S) -> tuple[int, int]:
        """Have the next PDU in the buffer, whole; its type and length. `within` is how long it may take to begin.

        Raises PeerCut for one that is none, that is longer than it may be, or that does not come within its deadline;
        PeerGone, Stopped.
        """
        if self.start == self.end:
            self._fill(1, time.monotonic() + within)
        deadline = time.monotonic() + self._patience()
        self._fill(_HEADER, deadline)
        kind, length = struct.unpack_from(">BxI", self.buffer, self.start)
        if kind not in _KINDS:
            raise PeerCut("what it sends is no DICOM: a PDU begins with a type from 1 to 7 (PS3.8 9.3.1)")
        limit = self.maximum_pdu if kind == P_DATA else LONGEST_OTHER_PDU
        if length > limit:
            raise PeerCut(f"a PDU of {length} bytes: {limit} is the most that is taken")
        if kind == P_DATA:
            self._require_room()
        self._fill(_HEADER + length, deadline)
        return kind, length

    def _require_room(self) -> None:
        """Raise PeerCut where what pynetdicom has in memory of the peer's messages is as much as it may be."""
        dimse = self.assoc.dimse
        message = dimse.message
        if message is not None and message._data_set_file is None:
            held: tuple[Any, Any] = message.encoded_command_set, message.data_set
            if sum(part.tell() for part in held) > LONGEST_MESSAGE:
                raise PeerCut(f"a message that brings no object, of more than {LONGEST_MESSAGE} bytes")
        if dimse.msg_queue.qsize() > _MOST_WAITING:
            raise PeerCut("it asks on and on without waiting for answers")

    def _patience(self) -> float:
        """How long a PDU that has begun may take."""
        association = self.assoc
        asking = association.dul.state_machine.current_state == "Sta2"
        timeout = association.acse_timeout if asking else association.network_timeout
        return min(PDU_DEADLINE_S, timeout or PDU_DEADLINE_S)

    def consume(self, size: int) -> None:
        """Go past bytes of the buffer."""
        self.start += size
        if self.start == self.end:
            self.start = self.end = 0

    def recv(self, nr_bytes: int) -> bytearray:
        """What pynetdicom reads of a PDU that is in the buffer."""
        found = bytearray(self.buffer[self.start : min(self.start + nr_bytes, self.end)])
        self.consume(len(found))
        return found

    def send(self, bytestream: bytes) -> None:
        """Send all of this; a peer that does not take it in time is gone."""
        try:
            self.send_all(bytestream)
        except OSError:
            self.event_queue.put("Evt17")

    def send_all(self, packed: Buffer) -> None:
        """Send all of this. Raises OSError where the connection is gone, TimeoutError where nothing of it is taken in time."""
        left = memoryview(packed)
        deadline = time.monotonic() + PDU_DEADLINE_S
        while left:
            try:
                left = left[self._connected.send(left) :]
                deadline = time.monotonic() + PDU_DEADLINE_S
            except (BlockingIOError, ssl.SSLWantWriteError):
                self._await_room(select.POLLOUT, deadline)
            except ssl.SSLWantReadError:
                self._await_room(select.POLLIN, deadline)

    def drain(self) -> None:
        """Drop what comes after the association has ended, so that the peer reads why; not for ever."""
        self.start = self.end = 0
        try:
            dropped = self._receive(self.buffer)
        except BlockingIOError:
            return
        except OSError:
            dropped = 0
        self._drained += dropped
        if not dropped or self._drained > _MOST_DRAINED:
            self.close()

    def _shutdown_socket(self) -> None:
        super()._shutdown_socket()
        self.waker.close()

    def _fill(self, size: int, deadline: float) -> None:
        """Have so many bytes in the buffer by then."""
        if self.end - self.start >= size:
            return
        if self.start + size > len(self.buffer):
            self._move()
        while self.end - self.start < size:
            try:
                received = self._receive(self.buffer[self.end :])
            except BlockingIOError:
                self._await_more(deadline)
                continue
            except OSError as error:
                raise PeerGone("the connection broke") from error
            if not received:
                raise PeerGone("the connection was closed inside a PDU")
            self.end += received

    def _receive(self, into: memoryview) -> int:
        """How many bytes came; 0 at the end. Raises BlockingIOError where there are none."""
        try:
            return self._connected.recv_into(into)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as nothing:
            raise BlockingIOError from nothing

    def _move(self) -> None:
        """Have what is not consumed at the beginning of the buffer."""
        unread = bytes(self.buffer[self.start : self.end])
        self.buffer[: len(unread)] = unread
        self.start, self.end = 0, len(unread)

    def _await_more(self, deadline: float) -> None:
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise PeerCut("nothing more came of it in time")
            if self._comes(left) or not self._is_stopped():
                return

    def _is_stopped(self) -> bool:
        waiting = self.provider_queue.queue
        if waiting and isinstance(waiting[0], (A_ABORT, A_P_ABORT)):
            raise Stopped("this side aborts")
        return False

    def _await_room(self, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(self._fd, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError


class _WakingQueue(queue.Queue[Any]):
    """A queue that says when something is put into it."""

    def __init__(self, wake: Any) -> None:
        super().__init__()
        self._wake = wake

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:  # noqa: FBT001, FBT002  queue's own
        """Put, and wake who waits for it."""
        super().put(item, block, timeout)
        self._wake()


class _Checkpoint(threading.Event):
    """What an association's thread passes on each of its rounds: here it waits until there is something to do."""

    def __init__(self, association: Association) -> None:
        super().__init__()
        self._association = association
        self.work = threading.Event()
        super().set()

    def set(self) -> None:
        """Let it pass, and go round at once."""
        super().set()
        self.work.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until there is a message or a primitive for the association's user, or a timer may have expired."""
        while True:
            super().wait(timeout)
            self.work.clear()
            if self._association.dimse.msg_queue.empty() and self._association.dul.to_user_queue.empty():
                self.work.wait(_LONGEST_SLEEP_S)
            if self.is_set():
                return True


def guard(association: Association, maximum_pdu: int) -> GuardedSocket:
    """Put a guarded socket, and what wakes, into an association that has not started."""
    dul: DULServiceProvider = association.dul
    connected = dul.socket.socket if dul.socket else None
    if connected is None:
        raise PeerGone("the connection was closed before the association began")
    dul.event_queue.get(block=False)  # of the socket that is replaced: the new one says it again
    guarded = GuardedSocket(association, connected, maximum_pdu)
    dul.socket = guarded
    checkpoint = _Checkpoint(association)
    association._reactor_checkpoint = checkpoint
    dul.to_provider_queue = _WakingQueue(guarded.waker.wake)
    dul.to_user_queue = _WakingQueue(checkpoint.work.set)
    association.dimse.msg_queue = _WakingQueue(checkpoint.work.set)
    return guarded
