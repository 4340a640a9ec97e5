"""The built-in model: body, lungs and bone of a CT by Hounsfield units. It shows the way a model goes; it is no diagnosis."""

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from segnode.models import Result, Volume

BODY, LUNG, BONE = 1, 2, 3

_BODY_HU: Final = -300
_LUNG_HU: Final = -400
_BONE_HU: Final = 200
_SMALLEST_LUNG_MM3: Final = 10_000
_CONNECTIVITY = ndimage.generate_binary_structure(3, 1)

Mask = npt.NDArray[np.bool_]


def segment(volume: Volume) -> Result:
    """Label body (1), lungs (2) and bone (3) of a CT volume in HU."""
    body = _body(volume.array > _BODY_HU, _upright(volume))
    lungs = _large_parts(body & (volume.array < _LUNG_HU), volume)
    labelmap = body.astype(np.uint8)
    labelmap[lungs] = LUNG
    labelmap[body & (volume.array > _BONE_HU)] = BONE
    return Result(labelmap)


def _upright(volume: Volume) -> int:
    """The axis that runs most from feet to head."""
    return int(np.abs(volume.affine[2, :3] / volume.spacing).argmax())


def _body(dense: Mask, upright: int) -> Mask:
    """The largest connected part, with what it encloses across an axis: a table and clothes are not connected to it."""
    parts, count = ndimage.label(dense, _CONNECTIVITY)
    if count == 0:
        return dense
    largest = int(_sizes(parts, count)[1:].argmax()) + 1
    across = np.moveaxis(parts == largest, upright, 0)
    return np.moveaxis(np.stack([ndimage.binary_fill_holes(plane) for plane in across]), 0, upright)


def _large_parts(mask: Mask, volume: Volume) -> Mask:
    """The connected parts of at least the size of a lung's share; bowel gas and the trachea's end are smaller."""
    parts, count = ndimage.label(mask, _CONNECTIVITY)
    large = _sizes(parts, count) * float(np.prod(volume.spacing)) >= _SMALLEST_LUNG_MM3
    large[0] = False
    return np.asarray(large[parts])


def _sizes(parts: npt.NDArray[np.int32], count: int) -> npt.NDArray[np.intp]:
    """Voxels of each part, slice by slice: bincount makes 8 bytes of each voxel."""
    sizes = np.zeros(count + 1, np.intp)
    for plane in parts:
        sizes += np.bincount(plane.ravel(), minlength=count + 1)
    return sizes
