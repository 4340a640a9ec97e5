"""Statuses of C-STORE (PS3.4 B.2.3, PS3.7 C), which STOW-RS calls failure reasons (PS3.18 I.2).

What the node answers to an object that it does not keep, and what an archive's answer means to the node.
"""

from collections.abc import Mapping
from typing import Final

from segnode.errors import (
    BadIdentifier,
    DeliveryDeferred,
    DeliveryRefused,
    FormRefused,
    Mismatch,
    NotDicom,
    OutOfResources,
    Refusal,
)

SUCCESS: Final = 0x0000
PROCESSING_FAILURE: Final = 0x0110
DUPLICATE: Final = 0x0111
OUT_OF_RESOURCES: Final = 0xA700
DATA_SET_MISMATCH: Final = 0xA900
CANNOT_UNDERSTAND: Final = 0xC000
SOP_CLASS_NOT_SUPPORTED: Final = 0x0122

STATUS_OF: Final[Mapping[type[Refusal], int]] = {
    NotDicom: CANNOT_UNDERSTAND,
    BadIdentifier: CANNOT_UNDERSTAND,
    Mismatch: DATA_SET_MISMATCH,
    OutOfResources: OUT_OF_RESOURCES,
}


def is_stored(status: int) -> bool:
    """Success, a warning, or a duplicate: the object is in the archive."""
    return status in (SUCCESS, DUPLICATE) or status & 0xF000 == 0xB000


def is_refusal_of_form(status: int) -> bool:
    """The archive does not like what it got: another form may do."""
    return status == SOP_CLASS_NOT_SUPPORTED or status & 0xFF00 == 0xA900 or status & 0xF000 == 0xC000


def is_passing(status: int) -> bool:
    """The archive could not store now: the same object may do later."""
    return status & 0xFF00 == 0xA700 or status == PROCESSING_FAILURE


def require_stored(status: int, answer: str) -> str:
    """The answer of an archive that has stored an object. Raises DeliveryDeferred, FormRefused or DeliveryRefused with it."""
    if is_stored(status):
        return answer
    if is_passing(status):
        raise DeliveryDeferred(answer)
    if is_refusal_of_form(status):
        raise FormRefused(answer)
    raise DeliveryRefused(answer)
