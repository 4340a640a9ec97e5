"""Webhooks are told of jobs that have come to an end: signed, once they take it, and without patient data unless asked."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import text
from standardwebhooks import Webhook, WebhookVerificationError

from segnode.config import parse_config
from segnode.dicom.header import Header
from segnode.errors import ConfigError
from segnode.pipeline.notify import Notifier
from segnode.store.database import open_database
from segnode.store.index import Index
from segnode.store.jobs import Decision, Jobs
from segnode.store.notices import Notices
from segnode.testing.told import Told, listening
from segnode.web.webhook import HttpWebhook, signing_key

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PATIENT = {"PatientName": "Doe^Jane", "PatientID": "4711", "AccessionNumber": "A1", "Modality": "CT"}
HEADER = Header("1.2.840.10008.5.1.4.1.1.2", "1.1", "1.2", "1.3", "1.2.840.10008.1.2.1", 300, PATIENT)


def events(told: Told) -> list[dict]:
    """What it was told; a signature that does not hold is an error."""
    return [Webhook(SECRET).verify(body, headers) for headers, body in told.requests]


@dataclass
class Node:
    """Rows, a webhook, and a clock that stands where it is set."""

    folder: Path
    url: str
    keys: str = ""
    now: float = field(default_factory=time.time)  # who verifies a signature wants a fresh one

    def __post_init__(self) -> None:
        self.index = Index(open_database(self.folder / "index.sqlite"))
        self.jobs = Jobs(open_database(self.folder / "pipeline.sqlite"))
        self.notices = Notices(open_database(self.folder / "pipeline.sqlite"))
        self.index.add(HEADER, "key", 1, "digest", "received", self.now)

    def tell(self) -> None:
        """A turn of the worker's."""
        text = f'[[webhooks]]\nname = "ops"\nurl = "{self.url}"\nsecret = {{ env = "S" }}\n{self.keys}'
        (config,) = parse_config(text, Path()).webhooks
        webhook = HttpWebhook(config.url, signing_key(SECRET, "secret"))
        Notifier(config, webhook, self.jobs, self.index, self.notices, self.clock).tell_all()

    def clock(self) -> float:
        """Now."""
        return self.now

    def job(self, name: str, *, fails: bool = True, error: str = "the model crashed") -> None:
        """A job has come to its end."""
        self.jobs.decide(Decision(name, "1.3", "content", "rule", "model", "1"), self.now)
        if fails:
            self.jobs.fail(name, error, self.now)
        else:
            self.jobs.owe(name, "1.9", [], self.now)


@pytest.fixture
def told() -> Iterator[Told]:
    """A server that is told."""
    with listening() as server:
        yield server


@pytest.fixture
def node(tmp_path: Path, told: Told) -> Node:
    """A node whose webhook is known already."""
    node = Node(tmp_path, told.url)
    node.tell()
    return node


def test_failed_and_delivered_jobs_are_told_once(node: Node, told: Told) -> None:
    """Signed so that another implementation of the specification takes it; another turn tells nothing more."""
    node.job("a")
    node.job("b", fails=False)
    node.tell()
    node.tell()
    assert [(event["type"], event["data"]["job"]["id"]) for event in events(told)] == [
        ("job.failed", "a"),
        ("job.delivered", "b"),
    ]
    assert events(told)[0]["data"]["job"]["error"] == "the model crashed"
    assert {headers["webhook-id"] for headers, _ in told.requests} == {"a-1", "b-1"}


def test_what_was_told_cannot_be_changed(node: Node, told: Told) -> None:
    """The signature covers the body."""
    node.job("a")
    node.tell()
    ((headers, body),) = told.requests
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body.replace(b"failed", b"foiled"), headers)


def test_only_what_is_asked_for_is_told(tmp_path: Path, told: Told) -> None:
    """`on` chooses among the ends."""
    node = Node(tmp_path, told.url, 'on = ["failed"]\n')
    node.tell()
    node.job("a", fails=False)
    node.job("b")
    node.tell()
    assert [event["data"]["job"]["id"] for event in events(told)] == ["b"]


def test_nothing_of_the_patient_unless_asked(node: Node, told: Told, tmp_path: Path) -> None:
    """Without `patient` no value that names one; with it, who it is."""
    node.job("a")
    node.tell()
    assert not [value for value in PATIENT.values() if value != "CT" and value.encode() in told.requests[0][1]]
    node.keys = "patient = true\n"
    node.job("b")
    node.tell()
    assert events(told)[1]["data"]["patient"] == {"PatientID": "4711", "PatientName": "Doe^Jane", "AccessionNumber": "A1"}


def test_what_others_say_of_the_patient_is_covered(node: Node, told: Told) -> None:
    """Of an answer that names the patient the rest is told, UIDs too; and all of it where that is asked for."""
    said = "pacs: status 0xC000 patient DOE, Jane (4711, A1) is merged; 1.4711.2 and Doering stay."
    node.job("a", error=said)
    node.tell()
    node.keys = "patient = true\n"
    node.job("b", error=said)
    node.tell()
    assert [event["data"]["job"]["error"] for event in events(told)] == [
        "pacs: status 0xC000 patient ***, *** (***, ***) is merged; 1.4711.2 and Doering stay.",
        said,
    ]


def test_jobs_before_the_webhook_are_not_told(tmp_path: Path, told: Told) -> None:
    """A new webhook is not flooded with what was before it."""
    node = Node(tmp_path, told.url)
    node.job("a")
    node.now += 1
    node.tell()
    node.job("b")
    node.tell()
    assert [event["data"]["job"]["id"] for event in events(told)] == ["b"]


def test_webhook_that_is_down_is_told_later(node: Node, told: Told) -> None:
    """After 5 seconds, then later and later; what it did not take is told again under the same id, and nothing is lost."""
    told.answers = [503, 500]
    node.job("a")
    node.tell()
    node.tell()
    assert len(told.requests) == 1
    node.now += 5
    node.tell()
    assert len(told.requests) == 2
    node.now += 5
    node.tell()
    node.now += 5
    node.tell()
    node.tell()
    assert [headers["webhook-id"] for headers, _ in told.requests] == ["a-1"] * 3


def test_webhook_that_nobody_answers_at_is_given_up_after_a_week(tmp_path: Path) -> None:
    """Nothing listens there: tried for a week, and the job is not harmed."""
    node = Node(tmp_path, "http://127.0.0.1:9/hook")
    node.tell()
    node.job("a")
    node.tell()
    node.now += 8 * 86400
    node.tell()
    assert node.notices.due("ops", node.now + 1e9) == []
    assert node.jobs.job("a").state == "failed"


def test_webhook_that_is_gone_is_told_no_more(node: Node, told: Told) -> None:
    """410 ends a notice; the next is told."""
    told.answers = [410]
    node.job("a")
    node.job("b")
    node.tell()
    assert [headers["webhook-id"] for headers, _ in told.requests] == ["a-1", "b-1"]
    assert node.notices.due("ops", node.now + 1e9) == []


def test_job_that_fails_again_is_told_again(node: Node, told: Told) -> None:
    """A retry is another end."""
    node.job("a")
    node.tell()
    node.jobs.retry("a", node.now)
    node.jobs.fail("a", "again", node.now)
    node.tell()
    assert [event["data"]["job"]["error"] for event in events(told)] == ["the model crashed", "again"]


def test_what_is_committed_late_is_told(node: Node, told: Told) -> None:
    """A transition that another process committed later, with an earlier time, is not passed over."""
    node.now += 100
    node.job("a")
    node.tell()
    node.now -= 60
    node.job("b")
    node.now += 61
    node.tell()
    assert [event["data"]["job"]["id"] for event in events(told)] == ["a", "b"]


def test_changes_are_found_by_an_index(tmp_path: Path) -> None:
    """In a database that had jobs before it had webhooks, what changed since is not looked for in every row."""
    engine = open_database(tmp_path / "pipeline.sqlite")
    Jobs(engine)
    Notices(engine)
    with engine.connect() as connection:
        plan = connection.execute(text("EXPLAIN QUERY PLAN SELECT * FROM transition WHERE at >= 3")).all()
    assert "transition_at" in str(plan)


@pytest.mark.parametrize("secret", ['{ env = "SEGNODE_TEST_SECRET" }', '{ file = "secret.txt" }'])
def test_secret_comes_from_elsewhere(secret: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the environment or a file; where it is missing, that is named, and it is in no configuration."""
    text = f'[[webhooks]]\nname = "ops"\nurl = "http://x/y"\nsecret = {secret}\n'
    (webhook,) = parse_config(text, tmp_path).webhooks
    with pytest.raises(ConfigError, match=r"^webhooks\[0\].secret.*(SEGNODE_TEST_SECRET|secret.txt)"):
        webhook.secret.read(tmp_path, "webhooks[0].secret")
    monkeypatch.setenv("SEGNODE_TEST_SECRET", "s3cret")
    (tmp_path / "secret.txt").write_text("s3cret\n")
    assert webhook.secret.read(tmp_path, "webhooks[0].secret") == "s3cret"
    assert "s3cret" not in json.dumps(repr(parse_config(text, tmp_path)))


def test_key_that_is_no_base64_is_refused() -> None:
    """A secret that says it is one, and is not, is named."""
    assert signing_key("plain", "p") == b"plain"
    with pytest.raises(ConfigError, match=r"^p: .* base64"):
        signing_key("whsec_!", "p")
