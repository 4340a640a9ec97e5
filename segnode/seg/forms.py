"""The forms a SEG can be sent in, written TYPE:CODEC: which SOP class, transfer syntax and frame codec each means."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGLSLossless, RLELossless

from segnode.config import FormName
from segnode.dicom.uids import LABEL_MAP_SEGMENTATION_STORAGE
from segnode.seg.codecs import jpeg_ls, rle

FrameEncoder = Callable[[npt.NDArray[np.unsignedinteger]], bytes]


@dataclass(frozen=True)
class Form:
    """A form of a SEG; `encode` is None where the frames are native."""

    name: FormName
    sop_class_uid: UID
    transfer_syntax_uid: UID
    encode: FrameEncoder | None


def _label_map(name: FormName, transfer_syntax_uid: UID, encode: FrameEncoder | None) -> Form:
    return Form(name, LABEL_MAP_SEGMENTATION_STORAGE, transfer_syntax_uid, encode)


FORMS: Final[Mapping[FormName, Form]] = {
    form.name: form
    for form in (
        _label_map("labelmap:native", ExplicitVRLittleEndian, None),
        _label_map("labelmap:rle", RLELossless, rle.encode),
        _label_map("labelmap:jpeg-ls", JPEGLSLossless, jpeg_ls.encode),
    )
}
