"""Storage commitment in associations of our own (PS3.4 J): asking archives to stand by what they stored, and telling peers."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.association import Association

from segnode.dicom.status import SUCCESS, meaning_of
from segnode.dimse.commitment_scp import PUSH_MODEL, REQUEST, WELL_KNOWN_INSTANCE, heard, item_of, send_report
from segnode.dimse.peer import DimsePeer
from segnode.dimse.scu import associate
from segnode.errors import CannotAsk, DeliveryDeferred, DeliveryRefused, NotLetIn
from segnode.store.commitments import Reference, Report

_KINDS: Final = {(PUSH_MODEL, str(ExplicitVRLittleEndian)), (PUSH_MODEL, str(ImplicitVRLittleEndian))}
# How long a report is waited for where it was asked for; most come later, in an association of the archive's own.
_HEAR_S: Final = 2.0


@dataclass(frozen=True)
class DimseCommitter:
    """A peer that is reached by DIMSE; see the port Committer."""

    peer: DimsePeer

    @property
    def where(self) -> str:
        """Its AE title."""
        return self.peer.address.ae_title

    def ask(
        self,
        transaction_uid: str,
        wanted: Sequence[Reference],
        before_asking: Callable[[], None],
        hear: Callable[[Report], bool],
    ) -> None:
        """Ask by N-ACTION, and stay a moment for a report; see the port Committer."""
        done = threading.Event()
        ends = [(end, lambda _: done.set()) for end in (evt.EVT_RELEASED, evt.EVT_ABORTED, evt.EVT_CONN_CLOSE)]
        handlers: list[Any] = [(evt.EVT_N_EVENT_REPORT, lambda event: (heard(event, hear), None)), *ends]
        with associate(self.peer, _KINDS, handlers=handlers) as association:
            if not association.accepted_contexts:
                raise CannotAsk(f"{self.where} does not accept the Storage Commitment Push Model ({PUSH_MODEL})")
            _note_served(association, done)
            before_asking()
            self._request(association, transaction_uid, wanted)
            done.wait(_HEAR_S)

    def _request(self, association: Association, transaction_uid: str, wanted: Sequence[Reference]) -> None:
        information = Dataset()
        information.TransactionUID = transaction_uid
        information.ReferencedSOPSequence = [item_of(reference) for reference in wanted]
        try:
            status, _ = association.send_n_action(information, REQUEST, PUSH_MODEL, WELL_KNOWN_INSTANCE)
        except RuntimeError:  # pynetdicom's, where the association broke off before
            status = Dataset()
        if "Status" not in status:
            known = f"see that it knows {self.peer.calling_ae}, with host and port, and lets it ask"
            raise NotLetIn(f"{self.where} broke off when it was asked for storage commitment: {known}")
        code = int(status.Status)
        if code != SUCCESS:
            answer = f"{self.where} answers a request for storage commitment with status 0x{code:04X}"
            raise DeliveryDeferred(answer) if meaning_of(code) == "later" else CannotAsk(answer)

    def report(self, report: Report) -> None:
        """Send N-EVENT-REPORT, in an association in which the peer is the SCU of the class; see the port Committer."""
        with associate(self.peer, _KINDS, gets=PUSH_MODEL) as association:
            if not association.accepted_contexts:
                raise DeliveryRefused(f"{self.where} accepts no reports of storage commitment ({PUSH_MODEL})")
            send_report(association, report)


def _note_served(association: Association, done: threading.Event) -> None:
    """Have `done` set when a report has been answered, not when that begins: a release may come after it, not before.

    pynetdicom serves a report in a thread of its own, which says at its end that the reactor runs, even where that is paused:
    a release would wait for it for ever.
    """
    stock: Any = association._serve_request

    def serve(message: Any, context_id: int) -> None:
        try:
            stock(message, context_id)
        finally:
            association._is_paused = True
            done.set()

    association._serve_request = serve  # type: ignore[method-assign, assignment]
