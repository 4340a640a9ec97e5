"""The command door: what a program is given, and what is made of the files that it leaves."""

import os
import re
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from pydicom import dcmread

from segnode.config import Config, ModelConfig, SecretConfig, parse_config
from segnode.dicom.geometry import Vector
from segnode.dicom.slices import order_slices, read_volume
from segnode.dicom.volume import Volume
from segnode.errors import ConfigError, ModelFailed
from segnode.models.doors import load_model
from segnode.models.nifti import write_volume
from segnode.programs import with_versions
from tests.commands import STAND_INS, model, program, stand_in

# Turned about all three axes, with spacings of 3, 0.7 and 0.9 mm.
TURNED = np.array(
    [
        [1.9021130325903073, -0.27221359, -0.5816407, -91.5],
        [-0.6, 0.5, -0.6, 40.25],
        [2.2, 0.41, 0.32, -1200.125],
        [0.0, 0.0, 0.0, 1.0],
    ]
)


def oblique() -> Vector:
    """An affine whose axes are perpendicular, and none is an axis of the patient."""
    axes, _ = np.linalg.qr(TURNED[:3, :3])
    affine = TURNED.copy()
    affine[:3, :3] = axes * [3.0, 0.7, 0.9]
    return affine


@pytest.fixture
def volume() -> Volume:
    """A small oblique volume of integers, of which no two are equal."""
    array = np.arange(-60, 60, dtype=np.float32).reshape(4, 5, 6)
    return Volume(array, oblique(), {"Modality": "CT"}, ("1.1", "1.2", "1.3", "1.4"))


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for scratch folders, which is empty again at the end."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    assert [*folder.iterdir()] == []


def run(body: str, folder: Path, volume: Volume, arguments: str = "{input} {output}", **keys: Any) -> Any:
    """The result of a program on a volume."""
    return load_model(model(f"{program(folder / 'program', body)} {arguments}", **keys))(volume)


def test_input_is_the_volume_in_ras(tmp_path: Path, volume: Volume) -> None:
    """Each voxel of the file lies where that of the volume does, with x and y to the other side."""
    write_volume(tmp_path / "input.nii", volume)
    image: Any = nibabel.load(tmp_path / "input.nii")
    values = np.asarray(image.dataobj)
    for index in np.ndindex(volume.array.shape):
        assert values[index[::-1]] == volume.array[index]
        x, y, z, _ = volume.affine @ (*index, 1)
        np.testing.assert_allclose(image.affine @ (*index[::-1], 1), (-x, -y, z, 1), atol=1e-3)
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-3)
    assert (int(image.header["qform_code"]), int(image.header["sform_code"]), image.header.get_xyzt_units()[0]) == (1, 1, "mm")


@pytest.mark.parametrize(
    ("values", "dtype"),
    [([-1024.0, 3071.0], "int16"), ([0.5, 1.0], "float32"), ([0.0, 40000.0], "float32"), ([np.nan, 0.0], "float32")],
)
def test_input_is_int16_where_that_holds_it(tmp_path: Path, values: list[float], dtype: str) -> None:
    """Integers of 16 bits are written so, and all else as float32, which loses nothing."""
    array = np.array(values, np.float32).reshape(1, 1, 2)
    write_volume(tmp_path / "input.nii", Volume(array, np.eye(4), {}, ("1",)))
    image: Any = nibabel.load(tmp_path / "input.nii")
    assert image.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asarray(image.dataobj).ravel(), values)


ECHO = """
image = nibabel.load(sys.argv[1])
values = np.asarray(image.dataobj)
labels = nibabel.Nifti1Image((values + 60).astype(np.uint8), image.affine)
labels = labels.as_reoriented(np.array(eval(os.environ["TURN"])))
nibabel.save(labels, sys.argv[2])
"""


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(("axes", "flips"), [*zip(permutations(range(3)), product((1, -1), repeat=3), strict=False)])
def test_labels_come_back_to_their_voxels(tmp_path: Path, volume: Volume, axes: Any, flips: Any, suffix: str) -> None:
    """Labels in whatever order of axes are put back exactly, by the affine of their file."""
    turn = str([[axis, flip] for axis, flip in zip(axes, flips, strict=True)])
    result = run(ECHO, tmp_path, volume, f"{{input}} {{output}}{suffix}", env={"TURN": turn})
    assert result.affine is None
    np.testing.assert_array_equal(result.labelmap, volume.array + 60)


def test_labels_on_another_grid_are_taken_to_the_volume_s(tmp_path: Path, volume: Volume) -> None:
    """Labels of half the spacing come back in the voxels of the volume, each as the nearest."""
    body = """
    image = nibabel.load(sys.argv[1])
    fine = (np.asarray(image.dataobj) + 60).astype(np.uint8).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    affine = image.affine @ np.array([[.5, 0, 0, -.25], [0, .5, 0, -.25], [0, 0, .5, -.25], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(fine, affine), sys.argv[2])
    """
    np.testing.assert_array_equal(run(body, tmp_path, volume).labelmap, volume.array + 60)


STRUCTURES = """
image = nibabel.load(sys.argv[1])
values = np.asarray(image.dataobj)
for name, least, most in eval(os.environ["STRUCTURES"]):
    mask = ((values >= least) & (values < most)).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(mask, image.affine), Path(sys.argv[2], name))
Path(sys.argv[2], "statistics.json").write_text("{}")
"""


def structures(found: list[tuple[str, int, int]], tmp_path: Path, volume: Volume) -> Any:
    """What comes of a folder with structures: file names, and from which value of the volume to which."""
    return run(STRUCTURES, tmp_path, volume, "{input} {output_dir}", env={"STRUCTURES": str(found)})


def test_structures_of_a_folder_have_the_values_of_their_labels(tmp_path: Path, volume: Volume) -> None:
    """A file is the structure that it is called by; one that is missing is empty; what is no NIfTI file is let be."""
    result = structures([("body.nii.gz", 0, 20), ("Bone.nii", 20, 60)], tmp_path, volume)
    expected = np.select([volume.array >= 20, volume.array >= 0], [3, 1], 0)
    np.testing.assert_array_equal(result.labelmap, expected)


def test_structures_that_overlap_are_layers(tmp_path: Path, volume: Volume) -> None:
    """No voxel of any structure is lost where two share it."""
    result = structures([("body.nii.gz", -60, 60), ("lung.nii.gz", 0, 30), ("bone.nii.gz", 20, 60)], tmp_path, volume)
    for value, least, most in ((1, -60, 60), (2, 0, 30), (3, 20, 60)):
        found = (result.labelmap == value).any(axis=0)
        np.testing.assert_array_equal(found, (volume.array >= least) & (volume.array < most))


def test_structure_of_an_unknown_name_fails_the_job(tmp_path: Path, volume: Volume) -> None:
    """Nothing is dropped: the file is named."""
    with pytest.raises(ModelFailed, match=r"spleen\.nii\.gz: no segment of the label dictionary has that label"):
        structures([("body.nii.gz", 0, 60), ("spleen.nii.gz", 0, 20)], tmp_path, volume)


SAVE = """
image = nibabel.load(sys.argv[1])
labels, affine, dtype = np.zeros(image.shape), image.affine, np.uint8
{change}
out = nibabel.Nifti1Image(labels.astype(dtype), affine, dtype=dtype)
nibabel.save(out, sys.argv[2])
"""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("labels = np.zeros((6, 5, 3))", r"shape \(6, 5, 3\) where \(6, 5, 4\) are the volume's"),
        ("labels = np.zeros((6, 5, 4, 2))", r"shape \(6, 5, 4, 2\): they have three axes"),
        ("labels += .5; dtype = np.float32", "are no integers: are these probabilities"),
        ("labels += np.nan; dtype = np.float32", "are no numbers"),
        ("dtype = np.complex64", "of type complex64"),
        ("affine = None", "does not say where its labels lie"),
        ("print('none'); sys.exit()", "neither output.nii nor output.nii.gz is there"),
        ("open(sys.argv[2], 'w'); sys.exit()", "output.nii is empty"),
        ("open(sys.argv[2], 'w').write('x' * 400); sys.exit()", "output.nii is no NIfTI file"),
        ("shutil.copy(sys.argv[1], sys.argv[2]); os.truncate(sys.argv[2], 400); sys.exit()", "ends before its labels do"),
        ("open(sys.argv[2] + '.gz', 'wb').write(gzip.compress(b'x' * 400)[:-9]); sys.exit()", "output.nii.gz is no NIfTI file"),
        ("shutil.copy(sys.argv[1], sys.argv[2]); shutil.copy(sys.argv[1], sys.argv[2] + '.gz'); sys.exit()", "left both"),
        ("sys.exit(3)", "ended with exit code 3"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV"),
    ],
)
def test_bad_output_fails_and_says_what_is_wrong(tmp_path: Path, volume: Volume, change: str, reason: str) -> None:
    """Whatever is left that are no labels on a grid is named, and never read as if it were."""
    with pytest.raises(ModelFailed, match=f"(command of )?model 'm'.*{reason}"):
        run(SAVE.format(change=change), tmp_path, volume)


def test_program_that_is_none_fails_and_says_so(tmp_path: Path, volume: Volume) -> None:
    """A file that can be executed by its rights, and is no program."""
    (tmp_path / "program").write_bytes(b"\0")
    (tmp_path / "program").chmod(0o755)
    with pytest.raises(ModelFailed, match="command of model 'm' cannot be started: Exec format error"):
        load_model(model(f"{tmp_path / 'program'} {{input}} {{output}}"))(volume)


def test_labels_that_unpack_to_too_much_are_not_unpacked(tmp_path: Path, volume: Volume) -> None:
    """A small file whose header says that it holds 10 GB is refused by that alone."""
    body = """
    out = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    out.header.set_data_shape((2048, 2048, 2560))
    with gzip.open(sys.argv[2] + ".gz", "wb") as file:
        out.header.write_to(file)
        file.write(bytes(1000))
    """
    with pytest.raises(ModelFailed, match=r"output.nii.gz holds 10737418240 bytes of labels, where 67108864 are the most"):
        run(body, tmp_path, volume)


def test_float_labels_that_are_integers_are_labels(tmp_path: Path, volume: Volume) -> None:
    """Many programs write them as floats."""
    result = run(SAVE.format(change="labels += 3; dtype = np.float64"), tmp_path, volume)
    assert (result.labelmap == 3).all()
    assert result.labelmap.dtype == np.uint8


@pytest.mark.parametrize("limit", ["output", "scratch"])
def test_too_much_output_is_stopped_while_it_is_written(tmp_path: Path, volume: Volume, limit: str) -> None:
    """A program that would write for ever is ended: into its output as soon as no labels can be as long, or elsewhere."""
    body = f"""
    with open(sys.argv[2] if "{limit}" == "output" else "elsewhere", "wb") as file:
        while True:
            file.write(bytes(1 << 20))
            time.sleep(0.001)
    """
    reason = {"output": r"more than 67108864 bytes into output.nii", "scratch": r"more than 0.01 GiB into its scratch folder"}
    with pytest.raises(ModelFailed, match=reason[limit]):
        run(body, tmp_path, volume, memory=0.01 if limit == "scratch" else 16)


def test_dicom_dir_has_copies_of_the_images_in_slice_order(tmp_path: Path, ct: Path) -> None:
    """They are the objects as they are, and what a program does to them is not done to the originals."""
    images = [dcmread(file) for file in sorted(ct.iterdir(), reverse=True)]
    slices = order_slices(images)
    volume = read_volume(slices, slices.images)
    body = """
    files = sorted(Path(sys.argv[1]).iterdir())
    with open(os.environ["REPORT"], "wb") as report:
        for file in files:
            report.write(file.read_bytes())
            file.write_bytes(b"")
    out = np.zeros((64, 64, 8), np.uint8)
    nibabel.save(nibabel.Nifti1Image(out, np.diag([1, 1, 1, 1])), sys.argv[2])
    """
    report = tmp_path / "report"
    before = [Path(str(image.filename)).read_bytes() for image in slices.images]
    run(body, tmp_path, volume, "{dicom_dir} {output}", env={"REPORT": str(report)})
    assert report.read_bytes() == b"".join(before)
    assert [Path(str(image.filename)).read_bytes() for image in slices.images] == before


def test_words_are_split_as_a_shell_does_and_no_shell_sees_them(tmp_path: Path, volume: Volume) -> None:
    """Quotes hold words together, and what a shell would expand stays as it is."""
    body = """
    assert sys.argv[3:] == ["a b", "$HOME", "*", "${x}", "x;y", os.getcwd(), Path.cwd().name], sys.argv
    labels = nibabel.load(sys.argv[1])
    nibabel.save(nibabel.Nifti1Image(np.zeros(labels.shape, np.uint8), labels.affine), sys.argv[2])
    """
    run(body, tmp_path, volume, """{input} {output} 'a b' $HOME * ${x} "x;y" {scratch} {job}""")


def test_environment_is_what_env_says_and_no_secret_of_the_node(
    tmp_path: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the node's environment a program has PATH and its like alone; a secret is read where it is."""
    monkeypatch.setenv("ARCHIVE_PASSWORD", "node's own")
    monkeypatch.setenv("TOKEN_OF_NODE", "the model's")
    (tmp_path / "licence").write_text("1234\n")
    env = {"PLAIN": "x", "TOKEN": SecretConfig(env="TOKEN_OF_NODE"), "LICENCE": SecretConfig(file=str(tmp_path / "licence"))}
    body = """
    assert "PATH" in os.environ and "ARCHIVE_PASSWORD" not in os.environ and "TOKEN_OF_NODE" not in os.environ
    assert [os.environ[name] for name in ("PLAIN", "TOKEN", "LICENCE")] == ["x", "the model's", "1234"]
    assert os.environ["TMPDIR"] == os.getcwd()
    labels = nibabel.load(sys.argv[1])
    nibabel.save(nibabel.Nifti1Image(np.zeros(labels.shape, np.uint8), labels.affine), sys.argv[2])
    """
    run(body, tmp_path, volume, env=env)


@pytest.mark.parametrize("code", [0, 1])
def test_cleanup_is_run_at_the_end_of_every_command(tmp_path: Path, volume: Volume, code: int) -> None:
    """It is told the name of the job, and that the command went well keeps nothing from being cleaned up."""
    body = f"""
    Path(os.environ["REPORT"]).write_text(sys.argv[3])
    labels = nibabel.load(sys.argv[1])
    nibabel.save(nibabel.Nifti1Image(np.zeros(labels.shape, np.uint8), labels.affine), sys.argv[2])
    sys.exit({code})
    """
    cleanup = program(tmp_path / "cleanup", 'Path(os.environ["REPORT"] + "2").write_text(sys.argv[1])\nsys.exit(1)')
    keys = {"cleanup": f"{cleanup} {{job}}", "env": {"REPORT": str(tmp_path / "report")}}
    if code:
        with pytest.raises(ModelFailed, match="exit code 1"):
            run(body, tmp_path, volume, "{input} {output} {job}", **keys)
    else:
        run(body, tmp_path, volume, "{input} {output} {job}", **keys)
    job = (tmp_path / "report").read_text()
    assert re.fullmatch(r"segnode-m-[A-Za-z0-9_]+", job)
    assert (tmp_path / "report2").read_text() == job


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"run": "command:no-such-program {input} {output}"}, "no program 'no-such-program'"),
        ({"cleanup": "no-such-program"}, "no program 'no-such-program'"),
        ({"env": {"TOKEN": SecretConfig(env="NOT_SET_ANYWHERE")}}, r"env.TOKEN: environment variable NOT_SET_ANYWHERE"),
        ({"run": "command:true {input} {output_dir}", "labels": "/no/such.toml"}, "cannot be read"),
    ],
)
def test_what_is_missing_is_said_at_the_start(keys: dict[str, Any], reason: str) -> None:
    """A program, a secret or a dictionary that is not there is named before any volume comes."""
    with pytest.raises(ConfigError, match=reason):
        load_model(ModelConfig(**{"name": "m", "run": "command:true {input} {output}", "labels": "threshold", **keys}))


def readme_models() -> dict[str, ModelConfig]:
    """The models of the README that are commands."""
    text = (Path(__file__).parents[2] / "README.md").read_text()
    (block,) = [block for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL) if "command:" in block]
    return {model.name: model for model in parse_config(block, Path()).models}


@pytest.mark.parametrize("name", ["totalsegmentator", "nnunet", "spleen", "in-a-container"])
def test_models_of_the_readme_run(tmp_path: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Each of them, by programs of the same command line, gives labels where the volume is; no container is left."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "home").mkdir()
    for program_name in STAND_INS:
        stand_in(tmp_path / "bin", program_name)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = with_versions(Config(models=(readme_models()[name],)))
    result = load_model(config.models[0])(volume)
    np.testing.assert_array_equal(result.labelmap, volume.array > 0)
    assert [*(tmp_path / "home").iterdir()] == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [("print()", "is empty"), ("sys.exit(1)", "does not say its version"), (None, "there is no program")],
)
def test_version_that_is_not_said_stops_the_start(tmp_path: Path, body: str | None, reason: str) -> None:
    """A model whose version nobody knows makes no results."""
    command = tmp_path / "version" if body is None else program(tmp_path / "version", body)
    asked = ModelConfig(name="m", run="command:true {input} {output}", labels="threshold", version_command=str(command))
    with pytest.raises(ConfigError, match=f"model 'm'.*{reason}"):
        with_versions(Config(models=(asked,)))


def test_version_is_the_first_line_that_is_printed(tmp_path: Path) -> None:
    """What a program says of its version is that of the model from then on."""
    command = program(tmp_path / "version", r"print(' 2.4.0 \nand more')")
    asked = ModelConfig(name="m", run="command:true {input} {output}", labels="threshold", version_command=str(command))
    (known,) = with_versions(Config(models=(asked,))).models
    assert (known.version, known.version_command) == ("2.4.0", None)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ('run = "command:x {input}"\nversion = "1"', r"models\[0\]\.run: .*one of \{output\} and \{output_dir\}"),
        ('run = "command:x {input} {output} {output_dir}"\nversion = "1"', r"one of \{output\} and \{output_dir\}"),
        ('run = "command:x {output}"\nversion = "1"', r"name \{input\} or \{dicom_dir\}"),
        (
            'run = "command:x {inptu} {input} {output}"\nversion = "1"',
            r"\{inptu\} is nothing .* allowed: \{input\}, \{dicom_dir\}",
        ),
        ("run = \"command:x '{input} {output}\"\nversion = '1'", "cannot be split into words"),
        ('run = "command: "\nversion = "1"', r"run: 'command: ' is no model"),
        ('run = "command:x {input} {output}"', r"\.version: .*version_command"),
        ('run = "command:x {input} {output}"\nversion = "1"\nversion_command = "x"', r"\.version: "),
        ('run = "command:x {input} {output}"\nversion = "1"\ncleanup = "rm {input}"', r"\.cleanup: \{input\} is nothing"),
        ('run = "command:x {input} {output}"\nversion = "1"\nenv = { "A B" = "1" }', r"\.env: 'A B' is no name"),
        ('run = "python:x"\nversion = "1"\ncleanup = "x"', r"\.cleanup: has a meaning for command: alone"),
    ],
)
def test_command_that_cannot_work_stops_the_start(keys: str, reason: str) -> None:
    """The key is named, and what is allowed there."""
    with pytest.raises(ConfigError, match=reason):
        parse_config(f'[[models]]\nname = "m"\nlabels = "threshold"\n{keys}\n', Path())


def test_files_of_a_model_are_found_from_where_the_configuration_stands(tmp_path: Path) -> None:
    """Its own process is somewhere else."""
    (tmp_path / "my.toml").touch()
    text = '[[models]]\nname = "m"\nrun = "command:x {input} {output}"\nversion = "1"\nlabels = "my.toml"\n'
    (found,) = parse_config(text + 'env = { A = { file = "secret" } }\n', tmp_path).models
    assert (found.labels, found.env["A"]) == (str(tmp_path / "my.toml"), SecretConfig(file=str(tmp_path / "secret")))
