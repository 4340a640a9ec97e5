"""Re-encoding a LABELMAP segmentation in another transfer syntax: the same object, the same labels, other bytes."""

from io import BytesIO

from pydicom import dcmread

from segnode.errors import UnreadablePixels
from segnode.seg.forms import Form
from segnode.seg.pixels import frames_of, set_pixels


def recode(part10: bytes, form: Form) -> bytes:
    """The object in the transfer syntax of a form. Raises UnreadablePixels."""
    dataset = dcmread(BytesIO(part10))
    if dataset.file_meta.TransferSyntaxUID == form.transfer_syntax_uid:
        return part10
    try:
        frames = frames_of(dataset).all()
    except UnreadablePixels as error:
        raise UnreadablePixels(f"the frames of SOP instance {dataset.SOPInstanceUID} cannot be decoded: {error}") from error
    set_pixels(dataset, frames, form)
    dataset.file_meta.TransferSyntaxUID = form.transfer_syntax_uid
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()
