"""Benchmarks: the same jobs by segnode and by highdicom, side by side in one run, and their results held against each other.

    scripts/bench seg [--labelmap FILE.npz] [--runs N]
    scripts/bench latency [--slices N] [--runs N]
    scripts/bench datasets [--labelmap FILE.npz] [--runs N] [--part FORMAT|rle]
    scripts/bench dicomweb [--slices N] [--runs N] [--part beside|scaling]
    scripts/bench dimse [--slices N] [--runs N] [--only TEXT]
    scripts/bench hooks [--slices N] [--runs N]

Every job runs in a process of its own, in turn with that which it is compared with. What is compared is the wall time of
whole processes, start and imports included, or the job's own seconds where the table says so; CPU and peak memory stand
beside. A result that is not right ends the run.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Final

import click
import highdicom
import numpy as np

from segnode.seg.codecs import CODECS, DECODERS, CodecName, FrameShape
from segnode.seg.pixels import FRAMES_AT_ONCE
from segnode.testing.datasets_bench import datasets
from segnode.testing.dicomweb_bench import dicomweb
from segnode.testing.dimse_bench import dimse
from segnode.testing.hooks_bench import hooks
from segnode.testing.latency import latency
from segnode.testing.seg_case import Case, Labels, synthetic_labels, write_case

# A process's peak memory counts from its parent's: this one holds the labels, so that a small one stands between.
_LAUNCHER: Final = """
import json, os, sys, time
start = time.perf_counter()
child = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status, used = os.wait4(child, 0)
measured = [time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]
os.write(int(sys.argv[1]), json.dumps([*measured, os.waitstatus_to_exitcode(status)]).encode())
"""

_GOAL_OF_TWO_THREADS: Final = 1.6


@dataclass(frozen=True)
class Measured:
    """A process: seconds of wall time, of its job alone, and of CPU; peak memory in MB."""

    wall: float
    own: float
    cpu: float
    peak: float


@dataclass(frozen=True)
class Comparison:
    """A job that both do; `goal` is how many times faster segnode is to be, by whole process or by the job's own seconds."""

    name: str
    segnode: Sequence[str]
    highdicom: Sequence[str]
    goal: float
    whole: bool = False


@click.group()
def main() -> None:
    """Measure segnode against what there is."""


main.add_command(latency)
main.add_command(datasets)
main.add_command(hooks)
main.add_command(dicomweb)
main.add_command(dimse)


@main.command()
@click.option("--labelmap", type=click.Path(path_type=Path, exists=True), help="An .npz with `labelmap`; else a synthetic one.")
@click.option("--runs", default=3, show_default=True, help="How often each job runs; the median counts.")
@click.option("--slices", default=580, show_default=True, help="Slices of the synthetic labelmap.")
def seg(labelmap: Path | None, runs: int, slices: int) -> None:
    """The SEG engine: convert, write and read a hundred structures in hundreds of slices."""
    labels: Labels = np.load(labelmap)["labelmap"] if labelmap else synthetic_labels(slices, 512, 98)
    with tempfile.TemporaryDirectory(prefix="segnode-bench-") as scratch:
        folder = Path(scratch)
        case = write_case(folder / "case", labels)
        click.echo(f"{labels.shape} voxels, {int(labels.max())} structures; {os.cpu_count()} cores; median of {runs} runs")
        _run(_job("highdicom", "binary", case, case.binary))
        _require_equal(case.binary, labels)
        _heading()
        for comparison in _comparisons(case, folder):
            _compare(comparison, runs, folder, labels)
        _sizes(case, folder, labels)
        _shapes(case, folder, labels, runs)
        _threads(labels, runs)


def _comparisons(case: Case, folder: Path) -> list[Comparison]:
    out = {by: folder / f"{by}.dcm" for by in ("segnode", "highdicom")}
    convert = ["segnode", "seg", "convert", str(case.binary), str(out["segnode"])]
    convert = [sys.executable, "-m", *convert, "--type", "labelmap", "--codec", "jpeg-ls", "--force"]
    read = folder / "read.dcm"
    _run(_job("segnode", "write", case, read))

    def both(name: str, goal: float, job: str, file: Path | None = None, codec: str = "jpeg-ls") -> Comparison:
        ours, theirs = (_job(by, job, case, file or out[by], codec) for by in ("segnode", "highdicom"))
        return Comparison(name, ours, theirs, goal)

    theirs = _job("highdicom", "convert", case, out["highdicom"])
    return [
        Comparison("BINARY -> LABELMAP jpeg-ls", convert, theirs, 20, whole=True),
        both("labelmap -> LABELMAP jpeg-ls", 8, "write"),
        both("labelmap -> LABELMAP rle", 25, "write", codec="rle"),
        both("labelmap -> LABELMAP jpeg-2000", 3, "write", codec="jpeg-2000"),
        both("LABELMAP jpeg-ls -> labelmap", 8, "read", read),
        both("labelmap -> BINARY", 15, "binary"),
    ]


def _compare(comparison: Comparison, runs: int, folder: Path, labels: Labels) -> None:
    ours, theirs = [], []
    for _ in range(runs):
        ours.append(_run(comparison.segnode))
        theirs.append(_run(comparison.highdicom))
    for written in ("segnode.dcm", "highdicom.dcm"):
        if (folder / written).exists():
            _require_equal(folder / written, labels)
            (folder / written).unlink()
    _row(comparison, _median(ours), _median(theirs))


def _sizes(case: Case, folder: Path, labels: Labels) -> None:
    """What the files take, with all references and codes in them."""
    for codec, goal in (("jpeg-ls", 2.22), ("deflate-frames", 1.75)):
        out = folder / "size.dcm"
        _run(_job("segnode", "write", case, out, codec))
        if codec != "deflate-frames":  # which highdicom does not read
            _require_equal(out, labels)
        click.echo(f"size of LABELMAP {codec:<15} {out.stat().st_size / 1e6:6.2f} MB   goal for the scale case {goal} MB")


def _shapes(case: Case, folder: Path, labels: Labels, runs: int) -> None:
    """16 bits a pixel, and rows that are no multiple of 8: the time for a voxel against that of the case itself."""
    usual = _median([_run(_job("segnode", "write", case, folder / "8.dcm")) for _ in range(runs)]).own / labels.size
    for name, other, goal in (
        ("16 bits", labels.astype(np.uint16) * 3, 2.0),
        ("510 x 510", np.ascontiguousarray(labels[:, :510, :510]), 1.5),
    ):
        changed = write_case(folder / name.replace(" ", ""), other)
        took = _median([_run(_job("segnode", "write", changed, folder / "other.dcm")) for _ in range(runs)])
        _require_equal(folder / "other.dcm", other)
        click.echo(f"time for a voxel, {name:<12} {took.own / other.size / usual:5.2f} x   goal <= {goal} x")


def _threads(labels: Labels, runs: int) -> None:
    """Encoding by two threads against one: with a codec that lets no other thread run they would be no faster."""
    codecs: tuple[CodecName, ...] = ("jpeg-ls", "jpeg-2000")
    for codec in codecs:
        one, two = zip(*((_encode(labels, codec, 1), _encode(labels, codec, 2)) for _ in range(runs)), strict=True)
        ratio = median(one) / median(two)
        met = " " if ratio >= _GOAL_OF_TWO_THREADS else "!"
        what = f"encoding {codec}, two threads against one"
        click.echo(f"{what:<50} {ratio:5.2f} x   goal >= {_GOAL_OF_TWO_THREADS} x {met}")


def _encode(labels: Labels, name: CodecName, threads: int) -> float:
    """The seconds it takes so many threads to encode every slice, which are decoded and compared afterwards."""
    encode, decode = CODECS[name].encode, DECODERS[CODECS[name].transfer_syntax_uid]
    if encode is None:
        raise click.ClickException(f"{name} has no frames to encode")

    def encode_some(first: int) -> list[bytes]:
        return [*map(encode, labels[first : first + FRAMES_AT_ONCE])]

    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        encoded = [*chain.from_iterable(pool.map(encode_some, range(0, len(labels), FRAMES_AT_ONCE)))]
    took = time.perf_counter() - start
    _, rows, columns = labels.shape
    shape = FrameShape(rows, columns, labels.itemsize * 8)
    if not all(np.array_equal(decode(stream, shape), frame) for stream, frame in zip(encoded, labels, strict=True)):
        raise click.ClickException(f"{name}: the labels are not those that were encoded")
    return took


def _job(by: str, job: str, case: Case, file: Path, codec: str = "jpeg-ls") -> list[str]:
    return [sys.executable, "-m", "segnode.testing.seg_jobs", by, job, str(case.folder), str(file), codec]


def _run(command: Sequence[str]) -> Measured:
    """Run a process to its end; a failure ends the benchmark."""
    readable, writable = os.pipe()
    launched = [sys.executable, "-S", "-E", "-c", _LAUNCHER, str(writable), *command]
    with subprocess.Popen(launched, stdout=subprocess.PIPE, pass_fds=[writable]) as process:  # noqa: S603  our own programs
        os.close(writable)
        said = process.stdout.read() if process.stdout else b""
        with os.fdopen(readable) as pipe:
            wall, cpu, peak, code = json.load(pipe)
    if code:
        raise click.ClickException(f"{' '.join(command)} ended with {code}")
    try:
        own = float(said)
    except ValueError:
        own = wall
    return Measured(wall, own, cpu, peak)


def _require_equal(file: Path, labels: Labels) -> None:
    """What highdicom reads, in the patient's space, is what was to be written."""
    volume = highdicom.seg.segread(file).get_volume(combine_segments=True)
    # In the case a slice's number is its place along the patient in mm.
    places = volume.affine[2, 3] + volume.affine[2, 0] * np.arange(len(volume.array))
    expected = np.zeros_like(labels)
    expected[np.rint(places).astype(int)] = volume.array
    if not np.array_equal(expected, labels):
        raise click.ClickException(f"{file.name}: the labels are not those that were to be written")


def _median(measured: Sequence[Measured]) -> Measured:
    columns = zip(*((m.wall, m.own, m.cpu, m.peak) for m in measured), strict=True)
    return Measured(*map(median, columns))


def _heading() -> None:
    click.echo(f"{'':<30} {'segnode s':>10} {'highdicom s':>12} {'ratio':>7} {'goal':>5}   {'CPU s':>14} {'peak MB':>14}")


def _row(comparison: Comparison, ours: Measured, theirs: Measured) -> None:
    mine, other = (ours.wall, theirs.wall) if comparison.whole else (ours.own, theirs.own)
    cpu, peak = f"{ours.cpu:.1f} / {theirs.cpu:.1f}", f"{ours.peak:.0f} / {theirs.peak:.0f}"
    ratio = other / mine
    met = " " if ratio >= comparison.goal else "!"
    click.echo(
        f"{comparison.name:<30} {mine:10.2f} {other:12.2f} {ratio:6.1f}x {comparison.goal:4.0f}x {met} {cpu:>14} {peak:>14}"
    )


if __name__ == "__main__":
    main()
