"""The door `python:module` or `python:module:callable`: a model that is a function of an installed module."""

from importlib import import_module
from typing import cast

from segnode.config import ModelConfig
from segnode.errors import ConfigError
from segnode.pipeline.ports import Model


def load_model(config: ModelConfig) -> Model:
    """The function that `run` names; `segment` where it names only a module. Raises ConfigError."""
    _, module_name, function_name = [*config.run.split(":"), "segment"][:3]
    try:
        function = getattr(import_module(module_name), function_name)
    except ImportError as error:
        raise ConfigError(f"model {config.name!r}: {module_name} cannot be imported: {error}") from error
    except AttributeError as error:
        raise ConfigError(f"model {config.name!r}: {module_name} has no {function_name}(volume)") from error
    return cast("Model", function)
