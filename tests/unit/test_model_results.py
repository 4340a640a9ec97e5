"""Results of each kind on their way to a SEG: overlaps, grids of their own, scores."""

from io import BytesIO
from pathlib import Path

import highdicom
import numpy as np
import pytest
from pydicom import dcmread

from segnode.config import ModelConfig
from segnode.dicom.volume import Volume
from segnode.errors import FormRefused, Misplaced
from segnode.models import Result
from segnode.models.settle import settled
from segnode.pipeline.deliver import HeldSegmentation
from segnode.pipeline.placement_proof import require_placed
from segnode.seg.arrays import stacked_volume
from segnode.seg.arrays import volume as label_volume
from segnode.seg.read import read_segmentation
from tests.labels import segment
from tests.property.test_settle import at, positions
from tests.unit.test_placement_proof import Node, images_in, shuffled, turned

LABELS = (
    segment(1, "Body", "38266002", "number = 30", "track = true")
    + segment(2, "Lung", "39607008", "number = 4")
    + segment(3, "Bone", "272673000", "number = 300")
)


def boxes(volume: Volume) -> np.ndarray:
    """Three masks of which the first two overlap; one is on two slices alone."""
    masks = np.zeros((3, *volume.array.shape), bool)
    masks[0, 1:, 5:50, 10:40] = masks[1, 3:6, 20:30, 20:60] = masks[2, :2, 60:, 3:5] = True
    return masks


def overlapping(volume: Volume) -> Result:
    """A model whose masks overlap."""
    return Result(masks=boxes(volume), scores={2: 0.25, 1: 0.98765})


def node(folder: Path, model, **keys) -> Node:
    """A node whose model has this dictionary."""
    folder.mkdir(exist_ok=True)
    (folder / "labels.toml").write_text(LABELS)
    config = ModelConfig(name="m", run="python:m", labels="labels.toml", version="1", **keys)
    return Node(folder, settled(model, config), labels="labels.toml")


@pytest.mark.parametrize("change", [lambda images: images, shuffled, turned(0.8, 0.6, 0.0, -0.48, 0.64, 0.6)])
def test_overlapping_masks_become_a_binary(tmp_path: Path, ct: Path, change) -> None:
    """Each mask is a segment, by highdicom, on the images that it was made for; numbers count in their order."""
    volumes = []

    def model(volume: Volume) -> Result:
        volumes.append(volume)
        return overlapping(volume)

    made = node(tmp_path / "node", model)
    job = made.run(change(images_in(ct)))
    assert (job.state, job.error) == ("delivered", "")
    assert job.note == "scores of segments: 30 0.9877, 4 0.25"
    seg = highdicom.seg.segread(made.seg(job))
    assert (seg.SegmentationType, seg.SegmentsOverlap) == ("BINARY", "YES")
    assert [(s.SegmentNumber, s.SegmentLabel, "TrackingUID" in s) for s in seg.SegmentSequence] == [
        (1, "Lung", False),
        (2, "Body", True),
        (3, "Bone", False),
    ]
    found = seg.get_pixels_by_source_instance(list(volumes[0].sop_instance_uids), assert_missing_frames_are_empty=True)
    np.testing.assert_array_equal(np.moveaxis(found, -1, 0), boxes(volumes[0])[[1, 0, 2]])


def test_masks_that_do_not_overlap_become_a_labelmap(tmp_path: Path, ct: Path) -> None:
    """Where one label a voxel says it all, the SEG is a LABELMAP under the numbers of the dictionary."""
    made = node(tmp_path / "node", lambda volume: Result(masks=boxes(volume)[[0, 2]]))
    job = made.run(images_in(ct))
    seg = dcmread(made.seg(job))
    assert (job.state, seg.SegmentationType) == ("delivered", "LABELMAP")
    assert np.unique(label_volume(read_segmentation(made.seg(job).read_bytes())).array).tolist() == [0, 4, 30]


def test_overlaps_are_never_offered_as_a_labelmap(tmp_path: Path, ct: Path) -> None:
    """A destination is offered the BINARY; a LABELMAP cannot be made of it, and says which segments overlap."""
    made = node(tmp_path / "node", overlapping)
    job = made.run(images_in(ct))
    held = made.index.find(job.sop_instance_uid)
    assert held is not None
    segmentation = HeldSegmentation(made.objects, held, 1.0)
    assert segmentation.in_form("binary:implicit").sop_instance_uid == job.sop_instance_uid
    with pytest.raises(FormRefused, match="overlap"):
        segmentation.in_form("labelmap:rle")


FAULTS = {
    "a mirror": lambda layers: layers[..., ::-1],
    "a shift": lambda layers: np.roll(layers, 1, 1),
    "a layer is lost": lambda layers: np.where(np.arange(len(layers))[:, None, None, None] == 0, layers, 0),
    "segments are swapped": lambda layers: np.where(layers == 4, 30, np.where(layers == 30, 4, layers)),
    "one voxel": lambda layers: np.where(np.indices(layers.shape).sum(0) == 0, 30, layers),
    "overlaps are lost": lambda layers: layers.max(0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_in_overlapping_segments(tmp_path: Path, ct: Path, fault: str) -> None:
    """Layers that are others when they are encoded fail the job, and nothing is made."""
    made = node(tmp_path / "node", overlapping)
    made.receive(images_in(ct))
    job_id = made.decide(images_in(ct))
    assert made.stages.infer(job_id, 0)
    kept = made.labelmaps
    kept.save(job_id, np.ascontiguousarray(FAULTS[fault](kept.load(job_id)).astype(np.uint16)), kept.returned(job_id))
    assert not made.stages.encode(job_id)
    assert (made.jobs.job(job_id).state, made.made()) == ("failed", [])


def own_grid(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Labels on a turned, finer grid around the volume's middle."""
    labels = np.zeros((9, 20, 33), np.uint8)
    labels[2:, 3:9, 5:30], labels[0, 11:, :3], labels[8, 19, 32] = 1, 2, 3
    middle = volume.affine @ [*(np.array(volume.array.shape) / 2), 1]
    turn = np.array([[0.8, -0.6, 0.0], [0.0, 0.0, -1.0], [0.6, 0.8, 0.0]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * [1.5, 0.8, 1.2], middle[:3]
    return labels, affine


@pytest.mark.parametrize("layers", [1, 2])
def test_own_grid_is_written_as_it_is(tmp_path: Path, ct: Path, layers: int) -> None:
    """Labels on a grid of their own are in the SEG where they lay, and nowhere else; also where they overlap."""
    volumes = []

    def model(volume: Volume) -> Result:
        volumes.append(volume)
        labels, affine = own_grid(volume)
        more = np.where(np.arange(33) < 20, 2, 0) * np.ones(labels.shape, int)
        return Result(np.stack([labels, more])[:layers].squeeze(), affine=affine)

    made = node(tmp_path / "node", model, grid="own")
    job = made.run(images_in(ct))
    assert (job.state, job.error) == ("delivered", "")
    labels, affine = own_grid(volumes[0])
    seg = read_segmentation(made.seg(job).read_bytes())
    if layers == 1:
        written = label_volume(seg)
        found, clear = at(labels, affine, positions(written.array.shape, written.affine))
        assert clear.all()
        np.testing.assert_array_equal(written.array, np.array([0, 30, 4, 300])[found])
        assert np.bincount(found.ravel()).tolist() == np.bincount(labels.ravel()).tolist()
    else:
        stack = stacked_volume(seg)
        found, _ = at(labels, affine, positions(stack.array.shape[:3], stack.affine))
        np.testing.assert_array_equal(stack.array[..., 1], found == 1)
        np.testing.assert_array_equal(stack.array[..., 2], found == 3)
    (item,) = dcmread(made.seg(job)).ReferencedSeriesSequence
    assert {i.ReferencedSOPInstanceUID for i in item.ReferencedInstanceSequence} == set(volumes[0].sop_instance_uids)


@pytest.mark.parametrize(
    "moved", [np.diag([1.0, 1, -1, 1]), np.array([[1, 0, 0, 0], [0, 1, 0, 0.2], [0, 0, 1, 0], [0, 0, 0, 1.0]])]
)
def test_own_grid_elsewhere_is_refused(tmp_path: Path, ct: Path, moved: np.ndarray) -> None:
    """A SEG that lies elsewhere than the model's grid, by a mirror or the part of a voxel, is no proof."""
    made = node(tmp_path / "node", lambda volume: Result(own_grid(volume)[0], affine=own_grid(volume)[1]), grid="own")
    images = images_in(ct)
    made.receive(images)
    job_id = made.decide(images)
    assert made.stages.infer(job_id, 0)
    returned = made.labelmaps.returned(job_id)
    assert made.stages.encode(job_id)
    seg = dcmread(BytesIO(made.seg(made.jobs.job(job_id)).read_bytes()))
    require_placed(seg, returned.images, returned.labels, made.rule.dictionary)
    labels = returned.labels
    other = type(labels)(labels.dtype, labels.slices, labels.layers, (np.array(labels.affine) @ moved).tolist(), labels.size)
    with pytest.raises(Misplaced, match="does not lie on slice"):
        require_placed(seg, returned.images, other, made.rule.dictionary)


def test_label_without_an_entry_names_the_model(tmp_path: Path, ct: Path) -> None:
    """A value that the dictionary does not have fails the job, which says of which model."""
    job = node(tmp_path / "node", lambda volume: Result(np.full(volume.array.shape, 9))).run(images_in(ct))
    assert (job.state, "model 'm': the labelmap holds values without an entry" in job.error) == ("failed", True)
