"""The forms a SEG can be sent in, written TYPE:CODEC: which SOP class and transfer syntax each means."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pydicom.uid import UID

from segnode.config import FormName
from segnode.dicom.uids import LABEL_MAP_SEGMENTATION_STORAGE
from segnode.seg.codecs import CODECS, Codec


@dataclass(frozen=True)
class Form:
    """A form of a SEG."""

    name: FormName
    sop_class_uid: UID
    codec: Codec

    @property
    def transfer_syntax_uid(self) -> UID:
        """How the object is encoded."""
        return self.codec.transfer_syntax_uid


FORMS: Final[Mapping[FormName, Form]] = {
    form.name: form
    for form in (
        Form("labelmap:native", LABEL_MAP_SEGMENTATION_STORAGE, CODECS["native"]),
        Form("labelmap:rle", LABEL_MAP_SEGMENTATION_STORAGE, CODECS["rle"]),
        Form("labelmap:jpeg-ls", LABEL_MAP_SEGMENTATION_STORAGE, CODECS["jpeg-ls"]),
    )
}
