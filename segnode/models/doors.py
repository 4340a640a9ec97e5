"""The doors that a model comes through, by the prefix of `run`."""

from collections.abc import Callable, Mapping
from typing import Final

from segnode.config import ModelConfig
from segnode.models import command, python
from segnode.models.settle import settled
from segnode.pipeline.ports import Model


def _kserve(config: ModelConfig) -> Model:
    from segnode.models.kserve import load  # noqa: PLC0415  the processes of other models have no use for HTTP

    return load(config)


_DOORS: Final[Mapping[str, Callable[[ModelConfig], Model]]] = {
    "command": command.load,
    "kserve": _kserve,
    "python": python.load,
}


def load_model(config: ModelConfig) -> Model:
    """The model that `run` names, ready for volumes; its results are settled. Raises ConfigError when it cannot be loaded."""
    return settled(_DOORS[config.run.partition(":")[0]](config), config)


def patience(config: ModelConfig) -> float:
    """How many seconds the process of a model may take to end what it has started elsewhere; without, it is killed."""
    return command.PATIENCE_S if config.run.startswith("command:") else 0.0
