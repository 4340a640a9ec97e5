"""Storage commitment in associations of peers (PS3.4 J): what they ask of this node, and report to it."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

import structlog
from pydicom import Dataset
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import N_ACTION_RSP
from pynetdicom.events import Event
from pynetdicom.sop_class import StorageCommitmentPushModel  # type: ignore[attr-defined]

from segnode.dicom.status import NO_SUCH_INSTANCE, PROCESSING_FAILURE, RESOURCE_LIMITATION, SUCCESS
from segnode.dicom.uids import is_uid
from segnode.errors import BadIdentifier, DeliveryDeferred, DeliveryFailed, DeliveryRefused, OutOfResources
from segnode.pipeline.report_commitment import judge
from segnode.store.commitments import Commitments, Reference, Report
from segnode.store.index import Index
from segnode.store.objects import ObjectStore

_log = structlog.get_logger()

PUSH_MODEL: Final = str(StorageCommitmentPushModel)
# The one instance that there is of the class (PS3.4 J.3.5).
WELL_KNOWN_INSTANCE: Final = "1.2.840.10008.1.20.1.1"
REQUEST: Final = 1  # an Action Type ID
_ALL_COMMITTED, _SOME_FAILED = 1, 2  # Event Type IDs
# A peer that has asked and says nothing more for so long leaves its association open for the report.
_QUIET_S: Final = 1.0
# When a report is owed that this process was to send at once, and has not: it was killed then.
_LOST_AFTER_S: Final = 60.0
# Statuses of the N-services (PS3.7 C).
_NO_SUCH_EVENT_TYPE: Final = 0x0113
_INVALID_ARGUMENT: Final = 0x0115
_NO_SUCH_ACTION: Final = 0x0123


@dataclass(frozen=True)
class CommitmentDoor:
    """What associations of peers bring of storage commitment: reports that this node has asked for, and requests to it."""

    commitments: Commitments
    index: Index
    objects: ObjectStore
    clock: Callable[[], float]
    _asking: dict[Association, "_Asking"] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def handlers(self) -> list[Any]:
        """What is bound to the events of an association."""
        return [
            (evt.EVT_N_ACTION, self._on_request),
            (evt.EVT_N_EVENT_REPORT, lambda event: (heard(event, self.commitments.answer), None)),
            (evt.EVT_DIMSE_SENT, self._on_answer_sent),
        ]

    def _on_request(self, event: Event) -> tuple[int, None]:
        """Owe the peer a report; the status of the answer."""
        try:
            return self._take(event), None
        except BadIdentifier as problem:
            _log.warning("a request for storage commitment is refused", reason=str(problem))
            return _INVALID_ARGUMENT, None
        except OutOfResources:
            return RESOURCE_LIMITATION, None
        except Exception:  # noqa: BLE001  the border of an association: the peer is told, and the node serves on
            _log.exception("storage commitment broke")
            return PROCESSING_FAILURE, None

    def _take(self, event: Event) -> int:
        if event.request.RequestedSOPInstanceUID != WELL_KNOWN_INSTANCE:  # type: ignore[union-attr]
            return NO_SUCH_INSTANCE
        if event.action_type != REQUEST:
            return _NO_SUCH_ACTION
        asked = _read(event.action_information)
        if not asked.committed:
            raise BadIdentifier("no object is named", "ReferencedSOPSequence")
        peer, now = event.assoc.requestor.ae_title.strip(), self.clock()
        # Before the answer: from that on the peer relies on a report.
        request_id = self.commitments.add_request(asked.transaction_uid, peer, asked.committed, now, now + _LOST_AFTER_S)
        with self._lock:
            self._asking.setdefault(event.assoc, _Asking()).requests.append(request_id)
        _log.info("storage commitment is asked for", calling_ae=peer, objects=len(asked.committed))
        return SUCCESS

    def _on_answer_sent(self, event: Event) -> None:
        """Begin to wait for the moment to report, once for each association."""
        if isinstance(event.message, N_ACTION_RSP):
            with self._lock:
                asking = self._asking.get(event.assoc)
                begins = asking is not None and not asking.is_awaited
                if asking is not None:
                    asking.is_awaited = True
            if begins:
                event.assoc.bind(evt.EVT_PDU_RECV, self._note_life)
                threading.Thread(target=self._report_all, args=(event.assoc,), name="commitment", daemon=True).start()

    def _note_life(self, event: Event) -> None:
        asking = self._asking.get(event.assoc)
        if asking is not None:
            asking.heard_at = monotonic()

    def _report_all(self, association: Association) -> None:
        """Report where it was asked, if that is left open and quiet; else in an association of the worker's."""
        asking = self._asking[association]
        while association.is_alive() and (left := asking.heard_at + _QUIET_S - monotonic()) > 0:
            association.join(left)
        with self._lock:
            requests = self._asking.pop(association).requests
        for request_id in requests:
            try:
                self._report(association, request_id)
            except Exception:  # noqa: BLE001  the worker finds the row
                _log.exception("reporting broke")

    def _report(self, association: Association, request_id: int) -> None:
        try:
            if not association.is_established:
                raise DeliveryDeferred("the association is over")
            request = self.commitments.request(request_id)
            if not request.is_settled:  # by the worker, where the association was busy for long
                send_report(association, judge(request, self.index, self.objects))
        except DeliveryFailed:
            self.commitments.defer_report(request_id, self.clock(), 0)
        else:
            self.commitments.settle_request(request_id)


@dataclass
class _Asking:
    """What an association has asked for, and when something came in it last."""

    requests: list[int] = field(default_factory=list)
    heard_at: float = field(default_factory=monotonic)
    is_awaited: bool = False


def heard(event: Event, hear: Callable[[Report], bool]) -> int:
    """Take a report; the status of the answer: success only once it is committed, and of something that was asked."""
    if event.request.AffectedSOPInstanceUID != WELL_KNOWN_INSTANCE:  # type: ignore[union-attr]
        return NO_SUCH_INSTANCE
    if event.event_type not in (_ALL_COMMITTED, _SOME_FAILED):
        return _NO_SUCH_EVENT_TYPE
    try:
        is_known = hear(_read(event.event_information))
    except BadIdentifier as problem:
        _log.warning("a report of storage commitment is refused", reason=str(problem))
        return _INVALID_ARGUMENT
    except OutOfResources:
        return RESOURCE_LIMITATION
    except Exception:  # noqa: BLE001  the border of an association: the peer is told, and the node serves on
        _log.exception("storage commitment broke")
        return PROCESSING_FAILURE
    if not is_known:
        _log.warning("a report of storage commitment is of nothing that was asked", by=event.assoc.remote["ae_title"])
    return SUCCESS if is_known else _INVALID_ARGUMENT


def _read(information: Dataset) -> Report:
    """The information of a request, or of a report. Raises BadIdentifier."""
    transaction_uid = str(information.get("TransactionUID") or "")
    if not is_uid(transaction_uid):
        raise BadIdentifier("TransactionUID is missing or no UID", "TransactionUID")
    failed = {_reference(item): int(item.get("FailureReason") or PROCESSING_FAILURE) for item in _items(information, "Failed")}
    return Report(transaction_uid, tuple(_reference(item) for item in _items(information, "Referenced")), failed)


def _items(information: Dataset, kind: str) -> Iterable[Dataset]:
    keyword = f"{kind}SOPSequence"
    items = information.get(keyword) or ()
    if not all(isinstance(item, Dataset) for item in items):
        raise BadIdentifier(f"{keyword} is no sequence", keyword)
    return items


def _reference(item: Dataset) -> Reference:
    found = Reference(str(item.get("ReferencedSOPClassUID") or ""), str(item.get("ReferencedSOPInstanceUID") or ""))
    if not all(map(is_uid, found)):
        raise BadIdentifier("an item names no SOP class and instance", "ReferencedSOPInstanceUID")
    return found


def item_of(reference: Reference, reason: int | None = None) -> Dataset:
    """An item of ReferencedSOPSequence, or with a FailureReason of FailedSOPSequence."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = reference
    if reason is not None:
        item.FailureReason = reason
    return item


def send_report(association: Association, report: Report) -> None:
    """Send N-EVENT-REPORT in an association. Raises DeliveryRefused when it is not taken, DeliveryDeferred."""
    information = Dataset()
    information.TransactionUID = report.transaction_uid
    if report.committed:
        information.ReferencedSOPSequence = [item_of(reference) for reference in report.committed]
    if report.failed:
        information.FailedSOPSequence = [item_of(reference, reason) for reference, reason in report.failed.items()]
    event_type = _SOME_FAILED if report.failed else _ALL_COMMITTED
    try:
        status, _ = association.send_n_event_report(information, event_type, PUSH_MODEL, WELL_KNOWN_INSTANCE)
    except (RuntimeError, ValueError):  # pynetdicom's, where the association broke off before, or has no such context
        status = Dataset()
    if "Status" not in status:
        raise DeliveryDeferred("the association broke off before the report was acknowledged")
    if status.Status != SUCCESS:
        raise DeliveryRefused(f"the report is answered with status 0x{int(status.Status):04X}")
