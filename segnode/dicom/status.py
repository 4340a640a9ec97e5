"""Statuses of C-STORE (PS3.4 B.2.3, PS3.7 C), which STOW-RS calls failure reasons (PS3.18 I.2).

What the node answers to an object that it does not keep, and what an archive's answer means to the node.
"""

from collections.abc import Mapping
from typing import Final, Literal

from segnode.errors import (
    AlreadyThere,
    BadIdentifier,
    DeliveryDeferred,
    DeliveryFailed,
    DeliveryRefused,
    Duplicate,
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
# Of cloud archives, in STOW-RS.
_EXISTS_ALREADY: Final = 0xB00E

# Stored; there already, as the archive says; the same object later; another form now; or never.
Meaning = Literal["stored", "there", "later", "form", "never"]

STATUS_OF: Final[Mapping[type[Refusal], int]] = {
    NotDicom: CANNOT_UNDERSTAND,
    BadIdentifier: CANNOT_UNDERSTAND,
    Mismatch: DATA_SET_MISMATCH,
    Duplicate: DUPLICATE,
    OutOfResources: OUT_OF_RESOURCES,
}


_ERRORS: Final[Mapping[Meaning, type[DeliveryFailed]]] = {
    "there": AlreadyThere,
    "later": DeliveryDeferred,
    "form": FormRefused,
    "never": DeliveryRefused,
}
# What the status of an object that was sent means: the first row whose bits under the mask are those of the status.
_MEANINGS: Final[tuple[tuple[int, int, Meaning], ...]] = (
    (SUCCESS, 0xFFFF, "stored"),
    (DUPLICATE, 0xFFFF, "there"),
    (_EXISTS_ALREADY, 0xFFFF, "there"),
    (0xB000, 0xF000, "stored"),  # with a warning: coerced, elements discarded, not as its class has it
    (SOP_CLASS_NOT_SUPPORTED, 0xFFFF, "form"),
    (DATA_SET_MISMATCH, 0xFF00, "form"),
    (CANNOT_UNDERSTAND, 0xF000, "form"),  # C122 among them: the transfer syntax, in STOW-RS
    (OUT_OF_RESOURCES, 0xFF00, "later"),
    (PROCESSING_FAILURE, 0xFFFF, "later"),
    (0x0210, 0xFFFF, "later"),  # duplicate invocation
    (0x0213, 0xFFFF, "later"),  # resource limitation
    (0xFE00, 0xFFFF, "later"),  # cancelled
)


def meaning_of(status: int) -> Meaning:
    """What follows for an object that was sent; a status that the table does not have, 0124 for example, is for good."""
    return next((meaning for code, mask, meaning in _MEANINGS if status & mask == code), "never")


def require_stored(status: int, answer: str) -> str:
    """The answer of an archive that has stored an object.

    Raises DeliveryDeferred, FormRefused, AlreadyThere or DeliveryRefused with it.
    """
    meaning = meaning_of(status)
    if meaning != "stored":
        raise _ERRORS[meaning](answer)
    return answer
