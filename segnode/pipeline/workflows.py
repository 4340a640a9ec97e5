"""Workflows: the engine (DBOS) that runs what the rows ask for, and takes it up again after a crash.

Two workflows, each named by the row it follows from, so that a repeat is the same workflow: making the SEG of a job
(infer, then encode), and one attempt at a delivery. Neither waits: what is to happen later is a row with a due time.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Final, ParamSpec, TypeVar

import structlog
from dbos import DBOS, DBOSConfig, SetWorkflowID
from structlog.contextvars import bound_contextvars

from segnode.errors import JobEnded, ModelCrashed, OutOfResources, SegnodeError
from segnode.pipeline.assemble import Superseded
from segnode.pipeline.deliver import Broken, Deliverer, breaking
from segnode.pipeline.encode import Encoder
from segnode.pipeline.forwarder import Forwarder
from segnode.pipeline.infer import Inferrer
from segnode.pipeline.rules import Rule, forward_rule_of, rule_of
from segnode.pipeline.slots import Slots
from segnode.store.jobs import Attempt, Delivery, Job, Jobs, Unmade
from segnode.store.measures import Meter

_log = structlog.get_logger()

# Raise it when the steps of a workflow change: work of the old version is then started anew from its rows.
WORKFLOW_VERSION: Final = "5"

# How often a job may be begun that does not come through, because its model or this process crashes.
_MOST_CRASHES: Final = 3
# How many a destination may have at once is seen to where they are chosen.
_DELIVERED_AT_ONCE: Final = 64
_REPEAT_S: Final = 5.0
_ATTEMPTS: Final = 1_000_000
_PURGE_AT_ONCE: Final = 500
_LOOK_S: Final = 5.0
_SET_ASIDE: Final = "it is set aside; `segnode jobs retry` starts it anew"
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

    def begin(self, job_id: str) -> bool:
        """Begin to make the result of a job; False when it is set aside, because it crashed whatever it was begun by."""
        try:
            before = self.jobs.begin(job_id)
        except OutOfResources:  # then its first step waits until there is room
            return True
        if before < _MOST_CRASHES:
            return True
        aside = f"it was begun {before} times, and each time the node or its model crashed: {_SET_ASIDE}"
        self.jobs.fail(job_id, aside, self.clock())
        self.inferrer.labelmaps.delete(job_id)
        return False

    def infer(self, job_id: str, number: int) -> bool:
        """Make the labelmap of a job by that process of its model; False when the job has ended with that.

        Raises OutOfResources.
        """
        return self._stage("infer", job_id, partial(self.inferrer.infer, number=number))

    def encode(self, job_id: str) -> bool:
        """Make the SEG of a job; False when the job has ended with that. Raises OutOfResources."""
        return self._stage("encode", job_id, self.encoder.encode)

    def clear(self, job_id: str) -> None:
        """Delete what the SEG of a job was made of."""
        self.inferrer.labelmaps.delete_labels(job_id)

    def deliver(self, attempt: Attempt) -> None:
        """Make the deliveries of an attempt that it has not made yet. Raises OutOfResources."""
        with bound_contextvars(job=attempt.job_id, destination=attempt.destination):
            while deliveries := self.jobs.attempted(attempt, self.clock()):
                try:
                    self._attempt(deliveries)
                except OutOfResources:
                    raise
                except Broken as broken:
                    _log.exception("delivery broke")
                    self.jobs.given_up(broken.delivery, _unforeseen(broken.__cause__), self.clock())
                except Exception as error:  # noqa: BLE001  the worker's border: an unforeseen error ends this attempt, not the worker
                    _log.exception("attempt broke")
                    for delivery in self.jobs.attempted(attempt, self.clock()):
                        self.jobs.given_up(delivery, _unforeseen(error), self.clock())
                else:
                    return

    def _attempt(self, deliveries: Sequence[Delivery]) -> None:
        stored = [delivery for delivery in deliveries if delivery.state == "confirming"]
        owed = [delivery for delivery in deliveries if delivery.state == "waiting"]
        if not self.deliverer.confirm(stored) or not owed:
            return
        job = self.jobs.job(owed[0].job_id)
        if job.only_forwards:
            self.forwarder.attempt(owed, forward_rule_of(self.jobs.rule(job.rule_digest)))
        else:
            with breaking(owed[0]):
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
        except ModelCrashed as crash:
            self._crashed(job_id, str(crash))
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

    def _crashed(self, job_id: str, how: str) -> None:
        begun = self.jobs.job(job_id).begun
        if begun < _MOST_CRASHES:
            self.jobs.begin_again(job_id, f"{how}: it is begun again", self.clock())
        else:
            self.jobs.fail(job_id, f"{how}; the job was begun {begun} times: {_SET_ASIDE}", self.clock())


def _unforeseen(error: BaseException | None) -> str:
    return f"unforeseen {type(error).__name__}; the log has the details"


class Workflows:
    """The engine, running: one per worker process, under an executor id that no other process uses.

    What begins after `stages` is set anew runs on the new ones; each job that is made has one of `slots`.
    `ended` is called, in any thread, when a workflow ends: then rows may ask for another.
    """

    def __init__(self, stages: Stages, slots: Slots, database_url: str, executor_id: str, ended: Callable[[], None]) -> None:
        self.stages = stages
        self._slots = slots
        self._ended = ended
        DBOS(config=_engine_config(database_url, executor_id))

        @_step("infer")
        def infer(job_id: str, number: int) -> bool:
            return self.stages.infer(job_id, number)

        @_step("encode")
        def encode(job_id: str) -> bool:
            return self.stages.encode(job_id)

        @_step("attempt")
        def attempt(job_id: str, destination: str, due_at: float) -> None:
            self.stages.deliver(Attempt(job_id, destination, due_at))

        @DBOS.workflow(name="make")
        def make(job_id: str) -> None:
            job = self.stages.jobs.job(job_id)
            # It waits for its slot only where an earlier process had begun it: else it has one.
            model = job.model, job.model_version
            with self._at_work(job_id), self._slots.taken(DBOS.workflow_id or "", model) as slot:
                if self.stages.begin(job_id) and infer(job_id, slot.number) and encode(job_id):
                    self._ended()  # what is owed now does not wait until files of hundreds of megabytes are gone
                    self.stages.clear(job_id)

        @DBOS.workflow(name="deliver")
        def deliver(job_id: str, destination: str, due_at: float) -> None:
            with self._at_work():
                attempt(job_id, destination, due_at)

        self._make, self._deliver = make, deliver
        self._begun: set[str] = set()
        # What is at work, and the job that it makes the result of.
        self._working: dict[str, str] = {}
        self._idle: frozenset[str] = frozenset()
        self._look_at = time.monotonic() + _LOOK_S
        DBOS.launch()

    def run(self, unmade: Iterable[Unmade], attempts: Iterable[Attempt]) -> None:
        """Have the SEGs of these jobs made and these attempts at deliveries, as far as there is room now.

        What was asked for before is the same workflow; what there is no room for is to be asked for again. The rows are the
        queue: one of the engine's own would be looked into every half second, and hold what a person has cancelled.
        """
        make = {_workflow_id("make", job.id, job.attempt): job for job in unmade}
        deliver = {_workflow_id("deliver", *key): key for key in map(astuple, attempts)}
        self._begun &= make.keys() | deliver.keys()
        self._slots.keep({*make, *list(self._working)})
        for workflow_id, job in make.items():
            if workflow_id not in self._begun and self._slots.take(workflow_id, job.model):
                with SetWorkflowID(workflow_id):
                    DBOS.start_workflow(self._make, job.id)
                self._begun.add(workflow_id)
        for workflow_id in self._not_begun(deliver):
            with SetWorkflowID(workflow_id):
                DBOS.start_workflow(self._deliver, *deliver[workflow_id])
            self._begun.add(workflow_id)
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_S
            self._forget_lost()

    def _not_begun(self, asked: Mapping[str, tuple[str, str, float]]) -> list[str]:
        """The first of what is asked for and has not begun, as many as there is room for; for one of each destination there is.

        So that none waits for those of others that hang.
        """
        left = [workflow_id for workflow_id in asked if workflow_id not in self._begun]
        room = max(0, _DELIVERED_AT_ONCE - len(asked) + len(left))
        chosen = left[:room]
        at_work = {asked[workflow_id][1] for workflow_id in asked.keys() - left} | {asked[each][1] for each in chosen}
        for workflow_id in left[room:]:
            if asked[workflow_id][1] not in at_work:
                at_work.add(asked[workflow_id][1])
                chosen.append(workflow_id)
        return chosen

    def _forget_lost(self) -> None:
        """Forget workflows whose rows still ask for them and that nobody works on: they are begun anew.

        A full disk may take away the engine's record of what it does at any point: a workflow has then ended, or is said
        to go on and does not. Seen twice in a row it is lost, and not only about to begin or to be recorded.
        """
        going_on = ["PENDING", *_ENDED]
        begun = sorted(self._begun)
        found = DBOS.list_workflows(workflow_ids=begun, status=going_on, load_input=False, load_output=False) if begun else []
        idle = frozenset(workflow.workflow_id for workflow in found) - self._working.keys()
        if lost := sorted(idle & self._idle):
            _log.warning("workflows are lost, and begun anew", workflows=lost)
            DBOS.delete_workflows(lost)
            self._begun -= set(lost)
        self._idle = idle - set(lost)

    @contextmanager
    def _at_work(self, job_id: str = "") -> Iterator[None]:
        """Work on the workflow of this thread, which makes the result of a job, or delivers."""
        workflow_id = DBOS.workflow_id or ""
        self._working[workflow_id] = job_id
        try:
            yield
        finally:
            self._working.pop(workflow_id, None)
            self._ended()

    @property
    def making(self) -> frozenset[str]:
        """The jobs whose result is being made in this process."""
        return frozenset(filter(None, list(self._working.values())))

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
