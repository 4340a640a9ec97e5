"""Sending on: what came in, as it came or in native encoding; SEGs in the forms of the destination where a rule says so."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby
from typing import Final

from segnode.dicom.header import read_header
from segnode.dicom.native import in_native
from segnode.dicom.uids import LABEL_MAP_SEGMENTATION_STORAGE, SEGMENTATION_CLASSES, uid_name
from segnode.errors import (
    AlreadyThere,
    CannotAsk,
    CannotReadBack,
    DeliveryDeferred,
    DeliveryRefused,
    FormRefused,
    Refusal,
    UnreadablePixels,
)
from segnode.pipeline.assemble import values_in_files
from segnode.pipeline.deliver import NATIVE_SYNTAXES, Deliverer, HeldSegmentation
from segnode.pipeline.ports import Destination, Passage
from segnode.pipeline.rules import ForwardRule
from segnode.store.index import Instance
from segnode.store.jobs import Delivery, Taken

_NATIVE: Final = {syntax: form for form, syntax in NATIVE_SYNTAXES.items()}
_AS_RECEIVED: Final = "as received"
# Each kind may be offered as it is and in two native syntaxes; an association has 128 presentation contexts.
_MOST_KINDS: Final = 42


@dataclass(frozen=True)
class _Owed:
    """An object that is owed, and held."""

    delivery: Delivery
    held: Instance

    @property
    def kind(self) -> tuple[str, str]:
        """Its SOP class and transfer syntax."""
        return self.held.sop_class_uid, self.held.transfer_syntax_uid


@dataclass(frozen=True)
class Forwarder:
    """Sends on what is owed of a job without a model; `station_name` is how the node names itself in what it converts."""

    deliverer: Deliverer
    station_name: str

    def attempt(self, deliveries: Sequence[Delivery], rule: ForwardRule) -> None:
        """Try once to send objects of one job to one destination, in one association where they go as they are.

        The row of each says how that went as soon as it is known. What could not be sent is owed for longer, and with it all
        that comes after it; next time it comes after all that has failed less often. May be interrupted at any point, and
        repeated.
        """
        destination = self.deliverer.destinations.get(deliveries[0].destination)
        owed = list(self._held(deliveries, destination))
        if destination is None:
            return
        for _, group in groupby(owed, lambda each: each.delivery.attempts):
            together = list(group)
            segmentations = [each for each in together if rule.config.reencode and self._has_forms(each)]
            as_they_are = [each for each in together if each not in segmentations]
            goes_on = all(self._pass_on(portion, destination) for portion in _portions(as_they_are))
            if not (goes_on and all(self._send(each, destination) for each in segmentations)):
                return

    def _held(self, deliveries: Sequence[Delivery], destination: Destination | None) -> Iterator[_Owed]:
        for delivery in deliveries:
            held = self.deliverer.index.find(delivery.sop_instance_uid)
            if held is None or destination is None:
                missing = "the object" if held is None else "the destination"
                self.deliverer.give_up(delivery, f"{missing} is no longer there")
            else:
                yield _Owed(delivery, held)

    def _has_forms(self, owed: _Owed) -> bool:
        """Whether it is a SEG that can be had in other forms; a FRACTIONAL cannot, nobody says what is inside: it is noted."""
        held = owed.held
        if held.sop_class_uid not in SEGMENTATION_CLASSES:
            return False
        (kind,) = values_in_files([self.deliverer.objects.path(held.object_key)], ["SegmentationType"])["SegmentationType"]
        if held.sop_class_uid == LABEL_MAP_SEGMENTATION_STORAGE or kind == "BINARY":
            return True
        what = f"SEG {held.sop_instance_uid} is {kind or 'of no type'}: it is sent as it came"
        self.deliverer.jobs.add_note(owed.delivery.job_id, what)
        return False

    def _send(self, owed: _Owed, destination: Destination) -> bool:
        """Send a SEG in one of the destination's forms; whether more can be sent."""
        delivery, deliverer = owed.delivery, self.deliverer
        if self._is_stopped(delivery):
            return False
        decided_at = deliverer.jobs.job(delivery.job_id).created_at
        segmentation = HeldSegmentation(deliverer.objects, owed.held, decided_at, self.station_name)
        try:
            deliverer.send(delivery, destination, segmentation)
        except DeliveryRefused as refusal:
            deliverer.refused(delivery, refusal)
        except DeliveryDeferred as deferral:
            deliverer.deferred(delivery, deferral)
            return False
        return True

    def _pass_on(self, portion: Sequence[_Owed], destination: Destination) -> bool:
        """Send objects as they are; whether more can be sent."""
        kinds = {kind for owed in portion for kind in _kinds(owed.held)}
        claims: list[tuple[_Owed, AlreadyThere]] = []
        at = portion[0]
        try:
            with destination.passage(kinds) as passage:
                for at in portion:
                    if self._is_stopped(at.delivery):
                        return False
                    try:
                        self._store(at, passage, destination)
                    except AlreadyThere as claim:
                        claims.append((at, claim))
                    except DeliveryRefused as refusal:
                        self.deliverer.refused(at.delivery, refusal)
            # Some archives have one association at a time: they are asked when that is over.
            for at, claimed in claims:
                try:
                    self._read_back(at, claimed, destination)
                except DeliveryRefused as refusal:
                    self.deliverer.refused(at.delivery, refusal)
        except DeliveryDeferred as deferral:
            self.deliverer.deferred(at.delivery, deferral)
            return False
        return True

    def _is_stopped(self, delivery: Delivery) -> bool:
        """Whether a person has cancelled the job meanwhile, or paused the destination: then it is owed from now on."""
        deliverer = self.deliverer
        if deliverer.standings.of(delivery.destination).is_paused:
            deliverer.jobs.put_off(delivery, deliverer.clock())
            return True
        return deliverer.jobs.state(delivery.job_id) == "cancelled"

    def _store(self, owed: _Owed, passage: Passage, destination: Destination) -> None:
        """Send an object as it came, or else natively. Raises DeliveryRefused, DeliveryDeferred, AlreadyThere."""
        held = owed.held
        path = self.deliverer.objects.path(held.object_key)
        refusals = []
        for sop_class_uid, syntax in _kinds(held):
            as_received = syntax == held.transfer_syntax_uid
            if not passage.accepts(sop_class_uid, syntax):
                refusals.append(f"{uid_name(syntax)} not accepted at negotiation")
                continue
            try:
                answer = passage.store(path if as_received else in_native(path, syntax))
            except (FormRefused, UnreadablePixels) as refusal:
                refusals.append(f"{uid_name(syntax)} {refusal}")
                continue
            self._taken(owed, _AS_RECEIVED if as_received else _NATIVE[syntax], answer)
            return
        what = f"{destination.where} does not take this object of {uid_name(held.sop_class_uid)}"
        raise DeliveryRefused(f"{what}: {'; '.join(refusals)}")

    def _read_back(self, owed: _Owed, claim: AlreadyThere, destination: Destination) -> None:
        """See what the archive says that it has already. Raises DeliveryRefused, DeliveryDeferred."""
        held = owed.held
        try:
            there = destination.held(held)
        except (CannotAsk, CannotReadBack) as reason:
            raise DeliveryRefused(
                f"{claim}: it is there already, as it says, but {reason}: see there that it is right, or have it removed,"
                " then retry"
            ) from reason
        if there is None:
            raise DeliveryDeferred(f"{claim}: it is there already, but {destination.where} does not find it")
        try:
            found = read_header(BytesIO(there))
        except Refusal as refusal:
            raise DeliveryRefused(f"{claim}: what {destination.where} gives out of it cannot be read: {refusal}") from refusal
        identity = (found.sop_class_uid, found.sop_instance_uid, found.series_instance_uid, found.study_instance_uid)
        if identity != (held.sop_class_uid, held.sop_instance_uid, held.series_instance_uid, held.study_instance_uid):
            raise DeliveryRefused(
                f"{destination.where} holds another object as {held.sop_instance_uid}: have it removed there, then retry"
            )
        self._taken(owed, "", f"{claim}: it is there already; read back from there, it is of the same series")

    def _taken(self, owed: _Owed, form: str, answer: str) -> None:
        self.deliverer.answered(owed.delivery.destination, answer)
        self.deliverer.taken(owed.delivery, Taken(form, owed.held.sop_instance_uid), answer)


def _kinds(held: Instance) -> list[tuple[str, str]]:
    """How an object is offered, as it came first: SOP class and transfer syntax."""
    return [(held.sop_class_uid, syntax) for syntax in dict.fromkeys((held.transfer_syntax_uid, *_NATIVE))]


def _portions(owed: Sequence[_Owed]) -> Iterator[list[_Owed]]:
    """What is owed in turn, no more kinds of it at once than an association has room for."""
    portion: list[_Owed] = []
    kinds: set[tuple[str, str]] = set()
    for each in owed:
        if each.kind not in kinds and len(kinds) == _MOST_KINDS:
            yield portion
            portion, kinds = [], set()
        portion.append(each)
        kinds.add(each.kind)
    if portion:
        yield portion
