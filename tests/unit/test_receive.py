"""Objects of the node's own, where another of their UID is held."""

from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from segnode.config import OnConflict
from segnode.dicom.query import Query
from segnode.pipeline.receive import Receiver
from segnode.store.database import open_database
from segnode.store.index import Index, Instance
from segnode.store.leases import Lease
from segnode.store.measures import Meter
from segnode.store.objects import ObjectStore
from segnode.testing.part10 import encode_part10
from tests.wire.test_storage import small


@pytest.mark.parametrize("policy", ["keep", "refuse", "replace"])
@pytest.mark.parametrize("first", ["made", "received"])
def test_what_the_node_makes_again_is_the_one_that_is_held(tmp_path: Path, policy: OnConflict, first: str) -> None:
    """Whatever is to become of what others send: a job that is done again goes on with the object that is there."""
    objects, index = ObjectStore(tmp_path, Lease("a" * 12, "worker-1")), Index(open_database(tmp_path / "index.sqlite"))
    receiver = Receiver(objects, index, Meter("worker"), "SEGNODE", 0, lambda: 1.0, policy)

    def hold(description: str, origin: str) -> Instance:
        with objects.spool() as spool:
            spool.write(encode_part10(small("1.2.95.1", SeriesDescription=description), ExplicitVRLittleEndian))
            spool.complete()
            return receiver.hold_made(spool) if origin == "made" else receiver.receive(spool)

    held = hold("first", first)
    assert hold("second", "made") == held
    assert index.find("1.2.95.1") == held
    assert objects.path(held.object_key).exists()


def test_requests_of_a_series_are_those_of_one_object(tmp_path: Path) -> None:
    """Those of the first that has any, and never some of one and some of another; anew where that is replaced."""
    objects, index = ObjectStore(tmp_path, Lease("a" * 12, "web-1")), Index(open_database(tmp_path / "index.sqlite"))
    receiver = Receiver(objects, index, Meter("web"), "SEGNODE", 0, lambda: 1.0, "replace")

    def receive(sop: str, *steps: str) -> list[str]:
        items = [Dataset() for _ in steps]
        for item, step in zip(items, steps, strict=True):
            item.ScheduledProcedureStepID = step
        with objects.spool() as spool:
            spool.write(encode_part10(small(sop, RequestAttributesSequence=items), ExplicitVRLittleEndian))
            spool.complete()
            receiver.receive(spool)
        (requests,) = index.search(Query("series"), ["SeriesInstanceUID"], 10).requests
        return [item["ScheduledProcedureStepID"] for item in requests]

    assert receive("1.2.95.1") == []
    assert receive("1.2.95.2", "S1") == ["S1"]
    assert receive("1.2.95.3", "X1", "X2") == ["S1"]
    assert receive("1.2.95.2", "NEW") == ["NEW"]
