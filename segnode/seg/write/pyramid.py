"""Multi-resolution pyramids of a slide's segmentation: a series with a SEG for each resolution (PS3.3 C.8.12.14)."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from PIL import Image
from pydicom import Dataset

from segnode.dicom.uids import derived_uid
from segnode.errors import LabelError
from segnode.seg.segmentation import DescribedSegment
from segnode.seg.write import Identity, Pyramid, StoredAs, write_segmentation
from segnode.seg.write.layout import Pixels
from segnode.seg.write.placement import matrix_size, on_slide


def write_pyramid(
    matrices: Sequence[Pixels],
    images: Sequence[Dataset],
    segments: Sequence[DescribedSegment],
    stored_as: StoredAs,
    identity: Identity,
    *,
    factors: Sequence[float] = (),
    tile_size: tuple[int, int] | None = None,
    full: bool = False,
    label: str = "",
) -> list[bytes]:
    """The SEGs of a pyramid as Part 10 files, the finest first; `identity` names the first, the others are derived from it.

    `matrices` are total pixel matrices (rows, columns) or (rows, columns, segments), one a level, or the finest alone, which
    is then made smaller: to the sizes of several `images`, or by `factors`. `images` are the levels of the source, or one.
    Raises LabelError, and what write_segmentation raises.
    """
    levels = _levels(matrices, images, factors)
    sources = images if len(images) > 1 else [images[0]] * len(levels)
    sizes = [level.shape[:2] for level in levels]
    if any(finer[0] <= coarser[0] or finer[1] <= coarser[1] for finer, coarser in pairwise(sizes)):
        raise LabelError("the levels of a pyramid do not become smaller: give the finest first, and factors that rise from 1")
    uid = derived_uid("pyramid", identity.series_instance_uid, identity.sop_instance_uid, root=identity.uid_root)
    pyramid = Pyramid(uid, label)
    return [
        write_segmentation(
            matrix[np.newaxis],
            on_slide(source, (matrix.shape[0], matrix.shape[1]), tile_size=tile_size, full=full),
            segments,
            stored_as,
            _of_level(identity, level),
            pyramid,
        )
        for level, (matrix, source) in enumerate(zip(levels, sources, strict=True))
    ]


def _levels(matrices: Sequence[Pixels], images: Sequence[Dataset], factors: Sequence[float]) -> list[Pixels]:
    if not matrices or not images:
        raise LabelError("a pyramid is made of one total pixel matrix and one slide image at least")
    if any(matrix.ndim not in (2, 3) for matrix in matrices):
        raise LabelError("a total pixel matrix has (rows, columns), or (rows, columns, segments)")
    if factors and (len(matrices) > 1 or len(images) > 1):
        raise LabelError("factors make levels of one total pixel matrix of one slide image: give either levels or factors")
    if len(images) > 1 and len(matrices) not in (1, len(images)):
        raise LabelError(f"{len(matrices)} matrices do not go with {len(images)} images: give the finest one, or one for each")
    finest = matrices[0]
    if factors:
        if min(factors) <= 1:
            raise LabelError("a factor of a pyramid is not above 1: it says how many times smaller a level is than the first")
        sizes = [(int(finest.shape[0] / factor), int(finest.shape[1] / factor)) for factor in factors]
        return [finest, *(_smaller(finest, max(size[0], 1), max(size[1], 1)) for size in sizes)]
    if len(images) > 1 and len(matrices) == 1:
        return [_smaller(finest, *matrix_size(image)) for image in images]
    return list(matrices)


def _smaller(matrix: Pixels, rows: int, columns: int) -> Pixels:
    """A matrix of another size: labels of the nearest pixels, as means of labels are no labels; probabilities in between."""
    if (rows, columns) == matrix.shape[:2]:
        return matrix
    if matrix.dtype.kind != "f":
        row, column = (
            np.minimum(((np.arange(to) + 0.5) * (of / to)).astype(np.int64), of - 1)
            for to, of in zip((rows, columns), matrix.shape, strict=False)
        )
        nearest: Pixels = matrix[np.ix_(row, column)]
        return nearest
    planes = matrix[..., np.newaxis] if matrix.ndim == 2 else matrix
    resized = [
        np.asarray(Image.fromarray(plane).resize((columns, rows), Image.Resampling.BILINEAR))
        for plane in np.moveaxis(planes, -1, 0).astype(np.float32)
    ]
    stacked: Pixels = np.clip(np.stack(resized, axis=-1), 0, 1)
    return stacked[..., 0] if matrix.ndim == 2 else stacked


def _of_level(identity: Identity, level: int) -> Identity:
    if level == 0:
        return identity
    return replace(
        identity,
        sop_instance_uid=derived_uid("pyramid level", identity.sop_instance_uid, str(level), root=identity.uid_root),
        instance_number=identity.instance_number + level,
    )
