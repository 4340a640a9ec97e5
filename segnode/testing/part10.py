"""Part 10 files of any data set, valid or not, in any transfer syntax: what a test sends."""

import zlib

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.uid import UID

from segnode.dicom.transfer_syntaxes import encoding_of


def encode_part10(dataset: Dataset, transfer_syntax_uid: str) -> bytes:
    """The file, with nothing checked and the pixel data as it stands in the data set."""
    encoding = encoding_of(transfer_syntax_uid)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    meta.MediaStorageSOPClassUID = UID(dataset.get("SOPClassUID") or "1.2")
    meta.MediaStorageSOPInstanceUID = UID(dataset.get("SOPInstanceUID") or "1.2")
    file = DicomBytesIO(b"\0" * 128 + b"DICM")
    file.seek(0, 2)
    write_file_meta_info(file, meta, enforce_standard=False)
    body = DicomBytesIO()
    body.is_implicit_VR, body.is_little_endian = encoding.implicit_vr, encoding.little_endian
    write_dataset(body, dataset)
    data = body.getvalue()
    if encoding.deflated:
        deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        data = deflater.compress(data) + deflater.flush()
    return bytes(file.getvalue() + data)
