"""Delivering: one attempt to send an object that is owed to a destination, and what follows from its answer."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import structlog
from pydicom.uid import KeyObjectSelectionDocumentStorage

from segnode.config import FormName
from segnode.errors import DeliveryDeferred, DeliveryRefused
from segnode.pipeline.ports import Destination, Sent
from segnode.seg.forms import FORMS
from segnode.seg.recode import recode
from segnode.store.index import Index, Instance
from segnode.store.jobs import Delivery, Jobs
from segnode.store.measures import Meter
from segnode.store.objects import ObjectStore

_log = structlog.get_logger()

_FIRST_WAIT_S: Final = 5.0
_LONGEST_WAIT_S: Final = 900.0
_GIVE_UP_AFTER_S: Final = 7 * 86400.0


@dataclass(frozen=True)
class HeldSegmentation:
    """A SEG of the object store, re-encoded on demand."""

    objects: ObjectStore
    object_key: str
    sop_class_uid: str
    sop_instance_uid: str

    def part10(self, form: FormName) -> bytes:
        """The object as a Part 10 file in that form."""
        return recode(self._stored, FORMS[form].codec)

    @cached_property
    def _stored(self) -> bytes:
        return self.objects.path(self.object_key).read_bytes()


@dataclass(frozen=True)
class Deliverer:
    """Sends what is owed; `forms` lists what each destination is offered, best first."""

    objects: ObjectStore
    index: Index
    jobs: Jobs
    destinations: Mapping[str, Destination]
    forms: Mapping[str, tuple[FormName, ...]]
    meter: Meter
    clock: Callable[[], float]

    def attempt(self, delivery: Delivery) -> None:
        """Try once to send an object; its row says afterwards how that went. May be repeated."""
        held = self.index.find(delivery.sop_instance_uid)
        destination = self.destinations.get(delivery.destination)
        if held is None or destination is None:
            missing = "the object" if held is None else "the destination"
            self._refuse(delivery, f"{missing} is no longer there")
            return
        try:
            sent = self._send(destination, held, self.forms[delivery.destination])
        except DeliveryRefused as refusal:
            self._refuse(delivery, str(refusal))
        except DeliveryDeferred as deferral:
            self._defer(delivery, str(deferral))
        else:
            self.jobs.delivered(delivery, sent.form, sent.answer, self.clock())
            self._say(delivery, "delivered")

    def _send(self, destination: Destination, held: Instance, forms: Sequence[FormName]) -> Sent:
        if held.sop_class_uid == KeyObjectSelectionDocumentStorage:
            return Sent("", destination.send_as_is(self.objects.path(held.object_key).read_bytes()))
        segmentation = HeldSegmentation(self.objects, held.object_key, held.sop_class_uid, held.sop_instance_uid)
        return destination.send(segmentation, forms)

    def _refuse(self, delivery: Delivery, answer: str) -> None:
        self.jobs.refused(delivery, answer, self.clock())
        self._say(delivery, "refused")

    def _say(self, delivery: Delivery, result: str) -> None:
        self.meter.attempted(delivery.destination, result)
        _log.info("delivery attempted", result=result)

    def _defer(self, delivery: Delivery, answer: str) -> None:
        """Owe it for longer: exponential back-off with jitter, given up after a week."""
        now = self.clock()
        if now - delivery.created_at > _GIVE_UP_AFTER_S:
            self._refuse(delivery, f"given up after a week; last answer: {answer}")
            return
        longest = min(_FIRST_WAIT_S * 2.0 ** min(delivery.attempts, 16), _LONGEST_WAIT_S)
        wait = random.uniform(0.5, 1.0) * longest  # noqa: S311  spreads retries, guards nothing
        self.jobs.deferred(delivery, answer, now + wait, now)
        self._say(delivery, "deferred")
