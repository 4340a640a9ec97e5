"""The ladder: the forms of a SEG that a destination is offered, one after the other, until it takes one.

Forms of one type are one object under one UID; of another type it is another object. So before a form with another UID is
tried, the archive is asked for those that were tried before: it may have stored one after all, and is not to hold two.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from segnode.config import FormName
from segnode.dicom.uids import uid_name
from segnode.errors import (
    AlreadyThere,
    CannotAsk,
    CannotReadBack,
    DeliveryDeferred,
    DeliveryRefused,
    FormRefused,
    SegnodeError,
)
from segnode.pipeline.ports import Destination, Door, Encoded, Segmentation
from segnode.pipeline.read_back import require_same_labels
from segnode.seg.forms import FORMS

READ_BACK: Final = "read back from there, it has the same labels"


@dataclass(frozen=True)
class Tried:
    """What earlier attempts have tried: `forms`, in order; of `unanswered` it is not known whether it was stored."""

    forms: tuple[FormName, ...] = ()
    unanswered: FormName | None = None


@dataclass(frozen=True)
class Sent:
    """A destination has an object: which, what it answered, and whether it `was_there` before this attempt."""

    encoded: Encoded
    answer: str
    was_there: bool = False


@dataclass
class Ladder:
    """One attempt to get a SEG into an archive; `before_sending` is told of each form before its first byte leaves."""

    destination: Destination
    segmentation: Segmentation
    tried: Tried
    before_sending: Callable[[FormName], None]
    _refusals: list[str] = field(default_factory=list)
    _notes: list[str] = field(default_factory=list)

    def descend(self, forms: Sequence[FormName]) -> Sent:
        """Have the archive take the object in the first of the forms that it will take.

        Returns only when the archive has said that it stored the object, or has given out one with the same labels. Raises
        DeliveryRefused when it takes none of the forms, naming each refusal; DeliveryDeferred when it could not be asked,
        broke off, or has no room now: to be called again, with what was tried. May be interrupted at any point.
        """
        left = list(forms)
        while left:
            try:
                with self.destination.reach(left) as door:
                    sent = self._walk(door, left)
            except AlreadyThere as claim:
                return self._read_back(left[0], str(claim))
            # Some archives have one association at a time: they are asked when that is over.
            if sent := sent or self._found_elsewhere(left[0] if left else None):
                return sent
        classes = dict.fromkeys(uid_name(FORMS[form].sop_class_uid) for form in forms)
        refusals = "; ".join((*self._refusals, *self._notes))
        raise DeliveryRefused(f"{self.destination.where} takes no form of {', '.join(classes)}: {refusals}")

    def _walk(self, door: Door, left: list[FormName]) -> Sent | None:
        """Try the forms that are left, and take off what is refused; None before one for which there is something to ask."""
        while left:
            form = left[0]
            if not door.accepts(form):
                self._refuse(form, "not accepted at negotiation")
            elif self._others_tried(form):
                return None
            else:
                try:
                    encoded = self.segmentation.in_form(form)
                    self.before_sending(form)
                    return Sent(encoded, "; ".join((door.store(encoded), *self._notes)))
                except FormRefused as refusal:
                    self._refuse(form, str(refusal))
                    if self._is_in_doubt(form):
                        self.tried = Tried(self.tried.forms)
            del left[0]
        return None

    def _refuse(self, form: FormName, reason: str) -> None:
        self._refusals.append(f"{form} {reason}")
        self.tried = Tried((*self.tried.forms, form), self.tried.unanswered)

    def _found_elsewhere(self, form: FormName | None) -> Sent | None:
        """The object that the archive holds of a type that was tried and is not that of the form."""
        others = self._others_tried(form)
        for tried in others.values():
            # At the end of the list, where nothing else will be sent, only what may be there is asked for.
            if (form is not None or self._is_in_doubt(tried)) and (sent := self._found(tried)):
                return sent
        self.tried = Tried(tuple(t for t in self.tried.forms if _type(t) not in others), self.tried.unanswered)
        return None

    def _others_tried(self, form: FormName | None) -> Mapping[str, FormName]:
        """Of each type that was tried and is not that of the form, one form."""
        return {_type(tried): tried for tried in self.tried.forms if form is None or _type(tried) != _type(form)}

    def _found(self, form: FormName) -> Sent | None:
        """The object of a form, where the archive holds it."""
        try:
            encoded = self.segmentation.in_form(form)
        except FormRefused:  # so it was never sent
            return None
        uid = encoded.sop_instance_uid
        try:
            held = self.destination.held(encoded)
        except CannotAsk as reason:
            if self._is_in_doubt(form):
                raise DeliveryDeferred(
                    f"{uid} was sent in {form} without an answer, and {reason}, so nothing else is sent in its place"
                ) from reason
            self._notes.append(f"whether {uid} is there is not known: {reason}")
            return None
        except CannotReadBack as reason:
            raise _unproved(f"{uid} is there all the same", reason) from reason
        if self._is_in_doubt(form):
            self.tried = Tried(self.tried.forms)
        if held is None:
            return None
        self._require_same(encoded, held)
        return Sent(encoded, "; ".join((*self._refusals, f"it was stored all the same: {READ_BACK}")), was_there=True)

    def _read_back(self, form: FormName, claim: str) -> Sent:
        """What the archive says that it has already. Raises DeliveryRefused when it is something else, or cannot be seen."""
        encoded = self.segmentation.in_form(form)
        try:
            held = self.destination.held(encoded)
        except (CannotAsk, CannotReadBack) as reason:
            raise _unproved(f"{claim}: {encoded.sop_instance_uid} is there already", reason) from reason
        if held is None:
            raise DeliveryDeferred(f"{claim}: it is there already, but {self.destination.where} does not find it")
        self._require_same(encoded, held)
        return Sent(encoded, f"{claim}: it is there already; {READ_BACK}", was_there=True)

    def _require_same(self, encoded: Encoded, held: bytes) -> None:
        require_same_labels(encoded.sop_instance_uid, encoded.part10, held, self.destination.where)

    def _is_in_doubt(self, form: FormName) -> bool:
        return self.tried.unanswered is not None and _type(self.tried.unanswered) == _type(form)


def _type(form: FormName) -> str:
    return FORMS[form].type


def _unproved(claim: str, reason: SegnodeError) -> DeliveryRefused:
    return DeliveryRefused(f"{claim}, as it says, but {reason}: see there that it is right, or have it removed, then retry")
