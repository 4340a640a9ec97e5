"""Rows of the pipeline: what was decided of a series, and which objects are owed to which destination."""

import json
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, Literal, NamedTuple, get_args

from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    Select,
    String,
    Table,
    and_,
    case,
    exists,
    func,
    or_,
    select,
)
from sqlalchemy import Index as DatabaseIndex
from sqlalchemy.dialects.sqlite import insert

from segnode.errors import JobEnded, NotFound
from segnode.store.database import make_tables, reading

State = Literal["waiting", "assembling", "inferring", "encoding", "held", "delivering", "delivered", "failed", "cancelled"]
STATES: Final[tuple[State, ...]] = get_args(State)
ENDED: Final[tuple[State, ...]] = ("delivered", "failed", "cancelled")
DeliveryState = Literal["waiting", "confirming", "delivered", "failed", "cancelled"]
# Of these something is still to be done; of those the destination has the object, as it says.
OWED: Final[tuple[DeliveryState, ...]] = ("waiting", "confirming")
TAKEN: Final[tuple[DeliveryState, ...]] = ("confirming", "delivered")
# Of a job that forwards hundreds of objects.
_NAMED: Final = 20
_FOR_EVER: Final = 1e18
# What is longer than any back-off, and than a report is awaited.
LONGEST_WAIT_S: Final = 1000.0
_LONGEST_PROOF_S: Final = 90000.0

_metadata = MetaData()
_rule = Table(
    "rule",
    _metadata,
    Column("digest", String, primary_key=True),
    Column("document", String, nullable=False),
    Column("first_loaded_at", Float, nullable=False),
    Column("in_force_until", Float, nullable=False, server_default="0"),
)
_job = Table(
    "job",
    _metadata,
    Column("id", String, primary_key=True),
    Column("series_instance_uid", String, nullable=False, index=True),
    Column("content_digest", String, nullable=False),
    Column("rule_digest", String, nullable=False),
    Column("model", String, nullable=False),
    Column("model_version", String, nullable=False),
    Column("state", String, nullable=False, index=True),
    Column("attempt", Integer, nullable=False, default=0),
    Column("note", String, nullable=False, default=""),
    Column("error", String, nullable=False, default=""),
    Column("sop_instance_uid", String, nullable=False, default=""),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("stat", Boolean, nullable=False, server_default="0"),
    Column("begun", Integer, nullable=False, server_default="0"),
    Column("progress", Float),
    Column("progress_text", String, nullable=False, server_default=""),
)
_transition = Table(
    "transition",
    _metadata,
    Column("job_id", ForeignKey("job.id"), primary_key=True),
    Column("sequence", Integer, primary_key=True),
    Column("state", String, nullable=False),
    Column("at", Float, nullable=False),
)
_delivery = Table(
    "delivery",
    _metadata,
    Column("job_id", ForeignKey("job.id"), primary_key=True),
    Column("destination", String, primary_key=True),
    Column("sop_instance_uid", String, primary_key=True),
    Column("state", String, nullable=False),
    Column("form", String, nullable=False, default=""),
    Column("attempts", Integer, nullable=False, default=0),
    Column("next_attempt_at", Float, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("last_answer", String, nullable=False, default=""),
    Column("tried", String, nullable=False, server_default=""),
    Column("unanswered", String, nullable=False, server_default=""),
    Column("sent_sop_instance_uid", String, nullable=False, server_default=""),
    Column("segment_numbers", String, nullable=False, server_default=""),
    Column("stored_at", Float, nullable=False, server_default="0"),
    Column("stored_in", Integer, nullable=False, server_default="0"),
    Column("sent_again", Integer, nullable=False, server_default="0"),
)
# All that is asked of what is due, and counted, without a look at the rows.
DatabaseIndex("delivery_by_state", _delivery.c.state, _delivery.c.destination, _delivery.c.next_attempt_at, _delivery.c.job_id)
# Which job's result takes the place of which other's, where that is to be rejected.
_replacement = Table(
    "replacement",
    _metadata,
    Column("job_id", ForeignKey("job.id"), primary_key=True),
    Column("replaced_id", ForeignKey("job.id"), primary_key=True),
    Column("settled", Boolean, nullable=False, default=False),
)


@dataclass(frozen=True)
class Decision:
    """What is decided: this content of this series, by this rule, with this version of this model."""

    id: str
    series_instance_uid: str
    content_digest: str
    rule_digest: str
    model: str
    model_version: str


class FormerRule(NamedTuple):
    """The document of a rule that is no longer in force, and from when to when it was."""

    document: str
    first_loaded_at: float
    in_force_until: float


class Unmade(NamedTuple):
    """A job whose result does not exist yet, and the name and version of its model."""

    id: str
    attempt: int
    model: tuple[str, str]


@dataclass(frozen=True)
class Taken:
    """What a destination took: the object, its form, and where it is one of its own how the segments were renumbered."""

    form: str
    sop_instance_uid: str
    segment_numbers: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Delivery:
    """An object that is owed to a destination, or was, and how that went.

    `tried` are the forms that were sent so far; the destination has not said yet what became of the `unanswered` one. What
    it took is `sent_sop_instance_uid`, an object of its own where the form is of another type: `segment_numbers` maps the
    segment numbers of the result to those in it then. It is "confirming" from when the destination has said that it stored
    the object (`stored_at`, in the attempt `stored_in`) until that is proved; `sent_again` counts how often it was sent anew
    for lack of a proof.
    """

    job_id: str
    destination: str
    sop_instance_uid: str
    state: DeliveryState
    form: str
    attempts: int
    next_attempt_at: float
    created_at: float
    last_answer: str
    tried: tuple[str, ...]
    unanswered: str
    sent_sop_instance_uid: str
    segment_numbers: Mapping[int, int]
    stored_at: float
    stored_in: int
    sent_again: int

    @property
    def owed_since(self) -> float:
        """Since when it is to be taken, or to be proved."""
        return self.stored_at if self.state == "confirming" else self.created_at


@dataclass(frozen=True)
class Attempt:
    """Deliveries of a job to a destination that are attempted together: those that were due at a time."""

    job_id: str
    destination: str
    due_at: float


@dataclass(frozen=True)
class Job:
    """A decision as a person sees it: `attempt` counts its retries, `transitions` lists when it came into each state.

    Without a content it is of no images: it is there for the deliveries of a rejection note. Without a model it forwards
    the images themselves; `deliveries` are then those that a person would look at first, and `counts` counts them all, by
    destination and state. `begun` counts how often its result was begun to be made, since a person had it tried again.
    `progress` is how far its model was when it last said so, from 0 to 1, and in words of the model's.
    """

    id: str
    series_instance_uid: str
    content_digest: str
    rule_digest: str
    model: str
    model_version: str
    state: State
    attempt: int
    note: str
    error: str
    sop_instance_uid: str
    created_at: float
    updated_at: float
    priority: int
    stat: bool
    begun: int
    progress: float | None
    progress_text: str
    transitions: tuple[tuple[State, float], ...]
    deliveries: tuple[Delivery, ...]
    counts: Mapping[tuple[str, DeliveryState], int]

    @property
    def only_forwards(self) -> bool:
        """Whether it makes nothing, and sends on what came in."""
        return not self.model

    @property
    def has_ended(self) -> bool:
        """Whether nothing more is done for it, unless it is tried again."""
        return self.state in ENDED

    @property
    def is_released(self) -> bool:
        """Whether a person has let its result go that was held."""
        return ("held", "waiting") in pairwise(state for state, _ in self.transitions)


class Jobs:
    """The rows that say what the pipeline has decided and owes; they outlive whatever runs it."""

    def __init__(self, engine: Engine) -> None:
        self._writer = engine
        self._reader = reading(engine)
        make_tables(_metadata, engine)

    def load_rules(self, documents: Mapping[str, str], now: float) -> Mapping[str, float]:
        """When each rule was first loaded, by digest; now, for those that were not known.

        `documents` hold the rules by digest: a job that was decided is done by its rule, also when that is gone.
        """
        with self._writer.begin() as connection:
            for digest, document in documents.items():
                row = insert(_rule).values(digest=digest, document=document, first_loaded_at=now)
                as_it_is_now = {"document": row.excluded.document}
                connection.execute(row.on_conflict_do_update(index_elements=["digest"], set_=as_it_is_now))
            return {row.digest: row.first_loaded_at for row in connection.execute(select(_rule))}

    def put_in_force(self, digests: Collection[str], now: float) -> None:
        """These of the rules that were loaded are asked about what comes from now on, and no others."""
        mine, is_in_force = _rule.c.digest.in_(digests), _rule.c.in_force_until == _FOR_EVER
        with self._writer.begin() as connection:
            connection.execute(_rule.update().where(~mine, is_in_force).values(in_force_until=now))
            connection.execute(_rule.update().where(mine).values(in_force_until=_FOR_EVER))

    def former_rules(self, since: float) -> list[FormerRule]:
        """The rules that were in force at some time after then, and are not any more."""
        ended = and_(_rule.c.in_force_until > since, _rule.c.in_force_until < _FOR_EVER)
        query = select(_rule.c.document, _rule.c.first_loaded_at, _rule.c.in_force_until).where(ended).order_by(_rule.c.digest)
        with self._reader.connect() as connection:
            return [FormerRule(*row) for row in connection.execute(query)]

    def rule(self, digest: str) -> str:
        """The document of a rule that was loaded once."""
        with self._reader.connect() as connection:
            document: str = connection.execute(select(_rule.c.document).where(_rule.c.digest == digest)).scalar_one()
        return document

    def decide(self, decision: Decision, now: float, priority: int = 0, *, stat: bool = False) -> bool:
        """Commit a decision as a waiting job and return True; one that was made before stays as it is.

        What is `stat` is made before all others, then what has the greater `priority`.
        """
        row = {**vars(decision), "state": "waiting", "created_at": now, "updated_at": now, "priority": priority, "stat": stat}
        with self._writer.begin() as connection:
            added = insert(_job).values(row).on_conflict_do_nothing().returning(_job.c.id)
            if connection.execute(added).first() is None:
                return False
            _record(connection, decision.id, "waiting", now)
            return True

    def decide_forward(self, decision: Decision, owed: Iterable[tuple[str, str]], note: str, now: float) -> bool:
        """Commit a decision to forward as a job that owes these (SOP instance UID, destination), and return True.

        What a job of that rule has owed before, however that went, is not owed again; a decision that was made before stays
        as it is.
        """
        row = {**vars(decision), "state": "waiting", "note": note, "created_at": now, "updated_at": now}
        of_rule = and_(_job.c.series_instance_uid == decision.series_instance_uid, _job.c.rule_digest == decision.rule_digest)
        query = select(_delivery.c.sop_instance_uid, _delivery.c.destination).join(_job).where(of_rule)
        with self._writer.begin() as connection:
            added = insert(_job).values(row).on_conflict_do_nothing().returning(_job.c.id)
            if connection.execute(added).first() is None:
                return False
            _record(connection, decision.id, "waiting", now)
            before = {(uid, destination) for uid, destination in connection.execute(query)}
            for uid, destination in owed:
                if (uid, destination) not in before:
                    _owe(connection, decision.id, uid, [destination], now)
            _settle(connection, decision.id, now)
            return True

    def enter(self, job_id: str, state: State, now: float) -> None:
        """A job that goes on comes into a state. Raises JobEnded when it was cancelled."""
        with self._writer.begin() as connection:
            _require_going_on(connection, job_id)
            if state == "inferring":
                connection.execute(_job.update().where(_job.c.id == job_id).values(progress=None, progress_text=""))
            _move(connection, job_id, state, now)

    def begin(self, job_id: str) -> int:
        """The result of a job is begun to be made; how often it was begun before."""
        with self._writer.begin() as connection:
            mine = _job.c.id == job_id
            before: int = connection.execute(select(_job.c.begun).where(mine)).scalar_one()
            connection.execute(_job.update().where(mine).values(begun=before + 1))
        return before

    def break_off(self, job_ids: Iterable[str]) -> None:
        """The results of jobs that were begun are left where they are, for no fault of theirs: it does not count."""
        with self._writer.begin() as connection:
            begun = and_(_among(_job.c.id, job_ids), _job.c.begun > 0)
            connection.execute(_job.update().where(begun).values(begun=_job.c.begun - 1))

    def begin_again(self, job_id: str, reason: str, now: float) -> None:
        """The result of a job is made anew from its beginning, when those that are as urgent have had their turn."""
        with self._writer.begin() as connection:
            if _state(connection, job_id) not in ENDED:
                again = {"attempt": _job.c.attempt + 1, "note": reason}
                connection.execute(_job.update().where(_job.c.id == job_id).values(again))
                _move(connection, job_id, "waiting", now)

    def fail(self, job_id: str, error: str, now: float) -> None:
        """A job has failed for a reason that its person can read; one that was cancelled stays so."""
        with self._writer.begin() as connection:
            if _state(connection, job_id) != "cancelled":
                connection.execute(_job.update().where(_job.c.id == job_id).values(error=error))
                _move(connection, job_id, "failed", now)

    def progress(self, job_id: str, fraction: float, text: str) -> None:
        """How far the model of a job is, from 0 to 1, and in its own words; of one that is not with it nothing is kept."""
        values = {"progress": fraction, "progress_text": text}
        with self._writer.begin() as connection:
            connection.execute(_job.update().where(_job.c.id == job_id, _job.c.state == "inferring").values(values))

    def note(self, job_id: str, note: str) -> None:
        """Something a person should know of a job that goes on."""
        with self._writer.begin() as connection:
            connection.execute(_job.update().where(_job.c.id == job_id).values(note=note))

    def add_note(self, job_id: str, note: str) -> None:
        """Something more that a person should know of a job; once."""
        with self._writer.begin() as connection:
            noted = connection.execute(select(_job.c.note).where(_job.c.id == job_id)).scalar_one()
            if note not in noted.split("; "):
                joined = "; ".join(filter(None, (noted, note)))
                connection.execute(_job.update().where(_job.c.id == job_id).values(note=joined))

    def owe(self, job_id: str, sop_instance_uid: str, destinations: Iterable[str], now: float) -> None:
        """The result of a job exists and is owed to these destinations; to none means that the job is done.

        Raises JobEnded when it was cancelled.
        """
        with self._writer.begin() as connection:
            _require_going_on(connection, job_id)
            connection.execute(_job.update().where(_job.c.id == job_id).values(sop_instance_uid=sop_instance_uid))
            _owe(connection, job_id, sop_instance_uid, destinations, now)
            _settle(connection, job_id, now)

    def hold(self, job_id: str, reason: str, now: float) -> None:
        """The result of a job stays here until a person has looked at it. Raises JobEnded when it was cancelled."""
        with self._writer.begin() as connection:
            _require_going_on(connection, job_id)
            noted = connection.execute(select(_job.c.note).where(_job.c.id == job_id)).scalar_one()
            note = "; ".join(filter(None, (noted, reason)))
            connection.execute(_job.update().where(_job.c.id == job_id).values(note=note))
            _move(connection, job_id, "held", now)

    def release(self, job_id: str, now: float) -> None:
        """Have the result of a job that is held go its way as it is. Raises JobEnded when it is not held."""
        with self._writer.begin() as connection:
            state = _state(connection, job_id)
            if state != "held":
                raise JobEnded(f"job {job_id} is not held: it is {state}")
            connection.execute(_job.update().where(_job.c.id == job_id).values(attempt=_job.c.attempt + 1, begun=0))
            _move(connection, job_id, "waiting", now)

    def retry(self, job_id: str, now: float) -> None:
        """Have a failed or cancelled job done again: its result where there is none, else the deliveries that failed.

        Raises JobEnded when it has not failed.
        """
        with self._writer.begin() as connection:
            if _state(connection, job_id) not in ("failed", "cancelled"):
                raise JobEnded(f"job {job_id} has not failed: there is nothing to try again")
            undelivered = and_(_delivery.c.job_id == job_id, _delivery.c.state.in_(("failed", "cancelled")))
            # As owed anew: its attempts go on counting, so that each is a workflow of its own.
            owed = {"state": "waiting", "next_attempt_at": now, "created_at": now, "sent_again": 0}
            connection.execute(_delivery.update().where(undelivered).values(owed))
            again = {"attempt": _job.c.attempt + 1, "error": "", "begun": 0}
            connection.execute(_job.update().where(_job.c.id == job_id).values(again))
            if connection.execute(select(_delivery.c.job_id).where(_delivery.c.job_id == job_id).limit(1)).first():
                _move(connection, job_id, "delivering", now)
                _settle(connection, job_id, now)  # where all has reached its destination after all
            else:
                _move(connection, job_id, "waiting", now)

    def cancel(self, job_id: str, now: float, note: str = "") -> None:
        """Have a job that goes on end here: what is not delivered yet is not delivered. Raises JobEnded."""
        with self._writer.begin() as connection:
            _require_going_on(connection, job_id)
            if note:
                connection.execute(_job.update().where(_job.c.id == job_id).values(note=note))
            waiting = and_(_delivery.c.job_id == job_id, _delivery.c.state.in_(OWED))
            connection.execute(_delivery.update().where(waiting).values(state="cancelled"))
            _move(connection, job_id, "cancelled", now)

    def unsent(self, series: str) -> Mapping[str, str]:
        """Jobs of a series that go on and of whose result no destination has anything yet: the content of each by its id."""
        taken = exists().where(_delivery.c.job_id == _job.c.id, _delivery.c.state.in_(TAKEN))
        query = select(_job.c.id, _job.c.content_digest).where(_job.c.series_instance_uid == series)
        query = query.where(_job.c.content_digest != "", _job.c.model != "", _going_on(), ~taken)
        with self._reader.connect() as connection:
            return {row.id: row.content_digest for row in connection.execute(query)}

    def supersede(self, job_id: str, now: float) -> None:
        """Cancel a job of images that were not all; it is no error when it has ended meanwhile."""
        with suppress(JobEnded):
            self.cancel(job_id, now, "more images of the series came: another job is made of it when it is quiet again")

    def sending(self, delivery: Delivery, form: str) -> None:
        """A destination is about to be sent an object in a form: from now on it may have it, whatever is heard of it."""
        with self._writer.begin() as connection:
            mine = _mine(delivery)
            tried = connection.execute(select(_delivery.c.tried).where(mine)).scalar_one().split()
            values = {"tried": " ".join(dict.fromkeys((*tried, form))), "unanswered": form}
            connection.execute(_delivery.update().where(mine).values(values))

    def replace(self, job_id: str, replaced: Iterable[str]) -> None:
        """The result of a job takes the place of those of others, which are to be rejected."""
        with self._writer.begin() as connection:
            for replaced_id in replaced:
                row = insert(_replacement).values(job_id=job_id, replaced_id=replaced_id)
                connection.execute(row.on_conflict_do_nothing())

    def replacements(self) -> list[tuple[str, str]]:
        """Jobs that every destination has taken the result of, each with one that it replaces and that is not rejected yet."""
        query = select(_replacement.c.job_id, _replacement.c.replaced_id).join(_job, _job.c.id == _replacement.c.job_id)
        query = query.where(~_replacement.c.settled, _job.c.state == "delivered")
        with self._reader.connect() as connection:
            return [(row.job_id, row.replaced_id) for row in connection.execute(query)]

    def settle_replacement(self, job_id: str, replaced_id: str) -> None:
        """Nothing more is to be done about a result that was replaced."""
        with self._writer.begin() as connection:
            _settle_replacement(connection, job_id, replaced_id)

    def owe_note(
        self, note_id: str, job: Job, replaced: Job, sop_instance_uid: str, destinations: Iterable[str], now: float
    ) -> None:
        """Owe a rejection note of a replaced result, as a job of its own; one that is owed already stays as it is."""
        row = {
            "id": note_id,
            "series_instance_uid": replaced.series_instance_uid,
            "content_digest": "",
            "rule_digest": replaced.rule_digest,
            "model": replaced.model,
            "model_version": replaced.model_version,
            "state": "delivering",
            "note": f"rejection note for {replaced.sop_instance_uid}, which job {job.id} replaces",
            "sop_instance_uid": sop_instance_uid,
            "created_at": now,
            "updated_at": now,
        }
        with self._writer.begin() as connection:
            _settle_replacement(connection, job.id, replaced.id)
            added = insert(_job).values(row).on_conflict_do_nothing().returning(_job.c.id)
            if connection.execute(added).first() is not None:
                _record(connection, note_id, "delivering", now)
                _owe(connection, note_id, sop_instance_uid, destinations, now)

    def delivered(self, delivery: Delivery, taken: Taken, answer: str, now: float) -> None:
        """A destination has taken its object."""
        self._attempted(delivery, {"state": "delivered", "last_answer": answer, **_taken(taken)}, now)

    def stored(self, delivery: Delivery, taken: Taken, answer: str, now: float) -> None:
        """A destination has taken its object, as it says; that is to be proved, from now on."""
        values = {"stored_at": now, "stored_in": delivery.attempts, "next_attempt_at": now, **_taken(taken)}
        self._attempted(delivery, {"state": "confirming", "last_answer": answer, **values}, now)

    def awaited(self, delivery: Delivery, answer: str, look_at: float, now: float) -> None:
        """The proof of an object has not come yet; it is looked for then."""
        self._attempted(delivery, {"last_answer": answer, "next_attempt_at": look_at}, now)

    def proved(self, delivery: Delivery, answer: str, now: float) -> None:
        """A destination has its object, which is proved."""
        self._attempted(delivery, {"state": "delivered", "last_answer": answer}, now)

    def send_again(self, delivery: Delivery, answer: str, next_attempt_at: float, now: float) -> None:
        """A destination does not stand by what it stored: it is owed anew, what was sent first."""
        again = {
            "state": "waiting",
            "next_attempt_at": next_attempt_at,
            "sent_again": delivery.sent_again + 1,
            **_taken(Taken("", "")),
        }
        self._attempted(delivery, {**again, "last_answer": answer, "unanswered": delivery.form}, now)

    def unproved(self, delivery: Delivery, answer: str, now: float) -> None:
        """An object is not sent any more, and it is not proved that its destination has what was sent."""
        self._attempted(delivery, {"state": "failed", "last_answer": answer, "unanswered": delivery.form}, now)

    def deferred(self, delivery: Delivery, answer: str, next_attempt_at: float, now: float) -> None:
        """A destination could not take its object now; it is owed until then, and so is what else of its job waits for it."""
        with self._writer.begin() as connection:
            _put_off(connection, delivery, next_attempt_at)
            _record_attempt(connection, delivery, {"last_answer": answer, "next_attempt_at": next_attempt_at}, now)

    def put_off(self, delivery: Delivery, until: float) -> None:
        """What is owed of a job to a destination was not attempted, and is owed until then."""
        with self._writer.begin() as connection:
            _put_off(connection, delivery, until)

    def refused(self, delivery: Delivery, answer: str, now: float) -> None:
        """A destination will not take its object, as it says itself."""
        self._attempted(delivery, {"state": "failed", "last_answer": answer, "unanswered": ""}, now)

    def given_up(self, delivery: Delivery, reason: str, now: float) -> None:
        """An object is not sent any more, whatever its destination would say."""
        self._attempted(delivery, {"state": "failed", "last_answer": reason}, now)

    def hasten(self, destination: str, now: float) -> None:
        """A destination is up again: what waits for it waits no longer."""
        waiting = _delivery.update().where(_delivery.c.destination == destination, _delivery.c.state.in_(OWED))
        with self._writer.begin() as connection:
            connection.execute(waiting.where(_delivery.c.next_attempt_at > now).values(next_attempt_at=now))

    def await_reports_of(self, destinations: Collection[str], now: float) -> None:
        """These are asked to commit: what others have stored waits for no report, and is looked at now."""
        confirming = and_(_delivery.c.state == "confirming", _delivery.c.destination.not_in(destinations))
        with self._writer.begin() as connection:
            woken = _delivery.update().where(confirming, _delivery.c.next_attempt_at > now)
            connection.execute(woken.values(next_attempt_at=now))

    def owed(self, now: float) -> list[str]:
        """The destinations that have deliveries whose time has come."""
        query = select(_delivery.c.destination).where(_has_come(now)).distinct().order_by(_delivery.c.destination)
        with self._reader.connect() as connection:
            return list(connection.execute(query).scalars())

    def due(
        self, now: float, destination: str | None = None, limit: int | None = None, owed_before: float | None = None
    ) -> list[Delivery]:
        """Deliveries whose time has come, the longest due first: all, or of a destination, at most so many, only old ones."""
        asked = [_has_come(now)]
        if destination is not None:
            asked.append(_delivery.c.destination == destination)
        if owed_before is not None:
            since = case((_delivery.c.state == "confirming", _delivery.c.stored_at), else_=_delivery.c.created_at)
            asked.append(since < owed_before)
        return self._deliveries(and_(*asked), limit)

    def attempts(self, now: float, destination: str, limit: int | None = None) -> list[Attempt]:
        """Attempts at a destination whose time has come, the longest due first, at most so many."""
        due_at = func.min(_delivery.c.next_attempt_at)
        query = select(_delivery.c.job_id, due_at.label("due_at")).where(_has_come(now), _delivery.c.destination == destination)
        query = query.group_by(_delivery.c.job_id).order_by(due_at, _delivery.c.job_id).limit(limit)
        with self._reader.connect() as connection:
            return [Attempt(row.job_id, destination, row.due_at) for row in connection.execute(query)]

    def attempted(self, attempt: Attempt, now: float) -> list[Delivery]:
        """The deliveries of an attempt that are still to be made; what broke off most often comes last.

        What is to be proved was stored one after the other, and is proved together: all whose time has come by now, as long
        as one is left that the attempt is called by.
        """
        mine = and_(_delivery.c.job_id == attempt.job_id, _delivery.c.destination == attempt.destination)
        with_it = and_(_delivery.c.state == "confirming", _is_due(now))
        found = self._deliveries(and_(mine, or_(_is_due(attempt.due_at), with_it)))
        if not any(delivery.next_attempt_at <= attempt.due_at for delivery in found):
            return []
        return sorted(found, key=lambda delivery: delivery.attempts)

    def delivery(self, job_id: str, destination: str) -> Delivery:
        """The delivery of a job's result to a destination."""
        return self._deliveries(and_(_delivery.c.job_id == job_id, _delivery.c.destination == destination))[0]

    def is_as_read(self, delivery: Delivery) -> bool:
        """Whether a delivery is owed as it was when it was read: not cancelled meanwhile, nor owed anew since."""
        same = and_(_delivery.c.state == delivery.state, _delivery.c.next_attempt_at == delivery.next_attempt_at)
        with self._reader.connect() as connection:
            return connection.execute(select(exists().where(_mine(delivery), same))).scalar_one()

    def waiting(self) -> list[Unmade]:
        """The jobs whose result does not exist yet, the most urgent first; of these what was begun least, then the oldest."""
        unfinished = _job.c.state.in_(("waiting", "assembling", "inferring", "encoding"))
        query = select(_job.c.id, _job.c.attempt, _job.c.model, _job.c.model_version).where(unfinished)
        query = query.order_by(_job.c.stat.desc(), _job.c.priority.desc(), _job.c.begun, _job.c.created_at, _job.c.id)
        with self._reader.connect() as connection:
            return [Unmade(row.id, row.attempt, (row.model, row.model_version)) for row in connection.execute(query)]

    def job(self, job_id: str) -> Job:
        """The job of that id."""
        return self._jobs(_job.c.id == job_id)[0]

    def state(self, job_id: str) -> State | None:
        """The state of the job of that id; None when there is none."""
        with self._reader.connect() as connection:
            return connection.execute(select(_job.c.state).where(_job.c.id == job_id)).scalar()

    def beginning(self, prefix: str) -> Job:
        """The one job whose id begins like that. Raises NotFound when there is none, or more than one."""
        found = self._jobs(_job.c.id.startswith(prefix, autoescape=True))
        if len(found) != 1:
            raise NotFound(f"{len(found)} jobs have an id that begins with {prefix!r}: `segnode jobs` lists them")
        return found[0]

    def all(self, state: State | None = None) -> list[Job]:
        """All jobs, or those in a state, oldest first."""
        return self._jobs(_job.c.state == state if state else True)

    def of_series(self, series: str) -> list[Job]:
        """The jobs of a series, oldest first."""
        return self._jobs(_job.c.series_instance_uid == series)

    def decided_at(self, sop_instance_uid: str) -> float | None:
        """When it was first decided that an object is to be sent somewhere, or made; None where that never was."""
        owed = select(_delivery.c.job_id).where(_delivery.c.sop_instance_uid == sop_instance_uid)
        query = select(func.min(_job.c.created_at)).where(or_(_job.c.sop_instance_uid == sop_instance_uid, _job.c.id.in_(owed)))
        with self._reader.connect() as connection:
            return connection.execute(query).scalar()

    def needing(self, series: Iterable[str], sop_instance_uids: Iterable[str]) -> str | None:
        """A job that goes on and is of images of some series, or that owes one of some objects; None when there is none."""
        of_images = _among(_job.c.series_instance_uid, series), _job.c.content_digest != "", _going_on()
        owed = _delivery.c.state.in_(OWED), _among(_delivery.c.sop_instance_uid, sop_instance_uids)
        found = select(_job.c.id).where(*of_images).union_all(select(_delivery.c.job_id).where(*owed)).limit(1)
        with self._reader.connect() as connection:
            return connection.execute(found).scalar()

    def delivered_before(self, then: float) -> list[str]:
        """SOP instance UIDs of the objects that had reached every destination by then."""
        owed = exists().where(_delivery.c.job_id == _job.c.id)
        query = select(_job.c.sop_instance_uid).where(_job.c.state == "delivered", _job.c.updated_at < then, owed)
        with self._reader.connect() as connection:
            return list(connection.execute(query).scalars())

    def count(self) -> Mapping[State, int]:
        """How many jobs are in each state."""
        query = select(_job.c.state, func.count()).group_by(_job.c.state)
        with self._reader.connect() as connection:
            found = {row[0]: row[1] for row in connection.execute(query)}
        return {state: found.get(state, 0) for state in STATES}

    def count_deliveries(self) -> Mapping[tuple[str, DeliveryState], int]:
        """How many deliveries are in each state, by destination."""
        query = select(_delivery.c.destination, _delivery.c.state, func.count())
        query = query.group_by(_delivery.c.destination, _delivery.c.state)
        with self._reader.connect() as connection:
            return {(destination, state): count for destination, state, count in connection.execute(query)}

    def newest(self, state: State | None, limit: int, offset: int) -> list[Job]:
        """Jobs, or those in a state, newest first: after the first `offset`, at most `limit`."""
        query = select(_job).where(_job.c.state == state) if state else select(_job)
        return self._read(query.order_by(_job.c.created_at.desc(), _job.c.id.desc()).limit(limit).offset(offset))

    def _attempted(self, delivery: Delivery, values: Mapping[str, Any], now: float) -> None:
        with self._writer.begin() as connection:
            _record_attempt(connection, delivery, values, now)

    def _deliveries(self, asked: Any, limit: int | None = None) -> list[Delivery]:
        with self._reader.connect() as connection:
            return _read_deliveries(connection, asked, limit)

    def _jobs(self, asked: Any) -> list[Job]:
        return self._read(select(_job).where(asked).order_by(_job.c.created_at, _job.c.id))

    def _read(self, query: Select[Any]) -> list[Job]:
        with self._reader.connect() as connection:
            rows = connection.execute(query).mappings().all()
            return [_read_job(connection, dict(row)) for row in rows]


def _read_job(connection: Connection, row: dict[str, Any]) -> Job:
    in_order = select(_transition.c.state, _transition.c.at).where(_transition.c.job_id == row["id"])
    transitions = connection.execute(in_order.order_by(_transition.c.sequence)).all()
    mine = _delivery.c.job_id == row["id"]
    by_state = select(_delivery.c.destination, _delivery.c.state, func.count()).where(mine)
    by_state = by_state.group_by(_delivery.c.destination, _delivery.c.state)
    counts = {(found[0], found[1]): found[2] for found in connection.execute(by_state)}
    if row["model"]:
        deliveries = _read_deliveries(connection, mine)
    else:
        as_it_was = _delivery.c.sent_sop_instance_uid == _delivery.c.sop_instance_uid
        trouble = and_(mine, ~and_(_delivery.c.state == "delivered", as_it_was))
        failed_first = (_delivery.c.state != "failed", _delivery.c.attempts.desc())
        deliveries = _read_deliveries(connection, trouble, _NAMED, *failed_first)
    entered = tuple((t.state, t.at) for t in transitions)
    return Job(**row, transitions=entered, deliveries=tuple(deliveries), counts=counts)


def _read_deliveries(
    connection: Connection, asked: Any, limit: int | None = None, *first: ColumnElement[Any]
) -> list[Delivery]:
    in_order = (*first, _delivery.c.next_attempt_at, *_delivery.primary_key.columns)
    query = select(_delivery).where(asked).order_by(*in_order).limit(limit)
    return [_as_delivery(dict(row)) for row in connection.execute(query).mappings()]


def _among(column: Column[str], values: Iterable[str]) -> ColumnElement[bool]:
    """Whether it is one of these, in one variable, however many they are: SQLite has only so many."""
    return column.in_(select(func.json_each(json.dumps(list(values))).table_valued("value").c.value))


def _as_delivery(row: dict[str, Any]) -> Delivery:
    pairs = (pair.split(":") for pair in row.pop("segment_numbers").split())
    return Delivery(**{**row, "tried": tuple(row["tried"].split())}, segment_numbers={int(n): int(new) for n, new in pairs})


def _mine(delivery: Delivery) -> ColumnElement[bool]:
    return and_(
        _delivery.c.job_id == delivery.job_id,
        _delivery.c.destination == delivery.destination,
        _delivery.c.sop_instance_uid == delivery.sop_instance_uid,
    )


def _put_off(connection: Connection, delivery: Delivery, until: float) -> None:
    """What is owed of the same job waits as well; what is to be proved, where it would be looked at sooner."""
    mine = and_(_delivery.c.job_id == delivery.job_id, _delivery.c.destination == delivery.destination)
    sooner = and_(_delivery.c.state == "confirming", _delivery.c.next_attempt_at < until)
    mine = and_(mine, or_(_delivery.c.state == "waiting", sooner))
    connection.execute(_delivery.update().where(mine).values(next_attempt_at=until))


def _record_attempt(connection: Connection, delivery: Delivery, values: Mapping[str, Any], now: float) -> None:
    """What came of an attempt; nothing is owed any more of a job that a person has cancelled meanwhile."""
    if values.get("state") in OWED and _state(connection, delivery.job_id) == "cancelled":
        values = {**values, "state": "cancelled"}
    connection.execute(_delivery.update().where(_mine(delivery)).values(attempts=delivery.attempts + 1, **values))
    _settle(connection, delivery.job_id, now)


def _is_due(now: float) -> ColumnElement[bool]:
    return and_(_delivery.c.state.in_(OWED), _delivery.c.next_attempt_at <= now)


def _has_come(now: float) -> ColumnElement[bool]:
    """Whether its time has come; also where nothing waits so long: then the clock has been set back since."""
    # Each of them is found by the index.
    limits = ("waiting", LONGEST_WAIT_S), ("confirming", _LONGEST_PROOF_S)
    ahead = [and_(_delivery.c.state == state, _delivery.c.next_attempt_at > now + limit) for state, limit in limits]
    return or_(_is_due(now), *ahead)


def _taken(taken: Taken) -> dict[str, str]:
    return {
        "form": taken.form,
        "unanswered": "",
        "sent_sop_instance_uid": taken.sop_instance_uid,
        "segment_numbers": " ".join(f"{number}:{new}" for number, new in taken.segment_numbers.items()),
    }


def _owe(connection: Connection, job_id: str, sop_instance_uid: str, destinations: Iterable[str], now: float) -> None:
    for destination in destinations:
        row = {
            "job_id": job_id,
            "destination": destination,
            "sop_instance_uid": sop_instance_uid,
            "state": "waiting",
            "next_attempt_at": now,
            "created_at": now,
        }
        connection.execute(insert(_delivery).values(row).on_conflict_do_nothing())


def _settle_replacement(connection: Connection, job_id: str, replaced_id: str) -> None:
    mine = and_(_replacement.c.job_id == job_id, _replacement.c.replaced_id == replaced_id)
    connection.execute(_replacement.update().where(mine).values(settled=True))


def _state(connection: Connection, job_id: str) -> State:
    state: State = connection.execute(select(_job.c.state).where(_job.c.id == job_id)).scalar_one()
    return state


def _going_on() -> ColumnElement[bool]:
    return _job.c.state.not_in(ENDED)


def _require_going_on(connection: Connection, job_id: str) -> None:
    state = _state(connection, job_id)
    if state in ENDED:
        raise JobEnded(f"job {job_id} has ended: it is {state}")


def _move(connection: Connection, job_id: str, state: State, now: float) -> None:
    connection.execute(_job.update().where(_job.c.id == job_id).values(state=state, updated_at=now))
    _record(connection, job_id, state, now)


def _settle(connection: Connection, job_id: str, now: float) -> None:
    """A job is delivering while something is owed; then delivered, or failed with what its destinations answered.

    What a cancelled job had sent already is known of its delivery only.
    """
    before = _state(connection, job_id)
    if before == "cancelled":
        return
    mine = _delivery.c.job_id == job_id
    failures = _failures(connection, job_id)
    state: State = "delivered"
    if connection.execute(select(_delivery.c.job_id).where(mine, _delivery.c.state.in_(OWED)).limit(1)).first():
        state = "delivering"
    elif failures:
        state = "failed"
    values = {"state": state, "error": "; ".join(failures), "updated_at": now}
    connection.execute(_job.update().where(_job.c.id == job_id).values(values))
    if state != before:
        _record(connection, job_id, state, now)


def _failures(connection: Connection, job_id: str) -> list[str]:
    """What destinations have refused of a job, and why; what has the same reason is one."""
    columns = (_delivery.c.destination, _delivery.c.last_answer)
    number, first = func.count().label("number"), func.min(_delivery.c.sop_instance_uid).label("first")
    query = select(*columns, number, first).where(_delivery.c.job_id == job_id, _delivery.c.state == "failed")
    rows = connection.execute(query.group_by(*columns).order_by(first, _delivery.c.destination).limit(_NAMED)).all()
    return [
        f"{row.destination}: {row.last_answer}" + (f" ({row.number} objects, {row.first} among them)" if row.number > 1 else "")
        for row in rows
    ]


def _record(connection: Connection, job_id: str, state: State, now: float) -> None:
    sequence = select(func.count()).select_from(_transition).where(_transition.c.job_id == job_id)
    number = connection.execute(sequence).scalar_one()
    connection.execute(_transition.insert().values(job_id=job_id, sequence=number, state=state, at=now))
