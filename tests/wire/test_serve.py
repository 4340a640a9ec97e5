"""The node as processes: how it starts, stops, and what a crash leaves."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom import dcmread

from segnode.config import parse_dimse_address
from segnode.dimse.scu import send_files
from segnode.errors import DeliveryFailed
from segnode.node import open_jobs
from segnode.testing.phantom import Phantom
from segnode.testing.processes import are_gone, descendants, listens, post_of
from segnode.testing.servers import (
    Server,
    await_jobs,
    free_port,
    node_config,
    restarted_segnode,
    segnode,
    until,
)

SLOW_MODEL = """
import os, pathlib, time
from segnode.models import threshold

def segment(volume):
    marker = pathlib.Path(os.environ["SLOW_MODEL_MARKER"])
    if not marker.exists():
        marker.write_text(str(os.getpid()))
        time.sleep(600)
    return threshold.segment(volume)
"""


def command(*arguments: str) -> list[str]:
    """The command line of segnode."""
    return [sys.executable, "-m", "segnode", *arguments]


def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    """Run segnode to its end."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False, timeout=60, **options)


def await_gone(processes: set[int], ports: tuple[int, ...]) -> None:
    """Wait until these processes have ended and nothing listens on the ports."""
    until(lambda: are_gone(processes, ports))


def test_wrong_configuration_stops_the_start(tmp_path: Path) -> None:
    """An unknown key ends `segnode serve` at once: exit code 2, the key's path and the allowed keys on standard error."""
    (tmp_path / "segnode.toml").write_text('[node]\nae_titel = "X"')
    ended = run("serve", cwd=tmp_path)
    assert ended.returncode == 2
    assert "node.ae_titel: unknown key; allowed: ae_title" in ended.stderr


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        ('[[models]]\nname = "m"\nrun = "python:no.such.module"\nlabels = "threshold"\nversion = "1"\n', "no.such.module"),
        ('[[models]]\nname = "m"\nrun = "python:json"\nlabels = "threshold"\nversion = "1"\n', "no segment"),
        ('[[models]]\nname = "m"\nrun = "python:json"\nlabels = "nowhere.toml"\nversion = "1"\n', "nowhere.toml"),
    ],
)
def test_model_that_cannot_be_loaded_stops_the_start(tmp_path: Path, tables: str, reason: str) -> None:
    """A module or a dictionary that is not there is named, and the node does not run without it."""
    node = f'[node]\ndicom = "127.0.0.1:{free_port()}"\nhttp = "127.0.0.1:{free_port()}"\n'
    (tmp_path / "segnode.toml").write_text(node + tables + '[[rules]]\nwhen = {}\nmodel = "m"\n')
    ended = run("serve", "--config", str(tmp_path / "segnode.toml"))
    assert ended.returncode == 2
    assert reason in ended.stderr


def test_defaults_say_that_there_is_no_destination(tmp_path: Path) -> None:
    """Without a configuration the node says where it listens and that results go nowhere."""
    with subprocess.Popen(command("serve"), cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = process.stderr.readline() + process.stderr.readline()
        process.terminate()
        process.stderr.read()
    assert "127.0.0.1:11112" in said
    assert "no [[destinations]]" in said


def test_port_that_is_taken_is_said(tmp_path: Path) -> None:
    """A second node on the port of another ends with exit code 1 and says so; the first serves on."""
    with segnode(tmp_path / "first", "models = []\nrules = []") as first:
        config = f'[node]\ndicom = "127.0.0.1:{free_port()}"\nhttp = "127.0.0.1:{first.http_port}"\n'
        (tmp_path / "segnode.toml").write_text("models = []\nrules = []\n" + config)
        ended = run("serve", "--config", str(tmp_path / "segnode.toml"))
        assert ended.returncode == 1
        assert "Address already in use" in ended.stderr
        assert DICOMwebClient(first.dicomweb).search_for_studies() == []


def test_second_node_on_a_data_folder_is_refused(tmp_path: Path) -> None:
    """Two nodes on one data folder would do everything twice: the second does not start."""
    with segnode(tmp_path / "node", "models = []\nrules = []") as node:
        config = f'models = []\nrules = []\n[node]\ndicom = "127.0.0.1:{free_port()}"\nhttp = "127.0.0.1:{free_port()}"\n'
        (tmp_path / "second.toml").write_text(config + f'data = "{node_config(node).data}"\n')
        ended = run("serve", "--config", str(tmp_path / "second.toml"))
    assert ended.returncode == 2
    assert "another node runs on" in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_the_node(tmp_path: Path, number: signal.Signals) -> None:
    """Told to stop or killed, the node leaves no process and no port; told to stop, it exits with 0."""
    with segnode(tmp_path / "node", "models = []\nrules = []") as node:
        children = descendants(node.process.pid)
        assert len(children) >= 3
        node.process.send_signal(number)
        code = node.process.wait(10)
        await_gone(children, (node.dicom_port, node.http_port))
    assert code == (0 if number == signal.SIGTERM else -signal.SIGKILL)


def events(node: Server, name: str) -> list[dict]:
    """The events of that name in a node's log."""
    lines = [line for line in node.log.read_text().splitlines() if line.startswith("{")]
    return [event for event in map(json.loads, lines) if event["event"] == name]


@pytest.mark.parametrize("post", ["dimse-1", "web-1", "worker-1"])
def test_role_that_dies_is_started_again(tmp_path: Path, phantom: Phantom, post: str) -> None:
    """A role that is killed, twice, is started again after a wait that grows; then the node does its whole work."""
    with segnode(tmp_path / "node", '[[rules]]\nwhen = {}\nmodel = "threshold"\nquiet = 1.0\n') as node:
        for deaths in (1, 2):
            (process,) = (p for p in descendants(node.process.pid) if post_of(p) == post)
            os.kill(process, signal.SIGKILL)
            until(lambda n=deaths: len(events(node, "a role is started again")) == n)
        waits = [(e["died"], e["exit_code"], e["starts_again_in_s"]) for e in events(node, "a role has died")]
        assert waits == [(post, -signal.SIGKILL, 0.5), (post, -signal.SIGKILL, 1.0)]
        until(lambda: listens(node.dicom_port) and listens(node.http_port))
        list(send_files(sorted(phantom.folder.iterdir()), parse_dimse_address(node.dimse, ""), "TEST"))
        (job,) = await_jobs(node_config(node))
        assert job.state == "delivered"
        assert len(DICOMwebClient(node.dicomweb).search_for_studies()) == 1
        children = descendants(node.process.pid)
        node.process.terminate()
        assert node.process.wait(10) == 0
        await_gone(children, (node.dicom_port, node.http_port))


def kill(node: Server) -> None:
    """End every process of a node at once, as a power cut does."""
    for process in (*descendants(node.process.pid), node.process.pid):
        os.kill(process, signal.SIGKILL)
    node.process.wait()


def test_acknowledged_images_survive_a_kill(tmp_path: Path, phantom: Phantom) -> None:
    """Killed while images come in: after a restart every acknowledged one is held, whole, and nothing half-written is left."""
    acknowledged: list[Path] = []
    enough = threading.Event()
    with segnode(tmp_path / "node", "models = []\nrules = []") as node:

        def send() -> None:
            try:
                for path, _ in send_files(sorted(phantom.folder.iterdir()), parse_dimse_address(node.dimse, ""), "TEST"):
                    acknowledged.append(path)
                    if len(acknowledged) == 10:
                        enough.set()
            except DeliveryFailed:
                pass

        sender = threading.Thread(target=send)
        sender.start()
        assert enough.wait(30)
        kill(node)
        sender.join()
    with restarted_segnode(tmp_path / "node") as node:
        image = dcmread(phantom.folder / "0001.dcm", stop_before_pixels=True)
        held = {d.SOPInstanceUID: d for d in DICOMwebClient(node.dicomweb).retrieve_study(image.StudyInstanceUID)}
        assert len(acknowledged) >= 10
        for path in acknowledged:
            sent = dcmread(path)
            assert held[sent.SOPInstanceUID] == sent
        assert [p for p in (node_config(node).data / "objects" / "incoming").rglob("*") if p.is_file()] == []


def test_job_goes_on_after_a_kill_and_makes_one_seg(tmp_path: Path, archive: Server, phantom: Phantom) -> None:
    """Killed while the model runs: after a restart the same job ends, with one SEG in the archive."""
    (tmp_path / "slow_model.py").write_text(SLOW_MODEL)
    marker = tmp_path / "marker"
    tables = (
        '[[models]]\nname = "slow"\nrun = "python:slow_model"\nlabels = "threshold"\nversion = "1"\n'
        f'[[destinations]]\nname = "orthanc"\nto = "{archive.dicomweb}"\n'
        '[[rules]]\nwhen = {}\nmodel = "slow"\nsend_to = ["orthanc"]\nquiet = 1.0\n'
    )
    os.environ["PYTHONPATH"], os.environ["SLOW_MODEL_MARKER"] = str(tmp_path), str(marker)
    try:
        with segnode(tmp_path / "node", tables) as node:
            list(send_files(sorted(phantom.folder.iterdir()), parse_dimse_address(node.dimse, ""), "TEST"))
            until(marker.exists)
            (before,) = open_jobs(node_config(node)).all()
            assert before.state == "inferring"
            kill(node)
        with restarted_segnode(tmp_path / "node") as node:
            (job,) = await_jobs(node_config(node))
    finally:
        del os.environ["PYTHONPATH"], os.environ["SLOW_MODEL_MARKER"]
    assert (job.id, job.state, job.error) == (before.id, "delivered", "")
    client = DICOMwebClient(archive.dicomweb)
    assert len(client.search_for_instances(search_filters={"SOPInstanceUID": job.sop_instance_uid})) == 1


def test_model_that_crashes_harms_nobody_else(tmp_path: Path, phantom: Phantom) -> None:
    """A model whose process dies fails its own job, with how it died; another rule's job on the same series is delivered."""
    (tmp_path / "crashing_model.py").write_text("import ctypes\n\ndef segment(volume):\n    ctypes.string_at(0)\n")
    tables = (
        '[[models]]\nname = "bad"\nrun = "python:crashing_model"\nlabels = "threshold"\nversion = "1"\n'
        '[[models]]\nname = "good"\nrun = "python:segnode.models.threshold"\nlabels = "threshold"\nversion = "1"\n'
        '[[rules]]\nwhen = {}\nmodel = "bad"\nquiet = 1.0\n[[rules]]\nwhen = {}\nmodel = "good"\nquiet = 1.0\n'
    )
    os.environ["PYTHONPATH"] = str(tmp_path)
    try:
        with segnode(tmp_path / "node", tables) as node:
            list(send_files(sorted(phantom.folder.iterdir()), parse_dimse_address(node.dimse, ""), "TEST"))
            jobs = {job.model: job for job in await_jobs(node_config(node), 2)}
            assert events(node, "a role has died") == []
    finally:
        del os.environ["PYTHONPATH"]
    assert (jobs["good"].state, jobs["bad"].state) == ("delivered", "failed")
    assert "the process of model 'bad' ended by SIGSEGV" in jobs["bad"].error


def test_archive_that_is_down_is_tried_again(tmp_path: Path, phantom: Phantom) -> None:
    """A destination that nobody listens at keeps its delivery waiting, with the reason; the node serves on."""
    tables = (
        f'[[destinations]]\nname = "down"\nto = "http://127.0.0.1:{free_port()}/dicom-web"\n'
        '[[rules]]\nwhen = {}\nmodel = "threshold"\nsend_to = ["down"]\nquiet = 1.0\n'
    )
    with segnode(tmp_path / "node", tables) as node:
        list(send_files(sorted(phantom.folder.iterdir()), parse_dimse_address(node.dimse, ""), "TEST"))
        jobs = open_jobs(node_config(node))
        until(lambda: any(delivery.attempts for job in jobs.all() for delivery in job.deliveries))
        (job,) = jobs.all()
        (delivery,) = job.deliveries
        assert (job.state, delivery.state) == ("delivering", "waiting")
        assert "cannot be reached" in delivery.last_answer
        assert 2 < delivery.next_attempt_at - delivery.created_at < 20
        cancel = ("jobs", "--config", str(tmp_path / "node" / "segnode.toml"), "cancel", job.id[:10])
        assert run(*cancel).returncode == 0
        again = run(*cancel)
        assert (again.returncode, "it is cancelled" in again.stderr) == (1, True)
        assert jobs.due(delivery.next_attempt_at + 1) == []
        wrong = run("jobs", "--config", str(tmp_path / "node" / "segnode.toml"), "--state", "done")
        assert (wrong.returncode, "allowed: waiting" in wrong.stderr) == (2, True)


def test_demo_on_a_real_folder(tmp_path: Path, phantom: Phantom) -> None:
    """`segnode demo FOLDER` ends with 0, a table and a picture, when what comes back is what the model produced."""
    ended = run("demo", str(phantom.folder), "--out", str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert "voxels equal what the model produced" in ended.stdout
    assert re.search(r"LABELMAP as the archive returned it +[\d,]+", ended.stdout)
    assert (tmp_path / "contact-sheet.png").read_bytes().startswith(b"\x89PNG")


def test_demo_fails_with_the_reason(tmp_path: Path, phantom: Phantom) -> None:
    """`segnode demo FOLDER` on a series with a gap ends with 1 and says why."""
    folder = tmp_path / "gap"
    folder.mkdir()
    for file in sorted(phantom.folder.iterdir()):
        if file.name != "0009.dcm":
            (folder / file.name).write_bytes(file.read_bytes())
    ended = run("demo", str(folder), "--out", str(tmp_path))
    assert ended.returncode == 1
    assert "gap of 5.00 mm" in ended.stderr
