"""Statuses of Query/Retrieve (PS3.4 C.4), and of C-STORE (PS3.4 B.2.3, PS3.7 C).

Of the latter, which STOW-RS (PS3.18 I.2) and storage commitment call failure reasons: what the node answers to an object
that it does not keep, and what an archive's answer means to the node.
"""

from collections.abc import Mapping
from typing import Final, Literal

from segnode.errors import (
    AlreadyThere,
    BadIdentifier,
    ClassNotSupported,
    DeliveryDeferred,
    DeliveryFailed,
    DeliveryRefused,
    Duplicate,
    FormRefused,
    InvalidInstance,
    Mismatch,
    NotAuthorised,
    NotDicom,
    ObjectTooLong,
    OutOfResources,
    Refusal,
)

SUCCESS: Final = 0x0000
PROCESSING_FAILURE: Final = 0x0110
DUPLICATE: Final = 0x0111
NO_SUCH_INSTANCE: Final = 0x0112
INVALID_INSTANCE: Final = 0x0117
CLASS_INSTANCE_CONFLICT: Final = 0x0119
SOP_CLASS_NOT_SUPPORTED: Final = 0x0122
NOT_AUTHORISED: Final = 0x0124
DUPLICATE_TRANSACTION: Final = 0x0131
RESOURCE_LIMITATION: Final = 0x0213
OUT_OF_RESOURCES: Final = 0xA700
# Of Query/Retrieve (PS3.4 C.4).
PENDING: Final = 0xFF00
PENDING_WITHOUT_SOME_KEYS: Final = 0xFF01
CANCELLED: Final = 0xFE00
SOME_SUBOPERATIONS_FAILED: Final = 0xB000
TOO_MANY_MATCHES: Final = 0xA701
ALL_SUBOPERATIONS_FAILED: Final = 0xA702
MOVE_DESTINATION_UNKNOWN: Final = 0xA801
DATA_SET_MISMATCH: Final = 0xA900
CANNOT_UNDERSTAND: Final = 0xC000
# What each means in an answer of this node (PS3.4 C.4.1.1.4, C.4.2.1.5, C.4.3.1.4).
QUERY_STATUSES: Final[Mapping[int, str]] = {
    SUCCESS: "all matches were given, or every object was sent",
    PENDING: "a match; or how far the sending is",
    PENDING_WITHOUT_SOME_KEYS: "a match, of a query with a key that is not matched",
    CANCELLED: "ended by C-CANCEL",
    SOME_SUBOPERATIONS_FAILED: "some objects were not sent: Failed SOP Instance UID List names them",
    TOO_MANY_MATCHES: "more than 65535 objects match",
    ALL_SUBOPERATIONS_FAILED: "no object was sent: Failed SOP Instance UID List names them",
    MOVE_DESTINATION_UNKNOWN: "no DIMSE destination has the AE title of the Move Destination",
    DATA_SET_MISMATCH: "the identifier is none of its information model, or lacks a unique key",
    CANNOT_UNDERSTAND: "the identifier cannot be read, or a key is no value of its attribute",
}
# A warning: the object is kept as it came.
STORED_WITH_MISMATCH: Final = 0xB007
# Of cloud archives, in STOW-RS.
_EXISTS_ALREADY: Final = 0xB00E

# Why an archive does not stand by an object: FailureReason of storage commitment (PS3.4 J.3.3).
COMMITMENT_FAILURES: Final[Mapping[int, str]] = {
    PROCESSING_FAILURE: "processing failure",
    NO_SUCH_INSTANCE: "no such object instance",
    CLASS_INSTANCE_CONFLICT: "class-instance conflict",
    SOP_CLASS_NOT_SUPPORTED: "referenced SOP class not supported",
    DUPLICATE_TRANSACTION: "duplicate transaction UID",
    RESOURCE_LIMITATION: "resource limitation",
}

# Stored; there already, as the archive says; the same object later; another form now; or never.
Meaning = Literal["stored", "there", "later", "form", "never"]

STATUS_OF: Final[Mapping[type[Refusal], int]] = {
    NotDicom: CANNOT_UNDERSTAND,
    BadIdentifier: CANNOT_UNDERSTAND,
    InvalidInstance: INVALID_INSTANCE,
    ClassNotSupported: SOP_CLASS_NOT_SUPPORTED,
    NotAuthorised: NOT_AUTHORISED,
    Mismatch: DATA_SET_MISMATCH,
    Duplicate: DUPLICATE,
    OutOfResources: OUT_OF_RESOURCES,
    ObjectTooLong: OUT_OF_RESOURCES,
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
    (RESOURCE_LIMITATION, 0xFFFF, "later"),
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
