"""What the node serves in associations that peers open: the one table that negotiation and the conformance statement read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pydicom._uid_dict import UID_dictionary
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AllStoragePresentationContexts
from pynetdicom._globals import DEFAULT_TRANSFER_SYNTAXES
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    _NON_PATIENT_OBJECT_CLASSES,
    StorageCommitmentPushModel,
    Verification,
)

from segnode.config import Right
from segnode.dicom.transfer_syntaxes import STORED_TRANSFER_SYNTAXES
from segnode.dimse.identifier import FIND_MODELS, GET_MODELS, MOVE_MODELS

_MEDIA_STORAGE_DIRECTORY: Final = "1.2.840.10008.1.3.10"


@dataclass(frozen=True)
class Service:
    """SOP classes that are served alike.

    Of the `transfer_syntaxes` that a peer proposes in a context the first of this order is accepted. `roles` are those that
    the peer may propose for itself (PS3.7 D.3.3.4), as SCU and as SCP; with None it is the SCU. `right` is what it must
    have, if anything.
    """

    name: str
    sop_classes: tuple[str, ...]
    transfer_syntaxes: tuple[str, ...]
    right: Right | None = None
    roles: tuple[bool, bool] | None = None


def _storage_classes() -> tuple[str, ...]:
    """Every storage SOP class that is known, retired ones too; but for objects of no study, which are not kept here."""
    known = {str(context.abstract_syntax) for context in AllStoragePresentationContexts}
    named = {uid for uid, (name, kind, *_) in UID_dictionary.items() if kind == "SOP Class" and "Storage" in name}
    other = {uid for uid in named if "Storage Commitment" in UID_dictionary[uid][0]}
    found = (known | named) - other - {_MEDIA_STORAGE_DIRECTORY, *_NON_PATIENT_OBJECT_CLASSES.values()}
    return tuple(sorted(found, key=lambda uid: [int(component) for component in uid.split(".")]))


STORAGE_CLASSES: Final = _storage_classes()
_DEFAULT: Final = tuple(map(str, DEFAULT_TRANSFER_SYNTAXES))
# Identifiers are packed in these two.
_EXPLICIT_FIRST: Final = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))


def services(private_sop_classes: Sequence[str] = ()) -> tuple[Service, ...]:
    """What is served, with storage SOP classes of others."""
    return (
        Service("Verification", (str(Verification),), _DEFAULT),
        # Whoever asks by C-GET is the SCP of what it gets.
        Service("Storage", (*STORAGE_CLASSES, *private_sop_classes), STORED_TRANSFER_SYNTAXES, roles=(True, True)),
        # Archives report in an association of their own, in which they are the SCP.
        Service("Storage Commitment", (str(StorageCommitmentPushModel),), _DEFAULT, "commit", (True, True)),
        Service("Query", tuple(FIND_MODELS), _EXPLICIT_FIRST, "query"),
        Service("Retrieve", (*MOVE_MODELS, *GET_MODELS), _EXPLICIT_FIRST, "retrieve"),
    )
