"""What follows from a destination's answer; with a clock in the hand."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from segnode.config import FormName
from segnode.dicomweb.client import stored_answer
from segnode.errors import DeliveryDeferred, DeliveryFailed, DeliveryRefused, FormRefused
from segnode.pipeline.deliver import Deliverer
from segnode.pipeline.ports import Segmentation, Sent
from segnode.store.database import open_database
from segnode.store.index import Index
from segnode.store.jobs import Decision, Delivery, Jobs
from segnode.store.leases import Lease
from segnode.store.measures import Meter
from segnode.store.objects import ObjectStore
from tests.unit.test_store import HEADER


@dataclass
class Archive:
    """A destination that answers what it is told to."""

    answer: Sent | DeliveryFailed

    def send(self, _segmentation: Segmentation, _forms: Sequence[FormName]) -> Sent:
        """Answer."""
        if isinstance(self.answer, DeliveryFailed):
            raise self.answer
        return self.answer


@dataclass
class Night:
    """A delivery that is owed, and a clock that stands where it is set."""

    jobs: Jobs
    deliverer: Deliverer
    archive: Archive
    now: float = 0.0

    def attempt(self) -> Delivery:
        """Attempt what is due now; the delivery after that."""
        for delivery in self.jobs.due(self.now):
            self.deliverer.attempt(delivery)
        return self.jobs.delivery("j", "archive")


@pytest.fixture
def night(tmp_path: Path) -> Night:
    """One object that is owed to one archive."""
    index, jobs = Index(open_database(tmp_path / "index.sqlite")), Jobs(open_database(tmp_path / "pipeline.sqlite"))
    index.add(HEADER, "0" * 32, 1, "digest", "made", 0.0)
    jobs.decide(Decision("j", "1.3", "content", "rule", "m", "1"), 0.0)
    jobs.owe("j", HEADER.sop_instance_uid, ["archive"], 0.0)
    archive = Archive(DeliveryDeferred("busy"))
    forms: dict[str, tuple[FormName, ...]] = {"archive": ("labelmap:rle",)}
    objects = ObjectStore(tmp_path / "objects", Lease("a" * 12, "worker-1"))
    night: Night
    deliverer = Deliverer(objects, index, jobs, {"archive": archive}, forms, Meter("worker"), lambda: night.now)
    night = Night(jobs, deliverer, archive)
    return night


def test_delivery_backs_off_for_a_week_and_is_given_up(night: Night) -> None:
    """Waits grow from 5 seconds to 15 minutes; after a week the delivery fails with the last answer."""
    waits = []
    while (delivery := night.attempt()).state == "waiting":
        waits.append(delivery.next_attempt_at - night.now)
        night.now = delivery.next_attempt_at
    assert 2.5 <= waits[0] <= 5
    assert max(waits) <= 900
    assert all(450 <= wait for wait in waits[10:])
    assert night.now > 7 * 86400
    assert 672 < len(waits) < 2000
    assert "busy" in delivery.last_answer
    assert night.jobs.job("j").state == "failed"


def test_archive_that_comes_back_gets_it(night: Night) -> None:
    """After a refusal for now, the next attempt at its time delivers."""
    night.attempt()
    night.archive.answer = Sent("labelmap:rle", "ok")
    assert night.attempt().attempts == 1
    night.now += 5
    delivery = night.attempt()
    assert (delivery.state, delivery.form, delivery.attempts) == ("delivered", "labelmap:rle", 2)
    assert night.jobs.job("j").state == "delivered"


def test_refusal_is_not_tried_again(night: Night) -> None:
    """What an archive will not take in any form fails at once, with its answer."""
    night.archive.answer = DeliveryRefused("no such class")
    night.attempt()
    night.now += 10**6
    delivery = night.attempt()
    assert (delivery.state, delivery.attempts, delivery.last_answer) == ("failed", 1, "no such class")
    assert night.jobs.job("j").error == "archive: no such class"


def item(uid: str, reason: int | None = None) -> dict:
    """An item of a STOW response."""
    return {"00081155": {"vr": "UI", "Value": [uid]}} | ({"00081197": {"vr": "US", "Value": [reason]}} if reason else {})


def response(status: int, stored: Sequence[dict] = (), failed: Sequence[dict] | None = None) -> httpx.Response:
    """A STOW response; the failed sequence may be there and empty."""
    document: dict = {"00081199": {"vr": "SQ", "Value": list(stored)}}
    if failed is not None:
        document["00081198"] = {"vr": "SQ", "Value": list(failed)} if failed else {"vr": "SQ"}
    return httpx.Response(status, json=document)


@pytest.mark.parametrize(
    ("given", "outcome"),
    [
        (response(200, [item("1.1")]), None),
        (response(200, [item("1.1")], []), None),
        (response(202, [item("1.1")]), None),
        (response(409, [], [item("1.1", 0x0111)]), None),
        (response(200, [], []), DeliveryDeferred),
        (response(200, [item("1.9")]), DeliveryDeferred),
        (response(200, [], [item("1.1", 0xA700)]), DeliveryDeferred),
        (response(409, [], [item("1.1", 0x0122)]), FormRefused),
        (response(202, [], [item("1.1", 0xC122)]), FormRefused),
        (response(409, [], [item("1.1", 0x0124)]), DeliveryRefused),
        (httpx.Response(415), FormRefused),
        (httpx.Response(400, text="<html>"), FormRefused),
        (httpx.Response(503), DeliveryDeferred),
        (httpx.Response(429), DeliveryDeferred),
        (httpx.Response(401), DeliveryRefused),
        (httpx.Response(404), DeliveryRefused),
        (httpx.Response(200, json=[1, 2]), DeliveryDeferred),
    ],
)
def test_stow_answer(given: httpx.Response, outcome: type[DeliveryFailed] | None) -> None:
    """Stored is what the archive lists as stored, whatever the HTTP status; every other answer has its consequence."""
    if outcome is None:
        assert str(given.status_code) in stored_answer(given, "1.1")
    else:
        with pytest.raises(outcome):
            stored_answer(given, "1.1")
