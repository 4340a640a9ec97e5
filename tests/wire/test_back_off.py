"""A night with archives that are down: the engine, real connections that are refused, and a clock in the hand."""

import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from dbos import DBOS

from segnode.config import DestinationConfig
from segnode.dicomweb.client import StowDestination
from segnode.dicomweb.peer import DicomWebPeer
from segnode.pipeline.slots import Slots
from segnode.pipeline.workflows import Workflows
from segnode.store.database import workflow_database
from segnode.store.jobs import Delivery
from segnode.testing.servers import free_port, until
from tests.outbox import CREATED, Outbox
from tests.wire.test_delivery_matrix import Archive, stow

ARCHIVES = [f"archive-{number}" for number in range(5)]


@dataclass
class Night:
    """A worker's engine on an outbox."""

    outbox: Outbox
    workflows: Workflows

    @property
    def now(self) -> float:
        """What the clock shows."""
        return self.outbox.now

    @now.setter
    def now(self, now: float) -> None:
        self.outbox.now = now

    def owe(self, job_id: str) -> None:
        """A job whose SEG every archive is to have."""
        self.outbox.owe(*ARCHIVES, job=job_id)

    def attempt(self) -> None:
        """Have the engine attempt what is chosen, and wait until nothing is."""

        def nothing_is_due() -> bool:
            self.workflows.run(self.outbox.jobs.waiting(), self.outbox.dispatch.due(self.now))
            return not self.outbox.dispatch.due(self.now)

        until(nothing_is_due)

    def deliveries(self, job_id: str) -> list[Delivery]:
        """What is owed for a job."""
        return list(self.outbox.jobs.job(job_id).deliveries)


@pytest.fixture
def night(tmp_path: Path) -> Iterator[Night]:
    """An engine whose destinations refuse the connection."""
    roots = {name: f"http://127.0.0.1:{free_port()}/dicom-web" for name in ARCHIVES}
    configs = {name: DestinationConfig(name=name, to=root, seg=("labelmap:native",)) for name, root in roots.items()}
    outbox = Outbox(tmp_path, configs, {name: StowDestination(DicomWebPeer(root)) for name, root in roots.items()})
    yield Night(
        outbox, Workflows(outbox.stages, Slots([]), workflow_database(tmp_path / "workflows.sqlite"), "test", lambda: None)
    )
    DBOS.destroy(destroy_registry=True)


def counted(*deliveries: Delivery) -> Counter[str]:
    """How many attempts there were, by destination."""
    return sum((Counter({delivery.destination: delivery.attempts}) for delivery in deliveries), Counter())


def nothing_goes_on() -> bool:
    """Whether the engine has nothing to do, and nothing in hand."""
    return DBOS.list_workflows(status=["PENDING", "ENQUEUED", "DELAYED"]) == []


def test_a_night_of_back_off_holds_no_slot(night: Night) -> None:
    """24 hours of refused connections: attempts at their times, nothing pending in between, and a probe at the next minute."""
    night.owe("j")
    while night.now < CREATED + 86400:
        night.attempt()
        night.now = max(night.now + 60, *(delivery.next_attempt_at for delivery in night.deliveries("j")))
    night.now = CREATED + 86400
    night.attempt()
    until(nothing_goes_on)
    waiting = night.deliveries("j")
    assert {delivery.state for delivery in waiting} == {"waiting"}
    assert all(90 < delivery.attempts < 250 for delivery in waiting)
    assert all("cannot be reached" in delivery.last_answer for delivery in waiting)
    night.now += 60
    night.owe("new")
    night.attempt()
    until(nothing_goes_on)
    # Whose turn it is when an archive that is down is probed: that which has waited longest.
    attempts = counted(*night.deliveries("j"), *night.deliveries("new"))
    assert attempts == counted(*waiting) + Counter(ARCHIVES)


def test_archives_that_hang_with_all_they_may_have_at_once_delay_no_other(tmp_path: Path) -> None:
    """Four that accept connections and say nothing, with sixteen attempts each: what is owed to a fifth goes at once."""
    names = [f"hangs-{number}" for number in range(4)]
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent, stow(Archive(), []) as root:
        roots = {**dict.fromkeys(names, f"http://127.0.0.1:{silent.getsockname()[1]}/dicom-web"), "well": root}
        configs = {name: DestinationConfig(name=name, to=to, max_associations=16) for name, to in roots.items()}
        outbox = Outbox(tmp_path, configs, {name: StowDestination(DicomWebPeer(to)) for name, to in roots.items()})
        workflows = Workflows(outbox.stages, Slots([]), workflow_database(tmp_path / "workflows.sqlite"), "test", lambda: None)
        for number in range(16):
            outbox.owe(*names, job=f"j{number}")
        workflows.run([], outbox.dispatch.due(outbox.now))
        with ExitStack() as accepted:
            for _ in range(64):
                accepted.enter_context(silent.accept()[0])
            outbox.now += 1
            outbox.owe("well", job="last")
            workflows.run([], outbox.dispatch.due(outbox.now))
            until(lambda: outbox.delivery("well", "last").state == "delivered", 10)
        until(nothing_goes_on)
    DBOS.destroy(destroy_registry=True)


def test_records_of_the_engine_are_purged(night: Night) -> None:
    """What has ended is forgotten by the engine, and what is owed is attempted all the same."""
    night.owe("j")
    night.attempt()
    until(nothing_goes_on)
    assert len(DBOS.list_workflows()) == len(ARCHIVES)
    night.workflows.purge(0.0)
    assert len(DBOS.list_workflows()) == len(ARCHIVES)
    night.workflows.purge(2.0**33)
    assert DBOS.list_workflows() == []
    night.now += 10
    night.attempt()
    assert [delivery.attempts for delivery in night.deliveries("j")] == [2] * len(ARCHIVES)
