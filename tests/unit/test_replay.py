"""Replay: series that came before a rule, or long ago, are decided on when somebody asks; with a clock in the hand."""

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

from segnode.cli import main
from segnode.config import WebConfig, read_config
from segnode.dicom.header import Header
from segnode.dicom.uids import derived_digest
from segnode.errors import LabelError, NotFound
from segnode.node import open_index, open_jobs
from segnode.pipeline.assemble import image_values
from segnode.pipeline.associations import Associations
from segnode.pipeline.job_document import job_document
from segnode.pipeline.receive import Receiver
from segnode.pipeline.replay import Replayed, replay
from segnode.pipeline.rules import Rule, documents, resolve_rules
from segnode.pipeline.sweep import Sweep
from segnode.store.database import open_database
from segnode.store.documents import Documents
from segnode.store.index import Index
from segnode.store.jobs import Job, Jobs
from segnode.store.leases import Lease, Leases
from segnode.store.measures import Measures, Meter
from segnode.store.objects import ObjectStore
from segnode.testing.phantom import write_ct
from segnode.web.app import create_app
from tests.unit.test_sweep import ask_nobody

HEADER = Header("1.2.840.10008.5.1.4.1.1.2", "1.1", "1.2", "1.3", "1.2.840.10008.1.2.1", 300, {"Modality": "CT"})
TABLES = """
[[models]]
name = "m"
run = "python:m"
labels = "threshold"
version = "1"
[[rules]]
when = { Modality = "CT" }
model = "m"
[[rules]]
when = { Modality = "C*" }
model = "m"
[[rules]]
when = { Modality = "MR" }
model = "m"
"""


def key_of(sop: str) -> str:
    """The key of the object of an image."""
    return derived_digest(sop)[:32]


@dataclass
class Node:
    """The rows of a node that does not run, its configuration, and a clock that stands where it is set."""

    file: Path
    index: Index
    jobs: Jobs
    now: float = 100.0

    @property
    def rules(self) -> Sequence[Rule]:
        """The rules of its configuration: two select CT, one MR."""
        return resolve_rules(read_config(self.file))

    def receive(self, sop: str, series: str = "1.3", modality: str = "CT") -> None:
        """An image comes in now."""
        header = replace(HEADER, sop_instance_uid=sop, series_instance_uid=series, attributes={"Modality": modality})
        self.index.add(header, key_of(sop), 1, "digest", "received", self.now)

    def sweep(self) -> list[Job]:
        """Sweep now, as a worker with the configuration's rules; all jobs after that."""
        first_loaded = self.jobs.load_rules(documents(self.rules), self.now)
        values = image_values(self.index, Path)
        Sweep(self.index, self.jobs, self.rules, first_loaded, values, ask_nobody, lambda: self.now).decide()
        return self.jobs.all()

    def replay(self, series: str = "1.3", *, dry_run: bool = False) -> list[Replayed]:
        """Replay a series now."""
        values = image_values(self.index, Path)
        return replay(self.index, self.jobs, self.rules, values, series, self.now, dry_run=dry_run)

    def run(self, *arguments: str) -> Result:
        """Run `segnode jobs` on it."""
        return CliRunner().invoke(main, ["jobs", "--config", str(self.file), *arguments])


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node that holds nothing."""
    (tmp_path / "segnode.toml").write_text(TABLES)
    config = read_config(tmp_path / "segnode.toml")
    config.data.mkdir()
    return Node(tmp_path / "segnode.toml", open_index(config), open_jobs(config))


def test_series_that_came_before_its_rules(node: Node) -> None:
    """The sweep leaves it alone for good; a replay makes a waiting job for each rule that selects it, and for no other."""
    node.receive("1.1")
    node.now += 10
    node.sweep()
    node.now += 1_000_000
    assert node.sweep() == []
    replayed = node.replay()
    assert [(r.rule, r.model, r.state, r.made) for r in replayed] == [
        (rule.digest[:12], "m 1", "waiting", True) for rule in node.rules[:2]
    ]
    assert {job.id for job in node.jobs.all()} == {r.id for r in replayed}
    assert {job.id for job in node.jobs.waiting()} == {r.id for r in replayed}


def test_replay_and_sweep_make_the_same_job(node: Node) -> None:
    """What the sweep has decided is not decided again, and the other way round."""
    node.sweep()
    node.receive("1.1")
    node.receive("1.5", "1.4")
    replayed = node.replay("1.3")
    node.now += 100
    swept = node.sweep()
    assert len(swept) == 4
    assert {r.id for r in replayed} < {job.id for job in swept}
    assert [r.made for r in node.replay("1.4")] == [False, False]
    assert node.jobs.all() == swept


def test_image_that_comes_later_makes_another_job(node: Node) -> None:
    """Other images are other content: it is processed, the old job is not touched."""
    node.receive("1.1")
    (first, _) = node.replay()
    node.receive("1.5")
    (second, _) = node.replay()
    assert (second.made, second.id != first.id) == (True, True)


def test_replay_of_images_that_are_asked_for_as_stat(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its jobs are made before those of others, as if the images had come now."""
    monkeypatch.chdir(node.file.parent)
    image, _ = write_ct(node.file.parent / "ct", 2, 16, RequestedProcedurePriority="STAT").folder.iterdir()
    image.rename(key_of("1.1"))
    node.receive("1.1")
    node.replay()
    assert [job.stat for job in node.jobs.all()] == [True, True]


def test_replay_of_a_job_that_exists_says_its_state(node: Node) -> None:
    """A job that failed stays failed: doing it again is what retry is for."""
    node.receive("1.1")
    (first, _) = node.replay()
    node.jobs.fail(first.id, "reason", node.now)
    before = node.jobs.job(first.id)
    assert [(r.state, r.made) for r in node.replay()] == [("failed", False), ("waiting", False)]
    assert node.jobs.job(first.id) == before


def test_dry_run_writes_nothing(node: Node) -> None:
    """It names the jobs that would be made, with no state; neither jobs nor rules are written."""
    node.receive("1.1")
    dry = node.replay(dry_run=True)
    assert [(r.state, r.made) for r in dry] == [(None, False), (None, False)]
    assert node.jobs.all() == []
    assert node.jobs.load_rules({}, 0.0) == {}
    assert [r.id for r in node.replay()] == [r.id for r in dry]
    assert [(r.state, r.made) for r in node.replay(dry_run=True)] == [("waiting", False), ("waiting", False)]


def test_replay_makes_its_rules_known(node: Node) -> None:
    """The rules that act are recorded when they first do, and keep that time."""
    node.receive("1.1")
    node.replay()
    node.now += 10
    node.replay()
    assert node.jobs.load_rules({}, 0.0) == {rule.digest: 100.0 for rule in node.rules[:2]}


def test_replays_at_once_make_one_job(node: Node) -> None:
    """Of eight threads one makes each job."""
    node.receive("1.1")
    with ThreadPoolExecutor(8) as threads:
        replayed = [r for found in threads.map(lambda _: node.replay(), range(8)) for r in found]
    assert sum(r.made for r in replayed) == len(node.jobs.all()) == 2
    assert [job.transitions for job in node.jobs.all()] == [(("waiting", 100.0),)] * 2


@pytest.mark.parametrize("series", ["1.4", "", "1.3%", "*", "'; drop table job; --", "\ud800", "\0", "1." * 5000])
def test_series_that_is_not_held(node: Node, series: str) -> None:
    """A series of which nothing is held, or that is no UID, is not found."""
    node.receive("1.1")
    with pytest.raises(NotFound, match="no images of series"):
        node.replay(series)


def test_results_are_no_images(node: Node) -> None:
    """A series that the node made itself is not replayed."""
    node.index.add(HEADER, "key", 1, "digest", "made", node.now)
    with pytest.raises(NotFound):
        node.replay()


def test_series_that_no_rule_selects(node: Node) -> None:
    """Nothing is made of it, which is no failure, and is said."""
    node.receive("1.1", modality="US")
    assert node.replay() == []
    ended = node.run("replay", "1.3")
    assert (ended.exit_code, ended.stdout) == (0, "no rule of the configuration selects series 1.3\n")
    assert node.run("replay", "1.3", "--json").stdout == "[]\n"


def test_command_says_what_it_has_done(node: Node) -> None:
    """Would be made, made, there already; and how a failed job is done again."""
    node.receive("1.1")
    job_id = node.replay(dry_run=True)[0].id
    assert f"{job_id}  m 1  would be made\n" in node.run("replay", "1.3", "--dry-run").stdout
    assert node.jobs.all() == []
    assert f"{job_id}  m 1  is made" in node.run("replay", "1.3").stdout
    assert f"{job_id}  m 1  is waiting: content already processed makes nothing new\n" in node.run("replay", "1.3").stdout
    node.jobs.fail(job_id, "reason", node.now)
    ended = node.run("replay", "1.3")
    assert (ended.exit_code, f"`segnode jobs retry {job_id[:12]}` does it again" in ended.stdout) == (0, True)


def test_command_for_programs(node: Node) -> None:
    """With --json the answer is one document on standard output, as over HTTP."""
    node.receive("1.1")
    document = json.loads(node.run("replay", "1.3", "--json").stdout)
    assert [list(replayed) for replayed in document] == [["rule", "model", "id", "state", "made"]] * 2
    assert [replayed["made"] for replayed in document] == [True, True]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("replay", "1.4"), 1, "no images of series '1.4' are held"),
        (("show", "zz"), 1, "0 jobs have an id"),
        (("retry", "zz"), 1, "0 jobs have an id"),
        (("cancel", "%"), 1, "0 jobs have an id"),
        (("retry", ""), 1, "2 jobs have an id"),
        (("replay",), 2, "Missing argument 'SERIES'"),
        (("replay", "1.3", "--force"), 2, "No such option"),
        (("--state", "done"), 2, "allowed: waiting"),
    ],
)
def test_exit_codes(node: Node, arguments: Sequence[str], code: int, said: str) -> None:
    """1 when the work failed, 2 for wrong usage, with the reason on standard error."""
    node.receive("1.1")
    node.replay()
    ended = node.run(*arguments)
    assert (ended.exit_code, said in ended.stderr, ended.stdout) == (code, True, "")


def test_ended_job_is_not_steered(node: Node) -> None:
    """Retry of a job that goes on and a second cancel end with 1; a retry after a cancel with 0."""
    node.receive("1.1")
    job_id = node.replay()[0].id
    codes = [node.run(act, job_id[:10]).exit_code for act in ("retry", "cancel", "cancel", "retry")]
    assert codes == [1, 0, 1, 0]


def test_no_data_folder_is_wrong_usage(tmp_path: Path) -> None:
    """Where no node has run there is nothing to replay: exit code 2, and no folder is made."""
    (tmp_path / "segnode.toml").write_text("")
    ended = CliRunner().invoke(main, ["jobs", "--config", str(tmp_path / "segnode.toml"), "replay", "1.3"])
    assert (ended.exit_code, "has a node run" in ended.stderr) == (2, True)
    assert not (tmp_path / "segnode-data").exists()


def test_document_of_a_job_as_a_person_reads_it(node: Node) -> None:
    """`segnode jobs show` names the stages and deliveries of the document."""
    node.receive("1.1")
    job_id = node.replay()[0].id
    node.jobs.owe(job_id, "2.25.1", ["archive"], node.now)
    (job,) = (job_document(job, node.index) for job in node.jobs.all() if job.id == job_id)
    prints = node.file.parent / "segnode-data" / "work" / "jobs" / job_id / "prints.log"
    prints.parent.mkdir(parents=True)
    prints.touch()
    said = node.run("show", job_id).stdout
    assert [f"{stage.at}  {stage.state}\n" in said for stage in job.stages] == [True, True]
    assert "to archive: waiting , 0 attempt(s)\n    next attempt: 1970-01-01T00:01:40.000+00:00\n" in said
    document = json.loads(node.run("show", job_id, "--json").stdout)
    assert (document["deliveries"][0]["destination"], document["prints"]) == ("archive", str(prints))
    assert [job["id"] for job in json.loads(node.run("--json", "--state", "delivering").stdout)] == [job_id]


@pytest.mark.parametrize(("error", "said"), [(LabelError("why"), "why"), (RuntimeError("secret"), "unforeseen error; the ")])
def test_broken_rules_are_an_error_of_the_api(node: Node, tmp_path: Path, error: Exception, said: str) -> None:
    """Rules that cannot be resolved are 500 as JSON: with the reason where it is one of ours, else without details."""

    def rules() -> Sequence[Rule]:
        raise error

    node.receive("1.1")
    receiver = Receiver(
        ObjectStore(tmp_path / "objects", Lease("a" * 12, "test")), node.index, Meter("web"), "SEGNODE", 0, lambda: node.now
    )
    engine = open_database(tmp_path / "index.sqlite")
    associations = Associations(node.index, Lease("a" * 12, "test"))
    application = create_app(
        receiver, associations, Documents(engine), node.jobs, Leases(engine), Measures(engine), rules, WebConfig()
    )
    transport = httpx.ASGITransport(application, raise_app_exceptions=False)

    async def post() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
            return await client.post("/api/jobs/replay", json={"series": "1.3"})

    answer = asyncio.run(post())
    assert (answer.status_code, answer.json()["error"][:22]) == (500, said)
    assert node.jobs.all() == []


def test_newest_jobs_come_in_pages(node: Node) -> None:
    """Pages run from the newest to the oldest, without a gap; a state narrows them."""
    for number in range(3):
        node.receive(f"1.{number}")
        node.replay()
        node.now += 1
    in_order = [job.id for job in node.jobs.all()]
    pages = [[job.id for job in node.jobs.newest(None, 4, offset)] for offset in (0, 4, 8)]
    assert pages == [in_order[:1:-1], in_order[1::-1], []]
    node.jobs.cancel(in_order[0], node.now)
    assert [job.id for job in node.jobs.newest("cancelled", 10, 0)] == in_order[:1]
