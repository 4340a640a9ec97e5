"""`segnode models`: what is configured is tried, and what is new works as it is written; the contract finds what is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from segnode.dicom.volume import Volume
from segnode.models import Result
from segnode.testing.model_contract import ModelContract
from tests.wire.test_serve import run

BROKEN = """
import numpy as np
from segnode.models import Result
def load(): print("reads weights")
def segment(volume): return Result(np.full(volume.array.shape, 9))
def masks(volume): return Result(masks=np.zeros((1, 2, 3, 4), bool))
"""
UNLOADABLE = """
def load(): raise FileNotFoundError("weights.pt")
def segment(volume): ...
"""


class TestThreshold(ModelContract):
    """The built-in model keeps the contract."""

    run = "python:segnode.models.threshold"
    labels = "threshold"


def half(volume: Volume) -> Result:
    """A model that labels half of the columns, whatever side of the patient they are on."""
    labels = np.zeros(volume.array.shape, np.uint8)
    labels[..., : labels.shape[2] // 2] = 1
    return Result(labels)


class Half(ModelContract):
    """Its contract, with the class attributes of a test of somebody's own."""

    run = f"python:{__name__}:half"
    labels = "threshold"


class HalfInOneOrientation(Half):
    """The same model, which says in which orientation it wants its volumes."""

    keys = {"orientation": "RAS"}  # noqa: RUF012


def test_contract_finds_a_model_that_mixes_up_sides() -> None:
    """What labels columns, not the patient, is told so; with an orientation in the configuration it keeps its side."""
    with pytest.raises(AssertionError, match='orientation SAR .* less than 90%.*orientation = "RAS"'):
        Half().test_labels_stay_in_the_patient()
    HalfInOneOrientation().test_labels_stay_in_the_patient()


def table(name: str, module: str, **keys: object) -> str:
    """The configuration of a model."""
    rest = "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
    return f'[[models]]\nname = "{name}"\nrun = "python:{module}"\nlabels = "threshold"\nversion = "2"\n{rest}'


def test_models_are_tried(tmp_path: Path) -> None:
    """Each is listed with how long it took to load and to segment, or what is wrong with it, which is exit code 1."""
    (tmp_path / "broken.py").write_text(BROKEN)
    (tmp_path / "unloadable.py").write_text(UNLOADABLE)
    good = table("good", "segnode.models.threshold", orientation="RAS", spacing=[3, 3, 3])
    (tmp_path / "segnode.toml").write_text(good)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = run("models", cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("good 2: python:segnode.models.threshold, labels threshold (3 segments): loaded in ")
    assert "found 3 of its segments" in done.stdout
    models = good + table("a", "broken") + table("b", "broken:masks") + table("c", "unloadable")
    (tmp_path / "segnode.toml").write_text(models)
    done = run("models", "--json", cwd=tmp_path, env=environment)
    assert done.returncode == 1
    first, *others = json.loads(done.stdout)
    assert (first["name"], first["segments"], sorted(first["voxels"])) == ("good", 3, ["1", "2", "3"])
    assert min(first["load_s"], first["segment_s"]) > 0
    assert [other["error"] for other in others] == [
        "the labelmap holds values without an entry in the label dictionary: [9]; it printed last: reads weights",
        (
            "model 'b' returned masks of shape (1, 2, 3, 4) for (40, 128, 128) behind the axis of values;"
            " it printed last: reads weights"
        ),
        "model 'c': load() of unloadable failed: FileNotFoundError: weights.pt",
    ]


def test_new_model_works_as_it_is_written(tmp_path: Path) -> None:
    """Its own test passes; by the entry point and the table that is printed it runs; nothing is overwritten."""
    done = run("models", "new", "lungs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    package = tmp_path / "lungs"
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(package)]
    tested = subprocess.run(pytest_, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "5 passed" in tested.stdout, tested.stdout
    info = tmp_path / "lungs-0.1.0.dist-info"  # as an installation writes it
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lungs\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[segnode.models]\nlungs = lungs.model:segment\n")
    (tmp_path / "segnode.toml").write_text(done.stdout)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), str(tmp_path)])}
    assert "found 1 of its segments" in run("models", cwd=tmp_path, env=environment).stdout
    model = package / "lungs" / "model.py"
    model.write_text(model.read_text().replace('.astype("uint8")', '.astype("uint8") * 2'))
    tested = subprocess.run(pytest_, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "values without an entry in the label dictionary: [2]" in tested.stdout
    again = run("models", "new", "lungs", cwd=tmp_path)
    assert (again.returncode, "there already" in again.stderr) == (1, True)


@pytest.mark.parametrize("name", ["Lungs", "my-lungs", "3d", "..", ""])
def test_name_that_is_no_package(tmp_path: Path, name: str) -> None:
    """Nothing is written for a name that Python could not import."""
    done = run("models", "new", name, cwd=tmp_path)
    assert (done.returncode, "allowed: small letters" in done.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []
