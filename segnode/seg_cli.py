"""The commands for SEG files: check, info, convert, export, diff."""

import atexit
import dataclasses
import gc
import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click
import msgspec

from segnode.errors import CannotConvert, NotDicom, SegnodeError

if TYPE_CHECKING:
    from segnode.dicom.elements import Buffer
    from segnode.seg.convert import Converted, Target
    from segnode.seg.diff import Difference, SegmentDifference
    from segnode.seg.facts import Facts
    from segnode.seg.segmentation import Segmentation

_TYPES = ("labelmap", "binary", "fractional")
_CODECS = ("native", "implicit", "deflate", "deflate-frames", "rle", "jpeg-ls", "jpeg-2000", "htj2k")
_STAND_INS = ("pydicom.examples", "urllib.request")
_EXPORTED = (".nii.gz", ".nrrd", ".npz")

_file = click.Path(path_type=Path, exists=True, dir_okay=False)
_as_json = click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
_force = click.option("--force", is_flag=True, help="Overwrite files that are there.")


@dataclasses.dataclass(frozen=True)
class _Done:
    """A file and what it became, or why it did not."""

    source: str
    bytes: int
    outputs: tuple[dict[str, Any], ...] = ()
    error: str = ""


@click.group()
def seg() -> None:
    """Look at SEG files, convert, export and compare them."""
    # What a command reads it keeps to its end: to look for cycles among it every 700 objects takes a fifteenth of its time.
    gc.set_threshold(100_000)
    # Nor at its end, when all of it is given back.
    atexit.register(gc.freeze)
    _import_what_is_needed()


@seg.command("check")
@click.argument("paths", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@_as_json
def check_segmentations(paths: Sequence[Path], *, as_json: bool) -> None:
    """Check SEG files, and those in folders, against the rules of the standard; exit code 1 when one breaks a rule.

    Errors break a "shall" of DICOM; warnings are likely to do harm.
    """
    from segnode.seg.check import check, read_to_check
    from segnode.seg_files import segmentation_files

    found: list[dict[str, str]] = []
    sound = True
    for file in segmentation_files(paths):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what pydicom warns of is found again, with its rule
            try:
                findings = check(read_to_check(file))
            except SegnodeError as error:  # the other files are checked all the same
                click.echo(f"segnode: {error}", err=True)
                sound = False
                continue
        sound = sound and all(finding.severity != "error" for finding in findings)
        found.extend({"file": str(file), **dataclasses.asdict(finding)} for finding in findings)
        if not as_json:
            click.echo(f"{file}: {f'{len(findings)} finding(s)' if findings else 'no findings'}")
            for finding in findings:
                click.echo(f"  {finding.severity:<8} {finding.attribute}")
                click.echo(f"           {finding.message} ({finding.clause})")
    if as_json:
        _echo_json(found)
    sys.exit(0 if sound else 1)


@seg.command()
@click.argument("file", type=_file)
@_as_json
def info(file: Path, *, as_json: bool) -> None:
    """Say what a SEG holds: its type and encoding, its geometry, its references, and each segment with its volume."""
    from segnode.seg.facts import facts_of

    with _about(file):
        facts = facts_of(_read(file))
    if as_json:
        _echo_json({"file": str(file), "bytes": file.stat().st_size, **dataclasses.asdict(facts)})
        return
    _echo_facts(facts, file.stat().st_size)


@seg.command()
@click.argument("source", metavar="IN", type=click.Path(path_type=Path, exists=True))
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--type", "kind", type=click.Choice(_TYPES), default="labelmap", show_default=True, help="The type to make.")
@click.option("--codec", type=click.Choice(_CODECS), default="rle", show_default=True, help="How frames are encoded.")
@click.option("--overlap", type=click.Choice(("error", "split", "priority")), help="What to do where segments overlap.")
@click.option("--priority", help="Segment numbers such as 3,1,2: an overlap goes to the first.")
@click.option("--threshold", type=click.FloatRange(0, 1, min_open=True), help="Of a FRACTIONAL: what is inside, from 0 to 1.")
@_force
@_as_json
def convert(
    source: Path,
    out: Path,
    kind: str,
    codec: Any,
    overlap: Any,
    priority: str | None,
    threshold: float | None,
    *,
    force: bool,
    as_json: bool,
) -> None:
    """Convert the SEG IN, or each in the folder IN, to the file or folder OUT.

    With the type it has it stays the same object, only encoded anew; with another it becomes a new one in a new series.
    Overlapping segments cannot be one LABELMAP: --overlap split makes the fewest that can hold them, with -1, -2 … in their
    names; --priority decides voxel by voxel and says how many. Exit code 1 when a file failed; the others are converted.
    """
    from segnode.seg.codecs import CODECS
    from segnode.seg.convert import Target

    numbers = _numbers(priority)
    overlap = overlap or ("priority" if numbers else "error")
    if (overlap == "priority") != bool(numbers):
        raise click.UsageError("--overlap priority and --priority LIST go together")
    kinds: Any = kind.upper()
    target = Target(kinds, CODECS[codec], overlap, numbers, threshold)
    done = list(_convert_all(_outputs(source, out), target, force=force))
    if as_json:
        _echo_json([dataclasses.asdict(file) for file in done])
    else:
        _echo_conversions(done)
    sys.exit(1 if any(file.error for file in done) else 0)


@seg.command("export")
@click.argument("file", type=_file)
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path, dir_okay=False))
@_force
def export_labels(file: Path, out: Path, *, force: bool) -> None:
    """Write the labels of a SEG as a volume to OUT: .nii.gz (RAS), .nrrd (LPS) or .npz (labelmap, affine, segments)."""
    from segnode.seg.export import export
    from segnode.seg_files import new_file

    suffix = next((suffix for suffix in _EXPORTED if out.name.endswith(suffix)), None)
    if suffix is None:
        raise click.BadParameter(f"{out}: the name ends in one of {', '.join(_EXPORTED)}")
    with _about(file):
        segmentation = _read(file)
        with new_file(out, suffix, overwrite=force) as path:
            export(segmentation, path, suffix)


@seg.command("diff")
@click.argument("a", type=_file)
@click.argument("b", type=_file)
@_as_json
def compare(a: Path, b: Path, *, as_json: bool) -> None:
    """Compare the labels of two SEGs in the patient's space; exit code 0 the same, 1 not, 2 when that cannot be said."""
    from segnode.seg.diff import diff

    try:
        with _about(a):
            segmentation = _read(a)
        with _about(b):
            other = _read(b)
        found = diff(segmentation, other)
    except SegnodeError as error:
        click.echo(f"segnode: {error}", err=True)
        sys.exit(2)
    if as_json:
        _echo_json({"equal": found.is_equal, **dataclasses.asdict(found)})
    else:
        _echo_difference(found)
    sys.exit(0 if found.is_equal else 1)


def _import_what_is_needed() -> None:
    """Import NumPy and pydicom without what no command here uses, which takes a tenth of a conversion.

    NumPy starts threads for large matrices; pydicom looks for its examples, imports what downloads more of them, Pillow to
    convert colours, and codecs, of which the engine has its own.
    """
    if "pydicom" in sys.modules:
        return
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    modules: dict[str, Any] = sys.modules
    hidden = {"requests", "PIL", "pylibjpeg", "jpeg_ls", *_STAND_INS} - modules.keys()
    # None stands for a module that is not there; pydicom does not start without the others, but uses nothing of them.
    modules.update({name: ModuleType(name) if name in _STAND_INS else None for name in hidden})
    try:
        importlib.import_module("pydicom")
    finally:
        for name in hidden:
            del modules[name]


def _mapped(file: Path) -> "Buffer":
    from segnode.seg.read import map_file

    try:
        return map_file(file)
    except OSError as error:
        raise NotDicom(f"it cannot be read: {error.strerror}") from error


def _read(file: Path) -> "Segmentation":
    from segnode.seg.read import read_segmentation

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what pydicom warns of, `seg check` tells
        return read_segmentation(_mapped(file))


@contextmanager
def _about(file: Path) -> Iterator[None]:
    """Errors name the file that they are about."""
    try:
        yield
    except SegnodeError as error:
        if str(file) in str(error):
            raise
        raise CannotConvert(f"{file}: {error}") from error


def _numbers(listed: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in listed.split(",")) if listed else ()
    except ValueError as error:
        raise click.BadParameter(f"--priority {listed}: segment numbers with commas between them, such as 3,1,2") from error


def _outputs(source: Path, out: Path) -> list[tuple[Path, Path]]:
    """Each file to convert with the file that it becomes."""
    if source.is_file():
        return [(source, out / source.name if out.is_dir() else out)]
    if out.is_file():
        raise click.BadParameter(f"{out} is a file: a folder is converted to a folder")
    from segnode.seg_files import segmentation_files

    return [(file, out / file.relative_to(source)) for file in segmentation_files([source])]


def _convert_all(files: Sequence[tuple[Path, Path]], target: "Target", *, force: bool) -> Iterator[_Done]:
    now = datetime.now(UTC)
    taken: set[Path] = set()
    hidden = len(files) < 2
    with click.progressbar(files, label="converting", file=sys.stderr, hidden=hidden) as bar:
        for file, out in bar:
            try:
                yield _convert_one(file, out, target, now, taken, force=force)
            except SegnodeError as error:
                told = str(error) if str(file) in str(error) else f"{file}: {error}"
                yield _Done(str(file), file.stat().st_size, error=told)


def _convert_one(file: Path, out: Path, target: "Target", now: datetime, taken: set[Path], *, force: bool) -> _Done:
    from segnode.seg.convert import convert as convert_part10
    from segnode.seg_files import new_file, require_free

    if target.type != "LABELMAP" or target.overlap != "split":  # before the work: afterwards it would be for nothing
        require_free(out, overwrite=force)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what pydicom warns of, `seg check` tells
        made = convert_part10(_mapped(file), target, now)
    paths = [out if len(made) == 1 else out.with_stem(f"{out.stem}-{converted.part}") for converted in made]
    if taken & set(paths):
        raise CannotConvert(f"{file}: its output {paths[0]} is that of another file of the folder")
    taken.update(paths)
    with ExitStack() as stack:
        beside = [stack.enter_context(new_file(path, overwrite=force)) for path in paths]
        for path, converted in zip(beside, made, strict=True):
            path.write_bytes(converted.part10)
    outputs = tuple(_output(path, converted, target) for path, converted in zip(paths, made, strict=True))
    return _Done(str(file), file.stat().st_size, outputs)


def _output(path: Path, converted: "Converted", target: "Target") -> dict[str, Any]:
    return {
        "file": str(path),
        "bytes": len(converted.part10),
        "form": f"{target.type.lower()}:{target.codec.name}",
        "sop_instance_uid": converted.sop_instance_uid,
        "series_instance_uid": converted.series_instance_uid,
        "numbers": converted.numbers,
        "part": converted.part,
        "parts": converted.parts,
        "lower_bound": converted.lower_bound,
        "overlaps": [dataclasses.asdict(overlap) for overlap in converted.overlaps],
        "left_out": converted.left_out,
    }


def _echo_conversions(done: Sequence[_Done]) -> None:
    """A line for each file that was written, what happened to overlaps and numbers, totals, and then what failed."""
    for file in done:
        after = sum(output["bytes"] for output in file.outputs)
        for output in file.outputs:
            ratio = f"{file.bytes / after:>8.1f}x" if output is file.outputs[0] else f"{'':>9}"
            click.echo(f"{file.bytes:>13,} {output['bytes']:>13,} {ratio}  {output['file']}")
        _echo_changes(file)
    converted = [file for file in done if not file.error]
    if len(converted) > 1:
        before, after = sum(f.bytes for f in converted), sum(o["bytes"] for f in converted for o in f.outputs)
        click.echo(f"{before:>13,} {after:>13,} {before / after:>8.1f}x  {len(converted)} files")
    for file in done:
        if file.error:
            click.echo(f"segnode: {file.error}", err=True)
    if len(done) > 1 and len(converted) < len(done):
        click.echo(f"segnode: {len(done) - len(converted)} of {len(done)} files failed", err=True)


def _echo_changes(file: _Done) -> None:
    for keyword in sorted({keyword for output in file.outputs for keyword in output["left_out"]}):
        click.echo(f"    left out {keyword}: frames in one place differ in it")
    for output in file.outputs[:1]:
        if output["parts"] > 1:
            fewest = output["parts"] == output["lower_bound"]
            what = "the fewest that can be" if fewest else f"at least {output['lower_bound']} are needed"
            click.echo(f"    split into {output['parts']} objects ({what})")
        for overlap in output["overlaps"]:
            (a, b), (label, other) = overlap["numbers"], overlap["labels"]
            click.echo(f"    overlap: {a} ({label}) and {b} ({other}) in {overlap['voxels']} voxels")
        renumbered = {number: new for number, new in output["numbers"].items() if number != new}
        if renumbered:
            click.echo(f"    renumbered: {', '.join(f'{number} to {new}' for number, new in renumbered.items())}")


def _echo_facts(facts: "Facts", size: int) -> None:
    geometry = facts.geometry
    lines = {
        "type": f"{facts.type}, {facts.bits} bit(s)",
        "SOP class": facts.sop_class,
        "SOP instance": facts.sop_instance_uid,
        "transfer syntax": facts.transfer_syntax,
        "bytes": f"{size:,}",
        "frames": f"{facts.frames} of {facts.rows} x {facts.columns}, on {facts.planes} plane(s)",
        "geometry": geometry.problem
        or f"{geometry.slices} slices, {' x '.join(f'{v:g}' for v in geometry.spacing or ())} mm (slice, row, column)",
        "references": ", ".join(f"{count} of series {uid}" for uid, count in facts.references.items()) or "none",
        "overlap": f"{facts.overlapping} voxels are in several segments" if facts.overlapping else "none",
    }
    for name, value in lines.items():
        click.echo(f"{name:<16} {value}")
    width = max((len(segment.label) for segment in facts.segments), default=5)
    click.echo(f"\n{'number':>6}  {'label':<{width}}  {'voxels':>12}  {'ml':>12}  type")
    for segment in facts.segments:
        millilitres = "" if segment.millilitres is None else f"{segment.millilitres:.3f}"
        click.echo(f"{segment.number:>6}  {segment.label:<{width}}  {segment.voxels:>12,}  {millilitres:>12}  {segment.type}")


def _echo_difference(found: "Difference") -> None:
    for problem in found.geometry:
        click.echo(f"geometry differs: {problem}")
    for segment in found.segments:
        if not segment.is_equal:
            click.echo(_told(segment))
    if found.is_equal:
        click.echo(f"the same: {len(found.segments)} segment(s)")


def _told(segment: "SegmentDifference") -> str:
    numbers = f"{segment.number}" if segment.number == segment.other_number else f"{segment.number}/{segment.other_number}"
    told = (
        f"segment {numbers.replace('None', '-')} ({segment.label}): {segment.differing} voxels differ, Dice {segment.dice:.6f}"
    )
    if segment.where is not None:
        place, (top, bottom), (left, right) = segment.where, segment.where.rows, segment.where.columns
        first = ", ".join(f"{value:g}" for value in place.first_plane)
        told += f"; from ({first}), planes {place.planes[0]}-{place.planes[1]}, rows {top}-{bottom}, columns {left}-{right}"
    return told


def _echo_json(document: object) -> None:
    click.echo(msgspec.json.encode(document))
