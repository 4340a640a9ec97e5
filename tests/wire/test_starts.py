"""Nothing piles up: what a node has after dozens of starts, and leaves to others, is what there was before."""

import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from segnode.testing.processes import descendants, leads_to
from segnode.testing.servers import free_port, restarted_segnode
from tests.wire.test_leaks import files
from tests.wire.test_serve import await_gone

CYCLES = 24


@pytest.mark.timeout(900)
def test_nothing_piles_up_over_dozens_of_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped or killed two dozen times on one folder, a node leaves no process, port or file behind, and we keep none."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    table = f'dicom = "127.0.0.1:{free_port()}"\nhttp = "127.0.0.1:{free_port()}"\ndimse_processes = 1\n'
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
