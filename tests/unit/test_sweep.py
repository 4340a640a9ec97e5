"""Which series are decided on, and when; with a clock in the hand."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from segnode.config import parse_config
from segnode.dicom.header import Header
from segnode.pipeline.assemble import image_values, is_stat
from segnode.pipeline.rules import Rule, documents, resolve_rules, rule_of
from segnode.pipeline.sweep import Sweep, former_rules
from segnode.store.database import open_database
from segnode.store.index import Answer, Index, Instance, OpenAssociation, QuietSeries, Sender
from segnode.store.jobs import Job, Jobs, Taken
from segnode.store.leases import Lease
from segnode.testing.part10 import encode_part10

HEADER = Header("1.2.840.10008.5.1.4.1.1.2", "1.1", "1.2", "1.3", "1.2.840.10008.1.2.1", 300, {"Modality": "CT"})


MODEL = '[[models]]\nname = "m"\nrun = "python:m"\nlabels = "threshold"\nversion = "1"\n'


@dataclass
class Node:
    """An index, its jobs, and a clock that stands where it is set."""

    index: Index
    jobs: Jobs
    now: float = 100.0
    asked: list[tuple[str, str]] = field(default_factory=list)

    def ask(self, peer: str, series: QuietSeries) -> None:
        """Note who is asked of what; the answer is given by hand."""
        self.asked.append((peer, series.series_instance_uid))

    def bring(self, association: OpenAssociation, *sops: str) -> None:
        """An open association brings images now."""
        for sop in sops:
            self.index.add(replace(HEADER, sop_instance_uid=sop), f"key {sop}", 1, "digest", "received", self.now, association)

    def take(self, job: Job) -> None:
        """The archive takes the result of a job now."""
        self.jobs.owe(job.id, f"2.25.{job.id[:8]}", ["archive"], self.now)
        self.jobs.delivered(self.jobs.delivery(job.id, "archive"), Taken("labelmap:rle", "1.9"), "stored", self.now)

    def receive(self, sop: str, series: str = "1.3", modality: str = "CT") -> None:
        """An image comes in now."""
        header = replace(HEADER, sop_instance_uid=sop, series_instance_uid=series, attributes={"Modality": modality})
        self.index.add(header, f"key {sop}", 1, "digest", "received", self.now)

    def sweep(self, rules: Sequence[Rule]) -> list[Job]:
        """Sweep now, as a worker that has these rules; all jobs after that. The key of an object is the path of its file."""
        first_loaded = self.jobs.load_rules(documents(rules), self.now)
        self.jobs.put_in_force([rule.digest for rule in rules], self.now)
        values, former = image_values(self.index, Path), former_rules(self.jobs, self.now)
        Sweep(self.index, self.jobs, rules, first_loaded, values, self.ask, lambda: self.now, former=former).decide()
        return self.jobs.all()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """An empty node."""
    return Node(Index(open_database(tmp_path / "index.sqlite")), Jobs(open_database(tmp_path / "pipeline.sqlite")))


def ask_nobody(_peer: str, _series: QuietSeries) -> None:
    """What a sweep asks with whose rules ask nobody."""


def rules(*quiet: float, modality: str = "CT", version: str = "1", more: str = "") -> Sequence[Rule]:
    """Rules that differ in what they wait for; `more` are further keys of each."""
    archive = '[[destinations]]\nname = "archive"\nto = "ARCHIVE@127.0.0.1:104"\n'
    model = MODEL.replace('"1"', f'"{version}"')
    texts = [
        f'[[rules]]\nwhen = {{ Modality = "{modality}{"*" * n}" }}\nmodel = "m"\nquiet = {seconds}\n{more}\n'
        for n, seconds in enumerate(quiet)
    ]
    return resolve_rules(parse_config(model + archive + "".join(texts), Path()))


def test_series_waits_until_it_is_quiet(node: Node) -> None:
    """A decision is made when no image has come for `quiet` seconds, and only one however often is swept."""
    node.sweep(rules(60.0))
    node.receive("1.1")
    node.now += 50
    node.receive("1.5")
    node.now += 59
    assert node.sweep(rules(60.0)) == []
    node.now += 1
    (job,) = node.sweep(rules(60.0))
    assert (job.state, job.series_instance_uid) == ("waiting", "1.3")
    node.now += 1000
    assert node.sweep(rules(60.0)) == [job]


def test_series_that_is_deleted_meanwhile_is_no_work(node: Node) -> None:
    """One that is quiet, and gone when its images are looked at: no job is made of no images."""
    one = rules(0.0)
    first_loaded = node.jobs.load_rules(documents(one), node.now)
    node.receive("1.1")
    (series,) = node.index.quiet_series()
    node.index.doom_images("1.3")
    values = image_values(node.index, Path)
    Sweep(node.index, node.jobs, one, first_loaded, values, node.ask, lambda: node.now).consider(series)
    assert node.jobs.all() == []


def test_each_rule_waits_for_itself(node: Node) -> None:
    """Of two rules that select a series, each decides at its own time."""
    two = rules(10.0, 60.0)
    node.sweep(two)
    node.receive("1.1")
    node.now += 20
    assert len(node.sweep(two)) == 1
    node.now += 40
    assert len({job.rule_digest for job in node.sweep(two)}) == 2


def test_rule_selects_by_attributes(node: Node) -> None:
    """A series that no rule selects is left alone, and another is not."""
    node.sweep(rules(0.0))
    node.receive("1.1", "1.3", "MR")
    node.receive("1.2", "1.4", "CT")
    assert [job.series_instance_uid for job in node.sweep(rules(0.0))] == ["1.4"]


def test_rule_does_not_act_on_what_came_before_it(node: Node) -> None:
    """A rule that is loaded after a series has come, or a new model version, leaves it; an image that comes later starts it."""
    node.receive("1.1")
    node.now += 10
    assert node.sweep(rules(0.0)) == []
    node.receive("1.5")
    assert len(node.sweep(rules(0.0))) == 1
    node.now += 10
    assert len(node.sweep(rules(0.0, version="2"))) == 1
    node.receive("1.6")
    assert [job.model_version for job in node.sweep(rules(0.0, version="2"))] == ["1", "2"]


def test_what_waits_when_rules_change_is_done_by_those_that_it_waits_for(node: Node) -> None:
    """A series that is not quiet yet, then another version, then no rule at all: it is made, once, and late images are not."""
    node.sweep(rules(60.0))
    node.receive("1.1")
    node.now += 10
    assert node.sweep(rules(60.0, version="2")) == []
    node.receive("1.7", series="1.4")
    node.now += 40
    assert node.sweep([]) == []
    node.now += 10
    (first,) = node.sweep([])
    node.now += 10
    (_, second) = node.sweep([])
    made = [(job.series_instance_uid, job.model_version) for job in (first, second)]
    assert made == [("1.3", "1"), ("1.4", "2")]
    node.receive("1.5")
    node.now += 100
    assert [job.id for job in node.sweep([]) if job.state == "waiting"] == [second.id]
    assert node.index.quiet_series() == []


def test_forwarding_rule_that_is_gone_sends_what_waits(node: Node) -> None:
    """Also a rule without a model: what came before it was taken away is owed."""
    archive = '[[destinations]]\nname = "archive"\nto = "ARCHIVE@127.0.0.1:104"\n'
    forward = '[[rules]]\nwhen = {}\nsend_to = ["archive"]\nquiet = 60.0\n'
    forwarding = resolve_rules(parse_config(archive + forward, Path()))
    node.sweep(forwarding)
    node.receive("1.1")
    node.now += 10
    node.sweep(rules(60.0, modality="MR"))
    node.now += 50
    (job,) = node.sweep(rules(60.0, modality="MR"))
    assert [(delivery.destination, delivery.sop_instance_uid) for delivery in job.deliveries] == [("archive", "1.1")]


def test_clock_that_is_set_back_keeps_no_series_waiting(node: Node) -> None:
    """Rules that were loaded, and images that came, at a time that is years away now: its series is made, late images too."""
    node.now = 1e9
    node.sweep(rules(60.0))
    node.receive("1.1")
    node.now = 1e8
    (first,) = node.sweep(rules(60.0))
    node.receive("1.5", series="1.4")
    node.receive("1.6")
    node.now += 60
    later = [job for job in node.sweep(rules(60.0)) if job.id != first.id]
    assert sorted(job.series_instance_uid for job in later) == ["1.3", "1.4"]
    assert node.index.quiet_series() == []


@pytest.mark.parametrize("cause", ["a deflated stream that ends early", "a value representation that nobody knows"])
def test_series_that_cannot_be_read_keeps_no_other_from_its_turn(node: Node, tmp_path: Path, cause: str) -> None:
    """An image that is held and that nobody can read: the next series is decided on all the same, and so is its own."""
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID, image.RequestedProcedurePriority = HEADER.sop_class_uid, "1.9", "STAT"
    deflated = encode_part10(image, DeflatedExplicitVRLittleEndian)
    unknown = encode_part10(image, ExplicitVRLittleEndian).replace(b"\x40\x00\x03\x10SH", b"\x40\x00\x03\x10ZZ")
    (tmp_path / "broken").write_bytes(deflated[:-8] if "deflated" in cause else unknown)
    node.sweep(rules(0.0))
    node.index.add(replace(HEADER, sop_instance_uid="1.9"), str(tmp_path / "broken"), 1, "digest", "received", node.now)
    node.receive("1.5", series="1.4")
    first_loaded = node.jobs.load_rules(documents(rules(0.0)), node.now)
    stat = lambda held: is_stat(Path(held.object_key))  # noqa: E731
    values = image_values(node.index, Path)
    Sweep(node.index, node.jobs, rules(0.0), first_loaded, values, node.ask, lambda: node.now, is_stat=stat).decide()
    assert sorted(job.series_instance_uid for job in node.jobs.all()) == ["1.3", "1.4"]


def test_series_that_breaks_the_sweep_keeps_no_other_from_its_turn(node: Node) -> None:
    """Whatever is not foreseen of one series: the others are decided on."""

    def breaks(held: Instance) -> bool:
        if held.series_instance_uid == "1.3":
            raise LookupError(held.series_instance_uid)
        return False

    node.sweep(rules(0.0))
    node.receive("1.1")
    node.receive("1.5", series="1.4")
    first_loaded = node.jobs.load_rules(documents(rules(0.0)), node.now)
    values = image_values(node.index, Path)
    Sweep(node.index, node.jobs, rules(0.0), first_loaded, values, node.ask, lambda: node.now, is_stat=breaks).decide()
    assert [job.series_instance_uid for job in node.jobs.all()] == ["1.4"]


def test_image_that_comes_during_the_sweep_is_waited_for(node: Node) -> None:
    """When an image comes between looking at the series and at its images, nothing is decided yet."""
    node.sweep(rules(1.0))
    node.receive("1.1")
    (series,) = node.index.quiet_series()
    node.now += 5
    node.receive("1.5")
    (rule,) = rules(1.0)
    first_loaded = node.jobs.load_rules(documents([rule]), 0.0)
    sweep = Sweep(node.index, node.jobs, [rule], first_loaded, image_values(node.index, Path), ask_nobody, lambda: node.now)
    sweep.consider(series)
    assert node.jobs.all() == []
    assert len(node.index.quiet_series()) == 1


def test_series_is_not_quiet_while_it_is_sent(node: Node) -> None:
    """As long as the association that brought an image is open, nothing is decided; then at once, when it is quiet."""
    node.sweep(rules(1.0))
    association = OpenAssociation("a" * 12, 1)
    node.index.add(HEADER, "key", 1, "digest", "received", node.now, association)
    node.now += 100
    assert node.sweep(rules(1.0)) == []
    node.index.close_association(association, well=True)
    assert len(node.sweep(rules(1.0))) == 1


def test_late_image_cancels_what_is_not_sent(node: Node) -> None:
    """A job whose SEG nobody has is cancelled as soon as another image comes; a job of all images follows when it is quiet."""
    node.sweep(rules(10.0))
    node.receive("1.1")
    node.now += 10
    (first,) = node.sweep(rules(10.0))
    node.jobs.owe(first.id, "1.9", ["archive"], node.now)
    node.receive("1.5")
    (first,) = node.sweep(rules(10.0))
    assert (first.state, [d.state for d in first.deliveries]) == ("cancelled", ["cancelled"])
    assert "more images" in first.note
    assert node.jobs.due(node.now) == []
    node.now += 10
    assert [job.state for job in node.sweep(rules(10.0))] == ["cancelled", "waiting"]


def test_late_image_leaves_what_was_sent(node: Node) -> None:
    """What one destination has is sent to the others as well; the job of all images is another."""
    node.sweep(rules(10.0))
    node.receive("1.1")
    node.now += 10
    (first,) = node.sweep(rules(10.0))
    node.jobs.owe(first.id, "1.9", ["archive", "other"], node.now)
    node.jobs.delivered(node.jobs.delivery(first.id, "archive"), Taken("labelmap:rle", "1.9"), "stored", node.now)
    node.receive("1.5")
    node.now += 10
    assert [job.state for job in node.sweep(rules(10.0))] == ["delivering", "waiting"]


def test_image_that_takes_the_place_of_another_is_late(node: Node) -> None:
    """What was made of the other shows what is not held any longer: it stays where it is, and another is made."""
    node.sweep(rules(60.0))
    node.receive("1.1")
    node.now += 60
    (first,) = node.sweep(rules(60.0))
    node.take(first)
    node.now += 1
    node.index.add(replace(HEADER, sop_instance_uid="1.1"), "other", 1, "other digest", "received", node.now, replace=True)
    assert len(node.sweep(rules(60.0))) == 1
    node.now += 60
    old, second = node.sweep(rules(60.0))
    assert (old.id, old.state, second.state) == (first.id, "delivered", "waiting")
    assert second.content_digest != first.content_digest
    node.now += 60
    assert len(node.sweep(rules(60.0))) == 2


def test_rule_that_is_gone_is_kept_for_its_jobs(node: Node) -> None:
    """A job is done by the rule that decided it, as that was loaded last, also when the configuration has it no more."""
    (rule,) = rules(0.0)
    node.sweep([rule])
    node.receive("1.1")
    (job,) = node.sweep([rule])
    node.sweep([])
    assert rule_of(node.jobs.rule(job.rule_digest)) == rule


def rule_asking(when: str, quiet: float) -> Rule:
    """A rule with that `when`."""
    (rule,) = resolve_rules(parse_config(f'{MODEL}[[rules]]\nwhen = {when}\nmodel = "m"\nquiet = {quiet}\n', Path()))
    return rule


def test_what_differs_from_image_to_image_is_looked_up_in_the_images(node: Node, tmp_path: Path) -> None:
    """A rule acts if one image has what it asks for; the images are looked at when they are all there, and only once."""
    (asking,) = resolve_rules(
        parse_config(MODEL + '[[rules]]\nwhen = { ImageType = "AXIAL" }\nmodel = "m"\nquiet = 9\n', Path())
    )
    node.sweep([asking])
    for sop, kind in (("1.1", "LOCALIZER"), ("1.5", "AXIAL")):
        image = Dataset()
        image.SOPClassUID, image.SOPInstanceUID, image.ImageType = HEADER.sop_class_uid, sop, ["ORIGINAL", "PRIMARY", kind]
        (tmp_path / sop).write_bytes(encode_part10(image, ExplicitVRLittleEndian))
        header = replace(HEADER, sop_instance_uid=sop)
        node.index.add(header, str(tmp_path / sop), 1, "digest", "received", node.now)
    assert node.sweep([asking]) == []
    assert len(node.index.quiet_series()) == 1
    node.now += 10
    assert len(node.sweep([asking])) == 1


def test_series_that_no_image_of_suits_is_considered(node: Node) -> None:
    """A rule that asks for what no image has makes no job, and is not asked again."""
    (asking,) = resolve_rules(
        parse_config(MODEL + '[[rules]]\nwhen = { ImageType = "AXIAL" }\nmodel = "m"\nquiet = 9\n', Path())
    )
    node.sweep([asking])
    node.receive("1.1")
    node.now += 10
    assert node.sweep([asking]) == []
    assert node.index.quiet_series() == []


def test_rule_asks_who_sent_the_series(node: Node) -> None:
    """One of those who sent it suffices."""
    (asking,) = resolve_rules(
        parse_config(MODEL + '[[rules]]\nwhen = { calling_ae = "SCAN*" }\nmodel = "m"\nquiet = 0\n', Path())
    )
    node.sweep([asking])
    node.index.add(HEADER, "key", 1, "digest", "received", node.now, sender=Sender("PACS", "SEGNODE", "10.0.0.1"))
    assert node.sweep([asking]) == []
    node.now += 1
    scanner, later = Sender("SCANNER", "SEGNODE", "10.0.0.2"), replace(HEADER, sop_instance_uid="1.5")
    node.index.add(later, "other key", 1, "digest", "received", node.now, sender=scanner)
    assert [sender.calling_ae for sender in node.index.senders("1.3")] == ["PACS", "SCANNER"]
    assert len(node.sweep([asking])) == 1


@pytest.mark.parametrize(
    ("seg", "form"), [("'binary:native', 'labelmap:native'", "labelmap:native"), ("'binary:native'", "labelmap:rle")]
)
def test_results_are_held_as_labelmaps(seg: str, form: str) -> None:
    """What is sent as BINARY is made when it is sent; the result itself is a LABELMAP, in the best form that is wanted."""
    archive = f"[[destinations]]\nname = 'a'\nto = 'http://a'\nseg = [{seg}]\n"
    rule = "[[rules]]\nwhen = {}\nmodel = 'threshold'\nsend_to = ['a']\n"
    (resolved,) = resolve_rules(parse_config(archive + rule, Path()))
    assert resolved.first_form == form


ONE, OTHER = OpenAssociation("a" * 12, 1), OpenAssociation("b" * 12, 1)
REQUEST = rules(60.0, more='expect = "request"')
FIND = rules(60.0, more='expect = "find"\nask = "archive"')
KEEP = rules(10.0, more='late = "keep"')


def test_one_request_is_the_whole_series(node: Node) -> None:
    """With expect = "request" the series is complete as soon as what brought it has ended, without waiting for quiet."""
    node.sweep(REQUEST)
    node.bring(ONE, "1.1", "1.5")
    assert node.sweep(REQUEST) == []
    node.index.close_association(ONE, well=True)
    assert len(node.sweep(REQUEST)) == 1


def test_request_that_broke_off_is_no_whole_series(node: Node) -> None:
    """After an end that was not as it should be, or a process that was killed, the series waits until it is quiet."""
    for end in (
        lambda: node.index.close_association(ONE, well=False),
        lambda: node.index.close_associations([Lease(OTHER.lease_id, "dimse-2")]),
    ):
        node.sweep(REQUEST)
        node.bring(ONE, f"1.{node.now:.0f}")
        end()
        node.now += 59
        before = len(node.jobs.all())
        assert len(node.sweep(REQUEST)) == before
        node.now += 1
        assert len(node.sweep(REQUEST)) == before + 1


def test_what_brought_the_newest_image_counts(node: Node) -> None:
    """Of two that bring a series it is the one of the newest image whose good end makes it whole, and both must have ended."""
    node.sweep(REQUEST)
    node.bring(ONE, "1.1")
    node.bring(OTHER, "1.5")
    node.index.close_association(OTHER, well=True)
    assert node.sweep(REQUEST) == []
    node.index.close_association(ONE, well=False)
    assert len(node.sweep(REQUEST)) == 1


def test_good_end_is_over_when_another_brings_more(node: Node) -> None:
    """After one that ended well, what another brought that was killed waits until the series is quiet."""
    node.sweep(REQUEST)
    node.bring(ONE, "1.1")
    node.index.close_association(ONE, well=True)
    node.bring(OTHER, "1.5")
    node.index.close_associations([])
    assert node.sweep(REQUEST) == []


def test_sender_that_starts_over_makes_it_whole(node: Node) -> None:
    """An association that broke off is followed by one that sends the same again: its end is that of the series."""
    node.sweep(REQUEST)
    node.bring(ONE, "1.1")
    node.index.close_association(ONE, well=False)
    node.index.add_sending(OTHER, "1.3")
    node.now += 100
    assert node.sweep(REQUEST) == []
    node.now -= 100
    node.index.close_association(OTHER, well=True)
    assert len(node.sweep(REQUEST)) == 1


def test_sender_says_how_many_there_are(node: Node) -> None:
    """With expect = "find" the series is complete as soon as as much is held as the sender has.

    Until then that is asked again: ten seconds later at the earliest, and not while the series is being sent.
    """
    node.sweep(FIND)
    node.bring(ONE, "1.1")
    assert (node.sweep(FIND), node.asked) == ([], [])
    node.index.close_association(ONE, well=True)
    node.sweep(FIND)
    assert node.asked == [("archive", "1.3")]
    node.index.set_answer("1.3", "archive", Answer(2, node.now))
    node.now += 9
    node.bring(OTHER, "1.5")
    node.index.close_association(OTHER, well=True)
    assert (node.sweep(FIND), len(node.asked)) == ([], 1)
    node.now += 1
    assert (node.sweep(FIND), len(node.asked)) == ([], 2)
    node.index.set_answer("1.3", "archive", Answer(2, node.now))
    assert len(node.sweep(FIND)) == 1
    assert node.index.answer("1.3", "archive") is None


@pytest.mark.parametrize("instances", [0, 3])
def test_sender_that_has_more_or_nothing_is_waited_for(node: Node, instances: int) -> None:
    """A sender that has more than is held, does not know the series or does not answer: the series waits until it is quiet."""
    node.sweep(FIND)
    node.receive("1.1")
    node.receive("1.5")
    node.index.set_answer("1.3", "archive", Answer(instances, node.now))
    node.now += 59
    assert node.sweep(FIND) == []
    node.now += 1
    assert len(node.sweep(FIND)) == 1


def test_what_is_kept_is_not_made_again(node: Node) -> None:
    """With late = "keep" images that come when somebody has the result make no job; it says how many came."""
    node.sweep(KEEP)
    node.receive("1.1")
    node.now += 10
    (job,) = node.sweep(KEEP)
    node.jobs.note(job.id, "1 localizer(s) left out: 1.9")
    node.take(job)
    for number in (1, 2):
        node.now += 1
        node.receive(f"1.5{number}")
        node.now += 10
        (job,) = node.sweep(KEEP)
        late = f"{number} image(s) came late and are not in this result, which the rule keeps"
        assert job.note == f"1 localizer(s) left out: 1.9; {late}"
    assert job.state == "delivered"


def test_nothing_is_kept_that_nobody_has(node: Node) -> None:
    """With late = "keep" a late image still cancels a job whose result nobody has, and a failed job keeps nothing."""
    node.sweep(KEEP)
    node.receive("1.1")
    node.now += 10
    node.sweep(KEEP)
    node.receive("1.5")
    node.now += 10
    (first, second) = node.sweep(KEEP)
    assert (first.state, second.state) == ("cancelled", "waiting")
    node.jobs.fail(second.id, "reason", node.now)
    node.receive("1.6")
    node.now += 10
    assert [job.state for job in node.sweep(KEEP)] == ["cancelled", "failed", "waiting"]
