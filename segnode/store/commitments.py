"""Rows of storage commitment (PS3.4 J): what this node has asked archives to stand by, and what peers have asked of it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from sqlalchemy import (
    Boolean,
    Column,
    Engine,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    and_,
    column,
    exists,
    or_,
    select,
    table,
)

from segnode.store.database import make_tables, reading
from segnode.store.jobs import LONGEST_WAIT_S

Outcome = Literal["", "committed", "failed"]

_metadata = MetaData()
_transaction = Table(
    "commitment",
    _metadata,
    Column("transaction_uid", String, primary_key=True),
    Column("job_id", String, nullable=False),
    Column("destination", String, nullable=False),
    Column("sop_class_uid", String, nullable=False),
    Column("sop_instance_uid", String, primary_key=True),
    Column("stored_in", Integer, nullable=False),
    Column("asked_at", Float, nullable=False),
    Column("is_accepted", Boolean, nullable=False, default=False),
    Column("outcome", String, nullable=False, default=""),
    Column("reason", Integer, nullable=False, default=0),
    Column("settled", Boolean, nullable=False, default=False),
)
Index("commitment_of_object", _transaction.c.job_id, _transaction.c.sop_instance_uid)
Index("commitment_answered", _transaction.c.settled, _transaction.c.outcome)
# The rows of deliveries lie in the same database.
_delivery = table(
    "delivery",
    *map(column, ("job_id", "destination", "state", "sent_sop_instance_uid", "stored_in", "next_attempt_at")),
)
_request = Table(
    "commitment_request",
    _metadata,
    Column("id", Integer, primary_key=True),
    Column("transaction_uid", String, nullable=False, index=True),
    Column("peer", String, nullable=False),
    Column("is_duplicate", Boolean, nullable=False),
    Column("referenced", String, nullable=False),
    Column("requested_at", Float, nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("next_report_at", Float, nullable=False),
    Column("settled", Boolean, nullable=False, default=False, index=True),
)
_SEPARATOR: Final = " "


class Reference(NamedTuple):
    """An object as requests and reports of storage commitment name it."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True)
class Report:
    """What the one that was asked stands by in a transaction; of what has `failed`, the FailureReason."""

    transaction_uid: str
    committed: Sequence[Reference] = ()
    failed: Mapping[Reference, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Transaction:
    """An object of a transaction: a destination was asked to stand by it, which it had stored in an attempt (`stored_in`).

    It `is_accepted` when the destination has said that it will report.
    """

    transaction_uid: str
    job_id: str
    destination: str
    sop_class_uid: str
    sop_instance_uid: str
    stored_in: int
    asked_at: float
    is_accepted: bool = False
    outcome: Outcome = ""
    reason: int = 0


@dataclass(frozen=True)
class Request:
    """What a peer, by its AE title, has asked this node to stand by."""

    id: int
    transaction_uid: str
    peer: str
    is_duplicate: bool
    referenced: Sequence[Reference]
    requested_at: float
    attempts: int
    is_settled: bool = False


class Commitments:
    """The rows of storage commitment, in the pipeline's database."""

    def __init__(self, engine: Engine) -> None:
        self._writer = engine
        self._reader = reading(engine)
        make_tables(_metadata, engine)

    def ask(self, transactions: Iterable[Transaction]) -> None:
        """A destination is about to be asked for these objects: from now on it may report."""
        with self._writer.begin() as connection:
            connection.execute(_transaction.insert(), [*map(vars, transactions)])

    def accepted(self, transaction_uid: str) -> None:
        """A destination has said that it will report."""
        with self._writer.begin() as connection:
            mine = _transaction.c.transaction_uid == transaction_uid
            connection.execute(_transaction.update().where(mine).values(is_accepted=True))

    def answer(self, report: Report) -> bool:
        """Commit what a report says of each object; the first counts. False when it is of none that was asked about in it."""
        mine = _transaction.c.transaction_uid == report.transaction_uid
        committed = set(report.committed)
        with self._writer.begin() as connection:
            rows = connection.execute(select(_transaction.c.sop_class_uid, _transaction.c.sop_instance_uid).where(mine)).all()
            named = [
                reference for reference in (Reference(*row) for row in rows) if reference in committed | report.failed.keys()
            ]
            for reference in named:
                reason = report.failed.get(reference)
                values = {"outcome": "committed" if reason is None else "failed", "reason": reason or 0}
                of_object = and_(
                    mine, _transaction.c.sop_instance_uid == reference.sop_instance_uid, _transaction.c.outcome == ""
                )
                connection.execute(_transaction.update().where(of_object).values(values))
            return bool(named)

    def of(self, job_id: str, destination: str, reference: Reference) -> list[Transaction]:
        """What a destination was asked about an object of a job, newest first."""
        asked = (
            _transaction.c.job_id == job_id,
            _transaction.c.destination == destination,
            _transaction.c.sop_instance_uid == reference.sop_instance_uid,
            _transaction.c.sop_class_uid == reference.sop_class_uid,
        )
        query = select(_transaction).where(*asked).order_by(_transaction.c.asked_at.desc(), _transaction.c.transaction_uid)
        with self._reader.connect() as connection:
            rows = [dict(row) for row in connection.execute(query).mappings()]
        return [Transaction(**{name: value for name, value in row.items() if name != "settled"}) for row in rows]

    def wake(self, destinations: Collection[str], now: float) -> None:
        """Have every delivery looked at whose report has come; the `destinations` are those that are asked to commit.

        A refusal counts for what was stored when it was asked for; that an object is committed also where it was sent again.
        """
        answered = and_(~_transaction.c.settled, _transaction.c.outcome.in_(("committed", "failed")))
        confirming = and_(_delivery.c.state == "confirming", _delivery.c.destination.in_(destinations))
        of_it = and_(
            _delivery.c.job_id == _transaction.c.job_id,
            _delivery.c.destination == _transaction.c.destination,
            _delivery.c.sent_sop_instance_uid == _transaction.c.sop_instance_uid,
            or_(_transaction.c.outcome == "committed", _transaction.c.stored_in == _delivery.c.stored_in),
        )
        with self._reader.connect() as connection:
            if not connection.execute(select(exists().where(answered))).scalar_one():
                return
        awaited = select(_delivery.c.job_id).where(confirming, of_it).correlate(_transaction).exists()
        report = select(_transaction.c.job_id).where(answered, of_it).correlate(_delivery).exists()
        with self._writer.begin() as connection:
            connection.execute(_transaction.update().where(answered, ~awaited).values(settled=True))
            woken = _delivery.update().where(confirming, _delivery.c.next_attempt_at > now, report)
            connection.execute(woken.values(next_attempt_at=now))

    def add_request(
        self, transaction_uid: str, peer: str, referenced: Iterable[Reference], now: float, next_report_at: float
    ) -> int:
        """Owe a peer a report; its id. A transaction UID that was used before makes it a duplicate."""
        row = {
            "transaction_uid": transaction_uid,
            "peer": peer,
            "referenced": "\n".join(map(_SEPARATOR.join, referenced)),
            "requested_at": now,
            "next_report_at": next_report_at,
        }
        used = select(exists().where(_request.c.transaction_uid == transaction_uid))
        with self._writer.begin() as connection:
            row["is_duplicate"] = connection.execute(used).scalar_one()
            added = connection.execute(_request.insert().values(row).returning(_request.c.id))
            return int(added.scalar_one())

    def request(self, request_id: int) -> Request:
        """The request of that id."""
        return self._requests(_request.c.id == request_id)[0]

    def unreported(self, now: float) -> list[Request]:
        """The requests whose report is to be sent now; what failed most often comes last."""
        # Nothing waits so long, but where the clock has been set back since.
        has_come = or_(_request.c.next_report_at <= now, _request.c.next_report_at > now + LONGEST_WAIT_S)
        due = self._requests(~_request.c.settled, has_come)
        return sorted(due, key=lambda request: request.attempts)

    def defer_report(self, request_id: int, next_report_at: float, attempts: int) -> None:
        """A report could not be sent; it is owed until then."""
        with self._writer.begin() as connection:
            mine = _request.update().where(_request.c.id == request_id)
            connection.execute(mine.values(next_report_at=next_report_at, attempts=attempts))

    def settle_request(self, request_id: int) -> None:
        """A report was taken, or is given up; what it was of is forgotten, its transaction UID is not."""
        with self._writer.begin() as connection:
            connection.execute(_request.update().where(_request.c.id == request_id).values(settled=True, referenced=""))

    def _requests(self, *asked: Any) -> list[Request]:
        with self._reader.connect() as connection:
            rows = connection.execute(select(_request).where(*asked).order_by(_request.c.id)).all()
        return [
            Request(
                id=row.id,
                transaction_uid=row.transaction_uid,
                peer=row.peer,
                is_duplicate=row.is_duplicate,
                referenced=[Reference(*line.split(_SEPARATOR)) for line in row.referenced.splitlines()],
                requested_at=row.requested_at,
                attempts=row.attempts,
                is_settled=row.settled,
            )
            for row in rows
        ]
