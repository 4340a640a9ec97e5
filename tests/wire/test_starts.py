"""Nothing piles up: what a node has after dozens of starts, and leaves to others, is what there was before."""

import os
import resource
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from segnode.testing.processes import descendants, leads_to, post_of
from segnode.testing.servers import free_port, restarted_segnode, until
from tests.wire.test_leaks import files
from tests.wire.test_serve import await_gone

CYCLES = 24


@pytest.mark.timeout(900)
def test_nothing_piles_up_over_dozens_of_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped or killed two dozen times on one folder, a node leaves no process, port or file behind, and we keep none."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    table = f'dicom = "127.0.0.1:{free_port()}"\nhttp = "127.0.0.1:{free_port()}"\ndimse_processes = 1\nweb_workers = 1\n'
    (tmp_path / "segnode.toml").write_text(f"models = []\nrules = []\n[node]\n{table}")
    own = Path(f"/proc/{os.getpid()}")
    left, ours = [], []
    for cycle in range(CYCLES):
        with restarted_segnode(tmp_path) as node:
            processes = descendants(node.process.pid)
            assert len(processes) == 3
            node.process.send_signal((signal.SIGTERM, signal.SIGKILL)[cycle % 2])
            assert node.process.wait(10) == (0, -signal.SIGKILL)[cycle % 2]
            await_gone(processes, (node.dicom_port, node.http_port))
        left.append(files(tmp_path))
        ours.append(leads_to(os.getpid()) + Counter(threads=len(list((own / "task").iterdir()))))
    assert left[-1] == left[1]
    assert not ours[-1] - ours[1], "more than before; what earlier tests had may have ended meanwhile"


HANGING = """
import os, signal, sys
from segnode.roles import Forked, Post, supervise
outcome = supervise([Post("worker", 1, ())])
if isinstance(outcome, Forked):
    signal.signal(signal.SIGTERM, lambda *_: os.write(2, b"told"))
    os.write(2, b"begun")
    while True:
        signal.pause()
sys.exit(outcome)
"""


def test_role_that_hangs_at_its_start_does_not_keep_the_node_from_ending() -> None:
    """It hears SIGTERM, and goes on hanging: the node waits for it as long as for any other, and kills it."""
    with subprocess.Popen([sys.executable, "-c", HANGING], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.read(5) == b"begun"
        process.send_signal(signal.SIGTERM)
        try:
            said = process.communicate(timeout=30)[1]
        finally:
            process.kill()
    assert (process.returncode, said[:4]) == (0, b"told")


SERVING = """
import os, signal, sys
from segnode.roles import Forked, Post, supervise
outcome = supervise([Post("worker", 1, ()), Post("web", 1, ())])
if isinstance(outcome, Forked):
    outcome.ready()
    while True:
        signal.pause()
sys.exit(outcome)
"""


def test_process_that_there_is_no_room_for_is_started_later(tmp_path: Path) -> None:
    """Where a role died, and no process can be made for a while, the others serve on, and it is started again after that."""
    log = tmp_path / "log"
    with log.open("wb") as output, subprocess.Popen([sys.executable, "-c", SERVING], stderr=output, stdout=output) as process:
        try:
            until(lambda: b"ready" in log.read_bytes())
            usual = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (3, usual[1]))
            (worker,) = [each for each in descendants(process.pid) if post_of(each) == "worker-1"]
            (web,) = [each for each in descendants(process.pid) if post_of(each) == "web-1"]
            os.kill(worker, signal.SIGKILL)
            until(lambda: b"cannot be started again now" in log.read_bytes())
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, usual)
            until(lambda: b"a role is started again" in log.read_bytes())
            assert sorted(map(post_of, descendants(process.pid))) == ["web-1", "worker-1"]
            assert post_of(web) == "web-1"
        finally:
            process.terminate()
    assert process.returncode == 0


def test_node_without_room_for_its_processes_says_so(tmp_path: Path) -> None:
    """With too few descriptors it does not start, and says why in a line."""
    tables = 'models = []\nrules = []\n[node]\ndicom = "127.0.0.1:{}"\nhttp = "127.0.0.1:{}"\n'
    (tmp_path / "segnode.toml").write_text(tables.format(free_port(), free_port()))
    ended = subprocess.run(
        ["/bin/sh", "-c", 'ulimit -n 12; exec "$@"', "sh", sys.executable, "-m", "segnode", "serve"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ended.returncode, "there is no room for its" in ended.stderr, "Traceback" in ended.stderr) == (1, True, False)
