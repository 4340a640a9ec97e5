"""NIfTI-1 files as commands read and leave them: a volume written, labels read back with where they lie.

nibabel makes and reads the headers. A volume is written by slices: no second one is in memory.
"""

from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
from nibabel.loadsave import load
from nibabel.nifti1 import Nifti1Header, Nifti1Pair

from segnode.dicom.geometry import LPS_TO_RAS, Vector, column_row_slice
from segnode.dicom.volume import Volume
from segnode.errors import ModelFailed

_INT16: Final = np.iinfo(np.int16)


def write_volume(path: Path, volume: Volume) -> None:
    """Write a volume as (columns, rows, slices) in RAS mm: int16 where that holds its values, else float32. Raises OSError."""
    dtype = np.dtype(np.int16 if all(map(_is_int16, volume.array)) else np.float32).newbyteorder("<")
    with path.open("wb") as file:
        _header(volume, dtype).write_to(file)
        for plane in volume.array:
            file.write(np.ascontiguousarray(plane, dtype).data)


def _is_int16(plane: npt.NDArray[np.float32]) -> bool:
    if not (plane.min() >= _INT16.min and plane.max() <= _INT16.max):
        return False
    return bool((plane.astype(np.int16) == plane).all())


def _header(volume: Volume, dtype: np.dtype[Any]) -> Any:
    header: Any = cast("Any", Nifti1Header)(endianness="<")
    header.set_data_dtype(dtype)
    header.set_data_shape(volume.array.shape[::-1])
    affine = LPS_TO_RAS @ column_row_slice(volume.affine)
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    header.set_xyzt_units("mm")
    header.set_slope_inter(1, 0)
    header.set_data_offset(header.single_vox_offset)
    return header


def read_labels(path: Path, largest: int, where: str) -> tuple[npt.NDArray[np.integer], Vector]:
    """The labels in a file as (slices, rows, columns), and their affine to LPS mm.

    Raises ModelFailed, which begins with `where`: for a file that is no NIfTI-1 or 2, or damaged, that says not where it
    lies, that has other than three axes, more than `largest` bytes of voxels, or values that are no integers.
    """
    if path.stat().st_size == 0:
        raise ModelFailed(f"{where} is empty")
    try:
        image: Any = load(path)
    except Exception as error:  # what is damaged raises whatever it meets
        raise ModelFailed(f"{where} is no NIfTI file: {error}") from error
    if not isinstance(image, Nifti1Pair):
        raise ModelFailed(f"{where} is no NIfTI file")
    header: Any = image.header
    shape = _three_axes(tuple(int(length) for length in image.shape), where)
    if not (header["sform_code"] > 0 or header["qform_code"] > 0):
        raise ModelFailed(f"{where} does not say where its labels lie (sform_code and qform_code are 0)")
    dtype = np.dtype(header.get_data_dtype())
    if dtype.kind not in "iuf":
        raise ModelFailed(f"{where} holds values of type {dtype}: labels are integers")
    size = int(np.prod(shape)) * dtype.itemsize
    if size > largest:
        raise ModelFailed(f"{where} holds {size} bytes of labels, where {largest} are the most for this volume")
    try:
        values = np.asanyarray(image.dataobj).reshape(shape)
    except Exception as error:  # the same
        raise ModelFailed(f"{where} ends before its labels do, or is damaged: {error}") from error
    affine = column_row_slice(LPS_TO_RAS @ np.asarray(image.affine, np.float64))
    if not np.isfinite(affine).all() or not np.linalg.norm(affine[:3, :3], axis=0).all():
        raise ModelFailed(f"{where} has an affine that leads nowhere")
    return _integers(values.transpose(2, 1, 0), where), affine


def _three_axes(shape: tuple[int, ...], where: str) -> tuple[int, int, int]:
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 2:
        shape = (*shape, 1)
    if len(shape) != 3 or not all(shape):
        raise ModelFailed(f"{where} has labels of shape {shape}: they have three axes")
    return shape


def _integers(values: npt.NDArray[Any], where: str) -> npt.NDArray[np.integer]:
    """The values in the smallest unsigned type that holds them; as int64 where some are negative, which none holds."""
    least, most = values.min(), values.max()
    if not (np.isfinite(least) and np.isfinite(most)):
        raise ModelFailed(f"{where} holds values that are no numbers (NaN or infinite): labels are integers")
    dtype = np.min_scalar_type(int(most)) if least >= 0 else np.dtype(np.int64)
    if values.dtype == dtype:
        return values
    labels = np.empty(values.shape, dtype)
    for plane, from_file in zip(labels, values, strict=True):
        plane[...] = from_file
        if values.dtype.kind == "f" and not (plane == from_file).all():
            raise ModelFailed(f"{where} holds values that are no integers: are these probabilities?")
    return labels
