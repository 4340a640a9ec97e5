"""The SCP of Storage, Verification and Storage Commitment: every storage class and transfer syntax, stored as received."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

import structlog
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import A_ASSOCIATE, A_RELEASE
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import ThreadedAssociationServer
from structlog.contextvars import bound_contextvars

from segnode.dicom.status import PROCESSING_FAILURE, STATUS_OF, SUCCESS
from segnode.dicom.transfer_syntaxes import STORED_TRANSFER_SYNTAXES
from segnode.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from segnode.dimse.commitment import PUSH_MODEL, CommitmentDoor
from segnode.dimse.switches import set_switches
from segnode.errors import OutOfResources, Refusal
from segnode.pipeline.associations import Associations
from segnode.pipeline.receive import Receiver
from segnode.store.index import OpenAssociation, Sender
from segnode.store.leases import Lease
from segnode.store.objects import ObjectStore, Spool

_log = structlog.get_logger()

MAXIMUM_PDU: Final = 131072
_LONGEST_COMMENT: Final = 64


class _SharedContexts(list[PresentationContext]):
    """What every association may propose. They only read it: the copy that pynetdicom makes for each takes 0.1 s."""

    def __deepcopy__(self, _memo: object) -> Self:
        return self


class _SharingServer(ThreadedAssociationServer):
    """An association server on a socket that listens already, and that other processes may share."""

    def __init__(self, *arguments: Any, listening: socket.socket, **named: Any) -> None:
        self._listening = listening
        # Of those that are woken by a connection all but one find it taken: they must not wait for the next.
        listening.setblocking(False)
        super().__init__(*arguments, **named)
        self.contexts = _SharedContexts(self.contexts)

    def server_bind(self) -> None:
        super().server_close()  # one of its own, that does not listen
        self.socket = self._listening

    def server_activate(self) -> None:
        """It listens already."""

    def server_close(self) -> None:
        """Close this process's share; a shutdown would be one for all."""
        self._listening.close()


@dataclass(frozen=True)
class StorageScp:
    """A listening SCP."""

    server: ThreadedAssociationServer
    door: "_Door"

    @property
    def associations(self) -> int:
        """How many associations are open in this process."""
        return len(self.server.active_associations)

    def close_ended(self) -> None:
        """Say of associations that have ended that they send no more, where that was not said yet. Raises OutOfResources."""
        self.door.close_ended()

    def stop(self) -> None:
        """Accept no more associations, and end the open ones."""
        associations = self.server.active_associations
        self.server.shutdown()
        for association in associations:
            association.abort()


def start_scp(receiver: Receiver, commitment: CommitmentDoor, lease: Lease, listening: socket.socket) -> StorageScp:
    """Accept associations on a listening socket; each is a part of this process's lease."""
    set_switches(lambda **_: _Incoming(receiver.objects))
    ae = AE(receiver.ae_title)
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.maximum_pdu_size = MAXIMUM_PDU
    ae.maximum_associations = 64
    for context in AllStoragePresentationContexts:
        ae.add_supported_context(str(context.abstract_syntax), list(STORED_TRANSFER_SYNTAXES))
    ae.add_supported_context(Verification)
    # Archives report in an association of their own, in which they are the SCP.
    ae.add_supported_context(PUSH_MODEL, scu_role=True, scp_role=True)
    door = _Door(receiver, Associations(receiver.index, lease))
    handlers: list[Any] = [
        (evt.EVT_C_STORE, door.store),
        (evt.EVT_ESTABLISHED, door.begin),
        (evt.EVT_ACSE_RECV, door.note_release),
        (evt.EVT_CONN_CLOSE, door.end),
        *commitment.handlers(),
    ]
    server = ae.make_server(listening.getsockname(), evt_handlers=handlers, server_class=_SharingServer, listening=listening)
    ae._servers.append(server)  # which its shutdown wants to take it from
    threading.Thread(target=server.serve_forever, name="accepting", daemon=True).start()
    return StorageScp(server, door)


class _Incoming:
    """The file of an object that comes in, as pynetdicom writes to one; what the disk does not take is said at its end."""

    def __init__(self, objects: ObjectStore) -> None:
        self.file = self  # of which pynetdicom flushes the inner one
        self.name = ""
        self._problem: OutOfResources | None = None
        self._spool: Spool | None = None
        with self._noting():
            self._spool = objects.spool()
            self.name = str(self._spool.path)

    def write(self, block: bytes) -> int:
        """Append bytes, unless some before them were not taken."""
        if self._spool is not None and self._problem is None:
            with self._noting():
                self._spool.write(block)
        return len(block)

    def flush(self) -> None:
        """Nothing waits for this: the file is read when it is complete."""

    def complete(self) -> None:
        """Complete the file. Raises OutOfResources when the disk has not taken all of it."""
        if self._spool is not None and self._problem is None:
            with self._noting():
                self._spool.complete()
        if self._problem is not None:
            raise self._problem

    def close(self) -> None:
        """Delete the file, unless it was kept."""
        if self._spool is not None:
            self._spool.discard()

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except OutOfResources as problem:
            self._problem = problem


class _Door:
    """Translates what associations bring into calls of the receiver."""

    def __init__(self, receiver: Receiver, associations: Associations) -> None:
        self._receiver = receiver
        self._associations = associations
        self._open: dict[Association, OpenAssociation] = {}
        self._released: set[Association] = set()
        self._refused: set[Association] = set()

    def begin(self, event: Event) -> None:
        """An association is open."""
        association = self._associations.begin()
        self._open[event.assoc] = association
        _log.info("association opened", association=association.name, calling_ae=event.assoc.requestor.ae_title)

    def note_release(self, event: Event) -> None:
        """The peer has said that it is done; it may close the connection before anything else is told of that."""
        if isinstance(event.primitive, A_RELEASE):  # type: ignore[attr-defined]
            self._released.add(event.assoc)

    def end(self, event: Event) -> None:
        """A connection is closed; what it sent waits for it no longer."""
        self._end(event.assoc)

    def close_ended(self) -> None:
        """Commit that the associations that have ended send no more. Raises OutOfResources."""
        for broken in [peer for peer in self._open.copy() if not peer.is_alive()]:  # without a word of it
            self._end(broken)
        self._associations.close_ended()

    def _end(self, peer: Association) -> None:
        association = self._open.pop(peer, None)
        well = peer in self._released and peer not in self._refused
        self._released.discard(peer)
        self._refused.discard(peer)
        if association is not None:
            self._associations.end(association, well=well)
            _log.info("association closed", association=association.name)

    def store(self, event: Event) -> Dataset:
        """Receive an object; the response."""
        association = self._open.get(event.assoc)
        with bound_contextvars(association=association.name if association else None):
            response = self._receive(event, association)
            if response.Status != SUCCESS:
                self._refused.add(event.assoc)
                self._receiver.meter.refused(response.Status)
        if association is not None and event.assoc not in self._open:  # its connection broke meanwhile
            self._refused.discard(event.assoc)
            self._associations.end(association, well=False)
        return response

    def _receive(self, event: Event, association: OpenAssociation | None) -> Dataset:
        try:
            event.request._dataset_file.complete()  # type: ignore[union-attr]  # the switches say what it is
            self._receiver.receive(event.dataset_path, association=association, sender=_sender(event.assoc))
        except Refusal as refusal:
            _log.warning("refused", reason=str(refusal), calling_ae=event.assoc.requestor.ae_title)
            return _response(STATUS_OF[type(refusal)], str(refusal), refusal.attribute)
        except Exception:  # noqa: BLE001  the border of an association: the sender is told, and the node serves on
            _log.exception("storing broke")
            return _response(PROCESSING_FAILURE, "unforeseen error; the node's log has the details")
        return _response(SUCCESS)


def _sender(association: Association) -> Sender:
    proposed = association.requestor.primitive
    called = proposed.called_ae_title if isinstance(proposed, A_ASSOCIATE) else ""
    return Sender(association.requestor.ae_title.strip(), str(called).strip(), str(association.requestor.address))


def _response(status: int, comment: str = "", attribute: str | None = None) -> Dataset:
    response = Dataset()
    response.Status = status
    if comment:
        response.ErrorComment = comment[:_LONGEST_COMMENT]
    tag = tag_for_keyword(attribute) if attribute else None
    if tag is not None:
        response.OffendingElement = [tag]
    return response
