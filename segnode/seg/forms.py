"""The forms a SEG can be sent in, written TYPE:CODEC: which SOP class and transfer syntax each means."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from pydicom.uid import UID

from segnode.config import FormName
from segnode.dicom.uids import segmentation_class
from segnode.seg.codecs import CODECS, Codec


@dataclass(frozen=True)
class Form:
    """A form of a SEG: `type` is its SegmentationType."""

    name: FormName
    type: Literal["LABELMAP", "BINARY"]
    codec: Codec

    @property
    def sop_class_uid(self) -> UID:
        """The class that objects of its type are of."""
        return segmentation_class(self.type)

    @property
    def transfer_syntax_uid(self) -> UID:
        """How the object is encoded."""
        return self.codec.transfer_syntax_uid


def _form(name: FormName) -> Form:
    kind, _, codec = name.partition(":")
    return Form(name, "LABELMAP" if kind == "labelmap" else "BINARY", {str(known): c for known, c in CODECS.items()}[codec])


FORMS: Final[Mapping[FormName, Form]] = {name: _form(name) for name in get_args(FormName)}
