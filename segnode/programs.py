"""Programs of other makers that the configuration names: whether they are there, what they are told of, their versions."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from segnode.config import Config, ModelConfig
from segnode.errors import ConfigError

# What a program needs to find its way; everything else of the node's environment stays with the node: there are secrets in it.
_INHERITED: Final = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|TZ|LANG|LANGUAGE|LC_\w+|LD_LIBRARY_PATH|CUDA_\w+|NVIDIA_\w+|ROCR_\w+|HIP_\w+|OMP_\w+|SEGNODE_MODEL_PROCESS"
)
_VERSION_S: Final = 120.0
_LONGEST_VERSION: Final = 64


def environment_of(model: ModelConfig) -> Mapping[str, str]:
    """What the programs of a model have as their environment. Raises ConfigError where a secret is not there."""
    given = {
        name: value if isinstance(value, str) else value.read(Path(), f"model {model.name!r}: env.{name}")
        for name, value in model.env.items()
    }
    return {**{name: value for name, value in os.environ.items() if _INHERITED.fullmatch(name)}, **given}


def require_program(model: ModelConfig, words: Sequence[str], environment: Mapping[str, str]) -> None:
    """Raise ConfigError where the program that a command begins with is not there."""
    if shutil.which(words[0], path=environment.get("PATH")) is None:
        raise ConfigError(f"model {model.name!r}: there is no program {words[0]!r}: give its whole path, or see to PATH in env")


def with_versions(config: Config) -> Config:
    """A configuration whose models all have a version: that of a `version_command` is asked for. Raises ConfigError."""
    return msgspec.structs.replace(config, models=tuple(map(with_version, config.models)))


def with_version(model: ModelConfig) -> ModelConfig:
    """A model that has a version: that of its `version_command` is asked for. Raises ConfigError."""
    if not model.version_command:
        return model
    return msgspec.structs.replace(model, version=_version(model, model.version_command), version_command=None)


def _version(model: ModelConfig, command: str) -> str:
    """The first line that a command prints, as far as it can be shown, and is not too long for a SEG (LO)."""
    words, environment = shlex.split(command), environment_of(model)
    require_program(model, words, environment)
    try:
        answered = subprocess.run(  # noqa: S603  what the configuration says
            words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=_VERSION_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"model {model.name!r}: version_command does not say its version: {error}") from error
    first, _, _ = answered.stdout.decode(errors="replace").partition("\n")
    version = "".join(c for c in first if c.isprintable() and c != "\\").strip()[:_LONGEST_VERSION]
    if not version:
        raise ConfigError(f"model {model.name!r}: the first line that version_command prints is empty")
    return version
