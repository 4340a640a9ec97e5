"""The SCP: Storage of every class and transfer syntax, as received; Verification, Storage Commitment, Query/Retrieve."""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import structlog
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import A_ASSOCIATE, A_RELEASE
from structlog.contextvars import bound_contextvars

from segnode.config import Config
from segnode.dicom.header import Header
from segnode.dicom.status import PROCESSING_FAILURE, STATUS_OF, STORED_WITH_MISMATCH, SUCCESS, meaning_of
from segnode.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, SEGMENTATION_CLASSES, segmentation_class
from segnode.dimse.accepting import Acceptance, Listening, Reception, SharingServer
from segnode.dimse.commitment_scp import CommitmentDoor
from segnode.dimse.incoming import Incoming
from segnode.dimse.negotiation import Negotiator
from segnode.dimse.places import Places
from segnode.dimse.query_scp import QueryDoor
from segnode.dimse.services import services
from segnode.dimse.storage_lane import open_lane
from segnode.dimse.store_messages import Answer
from segnode.dimse.switches import set_switches
from segnode.errors import ClassNotSupported, NotAuthorised, NotDicom, Refusal
from segnode.pipeline.associations import Associations
from segnode.pipeline.receive import Examined, Receiver, examine
from segnode.store.index import OpenAssociation, Sender
from segnode.store.leases import Lease

_log = structlog.get_logger()

MAXIMUM_PDU: Final = 131072
_LONGEST_COMMENT: Final = 64
_ENDED_AT_ONCE: Final = 64
_TOLD_WITHIN_S: Final = 2.0
_LOOK_S: Final = 0.01
_ENDING: Final = ("Sta1", "Sta13")  # of PS3.8 9.2: no association, and waiting for the connection to be closed


@dataclass(frozen=True)
class StorageScp:
    """A listening SCP."""

    servers: Sequence[SharingServer]
    door: "_Door"

    @property
    def associations(self) -> int:
        """How many associations are open in this process."""
        return sum(len(server.active_associations) for server in self.servers)

    def close_ended(self) -> None:
        """Say of associations that have ended that they send no more, where that was not said yet. Raises OutOfResources."""
        self.door.close_ended()

    def stop(self) -> None:
        """Accept no more associations, and end the open ones."""
        associations = [association for server in self.servers for association in server.active_associations]
        for server in self.servers:
            server.shutdown()
        for association in associations:
            association.abort(block=False)
        # Its connection is closed as soon as it is killed, whether or not the peer has been told by then. Of what it has
        # sent pynetdicom tells only who hears of every PDU, of which those who store have thousands.
        deadline = time.monotonic() + _TOLD_WITHIN_S
        while any(map(_is_to_be_told, associations)) and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
        with ThreadPoolExecutor(_ENDED_AT_ONCE, "ending") as pool:
            for _ in pool.map(Association.kill, associations):
                pass


def _is_to_be_told(association: Association) -> bool:
    """Whether the A-ABORT that was asked for has not gone out."""
    return association.dul.state_machine.current_state not in _ENDING


def start_scp(
    receiver: Receiver,
    commitment: CommitmentDoor,
    query: QueryDoor,
    lease: Lease,
    config: Callable[[], Config],
    sockets: Sequence[Listening],
) -> StorageScp:
    """Accept associations on listening sockets; each is a part of this process's lease.

    `config` is the configuration as it is now: who is let in may change.
    """
    set_switches(lambda **_: Incoming(receiver.objects))
    first = config()
    ae = AE(receiver.ae_title)
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.maximum_pdu_size = MAXIMUM_PDU
    ae.maximum_associations = sys.maxsize  # which counts connections of this process; places are counted instead
    ae.acse_timeout, ae.network_timeout = first.dimse.artim, first.dimse.idle
    door = _Door(receiver, Associations(receiver.index, lease))
    handlers: list[Any] = [
        (evt.EVT_C_STORE, door.store),
        (evt.EVT_ESTABLISHED, door.begin),
        (evt.EVT_ACSE_RECV, door.note_release),
        (evt.EVT_CONN_CLOSE, door.end),
        *commitment.handlers(),
        *query.handlers(),
    ]
    places = Places(first.data / "associations", first.dimse.max_associations)
    reception = Reception(config, Negotiator(services(first.dimse.private_sop_classes)), places)
    lane = partial(open_lane, objects=receiver.objects, receive=door.receive, maximum_pdu=MAXIMUM_PDU)
    servers = [SharingServer(ae, listening, reception, handlers, lane) for listening in sockets]
    for server in servers:
        threading.Thread(target=server.serve_forever, name="accepting", daemon=True).start()
    return StorageScp(servers, door)


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
        sender = _sender(event.assoc)
        _log.info(
            "association opened",
            association=association.name,
            calling_ae=sender.calling_ae,
            called_ae=sender.called_ae,
            host=sender.host,
        )

    def note_release(self, event: Event) -> None:
        """The peer has said that it is done; it may close the connection before anything else is told of that."""
        if isinstance(event.primitive, A_RELEASE):  # type: ignore[attr-defined]
            self._released.add(event.assoc)
            _leave(event.assoc)  # it may open the next as soon as this is acknowledged

    def end(self, event: Event) -> None:
        """A connection is closed; what it sent waits for it no longer."""
        self._end(event.assoc)

    def close_ended(self) -> None:
        """Commit that the associations that have ended send no more. Raises OutOfResources."""
        for broken in [peer for peer in self._open.copy() if not peer.is_alive()]:  # without a word of it
            self._end(broken)
        self._associations.close_ended()

    def _end(self, peer: Association) -> None:
        _leave(peer)
        message = peer.dimse.message
        if message is not None and message._data_set_file is not None:  # of an object that broke off
            message._data_set_file.close()
        association = self._open.pop(peer, None)
        well = peer in self._released and peer not in self._refused
        self._released.discard(peer)
        self._refused.discard(peer)
        if association is not None:
            self._associations.end(association, well=well)
            _log.info("association closed", association=association.name)

    def store(self, event: Event) -> Dataset:
        """Receive an object that pynetdicom has put together; the response."""
        is_of_context = event.request.AffectedSOPClassUID == event.context.abstract_syntax
        incoming: Incoming | None = event.request._dataset_file  # type: ignore[assignment]  # the switches say so
        return _response(self.receive(event.assoc, incoming, is_of_context=is_of_context))

    def receive(self, peer: Association, incoming: Incoming | None, *, is_of_context: bool = True) -> Answer:
        """Receive an object; what is answered. `is_of_context` says whether its class is that of its presentation context."""
        association = self._open.get(peer)
        with bound_contextvars(association=association.name if association else None):
            answer = self._receive(peer, incoming, association, is_of_context=is_of_context)
            if meaning_of(answer.status) != "stored":
                self._refused.add(peer)
                self._receiver.meter.refused(answer.status)
        if association is not None and peer not in self._open:  # its connection broke meanwhile
            self._refused.discard(peer)
            self._associations.end(association, well=False)
        return answer

    def _receive(
        self, peer: Association, incoming: Incoming | None, association: OpenAssociation | None, *, is_of_context: bool
    ) -> Answer:
        try:
            incoming = _brought(incoming)
            spool = incoming.complete()
            _require_right(peer)
            _require_class(is_of_context=is_of_context)
            examined = examine(spool)
            _require_data_set(examined)
            self._receiver.receive_examined(examined, association=association, sender=_sender(peer))
        except Refusal as refusal:
            _log.warning("refused", reason=str(refusal), calling_ae=peer.requestor.ae_title)
            offending = tag_for_keyword(refusal.attribute) if refusal.attribute else None
            return Answer(STATUS_OF[type(refusal)], str(refusal), offending)
        except Exception:  # noqa: BLE001  the border of an association: the sender is told, and the node serves on
            _log.exception("storing broke")
            return Answer(PROCESSING_FAILURE, "unforeseen error; the node's log has the details")
        mismatch = _mismatch(examined.header)
        if mismatch:
            _log.warning("stored with a warning", sop_instance_uid=examined.header.sop_instance_uid, reason=mismatch)
            return Answer(STORED_WITH_MISMATCH, mismatch, tag_for_keyword("SegmentationType"))
        return Answer(SUCCESS)


def _require_right(association: Association) -> None:
    """Raise NotAuthorised where the peer may not store."""
    if isinstance(association.acse, Acceptance) and "store" not in association.acse.admitted.may:
        raise NotAuthorised("this AE title may not store here (`may` of its [[peers]])")


def _brought(incoming: Incoming | None) -> Incoming:
    """What a request brings. Raises NotDicom where that is nothing."""
    if incoming is None:
        raise NotDicom("the request has no data set")
    return incoming


def _require_class(*, is_of_context: bool) -> None:
    """Raise ClassNotSupported where the command names another class than its presentation context."""
    if not is_of_context:
        raise ClassNotSupported("its SOP class is not that of its presentation context", "AffectedSOPClassUID")


def _require_data_set(examined: Examined) -> None:
    """Raise NotDicom where the data set begins with what would be taken for the file meta information of its file."""
    if examined.header.dataset_offset != examined.spool.digest.offset:
        what = "the data set has elements of group 0002, which are those of files"
        raise NotDicom(what, "FileMetaInformationGroupLength")


def _mismatch(header: Header) -> str:
    """What of an object is not as its SOP class has it (PS3.3 A.51), though it can be kept; of segmentations alone."""
    kind = header.attributes.get("SegmentationType")
    if kind is None or header.sop_class_uid not in SEGMENTATION_CLASSES or segmentation_class(kind) == header.sop_class_uid:
        return ""
    return "kept, but SegmentationType is not one of its SOP class"


def _leave(association: Association) -> None:
    if isinstance(association.acse, Acceptance):
        association.acse.leave()


def _sender(association: Association) -> Sender:
    proposed = association.requestor.primitive
    called = proposed.called_ae_title if isinstance(proposed, A_ASSOCIATE) else ""
    return Sender(association.requestor.ae_title.strip(), str(called).strip(), str(association.requestor.address))


def _response(answer: Answer) -> Dataset:
    response = Dataset()
    response.Status = answer.status
    if answer.comment:
        response.ErrorComment = answer.comment[:_LONGEST_COMMENT]
    if answer.offending is not None:
        response.OffendingElement = [answer.offending]
    return response
