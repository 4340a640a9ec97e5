"""Confirming: the proof that an archive has what it says that it stored, before a delivery counts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pydicom.uid import generate_uid

from segnode.config import DestinationConfig
from segnode.dicom.status import COMMITMENT_FAILURES
from segnode.errors import (
    BrokeOffWhenAsked,
    CannotAsk,
    CannotReadBack,
    DeliveryDeferred,
    DeliveryFailed,
    DeliveryRefused,
    NotConfirmed,
    NotLetIn,
)
from segnode.pipeline.job_document import iso_time
from segnode.pipeline.ports import Committer, Destination, Identified
from segnode.store.commitments import Commitments, Reference, Transaction
from segnode.store.jobs import Delivery

OVERDUE_S: Final = 86400.0
# An archive that breaks off whenever it is asked means it: with back-off that is seen after half an hour.
_BREAKS_OFF: Final = 8


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

    commitments: Commitments
    committers: Mapping[str, Committer]
    configs: Mapping[str, DestinationConfig]
    clock: Callable[[], float]

    def wake(self) -> None:
        """Have every delivery looked at whose report has come."""
        asked = [name for name, config in self.configs.items() if config.confirm == "commitment"]
        self.commitments.wake(asked, self.clock())

    def ask(self, stored: Sequence[tuple[Delivery, Reference]]) -> DeliveryFailed | None:
        """Ask an archive, once, to stand by those of the objects that it has not been asked about; what kept it from that.

        They are of one job and destination; nothing is asked of one that need not commit.
        """
        unasked = [each for each in stored if self._is_to_be_asked(*each)]
        if not unasked:
            return None
        of, committer = unasked[0][0], self.committers[unasked[0][0].destination]
        uid, now = str(generate_uid(prefix=None)), self.clock()
        asked = [Transaction(uid, of.job_id, of.destination, *reference, each.stored_in, now) for each, reference in unasked]
        try:
            committer.ask(
                uid, [reference for _, reference in unasked], lambda: self.commitments.ask(asked), self.commitments.answer
            )
        except (CannotAsk, DeliveryDeferred) as trouble:
            return trouble
        self.commitments.accepted(uid)
        return None

    def _is_to_be_asked(self, delivery: Delivery, reference: Reference) -> bool:
        """Whether storage commitment is wanted of it, none was refused or given, and no report is awaited."""
        if self.configs[delivery.destination].confirm != "commitment":
            return False
        asked = self.commitments.of(delivery.job_id, delivery.destination, reference)
        now = [transaction for transaction in asked if transaction.stored_in == delivery.stored_in]
        return not any(t.outcome or t.is_accepted for t in now) and not any(t.outcome == "committed" for t in asked)

    def proof(
        self,
        delivery: Delivery,
        destination: Destination,
        reference: Reference,
        stored: Callable[[], Stored],
        trouble: DeliveryFailed | None,
        again_at: float,
    ) -> Proof:
        """Look for the proof of a delivery that an archive stored.

        `trouble` is what kept the archive from being asked for storage commitment; `again_at` is when it is looked at again
        where nothing else says when. Raises NotConfirmed when the archive does not stand by it, DeliveryRefused when it
        cannot be proved or is another object, DeliveryDeferred.
        """
        confirm = self.configs[delivery.destination].confirm
        if confirm == "commitment":
            return self._committed(delivery, reference, trouble)
        if confirm == "read-back":
            return self._read_back(delivery, destination, stored(), again_at)
        return Proof(delivery.last_answer)

    def _committed(self, delivery: Delivery, reference: Reference, trouble: DeliveryFailed | None) -> Proof:
        """What was reported, or is awaited. Raises NotConfirmed, DeliveryRefused, DeliveryDeferred."""
        where = self.committers[delivery.destination].where
        known = self.commitments.of(delivery.job_id, delivery.destination, reference)
        for transaction in known:
            # A late report on what was asked before it was sent again is as good: it is the same object.
            if transaction.outcome == "committed":
                return Proof(f"storage commitment in transaction {transaction.transaction_uid}")
        asked = [transaction for transaction in known if transaction.stored_in == delivery.stored_in]
        reason = next((transaction.reason for transaction in asked if transaction.outcome == "failed"), None)
        if reason is not None:
            named = COMMITMENT_FAILURES.get(reason)
            said = f"FailureReason 0x{reason:04X}" + (f" ({named})" if named else "")
            raise NotConfirmed(f"{where} said that it stored it, and refuses storage commitment: {said}")
        accepted = [transaction for transaction in asked if transaction.is_accepted]
        if not accepted:
            if isinstance(trouble, CannotAsk) or (isinstance(trouble, NotLetIn) and len(asked) >= _BREAKS_OFF):
                instead = f"without it set confirm of {delivery.destination} to read-back or status, then retry"
                raise DeliveryRefused(f"stored, but not proved: {trouble}; {instead}") from trouble
            raise trouble or DeliveryDeferred(f"{where} is still to be asked for storage commitment")
        newest, overdue_at = accepted[0], accepted[-1].asked_at + OVERDUE_S
        if self.clock() >= overdue_at:
            raise NotConfirmed(f"{where} said that it stored it, and has not reported storage commitment within 24 hours")
        asked_at, until = iso_time(newest.asked_at), iso_time(overdue_at)
        return Proof(
            f"stored; storage commitment was asked for at {asked_at} in transaction {newest.transaction_uid}: its report is "
            f"awaited until {until}",
            min(overdue_at, self.clock() + OVERDUE_S),  # the clock may have been set back since
        )

    def _read_back(self, delivery: Delivery, destination: Destination, stored: Stored, again_at: float) -> Proof:
        uid, where, now = stored.identified.sop_instance_uid, destination.where, self.clock()
        try:
            held = destination.held(stored.identified)
        except (CannotAsk, CannotReadBack) as reason:
            if isinstance(reason, BrokeOffWhenAsked) and now < delivery.stored_at + OVERDUE_S:
                return Proof(f"stored; {reason}", again_at)
            raise DeliveryRefused(
                f"stored, but not proved: {reason}: have it give out what it holds, or set confirm of {delivery.destination} "
                "to status, then retry"
            ) from reason
        if held is not None:
            stored.require_same(held)
            return Proof("read back from there, it is what was sent")
        if now >= delivery.stored_at + OVERDUE_S:
            raise NotConfirmed(f"{where} said that it stored it, and does not find {uid} 24 hours later")
        return Proof(f"stored; {where} does not find {uid} yet", again_at)
