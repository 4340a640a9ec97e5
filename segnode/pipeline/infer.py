"""Inferring: a series in, the labelmap of its model out, kept in the job's folder until it is encoded."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from segnode.dicom.volume import Volume
from segnode.errors import ModelFailed, OutOfResources
from segnode.pipeline.assemble import Assembler
from segnode.pipeline.ports import Model
from segnode.pipeline.rules import Rule
from segnode.seg.segments import segment_numbers
from segnode.store.jobs import Job, Jobs
from segnode.store.objects import room_for

_log = structlog.get_logger()


@dataclass(frozen=True)
class Labelmaps:
    """The labelmaps of jobs between infer and encode: one file a job, complete or absent."""

    folder: Path

    def save(self, job_id: str, labelmap: npt.NDArray[np.unsignedinteger]) -> None:
        """Keep a labelmap durably; a repeat replaces it. Raises OutOfResources."""
        with room_for("a labelmap"):
            self.folder.mkdir(parents=True, exist_ok=True)
            beside = self.folder / f"{job_id}.tmp"
            with beside.open("wb") as file:
                np.save(file, labelmap)
                file.flush()
                os.fsync(file.fileno())
            beside.rename(self._path(job_id))

    def load(self, job_id: str) -> npt.NDArray[np.unsignedinteger]:
        """The labelmap of a job, mapped from its file."""
        labelmap: npt.NDArray[np.unsignedinteger] = np.load(self._path(job_id), mmap_mode="r")
        return labelmap

    def delete(self, job_id: str) -> None:
        """Delete the labelmap of a job; it is no error when it is gone."""
        self._path(job_id).unlink(missing_ok=True)

    def _path(self, job_id: str) -> Path:
        return self.folder / f"{job_id}.npy"


@dataclass(frozen=True)
class Inferrer:
    """Runs models on series; `models` are by name and version."""

    assembler: Assembler
    jobs: Jobs
    models: Mapping[tuple[str, str], Model]
    labelmaps: Labelmaps
    clock: Callable[[], float]

    def infer(self, job: Job, rule: Rule) -> None:
        """Make the labelmap of a job. Raises SegnodeError with the reason when there can be none; may be repeated."""
        model = self.models.get((rule.model.name, rule.model.version))
        if model is None:
            raise ModelFailed(f"model {rule.model.name!r} version {rule.model.version} is no longer in the configuration")
        self.jobs.enter(job.id, "assembling", self.clock())
        slices = self.assembler.slices(job)
        if slices.left_out:
            self.jobs.note(job.id, f"{len(slices.left_out)} localizer(s) left out: {', '.join(slices.left_out)}")
        volume = self.assembler.volume(slices)
        self.jobs.enter(job.id, "inferring", self.clock())
        labelmap = run_model(model, volume, rule.model.name)
        self.labelmaps.save(job.id, segment_numbers(labelmap, rule.dictionary))


def run_model(model: Model, volume: Volume, name: str) -> npt.NDArray[np.integer]:
    """Ask a model for its labelmap and hold it to the contract. Raises ModelFailed, OutOfResources."""
    try:
        result = model(volume)
    except (ModelFailed, OutOfResources):
        raise
    except Exception as error:  # a model is somebody else's code: whatever it raises is the job's failure
        _log.exception("the model raised an error", model=name)
        raise ModelFailed(f"model {name!r} raised {type(error).__name__}; the log has the details") from error
    labelmap: Any = getattr(result, "labelmap", None)
    if not isinstance(labelmap, np.ndarray):
        raise ModelFailed(f"model {name!r} returned {type(result).__name__}, not a Result with an array as its labelmap")
    if labelmap.shape != volume.array.shape:
        raise ModelFailed(f"model {name!r} returned a labelmap of shape {labelmap.shape} for {volume.array.shape}")
    if not np.issubdtype(labelmap.dtype, np.integer):
        raise ModelFailed(f"model {name!r} returned a labelmap of {labelmap.dtype}: integers are needed")
    integers: npt.NDArray[np.integer] = labelmap
    return integers
