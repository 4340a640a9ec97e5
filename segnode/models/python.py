"""The door `python:NAME`, `python:module` or `python:module:callable`: a model that is a function of an installed package."""

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Final, cast

from segnode.config import ModelConfig
from segnode.errors import ConfigError
from segnode.pipeline.ports import Model

ENTRY_POINTS: Final = "segnode.models"


def load(config: ModelConfig) -> Model:
    """The function that `run` names, ready: its module's `load()`, where there is one, has been called. Raises ConfigError.

    A name alone is that of an entry point of the group `segnode.models`, or else of a module; a module stands for its
    function `segment`.
    """
    target = config.run.removeprefix("python:")
    module_name, _, function_name = _entry_point(target).partition(":")
    function_name = function_name or "segment"
    try:
        module = import_module(module_name)
    except Exception as error:  # it is somebody else's code, and may raise anything
        raise ConfigError(f"model {config.name!r}: {module_name} cannot be imported: {_said(error)}") from error
    function: Any = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"model {config.name!r}: {module_name} has no {function_name}(volume)")
    try:
        getattr(module, "load", _nothing)()
    except Exception as error:
        raise ConfigError(f"model {config.name!r}: load() of {module_name} failed: {_said(error)}") from error
    return cast("Model", function)


def _nothing() -> None:
    """What a module without load() has to load."""


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"


def _entry_point(target: str) -> str:
    """What an entry point of that name stands for; the target itself where there is none."""
    found = next(iter(entry_points(group=ENTRY_POINTS, name=target)), None)
    return target if found is None else f"{found.module}:{found.attr or ''}"
