"""The commands for SEG files: what they print and write, their exit codes, and files that are whole or not there."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
from click.testing import CliRunner, Result
from pydicom import dcmread

from segnode import seg_cli
from segnode.cli import main
from segnode.errors import CannotWrite
from segnode.seg.arrays import volume
from segnode.seg.codecs import CODECS
from segnode.seg.read import open_segmentation
from segnode.seg_files import new_file

from .test_convert import of_two_segments, say_anatomy

Sample = Callable[[str], Path]


def run(*words: object) -> Result:
    """Run a command of `segnode seg`."""
    return CliRunner().invoke(main, ["seg", *map(str, words)])


@pytest.fixture
def liver(sample: Sample) -> Path:
    """A BINARY of one segment, a volume."""
    return sample("pydicom-data/liver.dcm")


@pytest.fixture
def overlapping(sample: Sample) -> Path:
    """A BINARY whose segments overlap."""
    return sample("dcmqi/partial_overlaps.dcm")


def test_the_codecs_on_offer_are_those_that_there_are() -> None:
    """They are listed so that they need not be loaded."""
    assert set(CODECS) == set(seg_cli._CODECS)


def test_a_command_loads_nothing_that_only_pydicom_has_a_use_for(liver: Path, tmp_path: Path) -> None:
    """Requests and Pillow take a tenth of a conversion to load; afterwards they can be imported as ever."""
    words = ["seg", "convert", str(liver), str(tmp_path / "out.dcm")]
    program = (
        f"import sys; from segnode.cli import main; sys.argv[1:] = {words}\n"
        "try: main()\nfinally: print(*sys.modules); import requests, PIL.Image"
    )
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert not set(result.stdout.split()) & {"requests", "PIL"}
    assert (tmp_path / "out.dcm").exists()


def test_info_tells_what_is_in_a_file(liver: Path) -> None:
    """In words and as JSON, with volumes."""
    result = run("info", liver)
    assert (result.exit_code, "Liver" in result.output, "BINARY" in result.output) == (0, True, True)
    found = json.loads(run("info", liver, "--json").output)
    (segment,) = found["segments"]
    rows, columns = found["geometry"]["spacing"][1:]
    assert segment["voxels"] == int((volume(open_segmentation(liver)).array == 1).sum())
    assert segment["millilitres"] == pytest.approx(segment["voxels"] * found["geometry"]["spacing"][0] * rows * columns / 1000)
    assert (found["frames"], found["planes"], found["bytes"]) == (3, 3, liver.stat().st_size)


def test_info_of_tiles_says_why_there_is_no_volume(sample: Sample) -> None:
    """Voxels are counted, millilitres are not known."""
    found = json.loads(run("info", sample("highdicom/seg_image_sm_control.dcm"), "--json").output)
    assert "TotalPixelMatrixRows" in found["geometry"]["problem"]
    assert found["segments"][0]["millilitres"] is None


def test_convert_writes_what_diff_finds_equal(liver: Path, tmp_path: Path) -> None:
    """And says how much smaller it is."""
    out = tmp_path / "out.dcm"
    result = run("convert", liver, out, "--codec", "jpeg-ls")
    assert (result.exit_code, str(out) in result.output) == (0, True)
    assert run("diff", liver, out).exit_code == 0
    assert run("check", out).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.dcm"]


def test_convert_splits_into_numbered_files(overlapping: Path, tmp_path: Path) -> None:
    """Without being asked it fails, and names the segments."""
    refused = run("convert", overlapping, tmp_path / "a.dcm")
    assert (refused.exit_code, "1 (GREEN) and 2 (ORANGE) in 3017 voxels" in refused.output) == (1, True)
    assert not list(tmp_path.iterdir())
    (done,) = json.loads(run("convert", overlapping, tmp_path / "a.dcm", "--overlap", "split", "--json").output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-1.dcm", "a-2.dcm", "a-3.dcm"]
    assert [output["parts"] for output in done["outputs"]] == [output["lower_bound"] for output in done["outputs"]] == [3] * 3
    assert done["outputs"][0]["overlaps"][0] == {"numbers": [1, 2], "labels": ["GREEN", "ORANGE"], "voxels": 3017}


def test_convert_says_how_overlaps_were_resolved(overlapping: Path, tmp_path: Path) -> None:
    """Pair by pair."""
    result = run("convert", overlapping, tmp_path / "a.dcm", "--priority", "3,1")
    assert (result.exit_code, "1 (GREEN) and 3 (PURPLE) in 95 voxels" in result.output) == (0, True)


def test_convert_says_what_it_left_out(tmp_path: Path) -> None:
    """Functional groups in which frames differ that one frame now stands for."""
    source = tmp_path / "in.dcm"
    source.write_bytes(of_two_segments(say_anatomy(lambda groups: str(groups.SegmentIdentificationSequence))))
    result = run("convert", source, tmp_path / "a.dcm")
    assert (result.exit_code, "left out FrameAnatomySequence" in result.output) == (0, True)


@pytest.mark.parametrize(
    "options",
    [["--overlap", "priority"], ["--priority", "1,2", "--overlap", "split"], ["--priority", "x"], ["--threshold", "0"]],
)
def test_options_that_make_no_sense_are_wrong_usage(liver: Path, tmp_path: Path, options: list[str]) -> None:
    """Exit code 2."""
    assert run("convert", liver, tmp_path / "a.dcm", *options).exit_code == 2


def test_a_folder_is_converted_and_what_fails_is_listed(liver: Path, overlapping: Path, tmp_path: Path) -> None:
    """The others go on; sub-folders are kept; what is no SEG is passed by."""
    source, out = tmp_path / "in", tmp_path / "out"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "liver.dcm").write_bytes(liver.read_bytes())
    (source / "overlapping.dcm").write_bytes(overlapping.read_bytes())
    (source / "short.dcm").write_bytes(liver.read_bytes()[:-9999])
    (source / "notes.txt").write_text("no SEG")
    result = run("convert", source, out)
    assert result.exit_code == 1
    assert [path.relative_to(out) for path in out.rglob("*.dcm")] == [Path("deep/liver.dcm")]
    assert f"{source / 'overlapping.dcm'}: segments overlap" in result.output
    assert f"{source / 'short.dcm'}: the data ends inside (7fe0,0010)" in result.output


def test_what_cannot_be_read_does_not_end_a_check(liver: Path, tmp_path: Path) -> None:
    """The files behind it are checked, and the exit code tells; a SEG that ends early is one of those in a folder."""
    (tmp_path / "bad.dcm").write_bytes(b"no DICOM" * 100)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "short.dcm").write_bytes(liver.read_bytes()[:-9999])
    result = run("check", tmp_path / "bad.dcm", tmp_path / "in", liver)
    assert result.exit_code == 1
    assert f"segnode: {tmp_path / 'bad.dcm'} cannot be read" in result.output
    assert f"{tmp_path / 'in' / 'short.dcm'}: 1 finding(s)" in result.output
    assert f"{liver}: no findings" in result.output


def test_references_that_are_none_are_named(liver: Path, tmp_path: Path) -> None:
    """And the error is not one of Python."""
    dataset = dcmread(liver)
    del dataset.ReferencedSeriesSequence
    dataset.add_new("ReferencedSeriesSequence", "PN", "a^b")
    dataset.save_as(tmp_path / "seg.dcm")
    result = run("info", tmp_path / "seg.dcm")
    assert (result.exit_code, "ReferencedSeriesSequence is no sequence" in result.output) == (1, True)


def test_nothing_is_overwritten_without_force(liver: Path, tmp_path: Path) -> None:
    """Neither by a conversion nor by an export."""
    for command, name in (("convert", "out.dcm"), ("export", "out.npz")):
        out = tmp_path / name
        out.write_text("dear")
        refused = run(command, liver, out)
        assert (refused.exit_code, out.read_text()) == (1, "dear")
        assert "is there already" in refused.output
        assert run(command, liver, out, "--force").exit_code == 0
        assert out.stat().st_size > 1000


def test_a_file_can_take_its_own_place(liver: Path, tmp_path: Path) -> None:
    """It is mapped while it is converted."""
    file = tmp_path / "seg.dcm"
    file.write_bytes(liver.read_bytes())
    assert run("convert", file, file, "--codec", "rle", "--force").exit_code == 0
    assert run("diff", liver, file).exit_code == 0


@pytest.mark.parametrize("content", [b"", b"no DICOM" * 100])
def test_bad_input_is_named(tmp_path: Path, content: bytes) -> None:
    """With a reason and an exit code, and nothing is written."""
    bad, out = tmp_path / "bad.dcm", tmp_path / "out.dcm"
    bad.write_bytes(content)
    for command in (["convert", bad, out], ["info", bad], ["export", bad, tmp_path / "out.npz"]):
        result = run(*command)
        assert (result.exit_code, f"segnode: {bad}" in result.output) == (1, True), result.output
    assert run("diff", bad, bad).exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["bad.dcm"]


def test_a_place_that_cannot_be_written_is_named(liver: Path, tmp_path: Path) -> None:
    """A folder of that name, a file for a folder."""
    (tmp_path / "file").touch()
    result = run("convert", liver, tmp_path / "file" / "out.dcm")
    assert (result.exit_code, "cannot be written" in result.output) == (1, True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """Neither a part of a file nor a change of the one that is there."""
    out = tmp_path / "out"
    out.write_text("dear")

    def write_to_full_disk() -> None:
        with new_file(out, overwrite=True) as path:
            path.write_text("half")
            os.write(os.open("/dev/full", os.O_WRONLY), b"x" * 9999)

    with pytest.raises(CannotWrite, match="No space left on device"):
        write_to_full_disk()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("out", "dear")]


def test_of_two_that_write_one_file_the_second_is_told(tmp_path: Path) -> None:
    """The first file stays."""
    out = tmp_path / "out"

    def write_twice() -> None:
        with new_file(out, overwrite=False) as first, new_file(out, overwrite=False) as second:
            first.write_text("first")
            second.write_text("second")

    with pytest.raises(CannotWrite, match="another program in the meantime"):
        write_twice()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("out", "second")]


_WRITES_HALF_AND_WAITS = """
import sys
from pathlib import Path
from segnode.seg_files import new_file
with new_file(Path(sys.argv[1]), overwrite=True) as beside:
    beside.write_text("half")
    print("written", flush=True)
    sys.stdin.read()
"""


def test_a_process_killed_while_it_writes_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    """OUT never holds half of a result."""
    out = tmp_path / "out.dcm"
    out.write_text("whole")
    words = [sys.executable, "-c", _WRITES_HALF_AND_WAITS, str(out)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.kill()
    assert out.read_text() == "whole"
    assert [path.read_text() for path in tmp_path.iterdir() if path != out] == ["half"]


def test_exports_hold_labels_and_geometry(liver: Path, tmp_path: Path) -> None:
    """NIfTI in RAS, NRRD in LPS, NumPy: a voxel lies where it lies in the SEG."""
    labels = volume(open_segmentation(liver))
    index = np.array([*np.argwhere(labels.array)[7], 1])
    lps = labels.affine @ index
    for suffix in (".nii.gz", ".nrrd", ".npz"):
        assert run("export", liver, tmp_path / f"out{suffix}").exit_code == 0
    image = nibabel.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), labels.array)
    np.testing.assert_allclose(image.affine @ index[[2, 1, 0, 3]], lps * [-1, -1, 1, 1], atol=1e-4)
    data, head = nrrd.read(str(tmp_path / "out.nrrd"))
    np.testing.assert_array_equal(data.transpose(2, 1, 0), labels.array)
    assert head["space"] == "left-posterior-superior"
    np.testing.assert_allclose(head["space directions"].T @ index[[2, 1, 0]] + head["space origin"], lps[:3])
    with np.load(tmp_path / "out.npz") as arrays:
        np.testing.assert_array_equal(arrays["labelmap"], labels.array)
        np.testing.assert_allclose(arrays["affine"], labels.affine)
        assert json.loads(str(arrays["segments"]))[0]["label"] == "Liver"


def test_names_of_segments_in_any_script_are_exported(liver: Path, tmp_path: Path) -> None:
    """The header of NRRD is ASCII, and JSON can be too."""
    dataset = dcmread(liver)
    dataset.SpecificCharacterSet, dataset.SegmentSequence[0].SegmentLabel = "ISO_IR 192", "肝臓"
    dataset.save_as(tmp_path / "seg.dcm")
    for suffix in (".nrrd", ".npz"):
        assert run("export", tmp_path / "seg.dcm", tmp_path / f"out{suffix}").exit_code == 0
    _, head = nrrd.read(str(tmp_path / "out.nrrd"))
    with np.load(tmp_path / "out.npz") as arrays:
        for text in (head["segments"], str(arrays["segments"])):
            assert json.loads(text)[0]["label"] == "肝臓"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("dcmqi/partial_overlaps.dcm", "--overlap split"),
        ("highdicom/seg_image_ct_true_fractional.dcm", "--threshold"),
    ],
)
def test_what_is_no_labelmap_in_a_volume_is_not_exported(sample: Sample, tmp_path: Path, name: str, told: str) -> None:
    """And it is said what to do."""
    result = run("export", sample(name), tmp_path / "out.nrrd")
    assert (result.exit_code, told in result.output) == (1, True)
    assert not list(tmp_path.iterdir())


def test_an_export_of_no_format_is_wrong_usage(liver: Path, tmp_path: Path) -> None:
    """The formats are listed."""
    result = run("export", liver, tmp_path / "out.png")
    assert (result.exit_code, ".nii.gz, .nrrd, .npz" in result.output) == (2, True)


def test_diff_says_what_differs(overlapping: Path, tmp_path: Path) -> None:
    """Exit code 1, in words and as JSON."""
    run("convert", overlapping, tmp_path / "a.dcm", "--priority", "1,2")
    result = run("diff", overlapping, tmp_path / "a.dcm")
    assert (result.exit_code, "segment 2 (ORANGE): 3017 voxels differ" in result.output) == (1, True)
    found = json.loads(run("diff", overlapping, tmp_path / "a.dcm", "--json").output)
    assert (found["equal"], found["segments"][0]["differing"]) == (False, 0)
