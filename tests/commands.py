"""Programs that stand in for segmentation models, and the configuration of models that are these."""

import sys
import textwrap
from pathlib import Path
from typing import Any

from segnode.config import ModelConfig

_HEAD = f"""#!{sys.executable}
import gzip, os, shutil, signal, subprocess, sys, time
from pathlib import Path
"""
# Both are slow to load: a program that does not name them goes without.
_LOADED = {"np.": "import numpy as np\n", "nibabel": "import nibabel\n"}


def program(path: Path, body: str) -> Path:
    """A program of Python, with what such programs need imported."""
    loaded = "".join(line for name, line in _LOADED.items() if name in body)
    path.write_text(_HEAD + loaded + textwrap.dedent(body))
    path.chmod(0o755)
    return path


def model(run: str, **keys: Any) -> ModelConfig:
    """A model that is that command."""
    return ModelConfig(**{"name": "m", "run": f"command:{run}", "labels": "threshold", "version": "1", "timeout": 60.0, **keys})


# Each by its name on the PATH: what the README's models run.
STAND_INS = {
    "nnUNetv2_predict": """
        import argparse
        parser = argparse.ArgumentParser()
        for name in ("-i", "-o", "-d", "-c"):
            parser.add_argument(name, required=True)
        arguments = parser.parse_args()
        assert os.environ["nnUNet_results"] == "/models/nnunet"
        os.mkdir(arguments.o)
        for file in Path(arguments.i).glob("*_0000.nii.gz"):
            image = nibabel.load(file)
            labels = nibabel.Nifti1Image((image.get_fdata() > 0).astype(np.uint8), image.affine)
            nibabel.save(labels, Path(arguments.o, file.name.replace("_0000", "")))
        """,
    "python": """
        import json
        assert sys.argv[1:4] == ["-m", "monai.bundle", "run"]
        options = dict(zip(sys.argv[4::2], sys.argv[5::2], strict=True))
        assert options["--bundle_root"] == "/models/spleen"
        assert options["--config_file"] == "/models/spleen/configs/inference.json"
        for file in map(Path, json.loads(options["--datalist"])):
            image = nibabel.load(file)
            labels = nibabel.Nifti1Image((image.get_fdata() > 0).astype(np.float32)[..., None], image.affine)
            stem = file.name.partition(".")[0]
            folder = Path(options["--output_dir"], stem)
            folder.mkdir(parents=True)
            nibabel.save(labels, folder / f"{stem}_trans.nii.gz")
        """,
    "docker": """
        import argparse
        containers = Path(os.environ["HOME"])
        if sys.argv[1:3] == ["rm", "-f"]:
            (containers / sys.argv[3]).unlink()
            sys.exit()
        parser = argparse.ArgumentParser()
        parser.add_argument("run")
        parser.add_argument("--rm", action="store_true")
        for name in ("--name", "--network", "--memory", "--gpus", "--user", "-v", "-w"):
            parser.add_argument(name, required=True)
        parser.add_argument("image")
        parser.add_argument("command", nargs=argparse.REMAINDER)
        arguments = parser.parse_args()
        (containers / arguments.name).touch()
        source, _, there = arguments.v.partition(":")
        assert source == there == arguments.w and all(Path(path).parent == Path(source) for path in arguments.command[2:5:2])
        os.chdir(arguments.w)
        os.execvp(arguments.command[0], arguments.command)
        """,
    "TotalSegmentator": """
        import argparse
        parser = argparse.ArgumentParser()
        parser.add_argument("-i", dest="input", type=Path, required=True)
        parser.add_argument("-o", dest="output", type=Path, required=True)
        parser.add_argument("-ml", "--ml", action="store_true", required=True)
        parser.add_argument("--version", action="version", version="2.4.0")
        arguments = parser.parse_args()
        image = nibabel.load(arguments.input)
        if "STAND_IN_LABELS" in os.environ:
            labels = nibabel.load(os.environ["STAND_IN_LABELS"])
        else:
            labels = nibabel.Nifti1Image((image.get_fdata() > 0).astype(np.uint8), image.affine)
        nibabel.save(nibabel.Nifti1Image(np.asarray(labels.dataobj), labels.affine), arguments.output)
        """,
}


def stand_in(folder: Path, name: str) -> Path:
    """One of those in a folder."""
    return program(folder / name, STAND_INS[name])
