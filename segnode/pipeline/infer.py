"""Inferring: a series in, the labelmap of its model out, kept until it is encoded."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import structlog
from pydicom import Dataset

from segnode.dicom.planar import one_by_one
from segnode.dicom.slices import Slices
from segnode.dicom.volume import Volume
from segnode.errors import LabelError, ModelFailed, OutOfResources
from segnode.pipeline.assemble import Assembler
from segnode.pipeline.labelmaps import Labelmaps, Returned
from segnode.pipeline.laterality import NOTHING_WRONG, Judgement, Middle, judge, middle_of, sides
from segnode.pipeline.placement_proof import image_names, model_labels, require_images_in_volume
from segnode.pipeline.ports import Model, Result, Run, RunningModel
from segnode.pipeline.rules import Rule
from segnode.seg.segments import segment_numbers
from segnode.store.jobs import Job, Jobs

_log = structlog.get_logger()


@dataclass(frozen=True)
class Inferrer:
    """Runs models on series; `models` are by name and version."""

    assembler: Assembler
    jobs: Jobs
    models: Mapping[tuple[str, str], RunningModel]
    labelmaps: Labelmaps
    clock: Callable[[], float]

    def infer(self, job: Job, rule: Rule, number: int) -> None:
        """Make the labelmap of a job by that process of its model; may be repeated. Raises SegnodeError when there is none."""
        if job.is_released and self.labelmaps.held(job.id) is not None:
            return  # what a person has looked at is what goes
        model = self.models.get((rule.model.name, rule.model.version))
        if model is None:
            raise ModelFailed(f"model {rule.model.name!r} version {rule.model.version} is no longer in the configuration")
        self.jobs.enter(job.id, "assembling", self.clock())
        slices = self.assembler.slices(job, rule)
        volume = self.assembler.volume(slices)
        enter = lambda stage: self.jobs.enter(job.id, stage, self.clock())  # noqa: E731
        run = Run(number, partial(self._hear, job.id), self.labelmaps.prints(job.id))
        run.prints.unlink(missing_ok=True)
        inferred = infer_series(partial(model, run=run), rule, slices, volume, self.assembler.images(job), enter)
        self.jobs.note(job.id, "; ".join(inferred.notes))
        self.labelmaps.save(job.id, inferred.numbers, inferred.returned)

    def _hear(self, job_id: str, fraction: float, text: str) -> None:
        with suppress(OutOfResources):  # a full disk is no reason to let go of the model
            self.jobs.progress(job_id, fraction, text)


@dataclass(frozen=True, eq=False)
class Inferred:
    """What a model makes of a series: `numbers` are segment numbers ([layers,] slices, rows, columns), `notes` for people."""

    numbers: npt.NDArray[np.unsignedinteger]
    returned: Returned
    notes: Sequence[str]


def infer_series(
    model: Model,
    rule: Rule,
    slices: Slices,
    volume: Volume,
    images: Iterable[Dataset],
    enter: Callable[[Literal["inferring", "encoding"]], None],
) -> Inferred:
    """Have the model of a rule segment the volume of slices, and look at what it returns; `enter` is told of each stage.

    `images` are those of the series with their pixels, read anew, to prove that the volume is theirs. Raises ModelFailed,
    OutOfResources, Misplaced.
    """
    notes = [f"{len(slices.left_out)} localizer(s) left out: {', '.join(slices.left_out)}"] if slices.left_out else []
    is_planar = rule.model.input == "planar"
    is_judged = rule.config.laterality != "off" and sides(rule.dictionary) and not is_planar
    middle = middle_of(volume, slices.images) if is_judged else None
    enter("inferring")
    # Beside the model, which has a process of its own: the proof reads every image once more.
    with ThreadPoolExecutor(1, "proof") as beside:
        proof = beside.submit(require_images_in_volume, volume, images)
        given = one_by_one(slices, volume) if is_planar else [volume]
        result = _joined([run_model(model, each, rule.model.name) for each in given])
        enter("encoding")
        sources = proof.result()
    labels = model_labels(np.asarray(result.labelmap), image_names(volume), result.affine)
    numbers = _numbers(result, rule)
    judgement = _judge(result, slices, rule, middle)
    if judgement.not_judged:
        numbered = ", ".join(map(str, judgement.not_judged))
        notes.append(f"the side of segments {numbered} is not judged: the middle of the body there is not known")
    if rule.config.laterality == "warn":
        notes.extend(judgement.wrong)
    notes.extend(_scores(result, rule))
    return Inferred(numbers, Returned(labels, sources, judgement.wrong), notes)


def run_model(model: Model, volume: Volume, name: str) -> Result:
    """Ask a model for its result, which is held to what a settled one is: a labelmap, where its affine says or on the volume.

    Raises ModelFailed, OutOfResources.
    """
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
    if labelmap.ndim not in (3, 4) or (result.affine is None and labelmap.shape[-3:] != volume.array.shape):
        raise ModelFailed(f"model {name!r} returned a labelmap of shape {labelmap.shape} for {volume.array.shape}")
    if not np.issubdtype(labelmap.dtype, np.integer):
        raise ModelFailed(f"model {name!r} returned a labelmap of {labelmap.dtype}: integers are needed")
    return result


def _joined(results: Sequence[Result]) -> Result:
    """The results of planar images as one, the scores of the greatest; a result alone is itself."""
    if len(results) == 1:
        return results[0]
    layers = max(len(result.layers) for result in results)
    padded = [np.pad(result.layers, ((0, layers - len(result.layers)), (0, 0), (0, 0), (0, 0))) for result in results]
    joined = np.concatenate(padded, axis=1)
    values = sorted({value for result in results for value in result.scores})
    scores = {value: max(result.scores[value] for result in results if value in result.scores) for value in values}
    return Result(joined[0] if layers == 1 else joined, scores=scores)


def _numbers(result: Result, rule: Rule) -> npt.NDArray[np.unsignedinteger]:
    """The labelmap of a result in segment numbers, with an axis of layers where there are several. Raises ModelFailed."""
    try:
        layers = [segment_numbers(layer, rule.dictionary) for layer in result.layers]
    except LabelError as error:
        raise ModelFailed(f"model {rule.model.name!r}: {error}") from error
    return layers[0] if len(layers) == 1 else np.stack(layers)


def _judge(result: Result, slices: Slices, rule: Rule, middle: Middle | None) -> Judgement:
    """Whether segments lie on their side; those on a grid of their own are not judged."""
    if middle is None or result.affine is not None:
        return NOTHING_WRONG
    judgements = [judge(layer, slices.images, rule.dictionary, middle) for layer in result.layers]
    return Judgement(
        tuple(wrong for judgement in judgements for wrong in judgement.wrong),
        tuple(number for judgement in judgements for number in judgement.not_judged),
    )


def _scores(result: Result, rule: Rule) -> list[str]:
    """What the model says of its segments, as a note."""
    number_of = {segment.value: segment.segment_number for segment in rule.dictionary.segment}
    said = [f"{number_of.get(value, value)} {score:.4g}" for value, score in sorted(result.scores.items())]
    return [f"scores of segments: {', '.join(said)}"] if said else []
