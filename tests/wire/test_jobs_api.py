"""Jobs over HTTP on a running node: every answer here is held to the node's own OpenAPI document."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from pydicom import dcmread

from segnode.config import parse_dimse_address
from segnode.dimse.scu import send_files
from segnode.node import open_index, open_jobs
from segnode.testing.phantom import write_ct
from segnode.testing.servers import Server, free_port, node_config, segnode, until
from segnode.testing.told import Told, listening
from segnode.web.api import Api
from segnode.web.webhook import signature

MODEL = """
import os, pathlib
from segnode.models import threshold

def segment(volume):
    if not pathlib.Path(os.environ["MENDED"]).exists():
        raise ValueError("not mended yet")
    return threshold.segment(volume)
"""
# What lies on the patient's right is coded left.
SIDED = """
from segnode.models import Result

def segment(volume):
    labels = (volume.array > 0).astype("uint8")
    labels[:, :, volume.array.shape[2] // 3 :] = 0
    return Result(labels)
"""
LABELS = """
[[segment]]
value = 1
label = "Kidney"
category = ["SCT", "123037004", "Anatomical structure"]
type = ["SCT", "64033007", "Kidney"]
modifier = ["SCT", "7771000", "Left"]
"""
TABLES = """
[[models]]
name = "broken"
run = "python:broken_model"
labels = "threshold"
version = "1"
[[models]]
name = "good"
run = "python:segnode.models.threshold"
labels = "threshold"
version = "1"
[[models]]
name = "sided"
run = "python:sided_model"
labels = "{labels}"
version = "1"
[[destinations]]
name = "down"
to = "http://127.0.0.1:{port}/dicom-web"
[[rules]]
when = {{ SeriesDescription = "broken" }}
model = "broken"
[[rules]]
when = {{ SeriesDescription = "good" }}
model = "good"
[[rules]]
when = {{ SeriesDescription = "owed" }}
model = "good"
send_to = ["down"]
[[rules]]
when = {{ SeriesDescription = "sided" }}
model = "sided"
send_to = ["down"]
"""
WEBHOOK = """
[[webhooks]]
name = "ops"
url = "{url}"
secret = {{ file = "../secret" }}
"""
SERIES = ("broken", "good", "owed", "sided", "unselected")
JSON = {"Content-Type": "application/json"}


@dataclass
class Client:
    """A program that uses the API of a node, and trusts none of its answers."""

    node: Server
    series: Mapping[str, str]
    http: httpx.Client
    mended: Path
    description: Mapping[str, Any]
    told: Told

    def call(self, method: str, path: str, **options: Any) -> Any:
        """The body of an answer, which must be one that the description has; an error as (status, reason)."""
        answer = self.http.request(method, path, **options)
        schema = self.schema(method, path.partition("?")[0], answer.status_code)
        components = {"components": self.description["components"]}
        Draft202012Validator({**schema, **components}).validate(answer.json())
        assert answer.headers["Content-Type"] == "application/json"
        return answer.json() if answer.is_success else (answer.status_code, answer.json()["error"])

    def schema(self, method: str, path: str, status: int) -> Mapping[str, Any]:
        """What the description says of an answer; the first path that fits is the one, as in the description."""
        for template, operations in self.description["paths"].items():
            if re.fullmatch(re.sub(r"{\w+}", "[^/]+", template), path) and method.lower() in operations:
                return operations[method.lower()]["responses"][str(status)]["content"]["application/json"]["schema"]
        raise AssertionError(f"{method} {path} is not described")

    def act(self, path: str, body: Any = None) -> Any:
        """The answer to a POST."""
        return self.call("POST", path, content=b"" if body is None else json.dumps(body), headers=JSON)

    def replay(self, name: str, **options: Any) -> Any:
        """The answer to a replay."""
        return self.act("/jobs/replay", {"series": self.series[name], **options})

    def job(self, name: str) -> Any:
        """The job of a series, which has one."""
        (job,) = (job for job in self.call("GET", "/jobs") if job["series"] == self.series[name])
        return job

    def await_state(self, name: str, state: str) -> Any:
        """The job of a series, as soon as it is in a state."""
        until(lambda: self.job(name)["state"] == state)
        return self.job(name)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A node that held five series before it had rules, so that nothing happens but what is asked for."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "broken_model.py").write_text(MODEL)
    (folder / "sided_model.py").write_text(SIDED)
    (folder / "labels.toml").write_text(LABELS)
    phantoms = [write_ct(folder / name, slices=6, size=32, seed=n, SeriesDescription=name) for n, name in enumerate(SERIES, 1)]
    files = [sorted(phantom.folder.iterdir()) for phantom in phantoms]
    series = {name: str(dcmread(of[0]).SeriesInstanceUID) for name, of in zip(SERIES, files, strict=True)}
    with segnode(folder / "node", "models = []\nrules = []") as node:
        list(send_files([file for of in files for file in of], parse_dimse_address(node.dimse, ""), "TEST"))
    (folder / "secret").write_text("a secret\n")
    with pytest.MonkeyPatch.context() as environment, listening() as told:
        environment.setenv("PYTHONPATH", str(folder))
        environment.setenv("MENDED", str(folder / "mended"))
        tables = TABLES.format(port=free_port(), labels=folder / "labels.toml")
        with (
            segnode(folder / "node", tables + WEBHOOK.format(url=told.url)) as node,
            httpx.Client(base_url=f"http://127.0.0.1:{node.http_port}/api", timeout=30) as http,
        ):
            yield Client(node, series, http, folder / "mended", http.get("/openapi.json").json(), told)


def run(client: Client, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `segnode jobs` on the node."""
    config = str(client.node.log.parent / "segnode.toml")
    command = [sys.executable, "-m", "segnode", "jobs", "--config", config, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_description_is_openapi(client: Client) -> None:
    """The description is valid, and has every operation that there is and no other."""
    validate(client.description)
    assert client.description["openapi"] == "3.1.0"
    described = {(method.upper(), path) for path, item in client.description["paths"].items() for method in item}
    config = node_config(client.node)
    routes = Api(open_index(config), open_jobs(config), list, lambda *_: {}, float).routes()
    served = {(method, route.path) for route in routes for method in route.methods - {"HEAD"}}
    assert described == served - {("GET", "/openapi.json")}


def test_replay_leads_to_a_result(client: Client) -> None:
    """A series that came before its rule: a dry run does nothing, a replay has it done, another makes nothing new."""
    (dry,) = client.replay("good", dry_run=True)
    assert (dry["state"], dry["made"], dry["model"]) == (None, False, "good 1")
    assert client.call("GET", f"/jobs/{dry['id']}")[0] == 404
    (replayed,) = client.replay("good")
    assert (replayed["id"], replayed["made"]) == (dry["id"], True)
    job = client.await_state("good", "delivered")
    assert (job["id"], job["rule"], job["error"]) == (replayed["id"], replayed["rule"], "")
    held = httpx.get(f"{client.node.dicomweb}/instances", params={"SOPInstanceUID": job["segmentation"]}).json()
    uids = [(item["0020000D"]["Value"][0], item["0020000E"]["Value"][0]) for item in held]
    assert uids == [(job["study"], job["segmentation_series"])]
    assert client.replay("good") == [{**replayed, "state": "delivered", "made": False}]
    assert client.job("good") == job


def test_failed_job_is_retried(client: Client) -> None:
    """What failed says why; when that is mended, a retry leads to a result; a webhook is told of both."""
    client.replay("broken")
    failed = client.await_state("broken", "failed")
    assert "model 'broken'" in failed["error"]
    client.mended.touch()
    again = client.act(f"/jobs/{failed['id'][:16]}/retry")
    assert (again["id"], again["state"], again["attempt"], again["error"]) == (failed["id"], "waiting", 1, "")
    assert client.await_state("broken", "delivered")["segmentation"]
    assert client.act(f"/jobs/{failed['id']}/retry")[0] == 409
    require_told_of_both_ends(client, client.job("broken"))


def require_told_of_both_ends(client: Client, job: Mapping[str, Any]) -> None:
    """The webhook is told of the failure and then of the result, signed with the secret of the file, as the API has it."""
    until(lambda: len([body for _, body in client.told.requests if job["id"].encode() in body]) == 2)
    mine = [(headers, body) for headers, body in client.told.requests if job["id"].encode() in body]
    for headers, body in mine:
        stamp = int(headers["webhook-timestamp"])
        assert headers["webhook-signature"] == signature(b"a secret", headers["webhook-id"], stamp, body)
    documents = [json.loads(body) for _, body in mine]
    assert [document["type"] for document in documents] == ["job.failed", "job.delivered"]
    assert documents[1]["data"] == {"job": job}


def test_job_that_goes_on_is_cancelled(client: Client) -> None:
    """Two replays at once make one job; it is owed to an archive that is down, cancelled, and owed again by the command."""
    with ThreadPoolExecutor(2) as threads:
        replays = list(threads.map(lambda _: client.replay("owed")[0], range(2)))
    assert sorted(replayed["made"] for replayed in replays) == [False, True]
    until(lambda: any(delivery["attempts"] for delivery in client.job("owed")["deliveries"]))
    job = client.job("owed")
    (delivery,) = job["deliveries"]
    assert (job["state"], delivery["destination"], delivery["state"]) == ("delivering", "down", "waiting")
    assert "cannot be reached" in delivery["last_answer"]
    assert client.act(f"/jobs/{job['id']}/retry") == (409, f"job {job['id']} has not failed: there is nothing to try again")
    cancelled = client.act(f"/jobs/{job['id']}/cancel")
    assert (cancelled["state"], cancelled["deliveries"][0]["state"]) == ("cancelled", "cancelled")
    assert client.act(f"/jobs/{job['id']}/cancel") == (409, f"job {job['id']} has ended: it is cancelled")
    assert run(client, "retry", job["id"][:12]).returncode == 0
    assert client.job("owed")["state"] == "delivering"
    assert client.act(f"/jobs/{job['id']}/cancel")["state"] == "cancelled"


def test_job_that_is_held_is_released(client: Client) -> None:
    """A segment on the wrong side is owed to nobody and served to nobody, with the reason, until a person lets it go."""
    client.replay("sided")
    held = client.await_state("sided", "held")
    assert "segment 1 (Kidney) lies on the patient's right" in held["note"]
    assert (held["segmentation"], held["deliveries"]) == ("", [])
    assert client.call("GET", "/jobs?state=held") == [held]
    found = httpx.get(f"{client.node.dicomweb}/instances", params={"Modality": "SEG"})
    assert held["series"] not in found.text
    assert client.act(f"/jobs/{held['id']}/retry")[0] == 409
    assert client.act(f"/jobs/{held['id']}/release")["state"] == "waiting"
    assert client.act(f"/jobs/{held['id']}/release")[0] == 409
    released = client.await_state("sided", "delivering")
    assert [delivery["destination"] for delivery in released["deliveries"]] == ["down"]
    assert [stage["state"] for stage in released["stages"]][-4:] == ["held", "waiting", "encoding", "delivering"]
    assert client.act(f"/jobs/{held['id']}/cancel")["state"] == "cancelled"


def test_documents_of_the_command_and_of_the_api_are_the_same(client: Client) -> None:
    """What `segnode jobs --json` and `show --json` print is what HTTP answers; HTTP begins with the newest."""
    # An attempt that was under way when its job was cancelled may end between the two.
    until(lambda: json.loads(run(client, "--json").stdout) == client.call("GET", "/jobs")[::-1])
    listed = client.call("GET", "/jobs")
    assert len(listed) == 4
    beginning = listed[0]["id"][:10]
    shown = json.loads(run(client, "show", beginning, "--json").stdout)
    assert shown.pop("prints") == ""  # a file of the node's machine
    assert shown == client.call("GET", f"/jobs/{beginning}") == listed[0]


def test_list_is_narrowed(client: Client) -> None:
    """By state and page; past the end there is nothing."""
    listed = client.call("GET", "/jobs")
    delivered = [job for job in listed if job["state"] == "delivered"]
    assert client.call("GET", "/jobs?state=delivered") == delivered
    assert client.call("GET", "/jobs?state=encoding") == []
    assert client.call("GET", "/jobs?limit=1&offset=1") == listed[1:2]
    assert client.call("GET", "/jobs?limit=1000&offset=1000000000") == []


def test_series_that_no_rule_selects(client: Client) -> None:
    """Nothing is made of it, which is no error."""
    assert client.replay("unselected") == []


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("state=done", "allowed: waiting, assembling"),
        ("state=", "allowed: waiting"),
        ("state=null", "allowed: waiting"),
        ("sate=failed", "'sate' is not a parameter; allowed: state, limit, offset"),
        ("limit=0", "limit: "),
        ("limit=1001", "limit: Expected `int` <= 1000"),
        (f"limit={'9' * 400}", "limit: "),
        ("limit=many", "limit: "),
        ("limit=-1", "limit: "),
        ("offset=-1", "offset: "),
        ("offset=99999999999999999999", "offset: "),
        ("offset=%00", "offset: "),
    ],
)
def test_wrong_query_is_explained(client: Client, query: str, reason: str) -> None:
    """A parameter that is wrong or unknown is 400, with its name and what is allowed."""
    status, error = client.call("GET", f"/jobs?{query}")
    assert (status, reason in error) == (400, True), error


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"series": "\xff"}', "not JSON"),
        (b'{"series": "\\ud800"}', "not JSON"),
        (b'{"dry_run": ' * 3000, "dry_run: "),
        (b"[" * 60000, "Expected `object`"),
        (b"null", "Expected `object`"),
        (b"{}", "missing required field `series`"),
        (b'{"series": 1}', "series: Expected `str`"),
        (b'{"series": null}', "series: Expected `str`"),
        (b'{"series": ["1.2"]}', "series: Expected `str`"),
        (b'{"series": "1.2", "dry_run": "yes"}', "dry_run: Expected `bool`"),
        (b'{"series": "1.2", "force": true}', "unknown field `force`"),
    ],
)
def test_wrong_body_is_explained(client: Client, body: bytes, reason: str) -> None:
    """A body that is no JSON, or JSON of another shape, is 400 with the reason."""
    status, error = client.call("POST", "/jobs/replay", content=body, headers=JSON)
    assert (status, reason in error) == (400, True), error


def test_endless_body_is_not_read(client: Client) -> None:
    """A body that is longer than any that is right is 413."""
    assert client.call("POST", "/jobs/replay", content=b" " * (1 << 20), headers=JSON)[0] == 413


@pytest.mark.parametrize("series", ["1.2.3", "", "%", "' or 1=1 --", "../../etc/passwd", "\0", "1" * 60000])
def test_unknown_series_is_not_found(client: Client, series: str) -> None:
    """A series that is not held, or no UID, is 404."""
    assert client.act("/jobs/replay", {"series": series})[0] == 404


@pytest.mark.parametrize("job_id", ["zz", "%25", "%5F", "'", "%22", "%00", "%FF", "' or '1'='1", "a" * 4000, "replay"])
def test_unknown_job_is_not_found(client: Client, job_id: str) -> None:
    """An id that no job has is 404 for whatever is asked of it; characters that mean something in SQL mean nothing."""
    assert client.call("GET", f"/jobs/{job_id}")[0] == 404
    for act in ("retry", "release", "cancel"):
        assert client.act(f"/jobs/{job_id}/{act}")[0] == 404


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "text/plain; application/json"},
        {"Content-Type": "application/jsonp"},
    ],
)
def test_foreign_page_cannot_steer(client: Client, headers: Mapping[str, str]) -> None:
    """What a browser sends for another site without asking is 415, and does nothing."""
    before = client.call("GET", "/jobs")
    paths = ["/jobs/replay", *(f"/jobs/{before[0]['id']}/{act}" for act in ("retry", "release", "cancel"))]
    for path in paths:
        body = json.dumps({"series": client.series["good"]}).encode()
        assert client.call("POST", path, content=body, headers=headers)[0] == 415
    asked = {"Origin": "http://elsewhere.example", "Access-Control-Request-Method": "POST"}
    answer = client.http.options(paths[0], headers=asked)
    assert (answer.status_code, [name for name in answer.headers if name.startswith("access-control")]) == (405, [])
    assert client.call("GET", "/jobs") == before


def test_json_may_name_its_character_set(client: Client) -> None:
    """Parameters of the media type, and its case, do not matter."""
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert client.call("POST", "/jobs/replay", content=b'{"series": "1.2"}', headers=headers)[0] == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/nothing", 404),
        ("GET", "/jobs/a/b", 404),
        ("GET", "/jobs/a%2Fb", 404),
        ("POST", "/jobs", 405),
        ("DELETE", "/jobs/a", 405),
        ("GET", "/jobs/a/retry", 405),
    ],
)
def test_what_there_is_not_is_said_as_json(client: Client, method: str, path: str, status: int) -> None:
    """Unknown paths and methods under /api are errors in the same form as every other."""
    answer = client.http.request(method, path)
    assert (answer.status_code, list(answer.json())) == (status, ["error"])


def test_errors_of_dicomweb_are_for_people(client: Client) -> None:
    """Beside /api nothing has changed: plain text."""
    answer = httpx.get(f"{client.node.dicomweb}/studies/1.2")
    assert (answer.status_code, answer.headers["Content-Type"]) == (404, "text/plain; charset=utf-8")
