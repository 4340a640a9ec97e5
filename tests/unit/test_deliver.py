"""What follows from a destination's answer; with a clock in the hand."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest

from segnode.config import DestinationConfig, FormName
from segnode.dicomweb.client import stored_answer
from segnode.errors import (
    AlreadyThere,
    CannotAsk,
    CannotReadBack,
    DeliveryDeferred,
    DeliveryFailed,
    DeliveryRefused,
    FormRefused,
    NotLetIn,
)
from segnode.pipeline.ports import Encoded
from tests.outbox import CREATED, RESULT, Outbox, segmentation, truth

FORMS_OFFERED: tuple[FormName, ...] = ("labelmap:rle", "labelmap:native", "binary:native")


@dataclass
class Archive:
    """A destination that answers each form as it is told to, and the last answer for ever."""

    answers: dict[FormName, str | DeliveryFailed] = field(default_factory=dict)
    holds: bytes | DeliveryFailed | None = None
    where: str = "the archive"
    sent: list[FormName] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    @contextmanager
    def reach(self, _forms: Sequence[FormName]) -> Iterator["Archive"]:
        """Be reached, unless there are no answers at all."""
        if not self.answers:
            raise DeliveryDeferred("nobody there")
        yield self

    def accepts(self, form: FormName) -> bool:
        """Those that there is an answer to."""
        return form in self.answers

    def store(self, encoded: Encoded) -> str:
        """Answer."""
        self.sent.append(encoded.form)
        answer = self.answers[encoded.form]
        if isinstance(answer, DeliveryFailed):
            raise answer
        return answer

    def held(self, encoded: Encoded) -> bytes | None:
        """What it was told to hold."""
        self.asked.append(encoded.sop_instance_uid)
        if isinstance(self.holds, DeliveryFailed):
            raise self.holds
        return self.holds


def always(answer: str | DeliveryFailed) -> dict[FormName, str | DeliveryFailed]:
    """The same answer to every form."""
    return dict.fromkeys(FORMS_OFFERED, answer)


@dataclass
class Night(Outbox):
    """An outbox with archives that answer by heart."""

    def answer(self, answer: str | DeliveryFailed, name: str = "archive") -> None:
        """Have an archive answer that from now on."""
        self.archive(name).answers = always(answer)

    def archive(self, name: str = "archive") -> Archive:
        """An archive."""
        archive = self.destinations[name]
        assert isinstance(archive, Archive)
        return archive


def night_of(folder: Path, *names: str, **settings) -> Night:
    """A night in which the SEG is owed to archives that are busy."""
    configs = {name: DestinationConfig(name=name, to=f"http://{name}", seg=FORMS_OFFERED, **settings) for name in names}
    archives = {name: Archive(always(DeliveryDeferred("busy"))) for name in names}
    night = Night(folder, configs, archives)
    night.owe(*names)
    return night


@pytest.fixture
def night(tmp_path: Path) -> Night:
    """One object that is owed to one archive, which is busy."""
    return night_of(tmp_path, "archive")


def test_delivery_backs_off_for_a_week_and_is_given_up(night: Night) -> None:
    """Waits grow from 5 seconds to 15 minutes; after a week the delivery fails with the last answer."""
    night.archive().answers = {}
    waits = []
    while (night.attempt(), delivery := night.delivery())[1].state == "waiting":
        waits.append(delivery.next_attempt_at - night.now)
        night.now = max(delivery.next_attempt_at, night.now + 60)
    assert 2.5 <= waits[0] <= 5
    assert max(waits) <= 900
    assert all(450 <= wait for wait in waits[10:])
    assert night.now - CREATED > 7 * 86400
    assert 672 < len(waits) < 2000
    assert delivery.last_answer == "given up after 7d; last answer: nobody there"
    assert night.jobs.job("j").state == "failed"


def test_delivery_is_given_up_when_its_destination_says(tmp_path: Path) -> None:
    """`give_up_after` is a key of the destination."""
    night = night_of(tmp_path, "archive", give_up_after="2h")
    while (night.attempt(), delivery := night.delivery())[1].state == "waiting":
        night.now = max(delivery.next_attempt_at, night.now + 60)
    assert 7200 < night.now - CREATED < 7200 + 900
    assert delivery.last_answer == "given up after 2h; last answer: busy"


def test_archive_that_comes_back_gets_it(night: Night) -> None:
    """After a refusal for now, the next attempt at its time delivers."""
    night.attempt()
    night.answer("ok")
    night.attempt()
    assert night.delivery().attempts == 1
    night.now += 5
    night.attempt()
    delivery = night.delivery()
    assert (delivery.state, delivery.form, delivery.attempts) == ("delivered", "labelmap:rle", 2)
    assert delivery.sent_sop_instance_uid == RESULT
    assert night.jobs.job("j").state == "delivered"


def test_refusal_is_not_tried_again(night: Night) -> None:
    """What an archive will not take in any form fails at once, with its answer."""
    night.answer(DeliveryRefused("not authorised"))
    night.attempt()
    night.now += 10**6
    night.attempt()
    delivery = night.delivery()
    assert (delivery.state, delivery.attempts, delivery.last_answer) == ("failed", 1, "not authorised")
    assert night.jobs.job("j").error == "archive: not authorised"
    assert night.archive().sent == ["labelmap:rle"]


def test_end_of_the_list_names_each_refusal(night: Night) -> None:
    """Forms that are refused one by one, at negotiation or when they are sent, are all in the reason."""
    night.archive().answers = {"labelmap:rle": FormRefused("status 0xA900"), "binary:native": FormRefused("status 0x0122")}
    night.attempt()
    answer = night.delivery().last_answer
    assert "labelmap:rle status 0xA900; labelmap:native not accepted at negotiation; binary:native status 0x0122" in answer
    assert night.delivery().state == "failed"


def test_no_answer_is_a_retry_of_the_same_form(night: Night) -> None:
    """After an abort the form that was sent is the next that is, also when a better one was refused before it."""
    night.archive().answers |= {"labelmap:rle": FormRefused("no"), "labelmap:native": DeliveryDeferred("broke off")}
    night.attempt()
    assert night.archive().sent == ["labelmap:rle", "labelmap:native"]
    night.now += 5
    night.attempt()
    assert night.archive().sent[2:] == ["labelmap:native"]


def test_form_of_another_uid_is_sent_when_the_first_is_not_there(night: Night) -> None:
    """Before the BINARY the archive is asked for the LABELMAP; the object that was sent and its numbers are recorded."""
    night.archive().answers = {"labelmap:rle": FormRefused("no"), "binary:native": "ok"}
    night.attempt()
    delivery = night.delivery()
    assert night.archive().asked == [RESULT]
    assert (delivery.state, delivery.form) == ("delivered", "binary:native")
    assert delivery.sent_sop_instance_uid not in ("", RESULT)
    assert delivery.segment_numbers == {2: 1, 7: 2}


def test_first_uid_that_is_there_after_all_is_the_delivery(night: Night) -> None:
    """An archive that refused the LABELMAP and holds it is sent nothing else, when what it gives out has the same labels."""
    night.archive().answers |= {"labelmap:rle": FormRefused("no"), "labelmap:native": FormRefused("no")}
    night.archive().holds = segmentation(truth())
    night.attempt()
    delivery = night.delivery()
    assert (delivery.state, delivery.sent_sop_instance_uid) == ("delivered", RESULT)
    assert "the same labels" in delivery.last_answer
    assert "binary:native" not in night.archive().sent


@pytest.mark.parametrize(
    ("holds", "state", "said"),
    [
        (segmentation(truth()), "delivered", "the same labels"),
        (segmentation(np.roll(truth(), 1, axis=2)), "failed", "other labels"),
        (segmentation(truth(), "1.2.3.4"), "failed", "other labels"),
        (b"no DICOM", "failed", "cannot be compared"),
        (CannotAsk("no C-FIND"), "failed", "no C-FIND"),
        (CannotReadBack("no C-GET"), "failed", "no C-GET"),
        (DeliveryDeferred("busy"), "waiting", "busy"),
        (None, "waiting", "does not find it"),
    ],
)
def test_already_there_counts_only_when_it_is_read_back(
    night: Night, holds: bytes | DeliveryFailed | None, state: str, said: str
) -> None:
    """An archive that says it has the object has to give it out with the same labels."""
    night.answer(AlreadyThere("status 0x0111"))
    night.archive().holds = holds
    night.attempt()
    delivery = night.delivery()
    assert (delivery.state, said in delivery.last_answer) == (state, True), delivery.last_answer
    assert night.archive().sent == ["labelmap:rle"]


def test_archive_that_cannot_be_asked_gets_the_next_form(night: Night) -> None:
    """A refusal that cannot be checked stands, and the answer says that it was not."""
    night.archive().answers |= {"labelmap:rle": FormRefused("no"), "labelmap:native": FormRefused("no"), "binary:native": "ok"}
    night.archive().holds = CannotAsk("it knows no C-FIND")
    night.attempt()
    delivery = night.delivery()
    assert (delivery.state, delivery.form) == ("delivered", "binary:native")
    assert f"whether {RESULT} is there is not known: it knows no C-FIND" in delivery.last_answer


def test_nothing_else_is_sent_while_the_first_may_be_there(night: Night) -> None:
    """What was sent without an answer, is not accepted any more and cannot be asked for, is not followed by a second SEG."""
    night.attempt()
    night.archive().answers = {"binary:native": "ok"}
    night.archive().holds = CannotAsk("it knows no C-FIND")
    night.now += 5
    night.attempt()
    delivery = night.delivery()
    assert (delivery.state, night.archive().sent) == ("waiting", ["labelmap:rle"])
    assert "without an answer" in delivery.last_answer
    night.archive().holds = None
    night.now += 900
    night.attempt()
    assert night.delivery().form == "binary:native"


def test_what_an_archive_took_is_tried_first_for_a_day(night: Night) -> None:
    """A form that was taken comes first, until a day is over or it is to be learned anew."""
    night.archive().answers = always("ok") | {"labelmap:rle": FormRefused("no")}
    firsts = []
    for number, later in enumerate((0, 60, 86400, 60)):
        night.now += later
        if number:
            night.owe("archive", job=f"j{number}")
        if number == 3:
            night.standings.forget("archive")
        del night.archive().sent[:]
        night.attempt()
        firsts.append(list(night.archive().sent))
    both = ["labelmap:rle", "labelmap:native"]
    assert firsts == [both, ["labelmap:native"], both, both]
    assert night.standings.of("archive").form == "labelmap:native"


def test_another_list_of_forms_is_learned_anew(night: Night) -> None:
    """What was taken of one list says nothing about another."""
    night.archive().answers = always("ok") | {"labelmap:rle": FormRefused("no")}
    night.attempt()
    config = DestinationConfig(name="archive", to="http://archive", seg=("labelmap:rle", "labelmap:native"))
    again = Night(night.folder, {"archive": config}, {"archive": Archive(always("ok"))})
    again.owe("archive", job="next")
    again.attempt()
    assert again.archive().sent == ["labelmap:rle"]


def test_archive_that_is_down_is_probed_once_a_minute(night: Night) -> None:
    """After five failures in a row one delivery a minute is attempted, until it is answered; then all go at once."""
    for number in range(20):
        night.owe("archive", job=f"j{number}")
    assert [len(night.attempt()) for _ in range(4)] == [4, 4, 0, 0]
    night.now += 59
    assert night.attempt() == []
    night.now += 1
    assert [len(night.attempt()), len(night.attempt())] == [1, 0]
    night.answer("ok")
    night.now += 60
    assert len(night.attempt()) == 1
    while night.attempt():
        assert night.standings.of("archive").failures == 0
    assert {delivery.state for job in night.jobs.all() for delivery in job.deliveries} == {"delivered"}


@pytest.mark.parametrize("failures", [1, 5])
def test_clock_that_is_set_back_keeps_nothing_waiting(night: Night, failures: int) -> None:
    """What was to be tried at a time that is years away by now is tried, also where the archive was found to be down."""
    while night.standings.of("archive").failures < failures:
        night.attempt()
        night.now = max(night.now, night.delivery().next_attempt_at)
    night.now -= 1e8
    night.answer("ok")
    night.attempt()
    assert night.delivery().state == "delivered"


def test_archive_that_is_down_delays_no_other(tmp_path: Path) -> None:
    """What is owed to an archive that answers goes at once beside one that is down, and one that is paused."""
    night = night_of(tmp_path, "dead", "paused", "well")
    night.answer("ok", "well")
    night.standings.pause("paused")
    for number in range(20):
        night.owe("dead", "paused", "well", job=f"j{number}")
    while night.attempt():
        pass
    states = [(d.destination, d.state) for job in night.jobs.all() for d in job.deliveries]
    assert {state for name, state in states if name == "well"} == {"delivered"}
    assert len(night.archive("dead").sent) == 8
    assert night.archive("paused").sent == []


def test_what_waits_for_an_archive_that_is_down_is_given_up_too(night: Night) -> None:
    """A delivery that was never its turn fails when its time is over, with what the archive answered to others."""
    for number in range(20):
        night.owe("archive", job=f"j{number}")
    night.attempt()
    night.attempt()
    night.now += 7 * 86400 - 1
    night.dispatch.give_up(night.now)
    assert all(job.state == "delivering" for job in night.jobs.all())
    night.now += 2
    night.dispatch.give_up(night.now)
    assert [job.state for job in night.jobs.all()].count("failed") == 20
    assert "given up after 7d; the last answer of archive: busy" in {job.error[9:] for job in night.jobs.all()}
    night.attempt()
    assert {job.state for job in night.jobs.all()} == {"failed"}


def test_paused_archive_gets_nothing_until_it_is_resumed(night: Night) -> None:
    """A pause outlives whoever reads the rows; nothing is given up in it, and after it what is owed is attempted."""
    night.answer("ok")
    night.standings.pause("archive")
    night.now += 8 * 86400
    night.dispatch.give_up(night.now)
    again = Night(night.folder, night.configs, night.destinations, now=night.now)
    assert again.attempt() == []
    again.standings.resume("archive")
    again.attempt()
    assert again.delivery().state == "delivered"


def test_destination_has_no_more_associations_than_it_may(tmp_path: Path) -> None:
    """What is chosen stays chosen while it goes on, and no more."""
    night = night_of(tmp_path, "archive", max_associations=3)
    for number in range(9):
        night.owe("archive", job=f"j{number}")
    chosen = night.dispatch.due(night.now)
    night.now += 1
    night.owe("archive", job="a")
    assert len(chosen) == 3
    assert night.dispatch.due(night.now) == chosen


def test_what_is_due_longest_is_attempted_first(tmp_path: Path) -> None:
    """Where not all can be attempted at once it is no matter how an archive is called."""
    night = night_of(tmp_path, "b", "a")
    night.jobs.cancel("j", night.now)
    for name in ("b", "a"):
        night.owe(name, job=f"for {name}")
        night.now += 1
    assert [attempt.destination for attempt in night.dispatch.due(night.now)] == ["b", "a"]


def item(uid: str, reason: int | None = None) -> dict:
    """An item of a STOW response."""
    return {"00081155": {"vr": "UI", "Value": [uid]}} | ({"00081197": {"vr": "US", "Value": [reason]}} if reason else {})


def response(status: int, stored: Sequence[dict] = (), failed: Sequence[dict] | None = None) -> httpx.Response:
    """A STOW response; the failed sequence may be there and empty."""
    document: dict = {"00081199": {"vr": "SQ", "Value": list(stored)}}
    if failed is not None:
        document["00081198"] = {"vr": "SQ", "Value": list(failed)} if failed else {"vr": "SQ"}
    return httpx.Response(status, json=document)


@pytest.mark.parametrize(
    ("given", "outcome"),
    [
        (response(200, [item("1.1")]), None),
        (response(200, [item("1.1")], []), None),
        (response(202, [item("1.1")]), None),
        (response(409, [], [item("1.1", 0x0111)]), AlreadyThere),
        (response(409, [], [item("1.1", 0xB00E)]), AlreadyThere),
        (response(200, [item("1.1")], [item("1.1", 0xA700)]), DeliveryDeferred),
        (response(200, [item("1.1")], [item("1.9", 0xA700)]), None),
        (response(202, [], [item("1.1", 0xB000)]), DeliveryRefused),
        (httpx.Response(501), DeliveryRefused),
        (httpx.Response(507), DeliveryDeferred),
        (response(200, [], []), DeliveryDeferred),
        (response(200, [item("1.9")]), DeliveryDeferred),
        (response(200, [], [item("1.1", 0xA700)]), DeliveryDeferred),
        (response(409, [], [item("1.1", 0x0122)]), FormRefused),
        (response(202, [], [item("1.1", 0xC122)]), FormRefused),
        (response(409, [], [item("1.1", 0x0124)]), DeliveryRefused),
        (httpx.Response(415), FormRefused),
        (httpx.Response(400, text="<html>"), FormRefused),
        (httpx.Response(503), DeliveryDeferred),
        (httpx.Response(429), DeliveryDeferred),
        (httpx.Response(401), NotLetIn),
        (httpx.Response(403), NotLetIn),
        (httpx.Response(404), DeliveryRefused),
        (response(200, [item("1.1")], [item("1.1")]), DeliveryDeferred),
        *[
            (httpx.Response(200, json=document), DeliveryDeferred)
            for document in (
                [1, 2],
                {"00081199": [item("1.1")]},
                {"00081199": None, "00081198": "1.1"},
                {"00081199": {"vr": "SQ", "Value": {"1.1": 1}}, "00081198": {"vr": "SQ", "Value": 1}},
                {"00081199": {"vr": "SQ", "Value": ["1.1", {"00081155": "1.1"}, {"00081155": {"Value": {"1.1": 1}}}]}},
            )
        ],
        (httpx.Response(200, content=b"[" * 100_000), DeliveryDeferred),
    ],
)
def test_stow_answer(given: httpx.Response, outcome: type[DeliveryFailed] | None) -> None:
    """Stored is what the archive lists as stored, whatever the HTTP status; every other answer has its consequence."""
    if outcome is None:
        assert str(given.status_code) in stored_answer(given, "1.1")
    else:
        with pytest.raises(outcome):
            stored_answer(given, "1.1")
