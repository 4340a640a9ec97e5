"""The pixel data element of a segmentation: frames in the encoding of a form."""

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.encaps import encapsulate

from segnode.seg.forms import Form


def set_pixels(dataset: Dataset, frames: npt.NDArray[np.unsignedinteger], form: Form) -> None:
    """Write (frames, rows, columns) of 8 or 16 bits to PixelData: native little endian, or one fragment a frame."""
    if form.encode is None:
        data = frames.astype(frames.dtype.newbyteorder("<"), copy=False).tobytes()
        dataset.PixelData = data + b"\0" * (len(data) % 2)
    else:
        dataset.PixelData = encapsulate([form.encode(frame) for frame in frames])
    dataset["PixelData"].VR = "OW" if form.encode is None and frames.dtype.itemsize == 2 else "OB"
    dataset["PixelData"].is_undefined_length = form.encode is not None
