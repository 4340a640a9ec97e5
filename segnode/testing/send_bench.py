"""C-STORE out: a series to DCMTK's `storescp --ignore` by this node's sender and by dcmsend, in turn in one run.

Both ends run with TCP_NODELAY=1: without it Debian's DCMTK waits 40 ms in each C-STORE. The sender's time is that of its
association, from the request to the release; dcmsend's is that of its process, whose start takes a hundredth of a second.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import click

from segnode.config import DimseAddress
from segnode.dimse.scu import send_files
from segnode.testing.processes import listens
from segnode.testing.servers import free_port, until

_GOAL: Final = 2.0
_HOST: Final = "127.0.0.1"


@dataclass(frozen=True)
class Sending:
    """What sending a series took: seconds of wall time and of CPU, and peak memory in MB, 0 where it is not known."""

    seconds: float
    cpu: float
    peak: float = 0.0


def c_store_out(folder: Path, runs: int) -> Iterator[str]:
    """The rows of a bench: the files of a folder, in PDUs as storescp allows them by default, and as long as it can."""
    count = sum(1 for _ in folder.iterdir())
    for options, pdu in (((), "16 KiB"), (("-pdu", "131072"), "128 KiB")):
        with _ignoring(*options) as port:
            ours, theirs = [], []
            for _ in range(runs):
                theirs.append(_run(["dcmsend", "--scan-directories", _HOST, str(port), str(folder)]))
                ours.append(_own(port, folder))
        yield _row(f"C-STORE out of {count}, PDUs of {pdu}", count, _median(ours), _median(theirs))


def _row(name: str, count: int, ours: Sending, theirs: Sending) -> str:
    ratio = theirs.seconds / ours.seconds
    met = " " if ratio >= _GOAL else "!"
    rates = f"{count / ours.seconds:.0f} / {count / theirs.seconds:.0f} objects/s"
    cpu = f"CPU {ours.cpu / count * 1e3:.2f} / {theirs.cpu / count * 1e3:.2f} ms an object"
    return (
        f"{name:<38} {rates:>24}   {ratio:4.1f} x dcmsend, goal {_GOAL:g} {met} {cpu}   {ours.peak:.0f} / {theirs.peak:.0f} MB"
    )


@contextmanager
def _ignoring(*options: str) -> Iterator[int]:
    """A storescp that reads what it gets and keeps nothing; its port."""
    port = free_port()
    environment = {**os.environ, "TCP_NODELAY": "1"}
    with subprocess.Popen(["storescp", "--ignore", *options, str(port)], env=environment) as process:  # noqa: S603, S607  DCMTK's
        try:
            until(lambda: process.poll() is not None or listens(port))
            yield port
        finally:
            process.terminate()


def _own(port: int, folder: Path) -> Sending:
    """By this node's sender, in a process of its own that measures itself."""
    command = [sys.executable, "-m", "segnode.testing.send_bench", str(port), str(folder)]
    said = subprocess.run(command, check=True, capture_output=True).stdout  # noqa: S603  our own program
    return Sending(*json.loads(said))


def _run(command: list[str]) -> Sending:
    start = time.perf_counter()
    child = os.posix_spawnp(command[0], command, {**os.environ, "TCP_NODELAY": "1"})
    _, status, used = os.wait4(child, 0)
    if status:
        raise click.ClickException(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return Sending(time.perf_counter() - start, used.ru_utime + used.ru_stime)


def _measure(port: int, folder: Path) -> Sending:
    files = sorted(folder.iterdir())
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    answers = {answer for _, answer in send_files(files, DimseAddress("STORESCP", _HOST, port), "BENCH")}
    seconds, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    if answers != {"status 0x0000"}:
        raise click.ClickException(f"not everything was stored: {answers}")
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    return Sending(seconds, cpu, _peak())


def _peak() -> float:
    """In MB; that of `getrusage` counts from the process that started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def _median(sendings: list[Sending]) -> Sending:
    columns = zip(*((each.seconds, each.cpu, each.peak) for each in sendings), strict=True)
    return Sending(*map(median, columns))


@click.command()
@click.argument("port", type=int)
@click.argument("folder", type=click.Path(path_type=Path))
def main(port: int, folder: Path) -> None:
    """Send the files of a folder, and print what that took."""
    sending = _measure(port, folder)
    click.echo(json.dumps([sending.seconds, sending.cpu, sending.peak]))


if __name__ == "__main__":
    main()
