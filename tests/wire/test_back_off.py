"""A night with archives that are down: the engine, real connections that are refused, and a clock in the hand."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from dbos import DBOS

from segnode.config import FormName
from segnode.dicomweb.client import StowDestination
from segnode.pipeline.assemble import Assembler
from segnode.pipeline.deliver import Deliverer
from segnode.pipeline.infer import Inferrer, Labelmaps
from segnode.pipeline.workflows import Stages, Workflows
from segnode.store.database import open_database, workflow_database
from segnode.store.index import Index
from segnode.store.jobs import Decision, Delivery, Jobs
from segnode.store.leases import Lease
from segnode.store.measures import Meter
from segnode.store.objects import ObjectStore
from segnode.testing.servers import free_port, until
from tests.unit.test_store import HEADER
from tests.wire.test_first_path import Seg

# More than the engine attempts at once: if one of them held its slot, another would wait.
ARCHIVES = [f"archive-{number}" for number in range(5)]


@dataclass
class Night:
    """A worker's engine on rows of its own."""

    jobs: Jobs
    workflows: Workflows
    now: float = 0.0

    def owe(self, job_id: str) -> None:
        """A job whose SEG every archive is to have."""
        self.jobs.decide(Decision(job_id, "1.3", "content", "rule", "m", "1"), self.now)
        self.jobs.owe(job_id, HEADER.sop_instance_uid, ARCHIVES, self.now)

    def attempt(self) -> None:
        """Have the engine attempt what is due, and wait until nothing is."""

        def nothing_is_due() -> bool:
            self.workflows.run(self.jobs.waiting(), self.jobs.due(self.now))
            return not self.jobs.due(self.now)

        until(nothing_is_due)

    def deliveries(self, job_id: str) -> list[Delivery]:
        """What is owed for a job."""
        return list(self.jobs.job(job_id).deliveries)


@pytest.fixture
def night(tmp_path: Path) -> Iterator[Night]:
    """An engine whose destinations refuse the connection."""
    index, jobs = Index(open_database(tmp_path / "index.sqlite")), Jobs(open_database(tmp_path / "pipeline.sqlite"))
    objects = ObjectStore(tmp_path / "objects", Lease("a" * 12, "worker-1"))
    with objects.spool() as spool:
        spool.write(Seg().part10("labelmap:native"))
        spool.complete()
        index.add(replace(HEADER), objects.keep(spool.path), 1, "digest", "made", 0.0)
    night: Night
    clock = lambda: night.now  # noqa: E731
    down = {name: StowDestination(f"http://127.0.0.1:{free_port()}/dicom-web") for name in ARCHIVES}
    forms: dict[str, tuple[FormName, ...]] = dict.fromkeys(ARCHIVES, ("labelmap:native",))
    meter = Meter("worker")
    deliverer = Deliverer(objects, index, jobs, down, forms, meter, clock)
    inferrer = Inferrer(Assembler(objects, index), jobs, {}, Labelmaps(tmp_path / "work"), clock)
    stages = Stages(inferrer, None, deliverer, jobs, meter, clock)  # type: ignore[arg-type]  # nothing is encoded
    night = Night(jobs, Workflows(stages, workflow_database(tmp_path / "workflows.sqlite"), "test", 0.02))
    yield night
    DBOS.destroy(destroy_registry=True)


def test_a_night_of_back_off_holds_no_slot(night: Night) -> None:
    """24 hours of refused connections: attempts at their times, nothing pending in between, and a new delivery goes at once."""
    night.owe("j")
    while night.now < 86400:
        night.attempt()
        night.now = max(delivery.next_attempt_at for delivery in night.deliveries("j"))
    night.now = 86400.0
    night.attempt()
    until(lambda: DBOS.list_workflows(status=["PENDING", "ENQUEUED", "DELAYED"]) == [])
    waiting = night.deliveries("j")
    assert {delivery.state for delivery in waiting} == {"waiting"}
    assert all(100 < delivery.attempts < 250 for delivery in waiting)
    assert all("cannot be reached" in delivery.last_answer for delivery in waiting)
    night.owe("new")
    night.attempt()
    assert [delivery.attempts for delivery in night.deliveries("new")] == [1] * len(ARCHIVES)
    assert [delivery.attempts for delivery in night.deliveries("j")] == [delivery.attempts for delivery in waiting]


def test_records_of_the_engine_are_purged(night: Night) -> None:
    """What has ended is forgotten by the engine, and what is owed is attempted all the same."""
    night.owe("j")
    night.attempt()
    until(lambda: DBOS.list_workflows(status=["PENDING", "ENQUEUED"]) == [])
    assert len(DBOS.list_workflows()) == len(ARCHIVES)
    night.workflows.purge(0.0)
    assert len(DBOS.list_workflows()) == len(ARCHIVES)
    night.workflows.purge(2.0**33)
    assert DBOS.list_workflows() == []
    night.now += 10
    night.attempt()
    assert [delivery.attempts for delivery in night.deliveries("j")] == [2] * len(ARCHIVES)
