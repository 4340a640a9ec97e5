"""The commands for models: those of the configuration, checked and timed, and a new one to begin with."""

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from segnode.config import Config, ModelConfig, hidden_from, read_config
from segnode.errors import ConfigError, LabelError, ModelFailed, OutOfResources
from segnode.programs import with_versions

if TYPE_CHECKING:
    from segnode.dicom.volume import Volume


class _Tried(msgspec.Struct, frozen=True, omit_defaults=True):
    """A model of the configuration and how it did on a synthetic CT: seconds, voxels of each value, or what is wrong."""

    name: str
    version: str
    run: str
    labels: str
    segments: int = 0
    load_s: float | None = None
    segment_s: float | None = None
    voxels: dict[int, int] = {}
    error: str = ""


@click.group(invoke_without_command=True)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The configuration; without it ./segnode.toml where there is one, else the defaults.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
@click.pass_context
def models(ctx: click.Context, config_file: Path | None, *, as_json: bool) -> None:
    """List the models of the configuration: each is loaded, and run once on a synthetic CT.

    Exit code 1 when one cannot be loaded, fails, or makes labels without an entry in its dictionary.
    """
    if ctx.invoked_subcommand is not None:
        return
    config = with_versions(read_config(config_file))
    tried = []
    for model in config.models:
        tried.append(_try(model, config))
        if not as_json:
            click.echo(_line(tried[-1]))
    if as_json:
        click.echo(msgspec.json.encode(tried))
    ctx.exit(1 if any(each.error for each in tried) else 0)


@models.command("new")
@click.argument("name")
def new(name: str) -> None:
    """Write the package of a new model into a folder NAME: the model, its test, its label dictionary and its entry point."""
    from segnode.models.scaffold import write_scaffold

    if not name.isidentifier() or not name.isascii() or name != name.lower():
        raise ConfigError(f"{name!r} is no name of a package; allowed: small letters, digits and _, a letter first")
    table = write_scaffold(Path(name), name)
    click.echo(f"{name} is written. It works as it is: `pip install -e {name}`, and `pytest {name}` tests it.", err=True)
    click.echo("What belongs into the configuration:", err=True)
    click.echo(table, nl=False)


def _try(model: ModelConfig, config: Config) -> _Tried:
    from segnode.models.process import ModelProcess
    from segnode.pipeline.infer import run_model
    from segnode.seg.segments import read_label_dictionary, segment_numbers

    tried = _Tried(model.name, model.version, model.run, model.labels)
    with tempfile.TemporaryDirectory(prefix="segnode-models-") as folder:
        process = ModelProcess(model, Path(folder), hidden_from(model, config))
        try:
            dictionary = read_label_dictionary(model.labels, config.folder)
            tried = msgspec.structs.replace(tried, segments=len(dictionary.segment))
            volume = _volume()
            start = time.perf_counter()
            process.check()
            loaded = time.perf_counter()
            tried = msgspec.structs.replace(tried, load_s=loaded - start)
            result = run_model(process, volume, model.name)
            tried = msgspec.structs.replace(tried, segment_s=time.perf_counter() - loaded)
            for layer in result.layers:
                segment_numbers(layer, dictionary)
            voxels = {segment.value: int((result.layers == segment.value).sum()) for segment in dictionary.segment}
            return msgspec.structs.replace(tried, voxels={value: count for value, count in voxels.items() if count})
        except (ConfigError, LabelError, ModelFailed, OutOfResources) as error:
            return msgspec.structs.replace(tried, error=process.told(error))
        finally:
            process.close()


def _volume() -> "Volume":
    from segnode.testing.model_contract import phantom_volume

    return phantom_volume()


def _line(tried: _Tried) -> str:
    what = f"{tried.name} {tried.version}: {tried.run}, labels {tried.labels} ({tried.segments} segments)"
    if tried.error:
        return f"{what}: FAILED: {tried.error}"
    return (
        f"{what}: loaded in {tried.load_s:.1f} s, {tried.segment_s:.1f} s for a synthetic CT of 40 slices of 128 x 128,"
        f" where it found {len(tried.voxels)} of its segments"
    )
