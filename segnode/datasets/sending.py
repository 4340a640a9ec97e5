"""Sending what was imported: a segmentation on its way, in whatever form a destination takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from segnode.config import FormName
from segnode.datasets.importing import Imported
from segnode.errors import CannotConvert, FormRefused, NotAVolume, OverlappingSegments
from segnode.pipeline.ladder import Ladder, Tried
from segnode.pipeline.ports import Destination, Encoded
from segnode.seg.convert import Target, convert
from segnode.seg.forms import FORMS
from segnode.seg.read import read_segmentation


@dataclass(frozen=True)
class _Made:
    """A segmentation as it was made; see the port Segmentation."""

    part10: bytes
    created: datetime

    def in_form(self, form: FormName) -> Encoded:
        """It in that form, converted where it is of another type. Raises FormRefused."""
        study = str(read_segmentation(self.part10).header.StudyInstanceUID)
        try:
            (made,) = convert(self.part10, Target(FORMS[form].type, FORMS[form].codec), self.created)
        except (CannotConvert, OverlappingSegments, NotAVolume) as error:
            raise FormRefused(f"cannot be made: {error}") from error
        uids = made.sop_instance_uid, made.series_instance_uid, study
        return Encoded(form, str(FORMS[form].sop_class_uid), *uids, made.part10, made.numbers)


def send(made: Imported, destination: Destination, forms: Sequence[FormName]) -> str:
    """Send a segmentation by the ladder of forms; what was answered. Raises DeliveryRefused, DeliveryDeferred."""
    sent = Ladder(destination, _Made(made.file.read_bytes(), made.created), Tried(), lambda _: None).descend(forms)
    return f"{destination.where}: {sent.answer} ({sent.encoded.form})"
