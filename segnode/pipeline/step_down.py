"""Objects that go as they are: those who do not take one so are offered it in native encoding, which loses nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from segnode.dicom.native import in_native
from segnode.dicom.uids import uid_name
from segnode.errors import DeliveryRefused, FormRefused, UnreadablePixels
from segnode.pipeline.ports import Passage

AS_IT_IS: Final = ""
NATIVE_SYNTAXES: Final[Mapping[str, str]] = {"native": str(ExplicitVRLittleEndian), "implicit": str(ImplicitVRLittleEndian)}
_NATIVE: Final = {syntax: form for form, syntax in NATIVE_SYNTAXES.items()}
# Each kind may be offered as it is and in two native syntaxes; an association has 128 presentation contexts.
MOST_KINDS: Final = 42


def offered(sop_class_uid: str, transfer_syntax_uid: str) -> list[tuple[str, str]]:
    """How an object is offered, as it is first: SOP class and transfer syntax."""
    return [(sop_class_uid, syntax) for syntax in dict.fromkeys((transfer_syntax_uid, *_NATIVE))]


def store_stepping_down(
    path: Path, sop_class_uid: str, transfer_syntax_uid: str, passage: Passage, where: str
) -> tuple[str, str]:
    """Send an object as it is, or else natively: how, AS_IT_IS or by its name in NATIVE_SYNTAXES, and what was answered.

    Raises DeliveryRefused, which names each refusal, DeliveryDeferred, AlreadyThere.
    """
    refusals = []
    for sop_class, syntax in offered(sop_class_uid, transfer_syntax_uid):
        as_it_is = syntax == transfer_syntax_uid
        if not passage.accepts(sop_class, syntax):
            refusals.append(f"{uid_name(syntax)} not accepted at negotiation")
            continue
        try:
            answer = passage.store(path if as_it_is else in_native(path, syntax))
        except (FormRefused, UnreadablePixels) as refusal:
            refusals.append(f"{uid_name(syntax)} {refusal}")
            continue
        return (AS_IT_IS if as_it_is else _NATIVE[syntax]), answer
    raise DeliveryRefused(f"{where} does not take this object of {uid_name(sop_class_uid)}: {'; '.join(refusals)}")
