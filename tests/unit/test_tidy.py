"""What is deleted, and what is not; with a clock in the hand."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage

from segnode.config import RetentionConfig
from segnode.dicom.query import Query, asked
from segnode.pipeline.labelmaps import Labelmaps
from segnode.pipeline.sweep import content_digest, decision_of
from segnode.pipeline.tidy import ABANDONED_S, Tidier
from segnode.store.database import open_database
from segnode.store.documents import Documents
from segnode.store.index import Index, OpenAssociation
from segnode.store.jobs import Decision, Jobs, Taken
from segnode.store.leases import LEASE_S, Lease, Leases
from segnode.store.objects import SHELVES, ObjectStore
from segnode.testing.part10 import encode_part10
from tests.unit.test_store import HEADER
from tests.unit.test_sweep import rules
from tests.wire.test_storage import small

DAY = 86400.0
MINE = Lease("a" * 12, "dimse-1")
RULE = rules(0.0)[0]


@dataclass
class Node:
    """A data folder, and a clock that stands where it is set; files are as old as they are."""

    folder: Path
    objects: ObjectStore
    index: Index
    documents: Documents
    jobs: Jobs
    leases: Leases
    now: float

    def tidy(self, images: str | None = None, segmentations: str | None = None) -> None:
        """Tidy everything up now."""
        retention = RetentionConfig(images_after_delivery=images, segmentations_after_delivery=segmentations)
        tidier = Tidier(
            self.objects,
            self.index,
            self.documents,
            self.jobs,
            self.leases,
            Labelmaps(self.folder / "work"),
            retention,
            lambda: self.now,
        )
        tidier.close_associations()
        for shelf in range(SHELVES):
            tidier.delete_unacknowledged(shelf)
        tidier.read_items()
        tidier.delete_abandoned()
        tidier.expire()

    def file(self) -> str:
        """An object's file, without a row; its key."""
        with self.objects.spool() as spool:
            spool.write(b"x")
            spool.complete()
            key = self.objects.keep(spool)
        os.utime(self.objects.path(key), (self.now, self.now))
        return key

    def receive(self, sop: str, series: str = "1.3", origin: str = "received") -> str:
        """An object comes in now; its key."""
        key = self.file()
        header = replace(HEADER, sop_instance_uid=sop, series_instance_uid=series)
        self.index.add(header, key, 1, "digest", origin, self.now)
        return key

    def decide(self, *sops: str) -> str:
        """A job of these images of the series, as the sweep makes it; its id."""
        decision = decision_of("1.3", content_digest(sops), RULE)
        self.jobs.decide(decision, self.now)
        for series in self.index.quiet_series():
            self.index.set_considered(series)
        return decision.id

    def deliver(self, job_id: str, sop: str, *destinations: str) -> None:
        """Its SEG exists, and every destination has taken it."""
        self.jobs.owe(job_id, sop, destinations, self.now)
        for destination in destinations:
            self.jobs.delivered(self.jobs.delivery(job_id, destination), Taken("labelmap:rle", "1.9"), "stored", self.now)

    def has(self, key: str) -> bool:
        """Whether a file is there."""
        return self.objects.path(key).exists()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """An empty node with a process that is alive."""
    index = open_database(tmp_path / "index.sqlite")
    jobs = Jobs(open_database(tmp_path / "pipeline.sqlite"))
    documents = Documents(open_database(tmp_path / "documents.sqlite"))
    node = Node(tmp_path, ObjectStore(tmp_path / "objects", MINE), Index(index), documents, jobs, Leases(index), 1_000_000.0)
    node.leases.take(MINE, node.now)
    return node


def test_file_without_a_row_is_deleted_when_its_writer_is_gone(node: Node) -> None:
    """An hour old and its lease over: deleted; with a row, with a lease, or younger: not."""
    acknowledged, stray = node.receive("1.1"), node.file()
    node.now += ABANDONED_S + 1
    node.leases.beat(MINE, 0, node.now)
    node.tidy()
    assert node.has(stray), "its writer may still be about to commit the row"
    node.now += LEASE_S + 1
    young = node.file()
    node.tidy()
    assert (node.has(stray), node.has(young), node.has(acknowledged)) == (False, True, True)


def test_documents_go_with_their_objects(node: Node) -> None:
    """The metadata of an object that is held stay; of one that is gone they do not."""
    held, gone = node.receive("1.1"), "0" * 32
    node.documents.add({held: b"{}", gone: b"{}"})
    node.tidy()
    assert node.documents.find([held, gone]) == {held: b"{}"}


def test_lease_ends_when_the_process_begins_another(node: Node) -> None:
    """A process that was killed and started again does not protect what the killed one left."""
    stray = node.file()
    node.now += ABANDONED_S + 1
    node.leases.take(Lease("b" * 12, "dimse-1"), node.now)
    node.tidy()
    assert not node.has(stray)


def test_incoming_folder_of_a_process_that_is_gone_is_emptied(node: Node) -> None:
    """Of a process that the node no longer has, nobody else deletes what was half written."""
    gone = node.folder / "objects" / "incoming" / "dimse-7"
    gone.mkdir()
    for folder in (gone, node.objects.incoming):
        (folder / "left").write_bytes(b"x")
        os.utime(folder / "left", (node.now, node.now))
    node.now += ABANDONED_S + 1
    node.leases.beat(MINE, 0, node.now)
    node.tidy()
    assert not (gone / "left").exists()
    assert (node.objects.incoming / "left").exists()
    node.now += ABANDONED_S + 1
    node.tidy()
    assert node.leases.heartbeats() == [], "a process that the node no longer has is forgotten"


def test_association_of_a_killed_process_is_no_longer_open(node: Node) -> None:
    """While its process is alive a series is being sent; when that is gone, it is not."""
    node.index.add(HEADER, "0" * 32, 1, "digest", "received", node.now, OpenAssociation(MINE.id, 1))
    node.tidy()
    assert [series.is_being_sent for series in node.index.quiet_series()] == [True]
    node.now += LEASE_S + 1
    node.tidy()
    assert [series.is_being_sent for series in node.index.quiet_series()] == [False]


def test_delivered_images_are_deleted_after_their_time(node: Node) -> None:
    """Images go when their results have been everywhere for so long, rows and files; the SEG stays."""
    keys = [node.receive("1.1"), node.receive("1.5")]
    seg = node.receive("1.9", series="1.8", origin="made")
    node.deliver(node.decide("1.1", "1.5"), "1.9", "archive")
    node.now += 29 * DAY
    node.tidy(images="30d")
    assert all(map(node.has, keys))
    node.now += 2 * DAY
    node.tidy()
    assert all(map(node.has, keys)), "without retention nothing is deleted"
    node.tidy(images="30d")
    assert not any(map(node.has, keys))
    assert node.has(seg)
    assert [instance.sop_instance_uid for instance in node.index.instances("1.2")] == ["1.9"]


def test_segmentations_have_a_retention_of_their_own(node: Node) -> None:
    """SEGs that were delivered go by their own key; the images stay."""
    image, seg = node.receive("1.1"), node.receive("1.9", series="1.8", origin="made")
    node.deliver(node.decide("1.1"), "1.9", "archive")
    node.now += 31 * DAY
    node.tidy(segmentations="30d")
    assert (node.has(image), node.has(seg)) == (True, False)


@pytest.mark.parametrize(
    "state", ["undecided", "waiting", "kept here", "one owed", "one unproved", "failed", "late image", "cancelled"]
)
def test_what_is_not_delivered_is_never_deleted(node: Node, state: str) -> None:
    """Everything stays without a job, with one that goes on, failed, was cancelled, went nowhere, or is of fewer images."""
    keys = [node.receive("1.1"), node.receive("1.9", series="1.8", origin="made")]
    if state != "undecided":
        job_id = node.decide("1.1")
        if state == "kept here":
            node.deliver(job_id, "1.9")
        if state == "one owed":
            node.jobs.owe(job_id, "1.9", ["archive", "other"], node.now)
            node.jobs.delivered(node.jobs.delivery(job_id, "archive"), Taken("labelmap:rle", "1.9"), "stored", node.now)
        if state == "one unproved":
            node.jobs.owe(job_id, "1.9", ["archive"], node.now)
            node.jobs.stored(node.jobs.delivery(job_id, "archive"), Taken("labelmap:rle", "1.9"), "stored", node.now)
        if state == "failed":
            node.jobs.fail(job_id, "why", node.now)
        if state == "cancelled":
            node.jobs.cancel(job_id, node.now)
        if state == "late image":
            node.jobs.owe(job_id, "1.10", ["archive"], node.now)
            node.jobs.delivered(node.jobs.delivery(job_id, "archive"), Taken("labelmap:rle", "1.9"), "stored", node.now)
            keys.append(node.receive("1.5"))
    node.now += 400 * DAY
    node.tidy(images="30d", segmentations="30d")
    assert all(map(node.has, keys))


@pytest.mark.parametrize("state", ["delivered", "one owed", "failed", "earlier failed", "cancelled"])
def test_forwarded_images_are_deleted_when_all_have_arrived(node: Node, state: str) -> None:
    """What a rule without a model owes counts as owed, also of images before those that came late; then they go."""
    decision = Decision("early", "1.3", content_digest(["1.1"]), "rule", "", "")
    late = replace(decision, id="late", content_digest=content_digest(["1.1", "1.5"]))
    keys = [node.receive("1.1"), node.receive("1.5")]
    node.jobs.decide_forward(decision, [("1.1", "archive")], "", node.now)
    node.jobs.decide_forward(late, [("1.1", "archive"), ("1.5", "archive"), ("1.5", "other")], "", node.now)
    early, *others = node.jobs.due(node.now)
    if state == "earlier failed":
        node.jobs.refused(early, "no", node.now)
    else:
        node.jobs.delivered(early, Taken("as received", "1.1"), "stored", node.now)
    for delivery in others[1:] if state in ("one owed", "cancelled", "failed") else others:
        node.jobs.delivered(delivery, Taken("as received", "1.5"), "stored", node.now)
    if state == "cancelled":
        node.jobs.cancel("late", node.now)
    if state == "failed":
        node.jobs.refused(others[0], "no", node.now)
    for series in node.index.quiet_series():
        node.index.set_considered(series)
    node.now += 31 * DAY
    node.tidy(images="30d")
    assert [node.has(key) for key in keys] == [state != "delivered"] * 2


def test_deletion_that_was_interrupted_is_finished(node: Node) -> None:
    """Rows first, then files: what a kill in between leaves is deleted by the next turn, though its writer is alive."""
    key = node.receive("1.1")
    node.index.doom_images("1.3")
    assert node.index.find("1.1") is None
    assert node.has(key)
    node.tidy()
    assert not node.has(key)
    assert node.index.doomed(node.now) == []


def test_items_of_what_was_held_before_are_kept_later(node: Node) -> None:
    """An index that kept no segments and no names finds names at once, and segments when the objects have been read."""
    keys = [node.receive(sop) for sop in ("1.1", "1.2")]
    segment = Dataset()
    segment.SegmentNumber, segment.SegmentLabel = 1, "Liver"
    seg = small("1.1", SegmentationStorage, SegmentSequence=[segment])
    node.objects.path(keys[0]).write_bytes(encode_part10(seg, ExplicitVRLittleEndian))
    engine = open_database(node.folder / "index.sqlite")
    with engine.begin() as connection:
        for table in ("segment", "request", "person_name", "unread"):
            connection.exec_driver_sql(f"DROP TABLE {table}")
        connection.exec_driver_sql("UPDATE study SET PatientName = 'Doe^J'")
        connection.exec_driver_sql("UPDATE instance SET SOPClassUID = ?", (SegmentationStorage,))
    node.index = Index(engine)

    def found(path: str, text: str) -> list[str]:
        what = asked(path, text)
        assert what is not None
        matches = node.index.search(Query("instances", keys={path: what}), ["SOPInstanceUID"], 10)
        return [*matches.attributes["SOPInstanceUID"]]

    assert (found("PatientName", "doe*"), found("SegmentSequence.SegmentLabel", "Liver")) == (["1.1", "1.2"], [])
    node.tidy()
    assert found("SegmentSequence.SegmentLabel", "Liver") == ["1.1"]
    assert node.index.unread(10) == []
