"""Labels for programs that do not read DICOM: NumPy, NIfTI-1 and NRRD files with a labelmap and its geometry."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import numpy as np

from segnode.dicom.geometry import LPS_TO_RAS, column_row_slice
from segnode.errors import CannotConvert, NotAVolume, OverlappingSegments
from segnode.seg.arrays import LabelVolume, volume
from segnode.seg.segmentation import Segmentation


def export(segmentation: Segmentation, path: Path, suffix: str) -> None:
    """Write the labels to a file in the format of a suffix, one of FORMATS.

    Raises CannotConvert for an overlap or a FRACTIONAL, saying what to do; NotAVolume, UnreadablePixels, OSError.
    """
    if segmentation.type == "FRACTIONAL":
        raise CannotConvert(
            "a FRACTIONAL has no labels: make a LABELMAP of it first (segnode seg convert --type labelmap --threshold 0.5)"
        )
    try:
        labels = volume(segmentation)
    except OverlappingSegments as error:
        raise CannotConvert(
            f"{error}: make LABELMAPs of it first (segnode seg convert --type labelmap --overlap split) and export each"
        ) from error
    except NotAVolume as error:
        raise NotAVolume(f"{error}; the format holds volumes only") from error
    FORMATS[suffix](segmentation, labels, path)


def segments_as_json(segmentation: Segmentation) -> bytes:
    """What the labels mean, as JSON: a list of number, label and codes."""
    return msgspec.json.encode([segmentation.segment[number] for number in segmentation.numbers])


def _npz(segmentation: Segmentation, labels: LabelVolume, path: Path) -> None:
    """`labelmap` (slices, rows, columns), `affine` (slice, row, column) to LPS mm, `segments` as JSON."""
    with path.open("wb") as file:
        np.savez_compressed(
            file, labelmap=labels.array, affine=labels.affine, segments=np.array(segments_as_json(segmentation).decode())
        )


def _nifti(_: Segmentation, labels: LabelVolume, path: Path) -> None:
    """NIfTI-1, (columns, rows, slices) with an affine to RAS mm."""
    from nibabel.loadsave import save  # noqa: PLC0415  takes half a second
    from nibabel.nifti1 import Nifti1Image  # noqa: PLC0415

    image: Any = cast("Any", Nifti1Image)(labels.array.transpose(2, 1, 0), LPS_TO_RAS @ column_row_slice(labels.affine))
    image.header.set_xyzt_units("mm")
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine, code=1)
    save(image, path)


def _nrrd(segmentation: Segmentation, labels: LabelVolume, path: Path) -> None:
    """NRRD, (columns, rows, slices) in left-posterior-superior, the segments as a field of JSON."""
    import nrrd  # noqa: PLC0415  seldom needed

    affine = column_row_slice(labels.affine)
    header = {
        "space": "left-posterior-superior",
        "space directions": affine[:3, :3].T,
        "space origin": affine[:3, 3],
        "space units": ["mm", "mm", "mm"],
        "kinds": ["domain", "domain", "domain"],
        "encoding": "gzip",
        # Its header is ASCII (teem's format definition), which JSON can be written in too.
        "segments": json.dumps(json.loads(segments_as_json(segmentation))),
    }
    nrrd.write(str(path), labels.array.transpose(2, 1, 0), header)


FORMATS: Final[Mapping[str, Callable[[Segmentation, LabelVolume, Path], None]]] = {
    ".nii.gz": _nifti,
    ".nrrd": _nrrd,
    ".npz": _npz,
}
