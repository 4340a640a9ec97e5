"""Coded concepts (PS3.3 8.8)."""

from typing import Annotated, Final

import msgspec


class Code(msgspec.Struct, frozen=True, array_like=True):
    """A coded concept, written [scheme, value, meaning]."""

    scheme: Annotated[str, msgspec.Meta(min_length=1, max_length=16)]
    value: Annotated[str, msgspec.Meta(min_length=1, max_length=16)]
    meaning: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


BACKGROUND: Final = Code("DCM", "125040", "Background")
SEGMENTATION: Final = Code("DCM", "113076", "Segmentation")
SOURCE_IMAGE: Final = Code("DCM", "121322", "Source image for image processing operation")
REJECTED: Final = Code("DCM", "113001", "Rejected for Quality Reasons")
PROCESSING_EQUIPMENT: Final = Code("DCM", "109102", "Processing Equipment")
# Of a replaced object the code says what is to be said; that it calls it a report is the nearest there is (CID 7009).
REPLACED: Final = Code("DCM", "121360", "Replaced report")
MODIFYING_EQUIPMENT: Final = Code("DCM", "109103", "Modifying Equipment")
