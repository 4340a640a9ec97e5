"""The commands for training sets: export and import."""

import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click
import msgspec

from segnode.config import Config, read_config
from segnode.errors import BadDataset, ConfigError

if TYPE_CHECKING:
    from segnode.datasets.importing import Imported
    from segnode.datasets.sources import Source

_FORMATS = ("nifti", "nrrd", "hydrogen-torch", "medsegpy", "mathworks")
_config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The configuration, where destinations have their names; ./segnode.toml where there is one.",
)
_format_option = click.option("--format", "format_", type=click.Choice(_FORMATS), required=True, help="The format of the set.")
_study_option = click.option("--study", metavar="UID", help="Only this study.")
_query_option = click.option(
    "--query",
    "pairs",
    metavar="KEYWORD=VALUE",
    multiple=True,
    help="Only what matches, such as StudyDate=20240101-20241231 or Modality=CT; may be repeated.",
)
_as_json = click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")


@click.group()
def dataset() -> None:
    """Make training sets of images and their segmentations, and segmentations of labels made elsewhere."""


@dataset.command("export")
@_config_option
@_format_option
@click.option("--from", "from_", metavar="FOLDER|URL|NAME", required=True, help="A folder, a DICOMweb root or a destination.")
@_study_option
@_query_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The set: a folder, or a zip for hydrogen-torch.")
@click.option("--split", default="1,0,0", show_default=True, help="Fractions of patients: train,validation,test.")
@click.option("--folds", default=0, help="Give each patient one of so many folds.")
@click.option("--seed", default=0, show_default=True, help="Of the split and the folds.")
@click.option("--threshold", type=click.FloatRange(0, 1), help="From which fraction on a voxel of a FRACTIONAL counts.")
@click.option("--layout", default="", help="What the set looks like: 3d or 2d (medsegpy); dicom, nifti or nrrd (mathworks).")
@click.option(
    "--collate", multiple=True, metavar="NAME=A,B", help="A super-class of classes A and B (medsegpy); may be repeated."
)
@click.option("--unlabelled", is_flag=True, help="Take image series without a segmentation too.")
@click.option("--keep-identity", is_flag=True, help="Do not de-identify: the manifest says who the images are of.")
@click.option("--map", "map_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the real UIDs here.")
@click.option("--resume", is_flag=True, help="Go on where an export that broke off was.")
@_as_json
def export_set(
    config_file: Path | None,
    format_: Any,
    from_: str,
    study: str | None,
    pairs: Sequence[str],
    out: Path,
    split: str,
    folds: int,
    seed: int,
    threshold: float | None,
    layout: str,
    collate: tuple[str, ...],
    map_file: Path | None,
    *,
    unlabelled: bool,
    keep_identity: bool,
    resume: bool,
    as_json: bool,
) -> None:
    """Write image series, and the segmentations that refer to them, as a training set.

    Without --keep-identity it is de-identified. It is there whole or not at all; a repeat of the same does nothing.
    """
    _require_libraries(format_)
    from segnode.datasets.exporting import Export, export_dataset
    from segnode.datasets.sources import wanted_of
    from segnode.datasets.splits import Split

    wanted = wanted_of(study, pairs)
    shared = Split(_fractions(split), folds, seed)
    asked = Export(format_, wanted, shared, threshold, layout, collate, unlabelled, keep_identity)
    source = _source(read_config(config_file), from_)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what pydicom warns of, `seg check` tells
        done = export_dataset(source, out, asked, map_file=map_file, resume=resume, progress=_shown("exporting"))
    entries = done.manifest.entries
    if as_json:
        _echo_json({"out": str(out), "was_there": done.was_there, "entries": entries, "left_out": done.left_out})
        return
    for reason in done.left_out:
        click.echo(f"left out: {reason}", err=True)
    counts = ", ".join(f"{sum(e.split == name for e in entries)} {name}" for name in dict.fromkeys(e.split for e in entries))
    there = " is there already: nothing was done;" if done.was_there else ":"
    click.echo(f"{out}{there} {len(entries)} image series ({counts}), {len(done.manifest.classes)} class(es)")


@dataset.command("import")
@_config_option
@_format_option
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--images", "from_", metavar="FOLDER|URL|NAME", required=True, help="Where the images of the labels are.")
@_study_option
@_query_option
@click.option("--labels", help="The label dictionary: a file, or a name that is shipped; else that of the manifest.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Write the segmentations to this folder.")
@click.option("--send-to", "name", metavar="NAME", help="Send the segmentations to this destination.")
@click.option("--assume-grid", is_flag=True, help="Take labels of the shape of the images to lie on them, whatever they say.")
@click.option(
    "--overlap",
    type=click.Choice(("binary", "split", "error")),
    default="binary",
    show_default=True,
    help="Labels that overlap: one BINARY, the fewest LABELMAPs that hold them, or an error.",
)
@_as_json
def import_set(
    config_file: Path | None,
    format_: Any,
    path: Path,
    from_: str,
    study: str | None,
    pairs: Sequence[str],
    labels: str | None,
    out: Path | None,
    name: str | None,
    overlap: Any,
    *,
    assume_grid: bool,
    as_json: bool,
) -> None:
    """Make segmentations of the labels in PATH, which lie on images that are found by the manifest or by their affine."""
    if (out is None) == (name is None):
        raise click.UsageError("either --out FOLDER or --send-to NAME")
    _require_libraries(format_)
    from segnode.datasets.importing import Import, import_dataset
    from segnode.datasets.sources import wanted_of
    from segnode.seg.segments import read_label_dictionary

    config = read_config(config_file)
    send = _sender(config, name) if name else None
    dictionary = read_label_dictionary(labels, Path()) if labels else None
    asked, source = Import(format_, dictionary, assume_grid, overlap), _source(config, from_)
    with TemporaryDirectory(prefix="segnode-dataset-") as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what pydicom warns of, `seg check` tells
        folder = out or Path(scratch) / "made"
        done = import_dataset(path, source, folder, asked, wanted=wanted_of(study, pairs), progress=_shown("importing"))
        answers = [send(each) for each in done] if send else [str(each.file) for each in done]
    if as_json:
        rows = zip(done, answers, strict=True)
        _echo_json([{"where": e.where, "sop_instance_uid": e.sop_instance_uid, "to": to} for e, to in rows])
        return
    for each, answer in zip(done, answers, strict=True):
        there = "  (was there)" if each.was_there else ""
        click.echo(f"{each.where}  {each.sop_instance_uid}  {answer}{there}")


def _fractions(split: str) -> tuple[float, float, float]:
    try:
        train, validation, test = (float(part) for part in split.split(","))
    except ValueError as error:
        raise click.BadParameter(f"--split {split}: three fractions with commas between them, such as 0.8,0.1,0.1") from error
    return train, validation, test


def _require_libraries(format_: str) -> None:
    """Raise BadDataset for a format whose libraries are not here."""
    from importlib.util import find_spec

    needed = {"hydrogen-torch": ("pyarrow",), "medsegpy": ("h5py",)}
    missing = [name for name in needed.get(format_, ()) if find_spec(name) is None]
    if missing:
        raise BadDataset(f"{format_} needs {' and '.join(missing)}: install segnode[datasets]")


def _source(config: Config, from_: str) -> "Source":
    """A folder, what is reached at a DICOMweb root, or the destination of that name."""
    from segnode.datasets.sources import ArchiveSource, FolderSource

    if Path(from_).is_dir():
        return FolderSource(Path(from_))
    from segnode.config import destination_at, is_http
    from segnode.node import archive

    named = next((destination for destination in config.destinations if destination.name == from_), None)
    if named is None and not is_http(from_) and "@" not in from_:
        names = ", ".join(destination.name for destination in config.destinations) or "none"
        raise ConfigError(f"{from_!r} is no folder, no DICOMweb root and no destination; destinations: {names}")
    return ArchiveSource(archive(named or destination_at(from_), config))


def _sender(config: Config, name: str) -> "Callable[[Imported], str]":
    from segnode.datasets.sending import send
    from segnode.node import destinations

    known = destinations(config)
    if name not in known:
        raise ConfigError(f"there is no destination {name!r}; allowed: {', '.join(known) or 'none'}")
    forms = next(destination.seg for destination in config.destinations if destination.name == name)
    return lambda made: send(made, known[name], forms)


def _shown(label: str) -> "Callable[[Iterable[Any]], Any]":
    """A progress bar on standard error."""

    def show(items: Iterable[Any]) -> Any:
        bar: AbstractContextManager[Any] = click.progressbar(
            items, label=label, file=sys.stderr, hidden=not sys.stderr.isatty()
        )
        with bar as shown:
            yield from shown

    return show


def _echo_json(document: object) -> None:
    click.echo(msgspec.json.encode(document))
