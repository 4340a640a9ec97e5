"""The hooks benchmark: what it takes to have a model run on a series, without what the model itself takes.

    scripts/bench hooks [--slices N] [--runs N]

From the volume of a series, in memory as the worker has it, to the labelmap in segment numbers as the encoder takes it. Memory
is that of the worker's process and of all that it has started, pages that they share counted once (PSS), start and imports
included.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final, Self

import click
import numpy as np
from pydicom import Dataset

from segnode.config import ModelConfig
from segnode.dicom.slices import Slices, map_array, mapped_volume
from segnode.dicom.volume import MappedVolume
from segnode.models.process import ModelProcess
from segnode.seg.segments import read_label_dictionary, segment_numbers
from segnode.testing.processes import descendants

# Seconds of overhead by door, and of memory how many volumes.
GOALS: Final = {"python": 0.5, "command": 2.0}
MOST_VOLUMES: Final = 2.5

_SIZE: Final = 512
_SPACING_MM: Final = (1.5, 0.75, 0.75)
_SAMPLE_S: Final = 0.01


@click.command()
@click.option("--slices", default=300, show_default=True)
@click.option("--runs", default=5, show_default=True)
def hooks(slices: int, runs: int) -> None:
    """What the doors of models take beside the models, and how much memory."""
    volume_mb = slices * _SIZE * _SIZE * 4 / 1e6
    click.echo(f"{slices} slices of {_SIZE} x {_SIZE}, {volume_mb:.0f} MB; medians of {runs} runs of a warm process")
    click.echo(f"{'door':<10} {'overhead s':>10} {'goal':>6} {'memory MB':>10} {'volumes':>8} {'goal':>6}")
    good = True
    for door, goal in GOALS.items():
        command = [sys.executable, "-m", "segnode.testing.hooks_bench", door, str(slices), str(runs)]
        measured = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)  # noqa: S603  our own program
        overhead, peak = median(measured["overheads"]), measured["peak"] / 1e6
        good = good and overhead <= goal and peak <= MOST_VOLUMES * volume_mb
        click.echo(f"{door:<10} {overhead:>10.2f} {goal:>6} {peak:>10.0f} {peak / volume_mb:>8.2f} {MOST_VOLUMES:>6}")
    sys.exit(0 if good else 1)


def measure(door: str, slices: int, runs: int, folder: Path) -> dict[str, object]:
    """Run a model of a door on a volume, once to warm it and then some times: the overhead of each in seconds, the peak."""
    volume = _volume(slices, folder)
    process = ModelProcess(_config(door, volume, folder), folder / "work")
    prints, dictionary = folder / "prints.log", read_label_dictionary("threshold", folder)
    overheads = []
    process.check()
    with _Sampled() as sampled:
        for _ in range(runs + 1):
            start = perf_counter()
            (labelmap,) = process(volume, prints=prints).layers
            numbers = segment_numbers(labelmap, dictionary)
            took = perf_counter() - start
            overheads.append(took - (float(prints.read_text().split()[-1]) if prints.exists() else 0.0))
            if numbers.shape != volume.array.shape or not numbers.any():
                raise AssertionError
            del labelmap, numbers
    process.close()
    return {"overheads": overheads[1:], "peak": sampled.most}


def _volume(slices: int, folder: Path) -> MappedVolume:
    """Noise, by the way that a series takes into the worker."""
    rng = np.random.default_rng(1)
    plane = rng.integers(-1000, 1000, (_SIZE, _SIZE), np.int16)
    images = []
    for number in range(slices):
        image = Dataset()
        image.SOPInstanceUID, image.Rows, image.Columns = f"1.2.{number + 1}", _SIZE, _SIZE
        images.append(image)
    found = Slices(tuple(images), np.diag([*_SPACING_MM, 1.0])[[2, 1, 0, 3]], ())
    return mapped_volume(found, map_array(found, lambda _: plane, folder))


def _config(door: str, volume: MappedVolume, folder: Path) -> ModelConfig:
    """A model that says what it took itself; the command takes next to nothing, and that is not taken out."""
    if door == "python":
        run = "python:segnode.testing.hooks_model"
    else:
        ready = folder / "labels.nii"
        _write_labels(ready, volume)
        run = f'command:sh -c \'cp "$0" "$1"\' {ready} {{output}} {{input}}'
    return ModelConfig(name=door, run=run, labels="threshold", version="1")


def _write_labels(file: Path, volume: MappedVolume) -> None:
    import nibabel  # noqa: PLC0415  only for the command

    labels = (volume.array > 0).astype(np.uint8).transpose()
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine[:, [2, 1, 0, 3]]
    nibabel.save(nibabel.nifti1.Nifti1Image(labels, affine), file)  # type: ignore[no-untyped-call]


class _Sampled:
    """The most memory that this process and its descendants have had together, looked at a hundred times a second."""

    def __init__(self) -> None:
        self.most = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        own = os.getpid()
        while not self._ended.wait(_SAMPLE_S):
            self.most = max(self.most, sum(map(_pss, {own, *descendants(own)})))


def _pss(process: int) -> int:
    try:
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:  # gone
        return 0
    return sum(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="segnode-bench-") as name:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(name))))  # noqa: T201
