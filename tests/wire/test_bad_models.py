"""Bad models through a node: each is a failed job that says which and why, and neither the node nor other jobs suffer."""

from pathlib import Path
from zlib import crc32

import pytest

from segnode.config import parse_dimse_address
from segnode.dimse.scu import send_files
from segnode.testing.phantom import write_ct
from segnode.testing.processes import descendants, is_alive, post_of
from segnode.testing.servers import Server, await_jobs, node_config, segnode, until
from tests.rows import jobs_of
from tests.wire.test_serve import events, run

MODELS = """
import os, signal, subprocess, sys, time
from pathlib import Path
import numpy as np
from segnode.models import Result, report_progress, threshold

MARKS = Path(os.environ["MODEL_MARKS"])

def fine(volume):
    return threshold.segment(volume)

def wrong_shape(volume): return Result(np.zeros((1, 2, 3), np.uint8))
def wrong_type(volume): return Result(np.zeros(volume.array.shape, np.float32))
def no_entry(volume): return Result(np.full(volume.array.shape, 77, np.uint8))
def no_result(volume): return "somebody's name"
def raises(volume): raise ValueError("somebody's name")
def exits(volume): os._exit(3)

def loops(volume):
    while True:
        pass

def deaf(volume):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(1)

def forks(volume):
    for is_apart in (False, True):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=is_apart)
        (MARKS / f"forked {child.pid}").touch()
    if os.fork() == 0:
        os.setsid()
        (MARKS / f"forked {os.getpid()}").touch()
        time.sleep(600)
    while len(list(MARKS.glob("forked *"))) < 3:
        time.sleep(0.01)
    raise SystemExit(7)

def floods(volume):
    block = b"somebody's name " * (1 << 16)
    for i in range(10 << 10):
        os.write(1, block)
    return Result(np.full(volume.array.shape, 77, np.uint8))

def waits(volume):
    report_progress(0.42, "second fold")
    (MARKS / f"begun {time.time_ns()} {volume.series['PatientID']}").touch()
    while not (MARKS / f"go {volume.series['PatientID']}").exists():
        time.sleep(0.01)
    print("somebody's name")
    return threshold.segment(volume)

def also_waits(volume): return waits(volume)

def kills_the_worker(volume):
    (MARKS / f"begun {time.time_ns()} {volume.series['PatientID']}").touch()
    if volume.series["PatientID"] == "POISON":
        os.kill(int((MARKS / "worker").read_text()), signal.SIGKILL)
        time.sleep(600)
    return threshold.segment(volume)
"""
MODEL = '[[models]]\nname = "{name}"\nrun = "python:bad_models_of_a_test:{name}"\nlabels = "threshold"\nversion = "1"\n{keys}\n'
RULE = '[[rules]]\nwhen = {when}\nmodel = "{name}"\nquiet = 1.0\nlaterality = "off"\n{keys}\n'


def rule(name: str, when: str = "{}", keys: str = "") -> str:
    """A rule that has a series go to a model."""
    return RULE.format(name=name, when=when, keys=keys)


def model(name: str, keys: str = "") -> str:
    """One of the models."""
    return MODEL.format(name=name, keys=keys)


@pytest.fixture
def marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which models mark what they do; their module is on the path of new processes."""
    (tmp_path / "bad_models_of_a_test.py").write_text(MODELS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("MODEL_MARKS", str(tmp_path / "marks"))
    (tmp_path / "marks").mkdir()
    return tmp_path / "marks"


def send(node: Server, files: list[Path]) -> None:
    """Send files to a node."""
    list(send_files(sorted(files), parse_dimse_address(node.dimse, ""), "TEST"))


def small_ct(folder: Path, patient: str, **attributes: str) -> list[Path]:
    """The files of a small series of a patient."""
    folder = folder / f"ct {patient}"
    return sorted(write_ct(folder, 4, 32, crc32(patient.encode()), PatientID=patient, **attributes).folder.iterdir())


BAD = {
    "wrong_shape": ("", "model 'wrong_shape' returned labelmap of shape (1, 2, 3)"),
    "wrong_type": ("", "model 'wrong_type' returned labelmap of float32: integers are needed"),
    "no_entry": ("", "model 'no_entry': "),
    "no_result": ("", "model 'no_result' returned str, not a Result"),
    "raises": ("", "model 'raises' raised ValueError"),
    "exits": ("", "the process of model 'exits' ended with exit code 3"),
    "loops": ("timeout = 2.0", "the process of model 'loops' did not answer within 2 s (timeout)"),
    "deaf": ("timeout = 2.0", "the process of model 'deaf' did not answer within 2 s (timeout)"),
    "forks": ("", "the process of model 'forks' ended with exit code 7"),
    "floods": ("", "model 'floods': "),
}


@pytest.mark.timeout(170)
def test_bad_models_harm_nobody(tmp_path: Path, marks: Path) -> None:
    """Each is a failed job that says which model and why; the others are made, no process is left, and no log names a patient.

    What they print is in the folder of their job, the last MiB of 10 GB; what crashes is said to be set aside.
    """
    tables = "".join(model(name, keys) + rule(name) for name, (keys, _) in BAD.items()) + model("fine") + rule("fine")
    with segnode(tmp_path / "node", tables) as node:
        send(node, small_ct(tmp_path, "P"))
        jobs = {job.model: job for job in await_jobs(node_config(node), len(BAD) + 1, 150)}
        for name, (_, reason) in BAD.items():
            assert (jobs[name].state, reason in jobs[name].error) == ("failed", True), jobs[name].error
            assert "somebody" not in jobs[name].error
        assert jobs["fine"].state == "delivered"
        for name in ("exits", "forks"):
            assert "begun 3 times: it is set aside; `segnode jobs retry` starts it anew" in jobs[name].error
        forked = [int(mark.name.split()[1]) for mark in marks.glob("forked *")]
        until(lambda: not any(map(is_alive, forked)))
        assert len(forked) == 9
        assert events(node, "a role has died") == []
        prints = node_config(node).data / "work" / "jobs" / jobs["floods"].id / "prints.log"
        assert prints.stat().st_size == 1 << 20
        shown = run("jobs", "--config", str(tmp_path / "node" / "segnode.toml"), "show", jobs["floods"].id)
        assert f"prints               {prints}" in shown.stdout
        left = set(descendants(node.process.pid))
    assert "somebody" not in node.log.read_text()
    until(lambda: not any(map(is_alive, left)))


def begun(marks: Path) -> list[str]:
    """The patients of the volumes that models have begun, in order."""
    return [mark.name.split()[2] for mark in sorted(marks.glob("begun *"))]


def go_on(marks: Path, patient: str) -> None:
    """Have the models that wait with a patient's volume go on."""
    (marks / f"go {patient}").touch()


def test_urgent_jobs_are_made_first(tmp_path: Path, marks: Path) -> None:
    """Of jobs that wait for a model a STAT series overtakes all others, and one of a rule of greater priority those before it.

    Meanwhile `segnode jobs` shows how far the model is, in its words; these are in no log.
    """
    tables = (
        model("waits") + rule("waits", '{ PatientID = "LATER*" }') + rule("waits", '{ PatientID = "SOON" }', "priority = 5")
    )
    tables += rule("waits", '{ PatientID = "STAT" }', "priority = -5")
    with segnode(tmp_path / "node", tables) as node:
        jobs = jobs_of(node)
        send(node, small_ct(tmp_path, "LATER1"))
        until(lambda: begun(marks) == ["LATER1"])
        for patient in ("LATER2", "SOON"):
            send(node, small_ct(tmp_path, patient))
        send(node, small_ct(tmp_path, "STAT", RequestedProcedurePriority="STAT"))
        until(lambda: jobs.count()["waiting"] == 3)
        until(lambda: jobs.count()["inferring"] == 1 and jobs.all("inferring")[0].progress == 0.42)
        assert "\n    42% second fold\n" in run("jobs", "--config", str(tmp_path / "node" / "segnode.toml")).stdout
        for patient in ("LATER1", "LATER2", "SOON", "STAT"):
            go_on(marks, patient)
        done = await_jobs(node_config(node), 4)
    assert {job.state for job in done} == {"delivered"}
    assert begun(marks) == ["LATER1", "STAT", "SOON", "LATER2"]
    assert "second fold" not in node.log.read_text()


@pytest.mark.parametrize(
    ("keys", "others", "at_once"),
    [("concurrency = 2", "", 3), ('devices = ["0", "1"]', 'devices = ["1"]', 2), ('devices = ["0"]', 'devices = ["1"]', 2)],
)
def test_models_share_what_there_is(tmp_path: Path, marks: Path, keys: str, others: str, at_once: int) -> None:
    """As many volumes are worked on at once as a model may, each device works on one of all models, and the others wait."""
    tables = model("waits", keys) + model("also_waits", others) + rule("waits") + rule("also_waits")
    with segnode(tmp_path / "node", tables) as node:
        jobs = jobs_of(node)
        for patient in ("A", "B", "C"):
            send(node, small_ct(tmp_path, patient))
        until(lambda: sum(jobs.count().values()) == 6 and len(begun(marks)) == at_once)
        count = jobs.count()
        assert (count["inferring"], count["waiting"]) == (at_once, 6 - at_once)
        for patient in ("A", "B", "C"):
            go_on(marks, patient)
        assert {job.state for job in await_jobs(node_config(node), 6)} == {"delivered"}


def test_series_that_kills_the_worker_is_set_aside(tmp_path: Path, marks: Path) -> None:
    """After three times it is a failed job that says so, what came after it is made, and a person may have it tried again."""
    with segnode(tmp_path / "node", model("kills_the_worker") + rule("kills_the_worker")) as node:
        config = tmp_path / "node" / "segnode.toml"

        def name_the_worker() -> bool:
            (worker, *_) = [*(p for p in descendants(node.process.pid) if post_of(p) == "worker-1"), 0]
            beside = marks / "worker.part"
            beside.write_text(str(worker))
            beside.rename(marks / "worker")
            return all(job.has_ended for job in jobs_of(node).all())

        name_the_worker()
        send(node, small_ct(tmp_path, "POISON"))
        send(node, small_ct(tmp_path, "FINE"))
        until(lambda: "POISON" in begun(marks))
        until(name_the_worker, 100)
        jobs = {job.state: job for job in await_jobs(node_config(node), 2)}
        assert jobs.keys() == {"delivered", "failed"}
        assert "it was begun 3 times, and each time the node or its model crashed: it is set aside" in jobs["failed"].error
        assert begun(marks).count("POISON") == 3
        assert len(events(node, "a role is started again")) == 3
        (marks / "worker").write_text("2147483647")  # no process: it goes on to be a crash of the model alone
        assert run("jobs", "--config", str(config), "retry", jobs["failed"].id).returncode == 0
        until(lambda: begun(marks).count("POISON") == 4)
        (failed,) = [job for job in await_jobs(node_config(node), 2) if job.state == "failed"]
        assert "raised ProcessLookupError" in failed.error
