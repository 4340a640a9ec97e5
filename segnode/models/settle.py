"""Settling: the volume as the model wants it, and whatever it returns as labels on the grid that they are written on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from segnode.config import ModelConfig
from segnode.dicom.geometry import Vector
from segnode.dicom.volume import Volume
from segnode.errors import ModelFailed
from segnode.models.grids import Passage, passage, turn_like, turn_to_orientation, with_spacing
from segnode.models.settle_proof import require_given, require_labels, require_mask, require_probabilities
from segnode.pipeline.ports import Model, Result

Array = npt.NDArray[Any]

_KINDS: Final = ("labelmap", "masks", "probabilities")
# What half precision makes of a number from 0 to 1.
_ROUNDED: Final = 1e-3
_PERPENDICULAR: Final = 1e-3
# Labels on a finer grid than the volume's may be more than its own; no model returns as many.
_BYTES_OF_A_VOXEL: Final = 64
_LEAST_LIMIT: Final = 64 << 20


def settled(model: Model, config: ModelConfig) -> Model:
    """The model with its configuration applied: it takes volumes as they are, and returns labelmaps where they lie.

    Its results have a `labelmap`, of the shape of the volume's array, or of one of its own with `affine` where the
    configuration says `grid = "own"`; with layers where segments overlap. Raises ModelFailed for a result that is none.
    """

    def segment(volume: Volume) -> Result:
        given = as_wanted(volume, config)
        if given is not volume:
            require_given(volume, given)
        return _Settling(config, volume, given).settle(model(given))

    return segment


def most_bytes(volume: Volume) -> int:
    """The most bytes that the labels of a volume may have, on disk and in memory."""
    return max(volume.array.size * _BYTES_OF_A_VOXEL, _LEAST_LIMIT)


def as_wanted(volume: Volume, config: ModelConfig) -> Volume:
    """A volume in the orientation and spacing of a model's configuration."""
    array, affine = volume.array, volume.affine
    if config.orientation is not None:
        turn = turn_to_orientation(affine, config.orientation)
        array, affine = turn.array(array), turn.affine(affine, array.shape)
    if config.spacing is not None:
        array, affine = with_spacing(array, affine, config.spacing)
    if array is volume.array:
        return volume
    # Some take no array that is a view in another order.
    contiguous, frames = np.ascontiguousarray(array), volume.frame_numbers
    return Volume(contiguous, affine, volume.series, volume.sop_instance_uids, volume.files, frame_numbers=frames)


@dataclass(frozen=True, eq=False)
class _Settling:
    """A result of a model: `source` is the volume that it is for, `given` what the model was given."""

    config: ModelConfig
    source: Volume
    given: Volume

    def settle(self, result: Any) -> Result:
        """The labelmap that a result comes to. Raises ModelFailed."""
        if not isinstance(result, Result):
            raise self._bad(f"returned {type(result).__name__}, not a Result")
        kinds = [kind for kind in _KINDS if getattr(result, kind) is not None]
        if len(kinds) != 1:
            given = " and ".join(kinds) or "neither labelmap, masks nor probabilities"
            raise self._bad(f"returned {given}: one of the three is a result")
        (kind,) = kinds
        array, affine = getattr(result, kind), self._affine(result)
        self._require_array(array, kind, free=result.affine is not None)
        target, way = self._way(array.shape[-3:], affine)
        settled: Array = getattr(self, f"_{kind}")(array, way)
        if not way.is_no_way:
            self._prove(array, kind, affine, settled, self.source.affine if target is None else target)
        labelmap, most = _flat(settled), most_bytes(self.source)
        if labelmap.nbytes > most:
            raise self._bad(f"returned labels of {labelmap.nbytes} bytes, where {most} are the most for this volume")
        return Result(labelmap, affine=target, scores=self._scores(result.scores))

    def _prove(self, array: Array, kind: str, affine: Vector, settled: Array, target: Vector) -> None:
        """Hold what was returned to what it was made into. Raises Misplaced."""
        layers = settled.reshape(-1, *settled.shape[-3:])
        if kind == "probabilities":
            require_probabilities(array, affine, layers, target, self.config.threshold)
        elif kind == "masks":
            for value, mask in enumerate(array, start=1):
                require_mask(mask, affine, (layers == value).any(axis=0), target, value)
        else:
            for returned, labels in zip(array.reshape(-1, *array.shape[-3:]), layers, strict=True):
                require_labels(returned, affine, labels, target)

    def _bad(self, what: str) -> ModelFailed:
        return ModelFailed(f"model {self.config.name!r} {what}")

    def _affine(self, result: Result) -> Vector:
        if result.affine is None:
            return self.given.affine
        affine = np.asarray(result.affine)
        if affine.shape != (4, 4) or affine.dtype.kind not in "fiu" or not np.isfinite(affine).all():
            raise self._bad("returned an affine that is no 4x4 matrix of numbers")
        if (affine[3] != (0, 0, 0, 1)).any() or abs(np.linalg.det(affine.astype(np.float64))) < np.finfo(np.float32).tiny:
            raise self._bad(
                "returned an affine that cannot be undone: its axes lie in one plane, or its last row is not 0 0 0 1"
            )
        return affine.astype(np.float64)

    def _require_array(self, array: Any, kind: str, *, free: bool) -> None:
        if not isinstance(array, np.ndarray):
            raise self._bad(f"returned {type(array).__name__} as {kind}, not an array")
        wanted = {"labelmap": "iu", "masks": "b", "probabilities": "f"}[kind]
        if array.dtype.kind not in wanted:
            needed = {"labelmap": "integers", "masks": "bool", "probabilities": "floats"}[kind]
            raise self._bad(f"returned {kind} of {array.dtype}: {needed} are needed")
        axes = (3, 4) if kind == "labelmap" else (4,)
        if array.ndim not in axes or (not free and array.shape[-3:] != self.given.array.shape) or not array.size:
            expected = "any, with its affine" if free else str(self.given.array.shape)
            ahead = "" if kind == "labelmap" else " behind the axis of values"
            raise self._bad(f"returned {kind} of shape {array.shape} for {expected}{ahead}")

    def _way(self, shape: tuple[int, ...], affine: Vector) -> tuple[Vector | None, Passage]:
        """The affine of the grid that is written, None for that of the source, and the way there."""
        to_source = passage((shape, affine), (self.source.array.shape, self.source.affine))
        if self.config.grid == "source" or to_source.is_same:
            return None, to_source
        turn = turn_like(affine, self.source.affine)
        own = turn.affine(affine, shape)
        axes = own[:3, :3] / np.linalg.norm(own[:3, :3], axis=0)
        if np.abs(axes.T @ axes - np.eye(3)).max() > _PERPENDICULAR:
            raise self._bad('returned a grid whose axes are not perpendicular: with grid = "own" it cannot be written')
        return own, passage((shape, affine), (tuple(shape[axis] for axis in turn.axes), own))

    def _labelmap(self, labelmap: Array, way: Passage) -> Array:
        if labelmap.ndim == 3:
            return way.nearest(labelmap)
        return np.stack([way.nearest(layer) for layer in labelmap])

    def _masks(self, masks: Array, way: Passage) -> Array:
        moved = (way.nearest(mask.view(np.uint8)).view(np.bool_) for mask in masks)
        return _layered(moved, len(masks), way.target)

    def _probabilities(self, channels: Array, way: Passage) -> Array:
        for number, channel in enumerate(channels):
            self._require_probabilities(channel, number)
        if self.config.threshold is not None:
            threshold = self.config.threshold
            return _layered((way.linear(c, 0) >= threshold for c in channels[1:]), len(channels) - 1, way.target)
        best = way.linear(channels[0], 1).copy()
        labels = np.zeros(best.shape, _label_type(len(channels)))
        for value, channel in enumerate(channels[1:], start=1):
            moved = way.linear(channel, 0)
            labels[moved > best] = value
            np.maximum(best, moved, out=best)
        return labels

    def _require_probabilities(self, channel: Array, number: int) -> None:
        least, most = float(channel.min()), float(channel.max())
        if np.isnan(least):
            raise self._bad(f"returned NaN among the probabilities of value {number}")
        if least < -_ROUNDED or most > 1 + _ROUNDED:
            raise self._bad(
                f"returned probabilities of value {number} from {least:g} to {most:g}, which are not from 0 to 1: are these"
                " logits, without softmax or sigmoid?"
            )

    def _scores(self, scores: Any) -> Mapping[int, float]:
        try:
            found = {int(value): float(score) for value, score in scores.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise self._bad("returned scores that are no mapping of values to numbers") from error
        if not np.isfinite([*found.values()]).all():
            raise self._bad("returned scores that are not finite")
        return found


def _label_type(most: int) -> type[np.unsignedinteger]:
    return np.uint8 if most < 256 else np.uint16


def _layered(masks: Iterable[npt.NDArray[np.bool_]], count: int, shape: tuple[int, ...]) -> Array:
    """A labelmap of masks, the first of value 1; of layers where they overlap. Each lies in the first layer that is free."""
    layers = [np.zeros(shape, _label_type(count))]
    for value, mask in enumerate(masks, start=1):
        box = _box(mask)
        inside = mask[box]
        for layer in layers:
            if not layer[box][inside].any():
                break
        else:
            layer = np.zeros(shape, _label_type(count))
            layers.append(layer)
        layer[box][inside] = value
    return layers[0] if len(layers) == 1 else np.stack(layers)


def _flat(labelmap: Array) -> Array:
    """A labelmap without layers where none of them overlap."""
    if labelmap.ndim == 3 or (np.count_nonzero(labelmap, axis=0) > 1).any():
        return labelmap
    return np.asarray(labelmap.max(axis=0))


def _box(mask: npt.NDArray[np.bool_]) -> tuple[slice, ...]:
    """Where there is something of a mask."""
    return tuple(_extent(np.asarray(mask.any(axis=others))) for others in ((1, 2), (0, 2), (0, 1)))


def _extent(filled: npt.NDArray[np.bool_]) -> slice:
    found = np.flatnonzero(filled)
    return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0)
