"""Workflows: the engine (DBOS) that runs what the rows ask for, and takes it up again after a crash.

Two workflows, each named by the row it follows from, so that a repeat is the same workflow: making the SEG of a job
(infer, then encode), and one attempt at a delivery. Neither waits: what is to happen later is a row with a due time.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from typing import Final, ParamSpec, TypeVar

import structlog
from dbos import DBOS, DBOSConfig, SetWorkflowID
from structlog.contextvars import bound_contextvars

from segnode.errors import JobEnded, OutOfResources, SegnodeError
from segnode.pipeline.assemble import Superseded
from segnode.pipeline.deliver import Deliverer
from segnode.pipeline.encode import Encoder
from segnode.pipeline.forwarder import Forwarder
from segnode.pipeline.infer import Inferrer
from segnode.pipeline.rules import Rule, forward_rule_of, rule_of
from segnode.store.jobs import Attempt, Delivery, Job, Jobs
from segnode.store.measures import Meter

_log = structlog.get_logger()

# Raise it when the steps of a workflow change: work of the old version is then started anew from its rows.
WORKFLOW_VERSION: Final = "3"

# One is made at a time; the next is at hand when it ends.
_MADE_AT_ONCE: Final = 2
# How many a destination may have at once is seen to where they are chosen: here none is to wait for another's.
_DELIVERED_AT_ONCE: Final = 64
_REPEAT_S: Final = 5.0
_ATTEMPTS: Final = 1_000_000
_PURGE_AT_ONCE: Final = 500
_LOOK_S: Final = 5.0
_ENDED: Final = ["SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Stages:
    """What the workflows call; each call is repeatable and leaves its outcome in the rows."""

    inferrer: Inferrer
    encoder: Encoder
    deliverer: Deliverer
    forwarder: Forwarder
    jobs: Jobs
    meter: Meter
    clock: Callable[[], float]

    def infer(self, job_id: str) -> bool:
        """Make the labelmap of a job; False when the job has ended with that. Raises OutOfResources."""
        return self._stage("infer", job_id, self.inferrer.infer)

    def encode(self, job_id: str) -> bool:
        """Make the SEG of a job; False when the job has ended with that. Raises OutOfResources."""
        return self._stage("encode", job_id, self.encoder.encode)

    def deliver(self, attempt: Attempt) -> None:
        """Make the deliveries of an attempt that it has not made yet. Raises OutOfResources."""
        with bound_contextvars(job=attempt.job_id, destination=attempt.destination):
            while deliveries := self.jobs.attempted(attempt):
                try:
                    self._attempt(deliveries)
                except OutOfResources:
                    raise
                except Exception as error:  # noqa: BLE001  the worker's border: an unforeseen error ends this delivery, not the worker
                    _log.exception("delivery broke")
                    for broken in self.jobs.attempted(attempt)[:1]:
                        self.jobs.given_up(broken, _unforeseen(error), self.clock())
                else:
                    return

    def _attempt(self, deliveries: Sequence[Delivery]) -> None:
        stored = [delivery for delivery in deliveries if delivery.state == "confirming"]
        if not all(self.deliverer.confirm(delivery) for delivery in stored) or len(stored) == len(deliveries):
            return
        job = self.jobs.job(deliveries[0].job_id)
        owed = [delivery for delivery in deliveries if delivery.state == "waiting"]
        if job.only_forwards:
            self.forwarder.attempt(owed, forward_rule_of(self.jobs.rule(job.rule_digest)))
        else:
            self.deliverer.attempt(owed[0])

    def _stage(self, name: str, job_id: str, run: Callable[[Job, Rule], None]) -> bool:
        job = self.jobs.job(job_id)
        with bound_contextvars(job=job_id, series_instance_uid=job.series_instance_uid):
            return self._run_stage(name, job, run)

    def _run_stage(self, name: str, job: Job, run: Callable[[Job, Rule], None]) -> bool:
        job_id, began = job.id, time.monotonic()
        try:
            run(job, rule_of(self.jobs.rule(job.rule_digest)))
        except Superseded as reason:
            self.jobs.note(job_id, str(reason))
            self.jobs.cancel(job_id, self.clock())
        except OutOfResources:
            raise
        except JobEnded as reason:
            _log.info("job is left", reason=str(reason))
        except SegnodeError as error:
            self.jobs.fail(job_id, str(error), self.clock())
        except Exception as error:  # noqa: BLE001  the worker's border: an unforeseen error ends this job, not the worker
            _log.exception("job broke")
            self.jobs.fail(job_id, _unforeseen(error), self.clock())
        else:
            self.meter.stage(name, time.monotonic() - began)
            _log.info("stage done", stage=name)
            return True
        self.inferrer.labelmaps.delete(job_id)
        return False


def _unforeseen(error: Exception) -> str:
    return f"unforeseen {type(error).__name__}; the log has the details"


class Workflows:
    """The engine, running: one per worker process, under an executor id that no other process uses.

    What begins after `stages` is set anew runs on the new ones. `ended` is called, in any thread, when a workflow ends: then
    rows may ask for another.
    """

    def __init__(self, stages: Stages, database_url: str, executor_id: str, ended: Callable[[], None]) -> None:
        self.stages = stages
        self._ended = ended
        self._one_at_a_time = threading.Lock()
        DBOS(config=_engine_config(database_url, executor_id))

        @_step("infer")
        def infer(job_id: str) -> bool:
            return self.stages.infer(job_id)

        @_step("encode")
        def encode(job_id: str) -> bool:
            return self.stages.encode(job_id)

        @_step("attempt")
        def attempt(job_id: str, destination: str, due_at: float) -> None:
            self.stages.deliver(Attempt(job_id, destination, due_at))

        @DBOS.workflow(name="make")
        def make(job_id: str) -> None:
            # One model at a time: two at once would want the memory of two.
            with self._at_work(), self._one_at_a_time:
                if infer(job_id):
                    encode(job_id)

        @DBOS.workflow(name="deliver")
        def deliver(job_id: str, destination: str, due_at: float) -> None:
            with self._at_work():
                attempt(job_id, destination, due_at)

        self._make, self._deliver = make, deliver
        self._begun: set[str] = set()
        self._working: set[str] = set()
        self._idle: frozenset[str] = frozenset()
        self._look_at = time.monotonic() + _LOOK_S
        DBOS.launch()

    def run(self, unfinished: Iterable[tuple[str, int]], attempts: Iterable[Attempt]) -> None:
        """Have the SEGs of these jobs made and these attempts at deliveries, as far as there is room now.

        What was asked for before is the same workflow; what there is no room for is to be asked for again. The rows are the
        queue: one of the engine's own would be looked into every half second, and hold what a person has cancelled.
        """
        make = {_workflow_id("make", job_id, number): (job_id,) for job_id, number in unfinished}
        deliver = {_workflow_id("deliver", *key): key for key in map(astuple, attempts)}
        self._begun &= make.keys() | deliver.keys()
        for workflow_id in self._not_begun(make, _MADE_AT_ONCE):
            with SetWorkflowID(workflow_id):
                DBOS.start_workflow(self._make, *make[workflow_id])
            self._begun.add(workflow_id)
        for workflow_id in self._not_begun(deliver, _DELIVERED_AT_ONCE):
            with SetWorkflowID(workflow_id):
                DBOS.start_workflow(self._deliver, *deliver[workflow_id])
            self._begun.add(workflow_id)
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_S
            self._forget_lost()

    def _not_begun(self, asked: Collection[str], at_once: int) -> list[str]:
        """The first of what is asked for and has not begun, as many as there is room for."""
        left = [workflow_id for workflow_id in asked if workflow_id not in self._begun]
        return left[: max(0, at_once - len(asked) + len(left))]

    def _forget_lost(self) -> None:
        """Forget workflows whose rows still ask for them and that nobody works on: they are begun anew.

        A full disk may take away the engine's record of what it does at any point: a workflow has then ended, or is said
        to go on and does not. Seen twice in a row it is lost, and not only about to begin or to be recorded.
        """
        going_on = ["PENDING", *_ENDED]
        begun = sorted(self._begun)
        found = DBOS.list_workflows(workflow_ids=begun, status=going_on, load_input=False, load_output=False) if begun else []
        idle = frozenset(workflow.workflow_id for workflow in found) - self._working
        if lost := sorted(idle & self._idle):
            _log.warning("workflows are lost, and begun anew", workflows=lost)
            DBOS.delete_workflows(lost)
            self._begun -= set(lost)
        self._idle = idle - set(lost)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Work on the workflow of this thread."""
        workflow_id = DBOS.workflow_id or ""
        self._working.add(workflow_id)
        try:
            yield
        finally:
            self._working.discard(workflow_id)
            self._ended()

    @property
    def is_working(self) -> bool:
        """Whether a workflow is at work in this process."""
        return bool(self._working)

    def purge(self, ended_before: float) -> None:
        """Delete the engine's records of workflows that ended before then; what is owed is in our rows."""
        before = datetime.fromtimestamp(ended_before, UTC).isoformat()
        while ended := DBOS.list_workflows(
            status=_ENDED, completed_before=before, limit=_PURGE_AT_ONCE, load_input=False, load_output=False
        ):
            DBOS.delete_workflows([workflow.workflow_id for workflow in ended])


def _step(name: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """A step that raises only when there is no room for its result or its rows (a full disk).

    Nothing else can go on then either, so it is repeated in its place every few seconds until there is room.
    """
    return DBOS.step(name=name, retries_allowed=True, max_attempts=_ATTEMPTS, interval_seconds=_REPEAT_S, backoff_rate=1.0)


def _workflow_id(*parts: str | float) -> str:
    return ":".join(map(str, (*parts, WORKFLOW_VERSION)))


def _engine_config(database_url: str, executor_id: str) -> DBOSConfig:
    return DBOSConfig(
        name="segnode",
        system_database_url=database_url,
        application_version=WORKFLOW_VERSION,
        executor_id=executor_id,
        log_level="WARNING",
    )
