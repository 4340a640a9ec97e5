"""Nothing piles up: what a node has after hundreds of series is what it had before."""

import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from segnode.config import parse_dimse_address
from segnode.dimse.scu import send_files
from segnode.node import open_jobs
from segnode.testing.phantom import write_ct
from segnode.testing.processes import descendants, leads_to, post_of
from segnode.testing.servers import Server, node_config, segnode, until
from tests.rows import stop_between_writes
from tests.wire.test_storage import stow

WARM_UP, SERIES = 60, 240
# What one series more would cost if it stayed: 240 of them would be far above.
MOST_GROWTH_KIB = 32 << 10
# As many as threads may need at the same time: pools keep them, and SQLite closes none while another holds a lock.
MOST_CONNECTIONS = {"index.sqlite": 15, "documents.sqlite": 15, "pipeline.sqlite": 15, "workflows.sqlite": 20}


@dataclass(frozen=True)
class Holdings:
    """What a process has: descriptors by what they lead to, those of databases apart; threads; resident KiB."""

    descriptors: Mapping[str, int]
    connections: Mapping[str, int]
    threads: int
    resident: int


def holdings(process: int) -> Holdings:
    """What a process has now."""
    found = leads_to(process)
    databases = {target: count for target, count in found.items() if ".sqlite" in target}
    status = Path(f"/proc/{process}/status").read_text().splitlines()
    numbers = {line.split()[0]: line.split()[1] for line in status if line.startswith(("VmRSS", "Threads"))}
    return Holdings(
        {target: count for target, count in found.items() if target not in databases},
        {Path(target).name: count for target, count in databases.items() if target.endswith(".sqlite")},
        int(numbers["Threads:"]),
        int(numbers["VmRSS:"]),
    )


def everything(node: Server) -> dict[int, Holdings]:
    """What each process of a node has now."""
    return {process: holdings(process) for process in {node.process.pid, *descendants(node.process.pid)}}


def files(*folders: Path) -> set[Path]:
    """Every file under some folders that is neither an object nor SQLite's."""
    found = {path for folder in folders for path in folder.rglob("*") if path.is_file() and ".sqlite-" not in path.name}
    return {path for path in found if "objects" not in path.parts or "incoming" in path.parts}


def send(node: Server, folders: Iterable[Path]) -> None:
    """Send series, in turn by C-STORE with an association each and by STOW with a connection each."""
    for number, folder in enumerate(folders):
        images = sorted(folder.iterdir())
        if number % 2:
            assert stow(node, *(image.read_bytes() for image in images)).status_code == 200
        else:
            list(send_files(images, parse_dimse_address(node.dimse, ""), "TEST"))


def warm_up(node: Server, archive: Server, folders: Sequence[Path]) -> None:
    """Have everything at work at once that ever is: threads and connections are made when they are first needed."""
    jobs = open_jobs(node_config(node))
    (worker,) = (process for process in descendants(node.process.pid) if post_of(process) == "worker-1")
    os.kill(archive.process.pid, signal.SIGSTOP)
    try:
        stop_between_writes(node, worker)
        send(node, folders)
        os.kill(worker, signal.SIGCONT)
        until(lambda: jobs.count()["delivering"] == len(folders))
    finally:
        for process in (worker, archive.process.pid):
            os.kill(process, signal.SIGCONT)
    await_delivered(node, len(folders))


def await_delivered(node: Server, count: int) -> None:
    """Wait until that many jobs are delivered; one that failed is an error."""
    jobs = open_jobs(node_config(node))
    until(lambda: jobs.count()["delivered"] + jobs.count()["failed"] == count, 300)
    assert jobs.count()["failed"] == 0, jobs.all("failed")[0].error


def unlike(before: Mapping[int, Holdings], after: Mapping[int, Holdings]) -> dict[str, object]:
    """Where the processes of a node have more or less than before, by post."""
    if before.keys() != after.keys():
        return {"processes": before.keys() ^ after.keys()}
    pairs = {process: (before[process], after[process]) for process in before}
    return {
        post_of(process) or str(process): (then, now)
        for process, (then, now) in pairs.items()
        if (then.descriptors, then.threads) != (now.descriptors, now.threads)
        or any(count > MOST_CONNECTIONS[name] for name, count in now.connections.items())
    }


@pytest.mark.timeout(900)
def test_nothing_piles_up_over_hundreds_of_series(
    tmp_path: Path, archive_of_any_class: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 240 series every process has the descriptors, threads and files that it had before, and hardly more memory."""
    series = [tmp_path / "series" / str(number) for number in range(WARM_UP + SERIES)]
    for number, folder in enumerate(series):
        write_ct(folder, slices=3, size=16, seed=number, SeriesDescription=("C-STORE", "STOW")[number % 2])
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    tables = (
        f'[[destinations]]\nname = "stow"\nto = "{archive_of_any_class.dicomweb}"\n'
        f'[[destinations]]\nname = "c-store"\nto = "{archive_of_any_class.dimse}"\n'
        '[[rules]]\nwhen = { SeriesDescription = "C-STORE" }\nmodel = "threshold"\nsend_to = ["stow"]\nquiet = 2.0\n'
        '[[rules]]\nwhen = { SeriesDescription = "STOW" }\nmodel = "threshold"\nsend_to = ["c-store"]\nquiet = 2.0\n'
    )
    with segnode(tmp_path / "node", tables) as node:
        warm_up(node, archive_of_any_class, series[:WARM_UP])
        before, files_before = everything(node), files(tmp_path / "node", scratch)
        send(node, series[WARM_UP:])
        await_delivered(node, WARM_UP + SERIES)
        try:
            until(lambda: not unlike(before, everything(node)), 30)
        finally:
            after = everything(node)
            for process, had in before.items():
                print(post_of(process) or process, had, after.get(process), sep="\n  ")  # noqa: T201  a report
        assert files(tmp_path / "node", scratch) == files_before
        grown = {post_of(p): after[p].resident - before[p].resident for p in before}
        assert max(grown.values()) < MOST_GROWTH_KIB, grown
