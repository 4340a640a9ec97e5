"""`segnode run`: a model on files, with the process, the proofs and the codes that a node has, and without a node."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import highdicom
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from pydicom import dcmread

from segnode.cli import main
from segnode.seg.arrays import volume
from segnode.seg.check import check, read_to_check
from segnode.seg.read import open_segmentation
from segnode.testing.phantom import Phantom, write_ct

MODULE = """
import os
import nibabel, numpy as np
from segnode.models import Result, report_progress, threshold

def tells(volume):
    report_progress(0.42, "second fold")
    return threshold.segment(volume)

def published(volume):
    image = nibabel.load(os.environ["LABELS"])
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    # NIfTI's axes are columns, rows, slices.
    return Result(np.asarray(image.dataobj).astype(np.uint8).T, affine=to_lps @ np.eye(4)[[2, 1, 0, 3]])

def overlapping(volume):
    masks = np.zeros((3, *volume.array.shape), bool)
    masks[0, :, 4:20, 4:20] = masks[1, :, 10:30, 10:30] = True
    return Result(masks=masks)

def unlisted(volume): return Result(np.full(volume.array.shape, 9, np.uint8))

def raises(volume):
    print("what went wrong")
    raise ValueError("somebody's name")
"""
MODEL = '[[models]]\nname = "{0}"\nrun = "python:models_of_a_test:{0}"\nlabels = "{1}"\nversion = "7"\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the current one, with a configuration of models; no node has run there."""
    (tmp_path / "models_of_a_test.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    models = [MODEL.format(name, "threshold") for name in ("overlapping", "unlisted", "raises", "tells")]
    (tmp_path / "models.toml").write_text("".join((*models, MODEL.format("published", "totalsegmentator"))))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: object) -> Result:
    """Run a command."""
    return CliRunner().invoke(main, ["run", *map(str, words)])


def made(ended: Result, **wanted: object) -> list[dict[str, object]]:
    """What it says of each series, where it ended as it should."""
    assert ended.exit_code == wanted.get("code", 0), ended.output
    found: list[dict[str, object]] = json.loads(ended.stdout)
    return found


def test_result_is_the_truth_and_keeps_the_standard(folder: Path, phantom: Phantom) -> None:
    """Without a configuration the built-in model runs; no data folder is made, and nothing but the SEG is left."""
    ended = run("threshold", phantom.folder, "-o", "made")
    assert ended.exit_code == 0, ended.output
    (file,) = (folder / "made").iterdir()
    assert str(file.relative_to(folder)) in ended.stdout
    np.testing.assert_array_equal(volume(open_segmentation(file)).array, phantom.labelmap)
    assert not check(read_to_check(file))
    for label, value in (("Body", 1), ("Lung", 2), ("Bone", 3)):
        assert any(line.split() == [f"{(phantom.labelmap == value).sum():,}", label] for line in ended.stdout.splitlines())
    assert not (folder / "segnode-data").exists()


def test_a_repeat_is_the_same_object(folder: Path, ct: Path) -> None:
    """Whatever the files are called and in which order they come."""
    (first,) = made(run("threshold", ct, "-o", "first", "--json"))
    (folder / "again").mkdir()
    for number, file in enumerate(sorted(ct.iterdir(), key=lambda _: random.random())):
        shutil.copy(file, folder / "again" / f"{number}")
    (second,) = made(run("threshold", folder / "again", "-o", "second.dcm", "--json"))
    assert second["sop_instance_uid"] == first["sop_instance_uid"]
    assert (folder / "second.dcm").is_file()


def test_every_series_is_tried(folder: Path, ct: Path) -> None:
    """One with a gap fails with its reason and exit code 1, the other is written; no DICOM in a folder is left out."""
    shutil.copytree(ct, folder / "images" / "whole")
    other = write_ct(folder / "images" / "gap", slices=8, size=64, seed=2).folder
    (other / "0004.dcm").unlink()
    series = dcmread(other / "0001.dcm").SeriesInstanceUID
    (folder / "images" / "notes.txt").write_text("no DICOM")
    ended = run("threshold", "images", "-o", "made", "--json")
    failed, written = sorted(made(ended, code=1), key=lambda each: each["series"] != series)
    assert "gap" in str(failed["error"])
    assert [written["error"], written["images"]] == ["", 8]
    assert len([*(folder / "made").iterdir()]) == 1
    assert "notes.txt: not a DICOM file" in ended.stderr


def test_a_named_file_that_is_no_dicom_is_a_failure(folder: Path, ct: Path) -> None:
    """The series beside it is written."""
    (folder / "notes.txt").write_text("no DICOM")
    assert run("threshold", "notes.txt", ct, "-o", "made").exit_code == 1
    assert len([*(folder / "made").iterdir()]) == 1
    assert run("threshold", "notes.txt", "-o", "made").exit_code == 1


def test_form_and_picture(folder: Path, phantom: Phantom) -> None:
    """As a BINARY it has the same labels; a contact sheet is drawn of a LABELMAP."""
    (binary,) = made(run("threshold", phantom.folder, "-o", "binary.dcm", "--form", "binary:deflate", "--json"))
    assert (binary["form"], dcmread("binary.dcm").SegmentationType) == ("binary:deflate", "BINARY")
    np.testing.assert_array_equal(volume(open_segmentation(Path("binary.dcm"))).array, phantom.labelmap)
    assert run("threshold", phantom.folder, "-o", "l.dcm", "--form", "labelmap:jpeg-ls", "--picture", "l.png").exit_code == 0
    with Image.open("l.png") as picture:
        assert picture.size[0] > 1000
    assert dcmread("l.dcm").file_meta.TransferSyntaxUID.name.startswith("JPEG-LS")


def test_files_that_are_there_stay(folder: Path, ct: Path) -> None:
    """Unless --force is given."""
    (folder / "made.dcm").write_text("mine")
    ended = run("threshold", ct, "-o", "made.dcm")
    assert (ended.exit_code, (folder / "made.dcm").read_text()) == (1, "mine")
    assert "there already" in ended.stderr
    assert run("threshold", ct, "-o", "made.dcm", "--force").exit_code == 0
    assert [file.name for file in folder.glob("*.dcm*")] == ["made.dcm"]


@pytest.mark.parametrize(("name", "reason"), [("raises", "it printed last: ValueError"), ("unlisted", r"[9]")])
def test_failed_model_says_why_and_writes_nothing(folder: Path, ct: Path, name: str, reason: str) -> None:
    """With what it printed last: the folder that it printed to is gone."""
    ended = run("--config", "models.toml", name, ct, "-o", "made")
    assert ended.exit_code == 1
    assert reason in ended.stderr
    assert not (folder / "made").exists()


def test_overlapping_segments_become_a_binary(folder: Path, ct: Path) -> None:
    """Without --form; a LABELMAP cannot hold them, which is said where it is asked for."""
    (overlapping,) = made(run("--config", "models.toml", "overlapping", ct, "-o", "o.dcm", "--json"))
    assert overlapping["form"] == "binary:native"
    assert overlapping["voxels"] == {"Body": 8 * 16 * 16, "Lung": 8 * 20 * 20, "Bone": 0}
    (refused,) = made(
        run("--config", "models.toml", "overlapping", ct, "-o", "l.dcm", "--form", "labelmap:rle", "--json"), code=1
    )
    assert "overlap" in str(refused["error"])


def test_wrong_model_dictionary_or_use_is_named_before_anything_runs(folder: Path, ct: Path) -> None:
    """Exit code 2."""
    ended = run("--config", "models.toml", "treshold", ct, "-o", "made")
    assert (ended.exit_code, "allowed: overlapping, unlisted" in ended.stderr) == (2, True)
    (folder / "l.toml").write_text(
        '[[segment]]\nvalue = 1\nlabel = "A"\ncategory = ["SCT", "123037004"]\ntype = ["SCT", "T-2"]'
    )
    (folder / "wrong.toml").write_text(MODEL.format("raises", "l.toml"))
    ended = run("--config", "wrong.toml", "raises", ct, "-o", "made")
    assert (ended.exit_code, "l.toml, line 5: segment[0].type" in ended.stderr) == (2, True)
    write_ct(folder / "two" / "b", slices=3, size=64, seed=2)
    shutil.copytree(ct, folder / "two" / "a")
    assert run("threshold", "two", "-o", "made.dcm").exit_code == 2
    assert not (folder / "made.dcm").exists()


def test_tracked_structures_are_those_of_the_node(folder: Path, ct: Path) -> None:
    """By the secret of its data folder, over versions of the model; where no node has run nothing is tracked, which is said."""
    text = '[[segment]]\nvalue = {}\nlabel = "{}"\ncategory = ["SCT", "123037004"]\ntype = ["SCT", "{}"]\ntrack = {}\n'
    parts = (("Body", 38266002, "false"), ("Lung", 39607008, "true"), ("Bone", 272673000, "false"))
    (folder / "l.toml").write_text("".join(text.format(value, *part) for value, part in enumerate(parts, 1)))
    model = '[[models]]\nname = "t"\nrun = "python:segnode.models.threshold"\nlabels = "l.toml"\nversion = "{}"\n'
    for version in (1, 2):
        (folder / f"{version}.toml").write_text(model.format(version))
    ended = run("--config", "1.toml", "t", ct, "-o", "untracked.dcm")
    assert "nothing is tracked" in ended.stderr
    (folder / "segnode-data").mkdir()
    (folder / "segnode-data" / "secret").write_text("secret")
    for version in (1, 2):
        assert run("--config", f"{version}.toml", "t", ct, "-o", f"{version}.dcm").exit_code == 0
    items = [dcmread(f"{name}.dcm").SegmentSequence[1] for name in ("untracked", 1, 2)]
    assert [item.get("TrackingID") for item in items] == [None, "Lung", "Lung"]
    assert items[1].TrackingUID == items[2].TrackingUID


def test_published_example_of_totalsegmentator(
    folder: Path, sample: Callable[[str], Path], sample_ct: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its labels come out as 31 coded segments that lie in the patient where its reference has them."""
    nibabel = pytest.importorskip("nibabel")
    reference = nibabel.load(sample("totalsegmentator/example_seg_dicom.nii.gz"))
    monkeypatch.setenv("LABELS", str(sample("totalsegmentator/example_seg_dicom.nii.gz")))
    (found,) = made(run("--config", "models.toml", "published", sample_ct, "-o", "made.dcm", "--json"))
    voxels = {label: count for label, count in found["voxels"].items() if count}  # type: ignore[attr-defined]
    assert len(voxels) == 31
    seg = highdicom.seg.segread("made.dcm")
    ours = seg.get_volume(combine_segments=True)
    theirs = highdicom.Volume(
        np.asarray(reference.dataobj).astype(np.uint8),
        affine=np.diag([-1.0, -1.0, 1.0, 1.0]) @ reference.affine,
        coordinate_system="PATIENT",
        frame_of_reference_uid=ours.frame_of_reference_uid,
    )
    np.testing.assert_array_equal(theirs.match_geometry(ours).array, ours.array)
    for number in np.unique(ours.array)[1:]:
        description = seg.get_segment_description(int(number))
        assert description.segmented_property_category.value == "123037004"
        assert description.segmented_property_type.scheme_designator == "SCT"
        assert bool(
            description.get("SegmentedPropertyTypeCodeSequence")[0].get("SegmentedPropertyTypeModifierCodeSequence")
        ) == (" left" in description.segment_label or " right" in description.segment_label)
        algorithm = description.algorithm_identification
        assert (algorithm.name, algorithm.version, algorithm.family.value) == ("published", "7", "123110")


def test_progress_of_the_model_is_shown(folder: Path, phantom: Phantom) -> None:
    """As it says itself, on standard error, and in no document."""
    ended = run("tells", phantom.folder, "-o", "made", "--config", "models.toml", "--json")
    assert "running tells 42% second fold" in ended.stderr
    assert len(made(ended)) == 1
