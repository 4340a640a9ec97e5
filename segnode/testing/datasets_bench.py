"""What the formats of training sets cost against their libraries alone, and run lengths against the page's own function.

Each side writes the same arrays, with the same settings of the library, in a process of its own that has loaded the libraries;
the time is that of the job. The library alone has everything in memory: the images, the labels and, for hydrogen-torch, the
texts of the run lengths, which it writes with numpy.save, Parquet and a zip. Ours is the whole export: DICOM files are found
and read, the SEG is decoded, run lengths are found, digests taken, and the set synchronised with the disk. What both wrote is
read by the libraries and held against each other, and run lengths by the page's way to decode them.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any, Final
from zlib import crc32

import click
import numpy as np
import numpy.typing as npt

from segnode.dicom.codes import Code
from segnode.seg.segmentation import DescribedSegment
from segnode.testing.seg_case import Case, Labels, synthetic_labels, write_case

_GOAL: Final = 3.0
_GOAL_OF_RLE: Final = 30.0
_FEW: Final = 8
_LIBRARIES: Final[Mapping[str, tuple[str, ...]]] = {
    "nrrd": ("nrrd",),
    "hydrogen-torch": ("pyarrow", "pyarrow.parquet"),
    "medsegpy": ("h5py",),
}
_FORMATS: Final[Mapping[str, str]] = {"nrrd": "all", "hydrogen-torch": "all", "medsegpy": "few"}


@click.command()
@click.option("--labelmap", type=click.Path(path_type=Path, exists=True), help="An .npz with `labelmap`; else a synthetic one.")
@click.option("--slices", default=580, show_default=True, help="Slices of the synthetic labelmap.")
@click.option("--runs", default=3, show_default=True, help="How often each job runs; the median counts.")
@click.option("--part", type=click.Choice((*_FORMATS, "rle")), help="Only this.")
def datasets(labelmap: Path | None, slices: int, runs: int, part: str | None) -> None:
    """Training sets: export against the library alone, and run lengths against the page's function."""
    labels: Labels = np.load(labelmap)["labelmap"] if labelmap else synthetic_labels(slices, 512, 98)
    if part in (None, "rle"):
        _run_lengths(labels)
    for format_, which in _FORMATS.items():
        if part not in (None, format_):
            continue
        with tempfile.TemporaryDirectory(prefix="segnode-bench-") as scratch:
            case, out = Path(scratch) / "case", Path(scratch) / "out"
            few = np.where(labels <= _FEW, labels, 0).astype(labels.dtype)
            write_source(write_case(case, labels if which == "all" else few))
            _format(format_, case, out, runs)


def _format(format_: str, case: Path, out: Path, runs: int) -> None:
    both: dict[str, list[tuple[float, float]]] = {"segnode": [], "library": []}
    for _ in range(runs):  # in turn, so that neither has the quieter time
        shutil.rmtree(out, ignore_errors=True)
        for by, measured in both.items():
            (out / by).mkdir(parents=True)
            measured.append(_job(by, format_, case, out / by))
    _require_the_same(format_, case, out)
    (ours, peak), (theirs, their_peak) = map(_median, both.values())
    met = " " if ours <= _GOAL * theirs else "!"
    click.echo(
        f"{format_:<16} {ours:7.2f} s, library alone {theirs:7.2f} s: {ours / theirs:5.2f} x"
        f"   goal <= {_GOAL:g} x {met}"
        f"   peak {peak:.0f} / {their_peak:.0f} MB"
    )


def _require_the_same(format_: str, case: Path, out: Path) -> None:
    """Raise ClickException unless both wrote the same images and labels."""
    ours, theirs = (_READS[format_](out / by) for by in ("segnode", "library"))
    for what, one, other in zip(("images", "labels"), ours, theirs, strict=True):
        same = one == other if isinstance(one, list) else one.dtype == other.dtype and np.array_equal(one, other)
        if not same:
            raise click.ClickException(f"{format_}: the {what} are not those that the library alone has written")
    if format_ == "hydrogen-torch":
        labels = np.load(case / "labelmap.npy")
        for value in range(1, len(ours[1]) + 1, max(1, len(ours[1]) // 4)):
            if not np.array_equal(rle2mask(ours[1][value - 1], labels.shape), labels == value):
                raise click.ClickException(f"{format_}: the run lengths of {value} are not its mask")


def _read_nrrd(out: Path) -> tuple[Any, Any]:
    import nrrd  # noqa: PLC0415

    labels = next(out.rglob("*label*.nrrd" if (out / "label.nrrd").exists() else "*.seg.nrrd"))
    image = next(file for file in out.rglob("*.nrrd") if file != labels)
    return nrrd.read(str(image))[0], nrrd.read(str(labels))[0]


def _read_hydrogen_torch(out: Path) -> tuple[Any, Any]:
    import pyarrow.parquet as pq  # noqa: PLC0415

    (path,) = (file for file in out.iterdir() if zipfile.is_zipfile(file))
    with zipfile.ZipFile(path) as archive:
        (image,) = (name for name in archive.namelist() if name.endswith(".npy"))
        return (
            np.load(BytesIO(archive.read(image))),
            pq.read_table(BytesIO(archive.read("train.pq"))).to_pylist()[0]["rle_mask"],
        )


def _read_medsegpy(out: Path) -> tuple[Any, Any]:
    import h5py  # noqa: PLC0415

    with h5py.File(next(out.rglob("*.h5"))) as file:
        volume, seg = file["volume"], file["seg"]
        # By slices, as the chunks lie: their digests are enough to be held against each other.
        planes = [(volume.dtype.str, crc32(volume[:, :, place].tobytes())) for place in range(volume.shape[2])]
        return planes, [(seg.shape, crc32(seg[:, :, place, :].tobytes())) for place in range(seg.shape[2])]


_READS: Final[Mapping[str, Callable[[Path], tuple[Any, Any]]]] = {
    "nrrd": _read_nrrd,
    "hydrogen-torch": _read_hydrogen_torch,
    "medsegpy": _read_medsegpy,
}


def write_source(case: Case) -> None:
    """Give the images of a case pixels, and write its labels as a LABELMAP beside them."""
    from segnode.seg.write import Identity, StoredAs, write_segmentation  # noqa: PLC0415
    from segnode.seg.write.placement import on_images  # noqa: PLC0415

    images, labels = case.images, case.labelmap
    noise = np.random.default_rng(1).integers(-50, 50, labels.shape[1:], np.int16)
    for place, image in enumerate(images):
        image.add_new("PixelData", "OW", (labels[place].astype(np.int16) * 10 + noise).tobytes())
        image.save_as(case.folder / "ct" / f"{place:04}.dcm", enforce_file_format=True)
    tissue = Code("SCT", "85756007", "Tissue")
    segments = [
        DescribedSegment(
            number, f"Structure {number}", tissue, Code("99BENCH", f"S{number}", f"Structure {number}"), algorithm_type="MANUAL"
        )
        for number in range(1, int(labels.max()) + 1)
    ]
    identity = Identity("1.2.3.1", "1.2.3.2", "Benchmark", datetime.now(UTC), "1", "1")
    part10 = write_segmentation(labels, on_images(images), segments, StoredAs("LABELMAP", "rle"), identity)
    (case.folder / "ct" / "seg.dcm").write_bytes(part10)


def _job(by: str, format_: str, case: Path, out: Path) -> tuple[float, float]:
    """The seconds and the peak memory (MB) of a job in a process of its own."""
    command = [sys.executable, "-m", "segnode.testing.datasets_bench", by, format_, str(case), str(out)]
    said = subprocess.run(command, check=True, capture_output=True).stdout  # noqa: S603  our own program
    seconds, peak = json.loads(said)
    return seconds, peak


def _median(measured: Sequence[tuple[float, float]]) -> tuple[float, float]:
    seconds, peaks = zip(*measured, strict=True)
    return median(seconds), median(peaks)


def _run_lengths(labels: Labels) -> None:
    """Ours of all values at once; theirs of some of them, as each takes as long."""
    from segnode.datasets.rle import runs_of  # noqa: PLC0415

    start = time.perf_counter()
    ours = runs_of(labels)
    took = time.perf_counter() - start
    some = sorted(ours)[:: max(1, len(ours) // 4)]
    start = time.perf_counter()
    theirs = {value: mask2rle(labels == value) for value in some}
    each = (time.perf_counter() - start) / len(some)
    if any(ours[value] != text for value, text in theirs.items()):
        raise click.ClickException("the run lengths are not those of the page's function")
    ratio = each * len(ours) / took
    met = " " if ratio >= _GOAL_OF_RLE else "!"
    click.echo(
        f"run lengths of {len(ours)} structures {took:.2f} s; the page's {each * len(ours):.1f} s, as {len(some)} of them"
        f" take: {ratio:.0f} x   goal >= {_GOAL_OF_RLE:g} x {met}"
    )


def mask2rle(mask: npt.NDArray[Any]) -> str:
    """Starts from 1 and lengths of the runs of a mask whose axes are turned round: what the page's function does."""
    flat = np.concatenate(([0], mask.T.flatten(), [0]))
    changes = np.where(flat[1:] != flat[:-1])[0] + 1
    changes[1::2] -= changes[::2]
    return " ".join(str(number) for number in changes)


def rle2mask(text: str, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """The mask (slices, rows, columns) that the page's way to decode makes of run lengths."""
    slices, rows, columns = shape
    numbers = np.array(text.split(), int)
    flat = np.zeros(slices * rows * columns, np.uint8)
    for start, length in zip(numbers[::2] - 1, numbers[1::2], strict=True):
        flat[start : start + length] = 1
    return flat.reshape(columns, rows, slices).transpose(2, 1, 0)


def _segnode(format_: Any, case: Path, out: Path) -> float:
    from segnode.datasets.exporting import Export, export_dataset  # noqa: PLC0415
    from segnode.datasets.sources import FolderSource  # noqa: PLC0415

    for library in _LIBRARIES[format_]:
        import_module(library)
    start = time.perf_counter()
    export_dataset(FolderSource(case / "ct"), out / "set", Export(format_))
    return time.perf_counter() - start


def _library(format_: str, case: Path, out: Path) -> float:
    """The library alone, with arrays that are in memory."""
    labels: Labels = np.load(case / "labelmap.npy")
    images = np.zeros(labels.shape, np.int16)
    noise = np.random.default_rng(1).integers(-50, 50, labels.shape[1:], np.int16)
    np.add(labels.astype(np.int16) * 10 - 1024, noise, out=images)
    jobs: Mapping[str, Callable[[Any, Any, Path], float]] = {
        "nrrd": _nrrd_alone,
        "hydrogen-torch": _hydrogen_torch_alone,
        "medsegpy": _medsegpy_alone,
    }
    return jobs[format_](images, labels, out)


def _nrrd_alone(images: Any, labels: Any, out: Path) -> float:
    import nrrd  # noqa: PLC0415

    start = time.perf_counter()
    nrrd.write(str(out / "image.nrrd"), images.transpose(2, 1, 0), {"encoding": "gzip"}, compression_level=1)
    nrrd.write(str(out / "label.nrrd"), labels.transpose(2, 1, 0), {"encoding": "gzip"}, compression_level=1)
    return time.perf_counter() - start


def _hydrogen_torch_alone(images: Any, labels: Any, out: Path) -> float:
    """With the texts of the run lengths at hand: no library makes those, and segnode's time has them."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    from segnode.datasets.rle import runs_of  # noqa: PLC0415

    runs = runs_of(labels)
    start = time.perf_counter()
    np.save(out / "image.npy", images)
    row = {"image": "image.npy", "class_id": [*map(str, runs)], "rle_mask": [*runs.values()]}
    pq.write_table(pa.Table.from_pylist([row]), out / "train.pq")
    with zipfile.ZipFile(out / "set.zip", "w") as archive:
        for name in ("image.npy", "train.pq"):
            archive.write(out / name, name)
    return time.perf_counter() - start


def _medsegpy_alone(images: Any, labels: Any, out: Path) -> float:
    """A mask at a time, with the chunks and the compression that segnode has."""
    import h5py  # noqa: PLC0415

    slices, rows, columns = labels.shape
    start = time.perf_counter()
    with h5py.File(out / "set.h5", "w") as file:
        file.create_dataset("volume", data=images.transpose(1, 2, 0), chunks=(rows, columns, 1))
        shape, chunks = (rows, columns, slices, _FEW), (rows, columns, 1, 1)
        seg = file.create_dataset("seg", shape, np.uint8, chunks=chunks, compression="gzip", compression_opts=1)
        for channel in range(_FEW):
            seg[..., channel] = (labels == channel + 1).transpose(1, 2, 0)
    return time.perf_counter() - start


def _peak() -> float:
    """The most memory (MB) that this process had; what getrusage says may be its parent's."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024


if __name__ == "__main__":
    who, what, where, to = sys.argv[1:]
    seconds = (_segnode if who == "segnode" else _library)(what, Path(where), Path(to))
    print(json.dumps([seconds, _peak()]))  # noqa: T201  what the benchmark reads
