"""The door `command:program arguments`: a program of its own, given a volume as files, whose labels are read from files.

For each volume it is started in a scratch folder, which is gone at the end, and in a process group of its own. `run` is split
as a shell does it, and no shell sees it; of its words these are replaced:

    {input}       the volume as NIfTI-1: (columns, rows, slices) in RAS mm, int16 where that holds its values, else float32
    {dicom_dir}   a folder with copies of the images' Part 10 files, in slice order
    {output}      where one labelmap is expected, output.nii; output.nii.gz in its place will do ({output}.gz names it)
    {output_dir}  a folder where one file for each structure is expected: LABEL.nii or LABEL.nii.gz, LABEL as the dictionary
                  has it, in small letters and with _ for whatever is neither letter nor digit; what is not 0 is the structure
    {scratch}     the folder with all that
    {job}         a name that no other job has

Labels lie where the affine of their file says.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import numpy as np
import numpy.typing as npt

from segnode.config import PLACEHOLDER, ModelConfig
from segnode.dicom.geometry import Vector
from segnode.dicom.volume import Volume
from segnode.errors import ConfigError, LabelError, ModelFailed
from segnode.models.progress import report_progress
from segnode.models.settle import most_bytes
from segnode.pipeline.ports import Model, Result
from segnode.process_family import await_end, end_all, family, how
from segnode.programs import environment_of, require_program
from segnode.seg.segments import read_label_dictionary
from segnode.store.filesystem import room_for

GRACE_S: Final = 10.0
CLEANUP_S: Final = 30.0
# How long the process of this door may take to end when it is told to.
PATIENCE_S: Final = GRACE_S + CLEANUP_S + 5.0

_WATCH_S: Final = 0.25
_LONGEST_LINE: Final = 1 << 16
_MOST_PRINTED: Final = 16 << 20
_PRINTING_S: Final = 5.0
_PROGRESS: Final = re.compile(rb"progress (\d+(?:\.\d*)?|\.\d+)(?:\s+(.*?))?\s*")
_GIB: Final = 1 << 30
_SUFFIXES: Final = (".nii", ".nii.gz")
# Of a voxel, at every corner.
_SAME_PLACE: Final = 0.05
_PREFIX: Final = "segnode-"


def load(config: ModelConfig) -> Model:
    """The command that `run` says. Raises ConfigError where its program, a secret or its dictionary is not there."""
    # Takes half a second, which no volume should wait for.
    import segnode.models.nifti  # noqa: F401, PLC0415

    environment = environment_of(config)
    words = shlex.split(config.run.partition(":")[2])
    for command in (words, shlex.split(config.cleanup)) if config.cleanup else (words,):
        require_program(config, command, environment)
    return _Command(config, words, _values(config) if "{output_dir}" in config.run else {}, environment)


def clear(config: ModelConfig, folder: Path) -> None:
    """Clean up behind commands whose process was killed before it could: what is left of them in a folder."""
    for scratch in folder.glob(f"{_PREFIX}*/"):
        with suppress(ConfigError):  # a secret is not there any more
            _clean_up(config, scratch, environment_of(config), subprocess.DEVNULL)
        shutil.rmtree(scratch, ignore_errors=True)


@dataclass(frozen=True)
class _Command:
    """A Model: `values` are by the file names of structures, without suffix."""

    config: ModelConfig
    words: Sequence[str]
    values: Mapping[str, int]
    environment: Mapping[str, str]

    def __call__(self, volume: Volume) -> Result:
        """Run the command on a volume. Raises ModelFailed, OutOfResources."""
        with self._scratch() as scratch:
            places = self._prepare(volume, scratch)
            self._run(_filled(self.words, places), scratch, most_bytes(volume))
            result = self._read(scratch, volume)
        report_progress(1.0)
        return result

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A folder for one job; at its end, however that comes, what the command has left anywhere is cleaned up."""
        with room_for("what a command needs"):
            scratch = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{self.config.name}-")).absolute()
        try:
            yield scratch
        finally:
            _clean_up(self.config, scratch, self.environment)
            shutil.rmtree(scratch, ignore_errors=True)

    def _prepare(self, volume: Volume, scratch: Path) -> Mapping[str, str]:
        from segnode.models.nifti import write_volume  # noqa: PLC0415  see load

        wanted = PLACEHOLDER.findall(self.config.run)
        if "input" in wanted:
            with room_for("the input of a command"):
                write_volume(scratch / "input.nii", volume)
        if "output_dir" in wanted:
            (scratch / "output").mkdir()
        if "dicom_dir" in wanted:
            self._copy_images(volume, scratch / "dicom")
        return {
            "input": str(scratch / "input.nii"),
            "dicom_dir": str(scratch / "dicom"),
            "output": str(scratch / "output.nii"),
            "output_dir": str(scratch / "output"),
            **_of_job(scratch),
        }

    def _copy_images(self, volume: Volume, folder: Path) -> None:
        """Copies, not links: what a command does to its files is not done to the node's."""
        if not volume.files:
            raise self._failed("has {dicom_dir} in its run, and this volume was not read from files")
        folder.mkdir()
        for number, file in enumerate(volume.files, start=1):
            if not file.exists():
                raise self._failed(f"cannot have image {number}: it was deleted meanwhile")
            with room_for("the input of a command"):
                shutil.copyfile(file, folder / f"{number:05}.dcm")

    def _run(self, words: Sequence[str], scratch: Path, largest: int) -> None:
        with ExitStack() as stack:
            try:
                process = stack.enter_context(_running(words, scratch, {**self.environment, "TMPDIR": str(scratch)}))
            except OSError as error:
                raise self._failed(f"cannot be started: {error.strerror}") from error
            while (code := _wait(process, _WATCH_S)) is None:
                self._require_modest(scratch, largest)
        if code:
            raise self._failed(f"ended {how(code)}")

    def _require_modest(self, scratch: Path, largest: int) -> None:
        """Hold what the command writes to limits, while it does.

        It is looked at and no limit of the process (RLIMIT_FSIZE), which would hold for weights that a program loads and keeps
        as well, and not for a container.
        """
        output, total = scratch / "output", 0
        for path, size in _sizes(scratch):
            total += size
            is_output = output in path.parents or (path.parent == scratch and path.name.startswith("output.nii"))
            if is_output and size > largest:
                raise self._failed(f"wrote more than {largest} bytes into {path.name}, the most for this volume")
        if total > self.config.memory * _GIB:
            raise self._failed(f"wrote more than {self.config.memory:g} GiB into its scratch folder (memory)")

    def _read(self, scratch: Path, volume: Volume) -> Result:
        if "{output_dir}" in self.config.run:
            return self._read_structures(scratch / "output", volume)
        found = [file for suffix in _SUFFIXES if (file := scratch / f"output{suffix}").is_file()]
        if len(found) != 1:
            what = "left no output: neither output.nii nor output.nii.gz is there"
            raise self._failed("left both output.nii and output.nii.gz" if found else what)
        labels, affine = self._labels(found[0], volume)
        return Result(labels, affine=affine)

    def _read_structures(self, folder: Path, volume: Volume) -> Result:
        """The structures of a folder: layers, of which all but the first hold what overlaps with those before."""
        layers: list[npt.NDArray[np.unsignedinteger]] = []
        first: tuple[Path, Vector] | None = None
        dtype = np.min_scalar_type(max(self.values.values(), default=0))
        for file in sorted(file for file in folder.iterdir() if file.name.endswith(_SUFFIXES)):
            value = self.values.get(stem_of(file.name.partition(".nii")[0]))
            if value is None:
                raise self._failed(f"left {file.name}: no segment of the label dictionary has that label")
            structure, affine = self._labels(file, volume)
            mask = structure != 0
            if first is None:
                first = file, affine
                layers = [np.zeros(mask.shape, dtype)]
            if mask.shape != layers[0].shape or not _is_same_place(affine, first[1], mask.shape):
                raise self._failed(f"left {file.name} on another grid than {first[0].name}")
            _paint(layers, mask, value)
        if first is None:
            raise self._failed("left no file whose name ends in .nii or .nii.gz in {output_dir}")
        return Result(layers[0] if len(layers) == 1 else np.stack(layers), affine=first[1])

    def _labels(self, file: Path, volume: Volume) -> tuple[npt.NDArray[np.integer], Vector]:
        from segnode.models.nifti import read_labels  # noqa: PLC0415  see load

        where = f"model {self.config.name!r}: {file.name}"
        labels, affine = read_labels(file, most_bytes(volume), where)
        shape = volume.array.shape
        if labels.shape != shape and _is_same_place(affine, volume.affine, shape):
            raise ModelFailed(
                f"{where} has labels of shape {labels.shape[::-1]} where {shape[::-1]} are the volume's, with the same affine"
            )
        return labels, affine

    def _failed(self, how: str) -> ModelFailed:
        return ModelFailed(f"the command of model {self.config.name!r} {how}")


def stem_of(label: str) -> str:
    """A label as the name of a file, without suffix."""
    return re.sub(r"[\W_]+", "_", label.casefold()).strip("_")


def _paint(layers: list[npt.NDArray[np.unsignedinteger]], mask: npt.NDArray[np.bool_], value: int) -> None:
    """Write a structure into the first layer that is free where it lies."""
    for layer in layers:
        if not layer[mask].any():
            layer[mask] = value
            return
    layers.append(np.where(mask, layers[0].dtype.type(value), layers[0].dtype.type(0)))


def _is_same_place(affine: Vector, other: Vector, shape: Sequence[int]) -> bool:
    off = np.linalg.inv(other) @ affine - np.eye(4)
    return bool((np.abs(off[:3, :3]) @ (np.array(shape) - 1.0) + np.abs(off[:3, 3])).max() <= _SAME_PLACE)


def _sizes(folder: Path) -> Iterator[tuple[Path, int]]:
    """The files under a folder with the bytes that each has; of those that go meanwhile, nothing."""
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            try:
                yield path, path.lstat().st_size
            except OSError:
                continue


def _values(config: ModelConfig) -> Mapping[str, int]:
    try:
        segments = read_label_dictionary(config.labels, Path()).segment
    except LabelError as error:
        raise ConfigError(f"model {config.name!r}: {error}") from error
    values: dict[str, int] = {}
    for segment in segments:
        stem = stem_of(segment.label)
        if stem in values:
            raise ConfigError(f"model {config.name!r}: two labels of its dictionary are {stem} as names of files")
        values[stem] = segment.value
    return values


def _of_job(scratch: Path) -> Mapping[str, str]:
    return {"job": scratch.name, "scratch": str(scratch)}


def _filled(words: Sequence[str], places: Mapping[str, str]) -> list[str]:
    return [PLACEHOLDER.sub(lambda match: places[match[1]], word) for word in words]


def _clean_up(config: ModelConfig, scratch: Path, environment: Mapping[str, str], prints: int | None = None) -> None:
    """Run `cleanup` of a job, which has ended in whatever way: what it prints, and how it ends, is nobody's failure."""
    if config.cleanup is None:
        return
    words, where = _filled(shlex.split(config.cleanup), _of_job(scratch)), dict(environment)
    with suppress(OSError):
        process = subprocess.Popen(  # noqa: S603  what the configuration says
            words, cwd=scratch, env=where, stdin=subprocess.DEVNULL, stdout=prints, stderr=prints, process_group=0
        )
        try:
            _wait(process, CLEANUP_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def _running(words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A program in a process group of its own. At the end nothing of it is left: it has `GRACE_S` from SIGTERM to SIGKILL.

    What it prints goes where this process prints, up to a limit; lines of progress are reported. Raises OSError where it
    cannot be started.
    """
    others = family(os.getpid())
    process = subprocess.Popen(  # noqa: S603  what the configuration says
        words,
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,
    )
    readers = [threading.Thread(target=_pass_on, args=(pipe,), daemon=True) for pipe in (process.stdout, process.stderr)]
    for reader in readers:
        reader.start()
    try:
        yield process
    finally:
        _end(process, others)
        for reader in readers:
            reader.join(_PRINTING_S)


def _end(process: subprocess.Popen[bytes], others: set[int]) -> None:
    """End a program with all that is under this process now, and was not before."""
    seen: set[int] = set()

    def living() -> set[int]:
        process.poll()
        found = family(os.getpid()) - others
        seen.update(found)
        return found

    end_all(living, grace=0 if process.poll() is not None else GRACE_S)
    process.wait()
    for adopted in seen - {process.pid}:
        with suppress(ChildProcessError):  # it was another's to wait for
            os.waitpid(adopted, os.WNOHANG)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """The exit code of a program; None when it has not ended within that time."""
    await_end([process.pid], time.monotonic() + seconds)
    return process.poll()


def _pass_on(pipe: IO[bytes]) -> None:
    """Print what a program prints, and report what it says of its progress."""
    left = _MOST_PRINTED
    with pipe:
        while line := pipe.readline(_LONGEST_LINE):
            match = _PROGRESS.fullmatch(line)
            if match and float(match[1]) <= 1:
                report_progress(float(match[1]), (match[2] or b"").decode(errors="replace"))
            elif left > 0:
                left -= len(line)
                sys.stderr.buffer.write(line if left > 0 else b"... and more, which is not kept\n")
                sys.stderr.flush()
