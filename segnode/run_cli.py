"""The command that runs a model on files, without a node."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, get_args

import click
import msgspec

from segnode.config import Config, FormName, hidden_from, read_config
from segnode.errors import ConfigError, SegnodeError
from segnode.programs import with_versions

if TYPE_CHECKING:
    from segnode.models.process import ModelProcess
    from segnode.pipeline.ports import Heard
    from segnode.pipeline.run_files import FileRunner, SegmentedSeries, SeriesFiles


class _Ran(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a series: where its SEG is, or why there is none."""

    series: str
    images: int
    seconds: float
    file: str = ""
    form: str = ""
    bytes: int = 0
    sop_instance_uid: str = ""
    voxels: Mapping[str, int] = {}
    notes: Sequence[str] = ()
    error: str = ""


@click.command()
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The configuration, where models have their names; ./segnode.toml where there is one, else the defaults.",
)
@click.argument("name", metavar="MODEL")
@click.argument("paths", metavar="FOLDER|FILE...", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="A folder; or, for one series, a file that ends in .dcm.",
)
@click.option(
    "--form",
    metavar="TYPE:CODEC",
    type=click.Choice(get_args(FormName)),
    help=f"How SEGs are written: {', '.join(get_args(FormName))}; without it labelmap:rle, and binary:native for overlaps.",
)
@click.option("--picture", type=click.Path(path_type=Path, dir_okay=False), help="A contact sheet (PNG) of the one series.")
@click.option("--force", is_flag=True, help="Overwrite files that are there.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def run(
    config_file: Path | None,
    name: str,
    paths: Sequence[Path],
    out: Path,
    form: Any,
    picture: Path | None,
    *,
    force: bool,
    as_json: bool,
) -> None:
    """Run MODEL on every series in FOLDERs or FILEs and write its SEGs, as the node does; no node is needed.

    MODEL is one of the configuration. What in a folder is no DICOM, or no image, is left out. Exit code 1 when a series failed,
    or a FILE is no DICOM, or there is no series; the others are written.
    """
    from segnode.pipeline.run_files import series_in

    config = with_versions(read_config(config_file))
    found, refused = series_in(_files(paths))
    for path, reason in refused.items():
        click.echo(f"segnode: {path}: {reason}{'' if path in paths else ': left out'}", err=True)
    is_file = out.suffix == ".dcm" and not out.is_dir()
    if len(found) > 1 and (is_file or picture):
        raise click.UsageError(f"there are {len(found)} series: give a folder to --out, and no --picture")
    done = []
    bar = click.progressbar(
        found, label=f"running {name}", show_pos=True, file=sys.stderr, item_show_func=lambda s: s and s.series_instance_uid
    )

    def hear(fraction: float, text: str) -> None:
        bar.label = f"running {name} {fraction:.0%} {text}".strip()
        bar.render_progress()

    with _runner(config, name, form, hear) as (runner, model), bar as shown:
        for series in shown:
            path = out if is_file else out / f"{name}-{series.series_instance_uid}.dcm"
            done.append(_run_one(runner, model, series, path, picture, force=force))
            bar.label = f"running {name}"
    if as_json:
        click.echo(msgspec.json.encode(done))
    else:
        _echo(done)
    failed = any(ran.error for ran in done) or any(path in paths for path in refused)
    sys.exit(0 if done and not failed else 1)


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        yield from [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


@contextmanager
def _runner(config: Config, name: str, form: Any, hear: "Heard") -> Iterator[tuple["FileRunner", "ModelProcess"]]:
    """What runs a model, loaded, in a process of its own. Raises ConfigError, LabelError."""
    from segnode.models.process import ModelProcess
    from segnode.pipeline.encode import Maker
    from segnode.pipeline.run_files import FileRunner
    from segnode.seg.segments import read_label_dictionary

    if name not in [model.name for model in config.models]:
        known = ", ".join(model.name for model in config.models) or "none"
        raise ConfigError(f"there is no model {name!r}; allowed: {known}")
    chosen = config.model(name)
    dictionary = read_label_dictionary(chosen.labels, config.folder)
    maker = Maker(config.node.ae_title, config.output, _secret(config))
    if maker.secret is None and any(segment.track for segment in dictionary.segment):
        click.echo(f"segnode: nothing is tracked: no node of this user has run on {config.data}", err=True)
    with TemporaryDirectory(prefix="segnode-run-") as scratch:
        model = ModelProcess(chosen, Path(scratch) / "model", hidden_from(chosen, config))
        try:
            _check(model)
            yield FileRunner(partial(model, heard=hear), chosen, dictionary, maker, form, Path(scratch)), model
        finally:
            model.close()


def _secret(config: Config) -> bytes | None:
    """The node's own, where one has run: what it tracks is tracked alike."""
    try:
        return (config.data / "secret").read_bytes()
    except OSError:
        return None


def _check(model: "ModelProcess") -> None:
    try:
        model.check()
    except ConfigError as error:
        raise ConfigError(model.told(error)) from error


def _run_one(
    runner: "FileRunner", model: "ModelProcess", series: "SeriesFiles", path: Path, picture: Path | None, *, force: bool
) -> _Ran:
    from segnode.errors import ModelFailed
    from segnode.seg_files import new_file, require_free

    start = time.perf_counter()
    said: dict[str, Any] = {"series": series.series_instance_uid, "images": len(series.files)}
    try:
        require_free(path, overwrite=force)  # before the work: afterwards it would be for nothing
        segmented = runner.run(series, datetime.now(UTC))
        if picture:
            _draw(segmented, picture, force=force)
        with new_file(path, overwrite=force) as beside:
            beside.write_bytes(segmented.part10)
    except SegnodeError as error:
        reason = model.told(error) if isinstance(error, ModelFailed) else str(error)
        return _Ran(**said, seconds=round(time.perf_counter() - start, 3), error=reason)
    return _Ran(
        **said,
        seconds=round(time.perf_counter() - start, 3),
        file=str(path),
        form=segmented.form,
        bytes=len(segmented.part10),
        sop_instance_uid=str(segmented.sop_instance_uid),
        voxels=segmented.voxels(runner.dictionary),
        notes=segmented.notes,
    )


def _draw(segmented: "SegmentedSeries", picture: Path, *, force: bool) -> None:
    from io import BytesIO

    from pydicom import dcmread

    from segnode.contact_sheet import draw_contact_sheet
    from segnode.errors import CannotWrite
    from segnode.seg_files import new_file

    if segmented.numbers.shape != segmented.volume.array.shape or not segmented.form.startswith("labelmap:"):
        raise CannotWrite(f"{picture} cannot be drawn: only of a LABELMAP on the grid of the images")
    with new_file(picture, ".png", overwrite=force) as beside:
        header = dcmread(BytesIO(segmented.part10), stop_before_pixels=True)
        draw_contact_sheet(beside, segmented.volume, segmented.numbers, header)


def _echo(done: Sequence[_Ran]) -> None:
    """For each series a line, one for each segment that there is, and notes; then what failed, on standard error."""
    for ran in done:
        if ran.error:
            click.echo(f"segnode: series {ran.series} ({ran.images} images): {ran.error}", err=True)
            continue
        click.echo(f"{ran.file}  {ran.form}, {ran.bytes:,} bytes, of {ran.images} images in {ran.seconds:.1f} s")
        for label, voxels in ran.voxels.items():
            if voxels:
                click.echo(f"{voxels:>14,}  {label}")
        for note in ran.notes:
            click.echo(f"    {note}")
    if not done:
        click.echo("segnode: there is no series of images", err=True)
