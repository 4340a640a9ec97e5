"""What the SEG of all images says of the one it replaces; with a labelmap and a clock in the hand."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import highdicom
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian

from segnode.config import OutputConfig
from segnode.dicom.uids import LABEL_MAP_SEGMENTATION_STORAGE
from segnode.pipeline.assemble import Assembler
from segnode.pipeline.encode import Encoder, Maker
from segnode.pipeline.labelmaps import Labelmaps, Returned
from segnode.pipeline.placement_proof import model_labels, source_header
from segnode.pipeline.receive import Receiver
from segnode.pipeline.rules import Rule
from segnode.pipeline.sweep import content_digest, decision_of
from segnode.store.database import open_database
from segnode.store.index import Index
from segnode.store.jobs import Jobs, Taken
from segnode.store.leases import Lease
from segnode.store.measures import Meter
from segnode.store.objects import ObjectStore, Spool
from segnode.testing.part10 import encode_part10
from segnode.testing.phantom import Phantom
from tests.unit.test_sweep import rules

RULE = rules(60.0, more="iocm = true")[0]


@dataclass
class Node:
    """What encodes, and the images that it has."""

    receiver: Receiver
    jobs: Jobs
    encoder: Encoder
    images: list[Dataset]
    series: str
    now: float = 100.0

    def receive(self, number: int) -> None:
        """So many further images come, one a second."""
        for image in self.images[:number]:
            self.now += 1
            self.hold(image, self.receiver.receive)
        del self.images[:number]

    def hold(self, dataset: Dataset, how: Callable[[Spool], object]) -> None:
        """Keep an object."""
        with self.receiver.objects.spool() as spool:
            spool.write(encode_part10(dataset, ExplicitVRLittleEndian))
            spool.complete()
            how(spool)

    def make(self, rule: Rule = RULE) -> Dataset:
        """A job of all images, encoded; its SEG."""
        self.now += 1
        job_id = self.decide(rule)
        held = self.receiver.index.images(self.series)
        labels = np.zeros((len(held), 128, 128), np.uint8)
        images = [source_header(image) for image in self.encoder.assembler.images(self.jobs.job(job_id))]
        returned = Returned(model_labels(labels, [image.sop_instance_uid for image in held]), images)
        self.encoder.labelmaps.save(job_id, labels, returned)
        self.encoder.encode(self.jobs.job(job_id), rule)
        made = self.receiver.index.find(self.jobs.job(job_id).sop_instance_uid)
        assert made is not None
        return dcmread(self.receiver.objects.path(made.object_key))

    def decide(self, rule: Rule) -> str:
        """Decide on all images; the job."""
        content = content_digest(image.content for image in self.receiver.index.images(self.series))
        decision = decision_of(self.series, content, rule)
        self.jobs.decide(decision, self.now)
        return decision.id


@pytest.fixture
def node(tmp_path: Path, phantom: Phantom) -> Node:
    """A node that has received nothing."""
    images = [dcmread(file) for file in sorted(phantom.folder.iterdir())]
    objects = ObjectStore(tmp_path / "objects", Lease("a" * 12, "worker-1"))
    index = Index(open_database(tmp_path / "index.sqlite"))
    jobs = Jobs(open_database(tmp_path / "pipeline.sqlite"))
    receiver = Receiver(objects, index, Meter("worker"), "SEGNODE", 0, lambda: node.now)
    assembler, labelmaps = Assembler(objects, index), Labelmaps(tmp_path / "work")
    encoder = Encoder(assembler, receiver, jobs, labelmaps, Maker("SEGNODE", OutputConfig(), b"secret"), lambda: node.now)
    node = Node(receiver, jobs, encoder, images, str(images[0].SeriesInstanceUID))
    return node


def replaced_by(seg: Dataset) -> list[str]:
    """What a SEG replaces."""
    return [item.ReferencedSOPInstanceUID for item in seg.get("ReferencedImageSequence", ())]


def test_results_of_a_rule_and_a_series_are_one_series(node: Node) -> None:
    """Each is in the series of the first and as old as that, counts up, and replaces the last that somebody has."""
    segs = []
    for _ in range(3):
        node.receive(8)
        segs.append(node.make())
    assert len({(seg.SeriesInstanceUID, seg.SeriesDate, seg.SeriesTime) for seg in segs}) == 1
    assert len({(seg.ContentDate, seg.ContentTime) for seg in segs}) == 3
    assert [seg.InstanceNumber for seg in segs] == [1, 2, 3]
    assert [replaced_by(seg) for seg in segs] == [[], [segs[0].SOPInstanceUID], [segs[1].SOPInstanceUID]]
    assert len(node.jobs.replacements()) == 3


def test_result_of_an_image_that_was_replaced_is_replaced(node: Node) -> None:
    """Of the same UIDs, with one that is another object now, another SEG is made, which says what it takes the place of."""
    node.receiver = replace(node.receiver, on_conflict="replace")
    again = deepcopy(node.images[0])
    again.PixelData = again.PixelData[::-1]
    node.receive(8)
    first = node.make()
    node.hold(again, node.receiver.receive)
    second = node.make()
    assert second.SOPInstanceUID != first.SOPInstanceUID
    assert replaced_by(second) == [first.SOPInstanceUID]


def test_highdicom_reads_what_replaces_another(node: Node) -> None:
    """The reference to the replaced SEG does not stand in the way of those to the images."""
    node.receive(8)
    node.make()
    node.receive(8)
    file = BytesIO()
    node.make().save_as(file, enforce_file_format=True)
    segmentation = highdicom.seg.segread(BytesIO(file.getvalue()))
    uids = [image.sop_instance_uid for image in node.receiver.index.images(node.series)]
    assert segmentation.get_pixels_by_source_instance(uids, combine_segments=True).shape == (16, 128, 128)


def test_another_rule_has_its_own_series(node: Node) -> None:
    """What another version of the model makes replaces nothing."""
    node.receive(8)
    first = node.make()
    node.receive(8)
    second = node.make(rules(60.0, version="2")[0])
    assert (first.SeriesInstanceUID == second.SeriesInstanceUID, second.InstanceNumber, replaced_by(second)) == (False, 1, [])


def test_what_nobody_has_is_not_replaced(node: Node) -> None:
    """A cancelled result that no destination took counts, but is not referred to."""
    node.receive(8)
    sent = rules(60.0, more='send_to = ["archive"]')[0]
    node.make(sent)
    (job,) = node.jobs.all()
    node.jobs.supersede(job.id, node.now)
    node.receive(8)
    second = node.make(sent)
    assert (second.InstanceNumber, replaced_by(second)) == (2, [])


def test_rejection_note_is_no_result(node: Node) -> None:
    """A note that was delivered is neither counted nor replaced."""
    node.receive(8)
    first = node.make()
    (job,) = node.jobs.all()
    node.jobs.owe_note("note", job, job, "2.25.5", ["archive"], node.now)
    node.jobs.delivered(node.jobs.delivery("note", "archive"), Taken("", "1.9"), "stored", node.now)
    node.receive(8)
    second = node.make()
    assert (second.InstanceNumber, replaced_by(second)) == (2, [first.SOPInstanceUID])


def test_result_of_an_earlier_version_is_replaced_in_its_series(node: Node) -> None:
    """What was made when series UIDs were derived in another way keeps its series, and what replaces it is there too."""
    node.receive(8)
    node.now += 1
    old = Dataset()
    old.SOPClassUID, old.SOPInstanceUID = LABEL_MAP_SEGMENTATION_STORAGE, "2.25.77"
    old.StudyInstanceUID, old.SeriesInstanceUID = "1.2", "2.25.78"
    node.hold(old, node.receiver.hold_made)
    node.jobs.owe(node.decide(RULE), "2.25.77", [], node.now)
    node.receive(8)
    seg = node.make()
    assert (seg.SeriesInstanceUID, replaced_by(seg)) == ("2.25.78", ["2.25.77"])
