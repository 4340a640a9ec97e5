"""Objects of the node's own, where another of their UID is held."""

from pathlib import Path

import pytest
from pydicom.uid import ExplicitVRLittleEndian

from segnode.config import OnConflict
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
            return receiver.hold_made(spool.path) if origin == "made" else receiver.receive(spool.path)

    held = hold("first", first)
    assert hold("second", "made") == held
    assert index.find("1.2.95.1") == held
    assert objects.path(held.object_key).exists()
