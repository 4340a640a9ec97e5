"""Segments that are coded left or right, on either side of the body of a CT; whom x grows to, is the patient's left."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner
from pydicom import Dataset, dcmread

from segnode.cli import main
from segnode.dicom.codes import Code
from segnode.dicom.slices import order_slices, read_volume
from segnode.errors import JobEnded
from segnode.models import Result, Volume
from segnode.pipeline.labelmaps import Labelmaps
from segnode.pipeline.laterality import judge, middle_of
from segnode.pipeline.tidy import Tidier
from segnode.seg.segments import LabelDictionary, Segment
from segnode.store.jobs import Job
from tests.unit.test_placement_proof import Node, images_in, turned

LEFT_CODE, RIGHT_CODE = Code("SCT", "7771000", "Left"), Code("SCT", "24028007", "Right")
LEFT, RIGHT = '["SCT", "7771000", "Left"]', '["SCT", "24028007", "Right"]'
KIDNEY = '["SCT", "64033007", "Kidney"]'
SEGMENT = '[[segment]]\nvalue = {value}\nlabel = "S{value}"\ncategory = ["SCT", "123037004", "Anatomical structure"]\n{codes}\n'
PAIR = SEGMENT.format(value=1, codes=f"type = {KIDNEY}\nmodifier = {LEFT}") + SEGMENT.format(
    value=2, codes=f"type = {KIDNEY}\nmodifier = {RIGHT}"
)


def boxes(volume: Volume) -> Result:
    """1 on the left of the phantom's patient, 2 on the right: by x of the affine that the model is given."""
    slices, rows, columns = np.indices(volume.array.shape)
    x, y = ((volume.affine[i, :3] @ np.stack([slices, rows, columns]).reshape(3, -1)) + volume.affine[i, 3] for i in (0, 1))
    side = np.where(x > 40, 1, np.where(x < -30, 2, 0)) * (np.abs(y) < 60) * (np.abs(x) < 120)
    return Result(side.reshape(volume.array.shape).astype(np.uint8))


def swapped(volume: Volume) -> Result:
    """The other way round."""
    return Result(np.array([0, 2, 1], np.uint8)[boxes(volume).labelmap])


def node_of(folder: Path, model=swapped, keys: str = "", labels: str = PAIR) -> Node:
    """A node whose model has these labels."""
    folder.mkdir(exist_ok=True)
    (folder / "labels.toml").write_text(labels)
    return Node(folder, model, keys, str(folder / "labels.toml"))


@pytest.mark.parametrize("dtype", ["uint8", "uint64", ">i4"])
def test_right_sides_pass(tmp_path: Path, ct: Path, dtype: str) -> None:
    """What lies on its side is delivered without a note, in whatever integers the model has."""
    model = lambda volume: Result(boxes(volume).labelmap.astype(dtype))  # noqa: E731
    job = node_of(tmp_path, model).run(images_in(ct))
    assert (job.state, job.error, job.note) == ("delivered", "", "")


def test_wrong_side_is_held_and_says_why(tmp_path: Path, ct: Path) -> None:
    """The job is held with each segment named and where its SEG lies; nothing is made, owed, or left of the labelmap."""
    node = node_of(tmp_path)
    job = node.run(images_in(ct))
    assert (job.state, job.error, job.deliveries, node.made(), job.sop_instance_uid) == ("held", "", (), [], "")
    assert "segment 1 (S1) lies on the patient's right, 100% of it over 10 mm beyond the middle of the body" in job.note
    assert "segment 2 (S2) lies on the patient's left" in job.note
    (held,) = (tmp_path / "work").iterdir()
    assert str(held) in job.note
    assert "PHANTOM" not in job.note


def test_release_sends_what_was_looked_at(tmp_path: Path, ct: Path) -> None:
    """Once it is released the SEG goes as it was held, byte for byte; the model is not asked again."""
    node = node_of(tmp_path)
    job = node.run(images_in(ct))
    looked_at = (tmp_path / "work" / f"{job.id}.dcm").read_bytes()
    node.model = boxes
    assert node.jobs.waiting() == []
    node.jobs.release(job.id, 2.0)
    released = again(node, job)
    assert (released.state, released.attempt) == ("delivered", 1)
    assert node.seg(released).read_bytes() == looked_at
    assert list((tmp_path / "work").iterdir()) == []


def again(node: Node, job: Job) -> Job:
    """Do what the worker does with jobs that wait."""
    assert [each.id for each in node.jobs.waiting()] == [job.id]
    if node.stages.infer(job.id, 0):
        node.stages.encode(job.id)
        node.stages.clear(job.id)
    return node.jobs.job(job.id)


def test_release_without_the_file(tmp_path: Path, ct: Path) -> None:
    """After a restore the SEG that was held is not there: it is made anew, and goes."""
    node = node_of(tmp_path)
    job = node.run(images_in(ct))
    (tmp_path / "work" / f"{job.id}.dcm").unlink()
    node.jobs.release(job.id, 2.0)
    assert again(node, job).state == "delivered"


def test_held_job_is_cancelled(tmp_path: Path, ct: Path) -> None:
    """Cancelled, it ends without a result; done again, it is held again; its file goes when nobody needs it."""
    node = node_of(tmp_path)
    job = node.run(images_in(ct))
    tidier = Tidier(node.objects, node.index, None, node.jobs, None, node.labelmaps, None, lambda: 1.0)  # type: ignore[arg-type]
    tidier.delete_no_longer_held()
    assert node.labelmaps.all_held() == [job.id]
    node.jobs.cancel(job.id, 2.0)
    tidier.delete_no_longer_held()
    assert node.labelmaps.all_held() == []
    with pytest.raises(JobEnded, match="is not held: it is cancelled"):
        node.jobs.release(job.id, 3.0)
    node.jobs.retry(job.id, 3.0)
    assert again(node, job).state == "held"


def test_step_that_is_repeated_leaves_a_held_job(tmp_path: Path, ct: Path) -> None:
    """Killed just after it was held, the engine runs the step again: the job stays held."""
    node = node_of(tmp_path)
    job = node.run(images_in(ct))
    node.stages.encode(job.id)
    assert node.jobs.job(job.id) == job


def test_held_job_on_the_command_line(tmp_path: Path, ct: Path) -> None:
    """`segnode jobs --state held` shows it with the reason, `release` lets it go once, `retry` does not."""
    node = node_of(tmp_path / "segnode-data")
    job = node.run(images_in(ct))
    config = tmp_path / "segnode.toml"
    config.write_text("models = []\nrules = []\n")

    def run(*arguments: str):
        return CliRunner().invoke(main, ["jobs", "--config", str(config), *arguments])

    assert "lies on the patient's right" in run("--state", "held").stdout
    (document,) = json.loads(run("--json").stdout)
    assert (document["state"], document["note"]) == ("held", job.note)
    assert [run(act, job.id[:10]).exit_code for act in ("retry", "release", "release")] == [1, 0, 1]


@pytest.mark.parametrize(("keys", "noted"), [('laterality = "warn"', True), ('laterality = "off"', False)])
def test_rule_may_say_otherwise(tmp_path: Path, ct: Path, keys: str, *, noted: bool) -> None:
    """With "warn" the result goes and the job has a note; with "off" nobody looks."""
    job = node_of(tmp_path, keys=keys).run(images_in(ct))
    assert (job.state, "lies on the patient's right" in job.note) == ("delivered", noted)


@pytest.mark.parametrize(
    ("codes", "state"),
    [
        (f"type = {KIDNEY}\nmodifier = {LEFT}", "held"),
        (f"type = {KIDNEY}\nmodifier = {RIGHT}", "delivered"),
        ('type = ["99X", "1", "Left kidney"]', "held"),
        ('type = ["99X", "1", "Right kidney"]', "delivered"),
        ('type = ["99X", "1", "Leftover"]', "delivered"),
        ('type = ["SCT", "4147007", "Mass"]\nregion = ["99X", "1", "Left kidney"]', "held"),
        ('type = ["SCT", "87878005", "Left ventricle of heart"]', "delivered"),
        (f'type = ["SCT", "87878005", "Left ventricle of heart"]\nmodifier = {LEFT}', "held"),
        (f"type = {KIDNEY}", "delivered"),
    ],
)
def test_what_is_coded_left(tmp_path: Path, ct: Path, codes: str, state: str) -> None:
    """By its modifier, or by a code whose meaning begins so, of type or region; a chamber of the heart is not."""
    labels = SEGMENT.format(value=2, codes=codes)
    model = lambda volume: Result(np.where(boxes(volume).labelmap == 2, 2, 0))  # noqa: E731
    job = node_of(tmp_path, model, labels=labels).run(images_in(ct))
    assert (job.state, job.error) == (state, "")


@pytest.mark.parametrize(
    "cosines",
    [
        (1, 0, 0, 0, 1, 0),
        (-1, 0, 0, 0, -1, 0),
        (-1, 0, 0, 0, 1, 0),
        (0.8, 0.6, 0, -0.6, 0.8, 0),
        (0.8, 0, 0.6, 0, 1, 0),
        (1, 0, 0, 0, 0, -1),
    ],
)
@pytest.mark.parametrize("right", [True, False])
def test_any_orientation(tmp_path: Path, ct: Path, cosines: tuple[float, ...], *, right: bool) -> None:
    """Sides are the patient's, in whatever order rows and columns come."""
    images = turned(*cosines)(images_in(ct))
    centre = (31.5 * 6.25) * (np.array(cosines[:3]) + np.array(cosines[3:]))
    for number, image in enumerate(images):
        normal = np.cross(cosines[:3], cosines[3:])
        image.ImagePositionPatient = [f"{value:.6f}" for value in 2.5 * number * normal - centre]
    job = node_of(tmp_path, boxes if right else swapped).run(images)
    assert (job.state, job.error) == ("delivered" if right else "held", "")


def air(images: list[Dataset]) -> list[Dataset]:
    """Nobody in it."""
    for image in images:
        image.PixelData = bytes(len(image.PixelData))
    return images


def cut(images: list[Dataset]) -> list[Dataset]:
    """The left half of the patient alone."""
    for image in images:
        pixels = np.ascontiguousarray(image.pixel_array[:, 30:])
        image.PixelData, image.Columns = pixels.tobytes(), pixels.shape[1]
        x, y, z = image.ImagePositionPatient
        image.ImagePositionPatient = [x + 30 * 6.25, y, z]
    return images


def other_modality(images: list[Dataset]) -> list[Dataset]:
    """Values that say nothing of the body."""
    for image in images:
        image.Modality = "PT"
    return images


@pytest.mark.parametrize(("change", "numbers"), [(air, "1, 2"), (cut, "2"), (other_modality, "1, 2")])
def test_sides_that_cannot_be_judged(tmp_path: Path, ct: Path, change, numbers: str) -> None:
    """Without a body, with one that the image's edge cuts, or of another modality: the result goes, and it is noted."""
    job = node_of(tmp_path).run(change(images_in(ct)))
    assert (job.state, job.error) == ("delivered", "")
    assert job.note == f"the side of segments {numbers} is not judged: the middle of the body there is not known"


@pytest.mark.parametrize(("model", "state"), [(boxes, "delivered"), (swapped, "held")])
def test_body_of_an_mr(tmp_path: Path, ct: Path, model, state: str) -> None:
    """In an MR the body is what is brighter, whatever the numbers."""
    images = images_in(ct)
    for image in images:
        image.Modality, image.RescaleIntercept, image.RescaleSlope = "MR", "0", "0.25"
    assert node_of(tmp_path, model).run(images).state == state


def test_labelmaps_of_no_folder(tmp_path: Path) -> None:
    """A node that has never worked holds nothing."""
    assert Labelmaps(tmp_path / "none").all_held() == []


# Of the published labels of the sample: an adrenal gland, humeri, deep muscles of the back, ribs.
LEFT_VALUES, RIGHT_VALUES = (69, 86, *range(97, 104)), (8, 70, 87, *range(109, 116))


@pytest.mark.parametrize(("mirrored", "wrong"), [(False, 0), (True, len(LEFT_VALUES) + len(RIGHT_VALUES))])
def test_sides_of_a_real_patient(sample_ct: Path, sample, *, mirrored: bool, wrong: int) -> None:
    """Of a CT with both arms beside the trunk none of the published labels lies wrong, and all of them when mirrored."""
    slices = order_slices([dcmread(file) for file in sample_ct.iterdir()])
    volume = read_volume(slices, slices.images)
    published = nibabel.load(sample("totalsegmentator/example_seg_dicom.nii.gz"))
    # Both grids hold the same voxels: NIfTI's axes are columns, rows and slices, and its x and y run the other way.
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ published.affine
    flips = [bool(np.sign(to_lps[axis, axis]) != np.sign(volume.affine[axis, 2 - axis])) for axis in range(3)]
    labels = np.asarray(published.dataobj)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)].T.astype(np.uint8)
    codes = [(value, LEFT_CODE) for value in LEFT_VALUES] + [(value, RIGHT_CODE) for value in RIGHT_VALUES]
    kidney = Code("SCT", "64033007", "Kidney")
    dictionary = LabelDictionary(tuple(Segment(value, f"S{value}", kidney, kidney, side) for value, side in codes))
    labels = np.where(np.isin(labels, (*LEFT_VALUES, *RIGHT_VALUES)), labels, 0)[:, :, :: -1 if mirrored else 1]
    judgement = judge(labels, slices.images, dictionary, middle_of(volume, slices.images))
    assert (len(judgement.wrong), judgement.not_judged) == (wrong, ())
