"""Labelmaps of jobs between infer and encode, beside what proves where they lie; and SEGs that are held."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import imagecodecs
import msgspec
import numpy as np
import numpy.typing as npt

from segnode.pipeline.placement_proof import ModelLabels, SourceHeader
from segnode.store.filesystem import room_for


class _Numbers(msgspec.Struct, frozen=True):
    """A labelmap of segment numbers: each slice in zstd, which a file of half a percent holds as durably."""

    dtype: str
    shape: tuple[int, ...]
    slices: list[bytes]


class Returned(msgspec.Struct, frozen=True):
    """What a model returned, as it came, for which images, and which of its segments lie on a wrong side."""

    labels: ModelLabels
    images: list[SourceHeader]
    wrong_sides: tuple[str, ...] = ()


def _planes(labelmap: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.unsignedinteger]:
    return labelmap.reshape(-1, *labelmap.shape[-2:])


@dataclass(frozen=True)
class Labelmaps:
    """What jobs have between infer and encode, and SEGs that are held: files, each complete or absent."""

    folder: Path

    def save(self, job_id: str, labelmap: npt.NDArray[np.unsignedinteger], returned: Returned) -> None:
        """Keep a labelmap ([layers,] slices, rows, columns) durably, with what it was made of; a repeat replaces them.

        Raises OutOfResources.
        """
        slices = [bytes(imagecodecs.zstd_encode(plane.tobytes(), level=1)) for plane in _planes(labelmap)]
        numbers = _Numbers(labelmap.dtype.str, labelmap.shape, slices)
        self._write(self._path(job_id, "returned"), lambda file: file.write(msgspec.msgpack.encode(returned)))
        self._write(self._path(job_id, "numbers"), lambda file: file.write(msgspec.msgpack.encode(numbers)))

    def load(self, job_id: str) -> npt.NDArray[np.unsignedinteger]:
        """The labelmap of a job."""
        numbers = msgspec.msgpack.decode(self._path(job_id, "numbers").read_bytes(), type=_Numbers)
        labelmap: npt.NDArray[np.unsignedinteger] = np.empty(numbers.shape, numbers.dtype)
        for plane, data in zip(_planes(labelmap), numbers.slices, strict=True):
            imagecodecs.zstd_decode(data, out=plane.reshape(-1).view(np.uint8))
        return labelmap

    def returned(self, job_id: str) -> Returned:
        """What the model of a job returned."""
        return msgspec.msgpack.decode(self._path(job_id, "returned").read_bytes(), type=Returned)

    def hold(self, job_id: str, part10: bytes) -> Path:
        """Keep a SEG for a person to look at; where it lies. Raises OutOfResources."""
        self._write(self._path(job_id, "dcm"), lambda file: file.write(part10))
        return self._path(job_id, "dcm")

    def held(self, job_id: str) -> bytes | None:
        """The SEG of a job that is held, or was; None when there is none."""
        path = self._path(job_id, "dcm")
        return path.read_bytes() if path.exists() else None

    def all_held(self) -> list[str]:
        """The ids of the jobs whose SEG is held."""
        return [path.stem for path in self.folder.glob("*.dcm")]

    def delete(self, job_id: str) -> None:
        """Delete all that there is of a job; it is no error when it is gone."""
        self.delete_labels(job_id)
        self.delete_held(job_id)

    def delete_held(self, job_id: str) -> None:
        """Delete the SEG of a job that was held."""
        self._path(job_id, "dcm").unlink(missing_ok=True)

    def delete_labels(self, job_id: str) -> None:
        """Delete what the SEG of a job was made of."""
        for kind in ("numbers", "returned"):
            self._path(job_id, kind).unlink(missing_ok=True)

    def prints(self, job_id: str) -> Path:
        """The file, in the folder of a job, of what its model printed when it ran last; there where it printed something."""
        return self.folder / "jobs" / job_id / "prints.log"

    def delete_prints(self, before: float) -> None:
        """Delete what models printed last before a time."""
        for path in (self.folder / "jobs").glob("*/prints.log"):
            with suppress(OSError):  # written anew meanwhile
                if path.stat().st_mtime < before:
                    path.unlink()
                    path.parent.rmdir()

    def _path(self, job_id: str, kind: str) -> Path:
        return self.folder / f"{job_id}.{kind}"

    def _write(self, path: Path, write: Callable[[BinaryIO], object]) -> None:
        with room_for("a labelmap"):
            self.folder.mkdir(parents=True, exist_ok=True)
            beside = path.with_suffix(".tmp")
            with beside.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            beside.rename(path)
