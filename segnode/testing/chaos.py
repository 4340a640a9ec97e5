"""Chaos: a node whose processes are killed, whose disk is full and whose archive is down, while senders go on sending.

At the end everything is let in peace, and what the node and the archive hold is compared with what was acknowledged.
"""

import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Final, Self

import click
import httpx

from segnode.config import parse_dimse_address
from segnode.node import open_jobs
from segnode.store.jobs import Job, Jobs
from segnode.testing.disk import MayNotMount, fill, small_disk
from segnode.testing.findings import Findings, examine
from segnode.testing.processes import are_gone, descendants, post_of
from segnode.testing.senders import Ledger, Sender, Series, make_series, store_door, stow_door
from segnode.testing.servers import (
    Server,
    ServerFailed,
    launch_orthanc,
    launch_segnode,
    node_config,
    orthanc_program,
    relaunch_orthanc,
    relaunch_segnode,
    until,
)

# Longer than any outage that is made here: an image that comes after its series was delivered rightly makes a second SEG.
_QUIET_S: Final = 12.0
_WATERMARK: Final = 2 << 20
_TABLES: Final = """
[storage]
low_watermark = "{watermark} B"

[[destinations]]
name = "by-stow"
to = "{stow}"
seg = ["labelmap:jpeg-ls"]

[[destinations]]
name = "by-c-store"
to = "{dimse}"
seg = ["labelmap:rle"]

[[rules]]
when = {{ Modality = "CT" }}
model = "threshold"
send_to = ["by-stow", "by-c-store"]
quiet = {quiet}
"""
_TICK_S: Final = 0.05
_SAY_EVERY_S: Final = 5.0
_CALM_S: Final = 3.0
_LAST_SERIES_S: Final = 12.0
_BETWEEN_EVENTS_S: Final = (0.7, 2.5)
_FULL_S: Final = (1.0, 4.0)
_DOWN_S: Final = (1.0, 6.0)
_SERVES_FOR_S: Final = 6.0
_MOST_DEATHS: Final = 3
_GONE_WITHIN_S: Final = 10.0
_SENT_WITHIN_S: Final = 60.0
_ENDED_WITHIN_S: Final = 120.0
_DISK_MIB: Final = 48
_DISK_MIB_PER_MINUTE: Final = 24
_MODEL_KILLED: Final = "ended by SIGKILL"


@dataclass(frozen=True)
class Outcome:
    """What was done, and what was found; `left_out` says what could not be done here."""

    seed: int
    did: Mapping[str, int]
    found: Findings
    left_out: Sequence[str]
    folder: Path

    @property
    def text(self) -> str:
        """All of it for a person."""
        lines = [f"chaos of seed {self.seed}", *_table("done", self.did), *_table("found", self.found.counts)]
        lines += [f"LEFT OUT {what}" for what in self.left_out]
        lines += [f"PROBLEM {problem}" for problem in self.found.problems]
        if self.found.problems:
            lines.append(f"logs, sent files and data: {self.folder}")
        return "\n".join(lines)


def run_chaos(seed: int, seconds: float, say: Callable[[str], None]) -> Outcome:
    """Run chaos for that long, then see what is held; all of it is said. Raises ServerFailed where there is no Orthanc."""
    say(f"seed {seed}")
    folder = Path(tempfile.mkdtemp(prefix="segnode-chaos-"))
    data = folder / "node" / "segnode-data"
    data.mkdir(parents=True)
    left_out = []
    with ExitStack() as stack:
        try:
            stack.enter_context(small_disk(data, _DISK_MIB + int(_DISK_MIB_PER_MINUTE * seconds / 60)))
        except MayNotMount as reason:
            left_out.append(f"disk-full episodes: {reason}")
        chaos = stack.enter_context(_Chaos(seed, folder, data, fills_disk=not left_out))
        chaos.run(seconds, say)
        found = chaos.calm_down(say)
        if found.problems:  # what lies on the small disk goes with it
            shutil.copytree(data, folder / "data-as-it-was")
    outcome = Outcome(seed, chaos.did, found, left_out, folder)
    say(outcome.text)
    if not found.problems:
        shutil.rmtree(folder)
    return outcome


@dataclass
class _Peer:
    """A server that is ended and started again on what it has left; `running` holds its process."""

    server: Server
    running: ExitStack
    relaunch: Callable[[], AbstractContextManager[Server]]

    def end(self, number: signal.Signals) -> None:
        """End its process, and only that."""
        self.server.process.send_signal(number)
        self.running.close()

    def start(self) -> None:
        """Start it again; it may not serve yet."""
        self.server = self.running.enter_context(self.relaunch())


@dataclass(frozen=True)
class _Later:
    """Something to be done, and when; `what` names the episode that it ends."""

    at: float
    what: str
    do: Callable[[], None]


class _Chaos:
    def __init__(self, seed: int, folder: Path, data: Path, *, fills_disk: bool) -> None:
        self.did: Counter[str] = Counter()
        self._random = Random(seed)  # noqa: S311  repeatable, guards nothing
        self._seed = seed
        self._folder = folder
        self._data = data
        self._fills_disk = fills_disk
        self._ledger = Ledger()
        self._later: list[_Later] = []
        self._deaths: Counter[str] = Counter()
        self._serving_since: float | None = None
        self._problems: list[str] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack:
            program = orthanc_program() or ""
            folder = self._folder / "archive"
            # A SEG that comes again, by the other door or after a kill, is the same.
            launch = launch_orthanc(folder, UnknownSopClassAccepted=True)
            self._archive = self._peer(launch, lambda: relaunch_orthanc(folder, program))
            self._archive.server.await_ready()
            tables = _TABLES.format(
                watermark=_WATERMARK, stow=self._archive.server.dicomweb, dimse=self._archive.server.dimse, quiet=_QUIET_S
            )
            where = self._data.parent
            self._node = self._peer(launch_segnode(where, tables, dimse_processes=2), lambda: relaunch_segnode(where))
            self._node.server.await_ready()
            self._jobs: Jobs = open_jobs(node_config(self._node.server))
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, seconds: float, say: Callable[[str], None]) -> None:
        """Have series sent and make chaos for that long; the last episodes may last a little longer."""
        self._senders = self._make_senders()
        for sender in self._senders:
            sender.start()
        now = began = time.monotonic()
        next_event, next_word = now + _CALM_S, now + _SAY_EVERY_S
        while (now := time.monotonic()) < began + seconds:
            self._end_episodes(now)
            self._start_a_node_that_has_ended()
            if now >= began + seconds - _LAST_SERIES_S:
                self._begin_no_more()
            if self._serving_since is None and self._node.server.serves():
                self._serving_since = now
            if now >= next_event:
                self._make_event()
                next_event = time.monotonic() + self._random.uniform(*_BETWEEN_EVENTS_S)
            if now >= next_word:
                say(f"{now - began:4.0f} s  {self._progress()}")
                next_word += _SAY_EVERY_S
            time.sleep(_TICK_S)

    def calm_down(self, say: Callable[[str], None]) -> Findings:
        """End every episode, have what was begun come to its end, and see what there is."""
        self._begin_no_more()
        self._end_episodes(float("inf"))
        self._start_a_node_that_has_ended()
        self._node.server.await_ready()
        self._archive.server.await_ready()
        deadline = time.monotonic() + _SENT_WITHIN_S
        for sender in self._senders:
            if not sender.has_ended(deadline - time.monotonic()):
                self._problems.append(f"{sender.name} cannot send its images")
            if sender.error is not None:
                self._problems.append(f"{sender.name} broke: {sender.error!r}")
        say(f"all is sent  {self._progress()}")
        self._await_jobs()
        say(f"the end  {self._progress()}")
        self.did["series sent"] = len(self._ledger.series)
        self.did["images acknowledged"] = len(self._ledger.acknowledged)
        self.did.update({f"answered {answer}": times for answer, times in self._ledger.answers.items()})
        found = examine(self._node.server, self._data, self._archive.server, self._ledger, self._jobs.all(), _QUIET_S)
        return Findings(found.counts, [*self._problems, *found.problems])

    def _begin_no_more(self) -> None:
        for sender in self._senders:
            sender.begin_no_more()

    def _peer(self, launch: AbstractContextManager[Server], relaunch: Callable[[], AbstractContextManager[Server]]) -> _Peer:
        running = self._stack.enter_context(ExitStack())
        return _Peer(running.enter_context(launch), running, relaunch)

    def _make_senders(self) -> Sequence[Sender]:
        server = self._node.server
        address = parse_dimse_address(server.dimse, "")
        store, stow = store_door(address, self._ledger), stow_door(server.dicomweb, self._ledger)
        doors = {"C-STORE 1": store, "C-STORE 2": store, "STOW 1": stow, "STOW 2": stow}
        return [
            Sender(name, door, self._ledger, self._series_of(number), f"{self._seed} {name}")
            for number, (name, door) in enumerate(doors.items())
        ]

    def _series_of(self, sender: int) -> Callable[[Random], Series]:
        """Makes the series of a sender, each with UIDs of its own."""
        count = 0

        def make(random: Random) -> Series:
            nonlocal count
            count += 1
            seed = self._seed * 1_000_000 + sender * 100_000 + count
            return make_series(self._folder / "sent" / f"{sender}-{count}", seed, random)

        return make

    def _make_event(self) -> None:
        """Do one of the things that can be done now."""
        posts = {post: process for process in descendants(self._node.server.process.pid) if (post := post_of(process))}
        going_on = {later.what for later in self._later}
        possible: list[list[Callable[[], None]]] = []
        serving_for = time.monotonic() - (self._serving_since or time.monotonic())
        if self._serving_since is not None:
            roles = [post for post in posts if post != "model" and self._deaths[post] < _MOST_DEATHS]
            possible += [[partial(self._kill, post, posts[post]) for post in sorted(roles)]] * 2 if roles else []
            if "model" in posts:
                possible.append([partial(self._kill, "model", posts["model"])])
            if serving_for > _SERVES_FOR_S:
                possible.append([self._kill_supervisor])
            if self._fills_disk and "disk" not in going_on:
                possible.append([partial(self._fill_disk, leave) for leave in (0, 0, _WATERMARK // 2)])
        if "archive" not in going_on:
            possible.append([self._end_archive])
        if possible:
            self._random.choice(self._random.choice(possible))()

    def _kill(self, post: str, process: int) -> None:
        os.kill(process, signal.SIGKILL)
        self._deaths[post] += 1
        self.did[f"{post} killed"] += 1

    def _kill_supervisor(self) -> None:
        """Kill the supervisor; nothing of the node is left then, and it is started again."""
        server = self._node.server
        processes = descendants(server.process.pid)
        self._node.end(signal.SIGKILL)
        self.did["supervisor killed"] += 1
        try:
            until(lambda: are_gone(processes, (server.dicom_port, server.http_port)), _GONE_WITHIN_S)
        except ServerFailed:
            left = [post_of(process) for process in processes]
            self._problems.append(f"the supervisor was killed, and some of {left} or its ports outlive it")
        self._start_node()

    def _fill_disk(self, leave: int) -> None:
        filler = fill(self._data, leave)
        self.did["disk below its watermark" if leave else "disk full"] += 1
        self._do_later(_FULL_S, "disk", filler.unlink)

    def _end_archive(self) -> None:
        number = self._random.choice((signal.SIGKILL, signal.SIGTERM))
        self._archive.end(number)
        self.did[f"archive ended by {number.name}"] += 1
        self._do_later(_DOWN_S, "archive", self._archive.start)

    def _do_later(self, within: tuple[float, float], what: str, do: Callable[[], None]) -> None:
        self._later.append(_Later(time.monotonic() + self._random.uniform(*within), what, do))

    def _end_episodes(self, now: float) -> None:
        for later in [later for later in self._later if later.at <= now]:
            self._later.remove(later)
            later.do()

    def _start_a_node_that_has_ended(self) -> None:
        """Be the service manager."""
        code = self._node.server.process.poll()
        if code is not None:
            self._problems.append(f"the node has ended by itself with exit code {code}")
            self._node.end(signal.SIGTERM)
            self._start_node()

    def _start_node(self) -> None:
        self._deaths.clear()
        self._serving_since = None
        self._node.start()

    def _await_jobs(self) -> None:
        """Wait until every job has ended; what failed because its model was killed is tried again, as its person would."""
        deadline = time.monotonic() + _ENDED_WITHIN_S
        while time.monotonic() < deadline:
            jobs = self._jobs.all()
            for job in jobs:
                if job.state == "failed" and _MODEL_KILLED in job.error:
                    self._retry(job)
            decided = {job.series_instance_uid for job in jobs if job.state in ("delivered", "failed")}
            if all(job.has_ended for job in jobs) and {s.series_instance_uid for s in self._ledger.series} <= decided:
                return
            time.sleep(_TICK_S)

    def _retry(self, job: Job) -> None:
        url = f"http://127.0.0.1:{self._node.server.http_port}/api/jobs/{job.id}/retry"
        answer = httpx.post(url, headers={"Content-Type": "application/json"}, content=b"{}", timeout=60)
        answer.raise_for_status()
        self.did["job tried again after its model was killed"] += 1

    def _progress(self) -> str:
        states = ", ".join(f"{count} {state}" for state, count in self._jobs.count().items() if count)
        events = sum(self.did.values())
        return f"{events} events, {len(self._ledger.acknowledged)} images acknowledged, jobs: {states or 'none'}"


def _table(title: str, counts: Mapping[str, int]) -> list[str]:
    return [title, *(f"{count:8d}  {what}" for what, count in sorted(counts.items()))]


@click.command()
@click.option("--seed", type=click.IntRange(0), help="What chance follows from; without it another one each time.")
@click.option("--minutes", type=click.FloatRange(0.1), default=1.0, show_default=True, help="How long there is chaos.")
def main(seed: int | None, minutes: float) -> None:
    """Run a node through chaos, and say what is left of it; exit code 1 when something is wrong."""
    try:
        outcome = run_chaos(secrets.randbelow(1_000_000) if seed is None else seed, minutes * 60, click.echo)
    except ServerFailed as error:
        click.echo(f"chaos: {error}", err=True)
        sys.exit(1)
    sys.exit(1 if outcome.found.problems else 0)


if __name__ == "__main__":
    main()
