"""Elements in another encoding: what is in them is said again, with other VRs, lengths and byte order (PS3.5 7)."""

from io import BytesIO

from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from segnode.dicom.elements import elements, require_shallow
from segnode.dicom.transfer_syntaxes import Encoding


def reencoded(data: bytes, written: Encoding, wanted: Encoding) -> bytes:
    """Whole elements, little endian. Raises NotDicom, and whatever pydicom does for values that are not of their VR."""
    if (written.implicit_vr, written.little_endian) == (wanted.implicit_vr, wanted.little_endian):
        return data
    for whole in elements(data, 0, len(data), written):
        require_shallow(data, whole)
    dataset = read_dataset(BytesIO(data), written.implicit_vr, written.little_endian)
    dataset.decode()
    for element in dataset:
        element.is_undefined_length = False
    file = DicomBytesIO()
    file.is_little_endian, file.is_implicit_VR = True, wanted.implicit_vr
    write_dataset(file, dataset)
    return file.getvalue()
