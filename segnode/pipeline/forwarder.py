"""Sending on: what came in, as it came or in native encoding; SEGs in the forms of the destination where a rule says so."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby
from typing import Final

from segnode.dicom.header import read_header
from segnode.dicom.uids import LABEL_MAP_SEGMENTATION_STORAGE, SEGMENTATION_CLASSES
from segnode.errors import (
    AlreadyThere,
    CannotAsk,
    CannotReadBack,
    DeliveryDeferred,
    DeliveryRefused,
    Refusal,
)
from segnode.pipeline.assemble import values_in_files
from segnode.pipeline.deliver import Deliverer, HeldSegmentation, breaking
from segnode.pipeline.ports import Destination, Passage
from segnode.pipeline.rules import ForwardRule
from segnode.pipeline.step_down import MOST_KINDS, offered, store_stepping_down
from segnode.store.index import Instance
from segnode.store.jobs import Delivery, Taken

_AS_RECEIVED: Final = "as received"


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
        found = [(delivery, self.deliverer.held(delivery)) for delivery in deliveries]
        owed = [_Owed(delivery, held) for delivery, held in found if held is not None]
        if destination is None:
            return
        for _, group in groupby(owed, lambda each: each.delivery.attempts):
            together = list(group)
            segmentations = [each for each in together if rule.config.reencode and self._has_forms(each)]
            as_they_are = [each for each in together if each not in segmentations]
            goes_on = all(self._pass_on(portion, destination) for portion in _portions(as_they_are))
            if not (goes_on and all(self._send(each, destination) for each in segmentations)):
                return

    def _has_forms(self, owed: _Owed) -> bool:
        """Whether it is a SEG that can be had in other forms; a FRACTIONAL cannot, nobody says what is inside: it is noted."""
        held = owed.held
        if held.sop_class_uid not in SEGMENTATION_CLASSES:
            return False
        with breaking(owed.delivery):
            path = self.deliverer.objects.path(held.object_key)
            (kind,) = values_in_files([path], ["SegmentationType"])["SegmentationType"]
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
            with breaking(delivery):
                deliverer.send(delivery, destination, segmentation)
        except DeliveryRefused as refusal:
            deliverer.refused(delivery, refusal)
        except DeliveryDeferred as deferral:
            deliverer.deferred(delivery, deferral)
            return False
        return True

    def _pass_on(self, portion: Sequence[_Owed], destination: Destination) -> bool:
        """Send objects as they are; whether more can be sent."""
        kinds = {kind for owed in portion for kind in offered(*owed.kind)}
        claims: list[tuple[_Owed, AlreadyThere]] = []
        at = portion[0]
        try:
            with destination.passage(kinds) as passage:
                for at in portion:
                    if self._is_stopped(at.delivery):
                        return False
                    try:
                        with breaking(at.delivery):
                            self._store(at, passage, destination)
                    except AlreadyThere as claim:
                        claims.append((at, claim))
                    except DeliveryRefused as refusal:
                        self.deliverer.refused(at.delivery, refusal)
            # Some archives have one association at a time: they are asked when that is over.
            for at, claimed in claims:
                try:
                    with breaking(at.delivery):
                        self._read_back(at, claimed, destination)
                except DeliveryRefused as refusal:
                    self.deliverer.refused(at.delivery, refusal)
        except DeliveryDeferred as deferral:
            self.deliverer.deferred(at.delivery, deferral)
            return False
        return True

    def _is_stopped(self, delivery: Delivery) -> bool:
        """Whether it is paused, and owed from now on; or its job was cancelled meanwhile, and retried perhaps."""
        deliverer = self.deliverer
        if deliverer.standings.of(delivery.destination).is_paused:
            deliverer.jobs.put_off(delivery, deliverer.clock())
            return True
        return not deliverer.jobs.is_as_read(delivery)

    def _store(self, owed: _Owed, passage: Passage, destination: Destination) -> None:
        """Send an object as it came, or else natively. Raises DeliveryRefused, DeliveryDeferred, AlreadyThere."""
        path = self.deliverer.objects.path(owed.held.object_key)
        taken, answer = store_stepping_down(path, *owed.kind, passage, destination.where)
        self._taken(owed, taken or _AS_RECEIVED, answer)

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


def _portions(owed: Sequence[_Owed]) -> Iterator[list[_Owed]]:
    """What is owed in turn, no more kinds of it at once than an association has room for."""
    portion: list[_Owed] = []
    kinds: set[tuple[str, str]] = set()
    for each in owed:
        if each.kind not in kinds and len(kinds) == MOST_KINDS:
            yield portion
            portion, kinds = [], set()
        portion.append(each)
        kinds.add(each.kind)
    if portion:
        yield portion
