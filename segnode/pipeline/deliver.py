"""Delivering: one attempt to send an object that is owed to a destination, and what follows from its answer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Final, cast

import structlog
from pydicom.uid import KeyObjectSelectionDocumentStorage

from segnode.config import DestinationConfig, FormName
from segnode.dicom.native import in_native
from segnode.dicom.uids import UUID_ROOT, root_of
from segnode.errors import (
    CannotConvert,
    DeliveryDeferred,
    DeliveryFailed,
    DeliveryRefused,
    FormRefused,
    NotASegmentation,
    NotAVolume,
    NotConfirmed,
    NotLetIn,
    OutOfResources,
    OverlappingSegments,
    UnreadablePixels,
)
from segnode.pipeline.back_off import wait_after
from segnode.pipeline.confirm import OVERDUE_S, Confirmer, Stored
from segnode.pipeline.ladder import Ladder, Tried
from segnode.pipeline.ports import Destination, Encoded
from segnode.pipeline.read_back import require_same_content, require_same_labels
from segnode.pipeline.step_down import NATIVE_SYNTAXES
from segnode.seg.convert import Target, convert
from segnode.seg.forms import FORMS
from segnode.seg.recode import recode
from segnode.store.commitments import Reference
from segnode.store.index import Index, Instance
from segnode.store.jobs import Attempt, Delivery, Jobs, Taken
from segnode.store.measures import Meter
from segnode.store.objects import ObjectStore
from segnode.store.standings import Standing, Standings

_log = structlog.get_logger()

_REMEMBERED_S: Final = 86400.0
# Of hundreds of objects in a row not each answer is news.
_SAID_AGAIN_S: Final = 1.0
# How many objects a request for storage commitment names.
_COMMITTED_AT_ONCE: Final = 500


class Broken(Exception):
    """An unforeseen error, its cause, in what was done for a delivery; the others of its attempt have nothing to do with it."""

    def __init__(self, delivery: Delivery) -> None:
        super().__init__("a delivery broke")
        self.delivery = delivery


@contextmanager
def breaking(delivery: Delivery) -> Iterator[None]:
    """What is done for a delivery: raises what that is foreseen to raise, and Broken for whatever else."""
    try:
        yield
    except (DeliveryFailed, OutOfResources):
        raise
    except Exception as error:
        raise Broken(delivery) from error


@dataclass(frozen=True)
class HeldSegmentation:
    """A LABELMAP or BINARY SEG of the object store, made into what is asked for on demand; `decided_at` dates a conversion.

    So a conversion is the same object whenever it is made, and is kept nowhere; one of an object that came in names the
    node (`station_name`), which knows it again when an archive sends it back.
    """

    objects: ObjectStore
    held: Instance
    decided_at: float
    station_name: str = ""

    def in_form(self, form: FormName) -> Encoded:
        """The object of that form: re-encoded, or converted. Raises FormRefused."""
        wanted, held = FORMS[form], self.held
        try:
            if wanted.sop_class_uid == held.sop_class_uid:
                part10 = recode(self._stored, wanted.codec)
                return Encoded(
                    form, held.sop_class_uid, held.sop_instance_uid, held.series_instance_uid, held.study_instance_uid, part10
                )
            now = datetime.fromtimestamp(self.decided_at, UTC)
            # A result's root is that of its own UID, whatever the configuration has by now.
            root = root_of(held.sop_instance_uid) if held.origin == "made" else UUID_ROOT
            target = Target(wanted.type, wanted.codec, station_name=self.station_name, uid_root=root)
            (made,) = convert(self._stored, target, now)
        except (CannotConvert, NotASegmentation, NotAVolume, OverlappingSegments, UnreadablePixels) as error:
            raise FormRefused(f"cannot be made: {error}") from error
        uids = made.sop_instance_uid, made.series_instance_uid, held.study_instance_uid
        return Encoded(form, str(wanted.sop_class_uid), *uids, made.part10, made.numbers)

    @cached_property
    def _stored(self) -> bytes:
        return self.objects.path(self.held.object_key).read_bytes()


@dataclass(frozen=True)
class Deliverer:
    """Sends what is owed, as the configuration of its destination says."""

    objects: ObjectStore
    index: Index
    jobs: Jobs
    standings: Standings
    destinations: Mapping[str, Destination]
    configs: Mapping[str, DestinationConfig]
    confirmer: Confirmer
    meter: Meter
    clock: Callable[[], float]

    def attempt(self, delivery: Delivery) -> None:
        """Try once to send an object; its row says afterwards how that went. May be repeated."""
        destination, held = self.destinations.get(delivery.destination), self.held(delivery)
        if held is None or destination is None:
            return
        try:
            if held.sop_class_uid == KeyObjectSelectionDocumentStorage:
                self._send_as_is(delivery, destination, held)
            else:
                decided_at = self.jobs.job(delivery.job_id).created_at
                self.send(delivery, destination, HeldSegmentation(self.objects, held, decided_at))
        except DeliveryRefused as refusal:
            self.refused(delivery, refusal)
        except DeliveryDeferred as deferral:
            self.deferred(delivery, deferral)

    def confirm(self, deliveries: Sequence[Delivery]) -> bool:
        """Look once for the proof that a destination has what it stored of a job; whether it could be asked. May be repeated.

        That whose time came first is the last: by it the attempt is known while it goes on.
        """
        now = self.clock()
        in_turn = sorted(deliveries, key=lambda delivery: delivery.next_attempt_at, reverse=True)
        portions = [in_turn[start : start + _COMMITTED_AT_ONCE] for start in range(0, len(in_turn), _COMMITTED_AT_ONCE)]
        return all(self._confirm_together(portion, now) for portion in portions)

    def _confirm_together(self, deliveries: Sequence[Delivery], now: float) -> bool:
        """What of it is looked at again, or sent again, is due at the same time: it stays together."""
        destination, again_at = self.destinations.get(deliveries[0].destination), now + wait_after(deliveries[0].attempts)
        stored = [(delivery, held) for delivery in deliveries if (held := self.held(delivery)) is not None]
        if destination is None or not stored:
            return True
        trouble = self.confirmer.ask([(delivery, _reference(delivery, held)) for delivery, held in stored])
        for delivery, held in stored:
            try:
                with breaking(delivery):
                    self._confirm(delivery, destination, held, trouble, now, again_at)
            except DeliveryDeferred as deferral:
                self.deferred(delivery, deferral)
                return False
        return True

    def held(self, delivery: Delivery) -> Instance | None:
        """The object that is owed. Where that or its destination is gone, the delivery is given up."""
        held = self.index.find(delivery.sop_instance_uid)
        if held is None or delivery.destination not in self.destinations:
            missing = "the object" if held is None else "the destination"
            self.give_up(delivery, f"{missing} is no longer there")
        return held

    def _send_as_is(self, delivery: Delivery, destination: Destination, held: Instance) -> None:
        answer = destination.send_as_is(self.objects.path(held.object_key).read_bytes())
        self.standings.answered(delivery.destination, answer, self.clock())
        self.taken(delivery, Taken("", held.sop_instance_uid), answer)

    def taken(self, delivery: Delivery, taken: Taken, answer: str, *, is_proved: bool = False) -> None:
        """A destination has an object, as it says: what counts as delivered then is what its configuration says."""
        said = {"form": taken.form, "sent": taken.sop_instance_uid, "segment_numbers": dict(taken.segment_numbers)}
        if is_proved or self.configs[delivery.destination].confirm == "status":
            self.jobs.delivered(delivery, taken, answer, self.clock())
            self._say(delivery, "delivered", **said)
        else:
            self.jobs.stored(delivery, taken, answer, self.clock())
            self._say(delivery, "stored", **said)

    def _confirm(
        self,
        delivery: Delivery,
        destination: Destination,
        held: Instance,
        trouble: DeliveryFailed | None,
        now: float,
        again_at: float,
    ) -> None:
        """Have it proved that a destination has what it stored; sent once more where it does not stand by it."""
        stored = lambda: self._what_was_stored(delivery, held)  # noqa: E731
        try:
            proof = self.confirmer.proof(delivery, destination, _reference(delivery, held), stored, trouble, again_at)
        except NotConfirmed as reason:
            self._unproved(delivery, str(reason), now, again=not delivery.sent_again)
        except DeliveryRefused as reason:
            self._unproved(delivery, str(reason), now, again=False)
        except NotLetIn as reason:
            if self.clock() >= delivery.stored_at + OVERDUE_S:
                self._unproved(delivery, f"stored, but not proved within 24 hours: {reason}", now, again=False)
                return
            self.answered(delivery.destination, str(reason))  # it takes objects: others need not wait for this
            self.jobs.awaited(delivery, str(reason), again_at, self.clock())
        else:
            self.answered(delivery.destination, proof.answer)
            if proof.look_at is None:
                self.jobs.proved(delivery, proof.answer, self.clock())
                self._say(delivery, "delivered", sent=delivery.sent_sop_instance_uid)
            else:
                self.jobs.awaited(delivery, proof.answer, proof.look_at, self.clock())

    def _unproved(self, delivery: Delivery, reason: str, now: float, *, again: bool) -> None:
        self.answered(delivery.destination, reason)
        if again:
            self.jobs.send_again(delivery, f"{reason}; it is sent again", now, self.clock())
            self._say(delivery, "deferred")
        else:
            also = ", also after it was sent again" if delivery.sent_again else ""
            self.jobs.unproved(delivery, reason + also, self.clock())
            self._say(delivery, "refused")

    def _what_was_stored(self, delivery: Delivery, held: Instance) -> Stored:
        """What a destination stored, to be compared with what it gives out. Raises DeliveryRefused."""
        uid, where = delivery.sent_sop_instance_uid, self.destinations[delivery.destination].where
        if delivery.form not in FORMS:
            path, native = self.objects.path(held.object_key), NATIVE_SYNTAXES.get(delivery.form)
            part10 = in_native(path, native) if native else path.read_bytes()
            return Stored(held, lambda found: require_same_content(uid, part10, found, where))
        segmentation = HeldSegmentation(self.objects, held, self.jobs.job(delivery.job_id).created_at)
        try:
            encoded = segmentation.in_form(cast("FormName", delivery.form))
        except FormRefused as refusal:
            raise DeliveryRefused(f"what was sent as {uid} {refusal}") from refusal
        return Stored(encoded, lambda found: require_same_labels(uid, encoded.part10, found, where))

    def send(self, delivery: Delivery, destination: Destination, segmentation: HeldSegmentation) -> None:
        """Send a SEG in one of the destination's forms. Raises DeliveryRefused, DeliveryDeferred.

        What came in may not be had in every form, so which of them it takes says nothing of what is made here.
        """
        name = delivery.destination
        standing = self.standings.of(name)
        remembered = self._remembered(standing)
        tried = Tried(cast("tuple[FormName, ...]", delivery.tried), cast("FormName | None", delivery.unanswered or None))
        ladder = Ladder(destination, segmentation, tried, lambda form: self.jobs.sending(delivery, form))
        sent = ladder.descend(order(self.configs[name].seg, tried.unanswered, remembered))
        encoded, now = sent.encoded, self.clock()
        self.standings.answered(name, sent.answer, now)
        if segmentation.held.origin == "made" and not sent.was_there and encoded.form != remembered:
            self.standings.learn(name, encoded.form, _asked(self.configs[name]), now)
        if standing.is_down:
            self.jobs.hasten(name, now)
        is_read_back = sent.was_there and self.configs[name].confirm == "read-back"
        made = Taken(encoded.form, encoded.sop_instance_uid, encoded.numbers)
        self.taken(delivery, made, sent.answer, is_proved=is_read_back)

    def answered(self, name: str, answer: str) -> None:
        """A destination takes objects: where that is news, what waits for it waits no longer."""
        standing = self.standings.of(name)
        if standing.failures or self.clock() - standing.answered_at >= _SAID_AGAIN_S:
            self.standings.answered(name, answer, self.clock())
        if standing.is_down:
            self.jobs.hasten(name, self.clock())

    def refused(self, delivery: Delivery, refusal: DeliveryRefused) -> None:
        """The destination will not take an object."""
        self.standings.answered(delivery.destination, str(refusal), self.clock())
        self.jobs.refused(delivery, str(refusal), self.clock())
        self._say(delivery, "refused")

    def _remembered(self, standing: Standing) -> FormName | None:
        """What the destination took last, while that may be relied on: for a day, of the same forms at the same address."""
        config = self.configs[standing.name]
        if standing.learned_of != _asked(config) or self.clock() - standing.learned_at >= _REMEMBERED_S:
            return None
        return next((form for form in config.seg if form == standing.form), None)

    def give_up(self, delivery: Delivery, reason: str) -> None:
        """Send an object no more."""
        self.jobs.given_up(delivery, reason, self.clock())
        self._say(delivery, "refused")

    def _say(self, delivery: Delivery, result: str, **details: object) -> None:
        self.meter.attempted(delivery.destination, result)
        _log.info("delivery attempted", result=result, **details)

    def deferred(self, delivery: Delivery, deferral: DeliveryDeferred) -> None:
        """Owe an object for longer, and all that its job owes there.

        Exponential back-off with jitter; each is given up when the time that it has at the destination is over.
        """
        name, answer = delivery.destination, str(deferral)
        now, config = self.clock(), self.configs[name]
        self.standings.failed(name, answer, now)
        due, until = self.jobs.attempted(Attempt(delivery.job_id, name, now), now), now + wait_after(delivery.attempts)
        overdue = [each for each in due if now - each.owed_since > config.give_up_after_s]
        for each in overdue:
            self.give_up(each, f"given up after {config.give_up_after}; last answer: {answer}")
        if any(each.sop_instance_uid == delivery.sop_instance_uid for each in overdue):
            self.jobs.put_off(delivery, until)
        else:
            self.jobs.deferred(delivery, answer, until, now)
            self._say(delivery, "deferred")


def order(forms: tuple[FormName, ...], unanswered: FormName | None, remembered: FormName | None) -> list[FormName]:
    """The forms of a destination as they are tried: what was sent without an answer, what it took last, then best first."""
    first = [form for form in (unanswered, remembered) if form in forms]
    return list(dict.fromkeys((*first, *forms)))


def _reference(delivery: Delivery, held: Instance) -> Reference:
    """What was sent, as storage commitment names it."""
    form = FORMS.get(cast("FormName", delivery.form))
    sop_class = form.sop_class_uid if form else held.sop_class_uid
    return Reference(str(sop_class), delivery.sent_sop_instance_uid)


def _asked(config: DestinationConfig) -> str:
    """What was asked when it was learned what a destination takes: another address or list is to be learned anew."""
    return " ".join((config.to, *config.seg))
