"""Identifiers: what is a UID, and how the node derives its own."""

import hashlib
import re
from collections.abc import Iterable
from typing import Final

from pydicom._uid_dict import UID_dictionary
from pydicom.uid import UID, SegmentationStorage

LABEL_MAP_SEGMENTATION_STORAGE: Final = UID("1.2.840.10008.5.1.4.1.1.66.7")
SEGMENTATION_CLASSES: Final = (SegmentationStorage, LABEL_MAP_SEGMENTATION_STORAGE)
IMPLEMENTATION_CLASS_UID: Final = UID("2.25.186353398273466513867233812170395281561")
IMPLEMENTATION_VERSION_NAME: Final = "SEGNODE_0_1"
MANUFACTURER: Final = "segnode"
# Of UIDs that are made of a UUID, without asking anybody (PS3.5 B.2).
UUID_ROOT: Final = "2.25"

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_NEWER_NAMES = {
    LABEL_MAP_SEGMENTATION_STORAGE: "Label Map Segmentation Storage",
    UID("1.2.840.10008.5.1.4.1.1.66.8"): "Height Map Segmentation Storage",
    UID("1.2.840.10008.5.1.4.1.1.9.100.1"): "Waveform Presentation State Storage",
    UID("1.2.840.10008.5.1.4.1.1.9.100.2"): "Waveform Acquisition Presentation State Storage",
}


def is_uid(value: str) -> bool:
    """Whether a value is a UID: digits and single dots, 64 characters at most (PS3.5 9.1).

    Components with a leading zero are let pass: some older devices write them.
    """
    return len(value) <= 64 and _UID.fullmatch(value) is not None


def root_of(uid: str) -> str:
    """The root of a UID that was derived."""
    return uid.rpartition(".")[0]


def derived_uid(*parts: str | Iterable[str], root: str = UUID_ROOT) -> UID:
    """A UID under a root of 35 characters at most, from a SHA-256 over the parts: the same give the same UID at every time."""
    return UID(f"{root}.{int(derived_digest(*parts)[:32], 16) % 10 ** (63 - len(root))}")


def derived_digest(*parts: str | Iterable[str]) -> str:
    """The SHA-256 (hexadecimal) over the parts; each part is told apart from its neighbours."""
    digest = hashlib.sha256()
    for part in parts:
        values = [part] if isinstance(part, str) else list(part)
        digest.update(f"{len(values)};".encode())
        for value in values:
            encoded = value.encode()
            digest.update(f"{len(encoded)}:".encode() + encoded)
    return digest.hexdigest()


def uid_name(uid: str) -> str:
    """The name of a UID as PS3.6 has it, with the UID; the UID alone when it is private."""
    name = _NEWER_NAMES.get(UID(uid)) or (UID_dictionary[uid][0] if uid in UID_dictionary else "")
    return f"{name} ({uid})" if name else uid


def segmentation_class(segmentation_type: str) -> UID:
    """The SOP class of a SegmentationType (PS3.3 A.51)."""
    return LABEL_MAP_SEGMENTATION_STORAGE if segmentation_type == "LABELMAP" else SegmentationStorage
