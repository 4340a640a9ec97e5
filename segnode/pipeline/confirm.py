"""Confirming: the proof that an archive has what it says that it stored, before a delivery counts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from pydicom.uid import generate_uid

from segnode.config import DestinationConfig
from segnode.errors import CannotAsk, CannotReadBack, DeliveryRefused, NotConfirmed, NotLetIn
from segnode.pipeline.back_off import wait_after
from segnode.pipeline.job_document import iso_time
from segnode.pipeline.ports import Committer, Destination, Identified
from segnode.store.commitments import Commitments, Reference, Transaction
from segnode.store.jobs import Delivery, Jobs

OVERDUE_S: Final = 86400.0
# An archive that breaks off whenever it is asked means it: with back-off that is seen after half an hour.
_BREAKS_OFF: Final = 8
# FailureReason of storage commitment (PS3.4 J.3.3).
_REASONS: Final = {
    0x0110: "processing failure",
    0x0112: "no such object instance",
    0x0119: "class-instance conflict",
    0x0122: "referenced SOP class not supported",
    0x0131: "duplicate transaction UID",
    0x0213: "resource limitation",
}


@dataclass(frozen=True)
class Proof:
    """Whether a delivery is proved, in words; where it is not yet, when it is looked at again unless a report comes."""

    answer: str
    look_at: float | None = None


@dataclass(frozen=True)
class Stored:
    """An object as an archive stored it; `require_same` raises DeliveryRefused when what it gives out is something else."""

    identified: Identified
    require_same: Callable[[bytes], None]


@dataclass(frozen=True)
class Confirmer:
    """Asks for proof, as the configuration of a destination says; every step is a row first, and may be repeated."""

    jobs: Jobs
    commitments: Commitments
    committers: Mapping[str, Committer]
    configs: Mapping[str, DestinationConfig]
    clock: Callable[[], float]

    def wake(self) -> None:
        """Have every delivery looked at whose report has come."""
        now = self.clock()
        for transaction in self.commitments.answered():
            delivery = self.jobs.stored_as(transaction.job_id, transaction.destination, transaction.sop_instance_uid)
            if delivery is None or not self._awaits(delivery, transaction):
                self.commitments.settle(transaction.transaction_uid)
            elif delivery.next_attempt_at > now:
                self.jobs.wake(delivery, now)

    def _awaits(self, delivery: Delivery, transaction: Transaction) -> bool:
        """Whether the report of a transaction says something of a delivery."""
        config = self.configs.get(delivery.destination)
        if delivery.state != "confirming" or config is None or config.confirm != "commitment":
            return False
        return transaction.outcome == "committed" or transaction.stored_in == delivery.stored_in

    def proof(self, delivery: Delivery, destination: Destination, reference: Reference, stored: Callable[[], Stored]) -> Proof:
        """Look for the proof of a delivery that an archive stored, and ask for it where that is to be done.

        Raises NotConfirmed when the archive does not stand by it, DeliveryRefused when it cannot be proved or is another
        object, DeliveryDeferred.
        """
        confirm = self.configs[delivery.destination].confirm
        if confirm == "commitment":
            return self._committed(delivery, reference)
        if confirm == "read-back":
            return self._read_back(delivery, destination, stored())
        return Proof(delivery.last_answer)

    def _committed(self, delivery: Delivery, reference: Reference) -> Proof:
        proof = self._reported(delivery, reference)
        while proof is None:
            self._ask(delivery, reference)
            proof = self._reported(delivery, reference)
        return proof

    def _reported(self, delivery: Delivery, reference: Reference) -> Proof | None:
        """What was reported, or is awaited; None when no request of it was accepted. Raises NotConfirmed."""
        for transaction in self.commitments.of(delivery.job_id, delivery.destination):
            # A late report on what was asked before it was sent again is as good: it is the same object.
            if transaction.outcome == "committed" and _reference(transaction) == reference:
                return Proof(f"storage commitment in transaction {transaction.transaction_uid}")
        where = self.committers[delivery.destination].where
        asked = self._asked(delivery, reference)
        reason = next((transaction.reason for transaction in asked if transaction.outcome == "failed"), None)
        if reason is not None:
            said = f"FailureReason 0x{reason:04X}" + (f" ({_REASONS[reason]})" if reason in _REASONS else "")
            raise NotConfirmed(f"{where} said that it stored it, and refuses storage commitment: {said}")
        accepted = [transaction for transaction in asked if transaction.is_accepted]
        if not accepted:
            return None
        newest, overdue_at = accepted[0], accepted[-1].asked_at + OVERDUE_S
        if self.clock() >= overdue_at:
            raise NotConfirmed(f"{where} said that it stored it, and has not reported storage commitment within 24 hours")
        asked_at, until = iso_time(newest.asked_at), iso_time(overdue_at)
        return Proof(
            f"stored; storage commitment was asked for at {asked_at} in transaction {newest.transaction_uid}: its report is "
            f"awaited until {until}",
            overdue_at,
        )

    def _ask(self, delivery: Delivery, reference: Reference) -> None:
        committer, uid = self.committers[delivery.destination], str(generate_uid(prefix=None))
        asked = Transaction(uid, delivery.job_id, delivery.destination, *reference, delivery.stored_in, self.clock())
        try:
            committer.ask(
                uid,
                reference,
                lambda: self.commitments.ask(asked),
                lambda report: self.commitments.answer(report, self.clock()),
            )
        except (CannotAsk, NotLetIn) as reason:
            if isinstance(reason, NotLetIn) and len(self._asked(delivery, reference)) < _BREAKS_OFF:
                raise
            instead = f"without it set confirm of {delivery.destination} to read-back or status, then retry"
            raise DeliveryRefused(f"stored, but not proved: {reason}; {instead}") from reason
        self.commitments.accepted(uid)

    def _asked(self, delivery: Delivery, reference: Reference) -> list[Transaction]:
        """What was asked about an object since it was stored last, newest first."""
        asked = self.commitments.of(delivery.job_id, delivery.destination)
        return [t for t in asked if _reference(t) == reference and t.stored_in == delivery.stored_in]

    def _read_back(self, delivery: Delivery, destination: Destination, stored: Stored) -> Proof:
        uid, where, now = stored.identified.sop_instance_uid, destination.where, self.clock()
        try:
            held = destination.held(stored.identified)
        except (CannotAsk, CannotReadBack) as reason:
            raise DeliveryRefused(
                f"stored, but not proved: {reason}: have it give out what it holds, or set confirm of {delivery.destination} "
                "to status, then retry"
            ) from reason
        if held is not None:
            stored.require_same(held)
            return Proof("read back from there, it is what was sent")
        if now >= delivery.stored_at + OVERDUE_S:
            raise NotConfirmed(f"{where} said that it stored it, and does not find {uid} 24 hours later")
        return Proof(f"stored; {where} does not find {uid} yet", now + wait_after(delivery.attempts))


def _reference(transaction: Transaction) -> Reference:
    return Reference(transaction.sop_class_uid, transaction.sop_instance_uid)
