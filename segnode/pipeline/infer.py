"""Inferring: a series in, the labelmap of its model out, kept until it is encoded."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from segnode.dicom.volume import Volume
from segnode.errors import ModelFailed, OutOfResources
from segnode.pipeline.assemble import Assembler
from segnode.pipeline.labelmaps import Labelmaps, Returned
from segnode.pipeline.laterality import NOTHING_WRONG, judge, middle_of, sides
from segnode.pipeline.placement_proof import model_labels, require_images_in_volume
from segnode.pipeline.ports import Model
from segnode.pipeline.rules import Rule
from segnode.seg.segments import segment_numbers
from segnode.store.jobs import Job, Jobs

_log = structlog.get_logger()


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
        if job.is_released and self.labelmaps.held(job.id) is not None:
            return  # what a person has looked at is what goes
        model = self.models.get((rule.model.name, rule.model.version))
        if model is None:
            raise ModelFailed(f"model {rule.model.name!r} version {rule.model.version} is no longer in the configuration")
        self.jobs.enter(job.id, "assembling", self.clock())
        slices = self.assembler.slices(job, allow_tilt=rule.config.allow_tilt)
        notes = [f"{len(slices.left_out)} localizer(s) left out: {', '.join(slices.left_out)}"] if slices.left_out else []
        volume = self.assembler.volume(slices)
        middle = middle_of(volume, slices.images) if rule.config.laterality != "off" and sides(rule.dictionary) else None
        self.jobs.enter(job.id, "inferring", self.clock())
        # Beside the model, which has a process of its own: the proof reads every image once more.
        with ThreadPoolExecutor(1, "proof") as beside:
            proof = beside.submit(require_images_in_volume, volume, self.assembler.images(job))
            labelmap = run_model(model, volume, rule.model.name)
            images = proof.result()
        labels = model_labels(labelmap, volume.sop_instance_uids)
        numbers = segment_numbers(labelmap, rule.dictionary)
        judgement = judge(labelmap, slices.images, rule.dictionary, middle) if middle else NOTHING_WRONG
        if judgement.not_judged:
            numbered = ", ".join(map(str, judgement.not_judged))
            notes.append(f"the side of segments {numbered} is not judged: the middle of the body there is not known")
        if rule.config.laterality == "warn":
            notes.extend(judgement.wrong)
        self.jobs.note(job.id, "; ".join(notes))
        self.labelmaps.save(job.id, numbers, Returned(labels, images, judgement.wrong))


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
