"""A SEG that is owed to destinations, with all that sends it, and a clock that stands where it is set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import highdicom
import numpy as np
from pydicom import Dataset
from pydicom.uid import CTImageStorage

from segnode.config import Config, DestinationConfig, NodeConfig
from segnode.dicom.codes import Code
from segnode.dicom.header import read_header
from segnode.dicom.slices import Slices, order_slices
from segnode.dicom.uids import derived_uid
from segnode.node import committers, destination
from segnode.pipeline.confirm import Confirmer
from segnode.pipeline.deliver import Deliverer
from segnode.pipeline.dispatch import Dispatch
from segnode.pipeline.ports import Committer, Destination
from segnode.pipeline.workflows import Stages
from segnode.seg.forms import FORMS
from segnode.seg.segments import LabelDictionary, Segment
from segnode.seg.write import Algorithm, Identity, write_labelmap
from segnode.store.commitments import Commitments
from segnode.store.database import open_database
from segnode.store.index import Index
from segnode.store.jobs import Attempt, Decision, Delivery, Jobs
from segnode.store.leases import Lease
from segnode.store.measures import Meter
from segnode.store.objects import ObjectStore
from segnode.store.standings import Standings

RESULT = derived_uid("a result")
STUDY, SERIES = "1.2.826.1", "1.2.826.1.9"
CREATED = 1_800_000_000.0
_CODE = Code("SCT", "123037004", "Anatomical structure")


def slices() -> Slices:
    """The headers of a small series."""
    images = []
    for index in range(4):
        image = Dataset()
        image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, derived_uid("image", str(index))
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = STUDY, "1.2.826.1.2", "1.2.826.1.3"
        image.PatientName, image.PatientID, image.Rows, image.Columns = "A^B", "1", 9, 11
        image.PixelSpacing, image.SliceThickness = ["0.7", "0.9"], "2"
        image.ImageOrientationPatient, image.ImagePositionPatient = ["1", "0", "0", "0", "1", "0"], ["5", "-7", f"{2 * index}"]
        images.append(image)
    return order_slices(images)


def truth() -> np.ndarray:
    """Labels 2 and 7: a BINARY numbers its segments anew."""
    labels = np.zeros((4, 9, 11), np.uint8)
    labels[1:3, 2:6, 3:8], labels[2:, 6:8, 1:4] = 7, 2
    return labels


def segmentation(labels: np.ndarray, sop_instance_uid: str = RESULT) -> bytes:
    """The LABELMAP of labels, as the node holds it."""
    segments = tuple(Segment(n, f"segment {n}", _CODE, _CODE, colour=(n, 9, 9)) for n in (2, 7))
    algorithm = Algorithm("net", "1", Code("DCM", "123110", "Artificial Intelligence"))
    created = datetime.fromtimestamp(CREATED, UTC)
    identity = Identity(sop_instance_uid, SERIES, "made by a test", created, "1", "1", {})
    series = slices()
    form = FORMS["labelmap:rle"]
    return write_labelmap(labels, series.affine, series.images, LabelDictionary(segments), algorithm, identity, form)


def require_truth(held: Dataset) -> None:
    """Hold what an archive has to the labels, by highdicom and by the meaning of each segment."""
    file = BytesIO()
    held.save_as(file, enforce_file_format=True)
    read = highdicom.seg.segread(BytesIO(file.getvalue()))
    images = [image.SOPInstanceUID for image in slices().images]
    frames = read.get_pixels_by_source_instance(images, ignore_spatial_locations=True, assert_missing_frames_are_empty=True)
    described = [read.get_segment_description(number).segment_label for number in read.segment_numbers]
    for place, label in enumerate(described):
        np.testing.assert_array_equal(frames[..., place] > 0, truth() == int(label.removeprefix("segment ")))
    assert sorted(described) == ["segment 2", "segment 7"]


@dataclass
class Outbox:
    """What sends, and its rows."""

    folder: Path
    configs: Mapping[str, DestinationConfig]
    destinations: Mapping[str, Destination]
    committers: Mapping[str, Committer] = field(default_factory=dict)
    now: float = CREATED
    jobs: Jobs = field(init=False)
    commitments: Commitments = field(init=False)
    standings: Standings = field(init=False)
    confirmer: Confirmer = field(init=False)
    deliverer: Deliverer = field(init=False)
    stages: Stages = field(init=False)
    dispatch: Dispatch = field(init=False)

    def __post_init__(self) -> None:
        """Hold the SEG."""
        pipeline, index = open_database(self.folder / "pipeline.sqlite"), Index(open_database(self.folder / "index.sqlite"))
        self.jobs, self.standings, self.commitments = Jobs(pipeline), Standings(pipeline), Commitments(pipeline)
        objects = ObjectStore(self.folder / "objects", Lease("a" * 12, "worker-1"))
        if index.find(RESULT) is None:
            with objects.spool() as spool:
                spool.write(segmentation(truth()))
                spool.complete()
                with spool.path.open("rb") as file:
                    header = read_header(file)
                index.add(header, objects.keep(spool), 1, "digest", "made", CREATED)
        clock = lambda: self.now  # noqa: E731
        self.confirmer = Confirmer(self.commitments, self.committers, self.configs, clock)
        rows = objects, index, self.jobs, self.standings
        self.deliverer = Deliverer(*rows, self.destinations, self.configs, self.confirmer, Meter("worker"), clock)
        self.stages = Stages(None, None, self.deliverer, None, self.jobs, Meter("worker"), clock)  # type: ignore[arg-type]  # nothing is made
        self.dispatch = Dispatch(self.jobs, self.standings, self.configs)

    def owe(self, *names: str, job: str = "j") -> None:
        """Owe the SEG, as the result of a job."""
        self.jobs.decide(Decision(job, "1.3", "content", "rule", "m", "1"), self.now)
        self.jobs.owe(job, RESULT, names, self.now)

    def attempt(self) -> list[Attempt]:
        """Attempt once what is chosen now, as a sweep does; what was."""
        self.confirmer.wake()
        chosen = self.dispatch.due(self.now)
        for attempt in chosen:
            self.stages.deliver(attempt)
        return chosen

    def delivery(self, name: str = "archive", job: str = "j") -> Delivery:
        """What is owed."""
        return self.jobs.delivery(job, name)


def outbox(folder: Path, to: str, seg: Sequence[str] | None = None, **settings) -> Outbox:
    """An outbox that owes the SEG to one archive, which is reached over the wire."""
    folder.mkdir(exist_ok=True)
    config = DestinationConfig(name="archive", to=to, **({"seg": tuple(seg)} if seg else {}), **settings)
    peers = committers(Config(node=NodeConfig(ae_title="TEST"), destinations=(config,)))
    box = Outbox(folder, {"archive": config}, {"archive": destination(config, "TEST", folder)}, peers)
    box.owe("archive")
    return box
