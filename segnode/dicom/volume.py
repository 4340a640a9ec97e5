"""Volumes: what a model is given."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from segnode.dicom.geometry import Vector


@dataclass(frozen=True, eq=False)
class Volume:
    """What a model is given.

    `array` is (slices, rows, columns), float32, in modality units (HU for CT). `affine` is 4x4 and maps (slice, row,
    column) to millimetres in the LPS patient coordinate system; where a rule allows a tilted gantry, its first column may
    not be along the normal of the slices. `series` holds attributes by keyword as DICOM text. `sop_instance_uids` names the
    image of each slice; where that is one multi-frame image, `frame_numbers` says which of its frames, from 1. In the
    orientation or spacing of a model's configuration the array has other axes, which `affine` maps; the names stay. `files`
    are the Part 10 files of the images, where they were read from such: they are not to be changed.
    """

    array: npt.NDArray[np.float32]
    affine: Vector
    series: Mapping[str, str]
    sop_instance_uids: tuple[str, ...]
    files: tuple[Path, ...] = ()
    frame_numbers: tuple[int, ...] = field(default=(), kw_only=True)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between slices, rows and columns."""
        slices, rows, columns = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(slices), float(rows), float(columns)


@dataclass(frozen=True, eq=False)
class ArrayFile:
    """A file, .npy, that has no name: it is gone when nobody holds it."""

    descriptor: int

    def __del__(self) -> None:
        os.close(self.descriptor)


@dataclass(frozen=True, eq=False)
class MappedVolume(Volume):
    """A volume whose array is mapped from a file, so that another process can map it too."""

    file: ArrayFile = field(kw_only=True)
