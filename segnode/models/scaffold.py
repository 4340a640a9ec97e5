"""A new model to begin with: a package that works, with its test, its label dictionary and its entry point."""

from pathlib import Path
from typing import Final

from segnode.errors import CannotWrite

_MODEL: Final = '''"""A model of segnode: what is above a threshold. Put yours in its place."""

from segnode.models import Result, Volume

_ABOVE_HU = 300


def load() -> None:
    """Called once, when the process of the model starts: load weights here."""


def segment(volume: Volume) -> Result:
    """Label a volume: volume.array is (slices, rows, columns) in HU, volume.affine maps (slice, row, column) to LPS mm.

    Beside `labelmap` a Result may have `masks`, which may overlap, or `probabilities`: see segnode.models.Result.
    """
    return Result(labelmap=(volume.array > _ABOVE_HU).astype("uint8"))
'''
_TEST: Final = '''"""Whether the model does what segnode asks of it: run `pytest` in this folder."""

from pathlib import Path

from segnode.testing.model_contract import ModelContract


class TestContract(ModelContract):
    """On a synthetic CT; override `volume` with images that your model knows."""

    run = "python:{name}.model"
    labels = str(Path(__file__).parent.parent / "{name}" / "labels.toml")
    keys = {{"orientation": "RAS"}}
'''
_LABELS: Final = """# What each value of the model's labels means; 0 is the background. Codes: [scheme, value, meaning].
[[segment]]
value = 1
label = "Bone"
category = ["SCT", "123037004", "Anatomical structure"]
type = ["SCT", "272673000", "Bone"]
colour = [241, 214, 145]
"""
_PROJECT: Final = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["segnode"]

[project.entry-points."segnode.models"]
{name} = "{name}.model:segment"

[tool.pytest.ini_options]
pythonpath = ["."]
testpaths = ["tests"]
"""
_TABLE: Final = """[[models]]
name = "{name}"
run = "python:{name}"
labels = "{labels}"
version = "0.1.0"
orientation = "RAS"
"""


def write_scaffold(folder: Path, name: str) -> str:
    """Write the package of a new model into a new folder; the table that belongs into the configuration.

    `name` is that of the package, an identifier. Raises CannotWrite.
    """
    files = {
        "pyproject.toml": _PROJECT.format(name=name),
        f"{name}/__init__.py": '"""A model of segnode."""\n',
        f"{name}/model.py": _MODEL,
        f"{name}/labels.toml": _LABELS,
        "tests/test_model.py": _TEST.format(name=name),
    }
    if folder.exists():
        raise CannotWrite(f"{folder} is there already: give another name, or remove it")
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return _TABLE.format(name=name, labels=(folder / name / "labels.toml").absolute())
