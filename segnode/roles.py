"""Roles as processes: `segnode serve` starts them, starts again what dies, and none outlives it."""

import ctypes
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal, get_args

import structlog

_log = structlog.get_logger()

Role = Literal["dimse", "web", "worker"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)
# The exit code of a role that a full disk keeps from starting: it may start later.
NO_ROOM: Final = os.EX_TEMPFAIL

_PR_SET_PDEATHSIG: Final = 1
_STOP_WITHIN_S: Final = 9
_STDERR: Final = 2
_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 30.0
_STEADY_S: Final = 60.0


@dataclass(frozen=True)
class Post:
    """A process to be kept running: its role, its number among those of that role, what it is told and inherits."""

    role: Role
    number: int
    arguments: Sequence[str]
    descriptors: Sequence[int]

    @property
    def name(self) -> str:
        """What the process is called in logs and rows, for example dimse-2."""
        return f"{self.role}-{self.number}"


def supervise(posts: Sequence[Post]) -> int:
    """Keep a process running for each post until SIGTERM or SIGINT; the exit code.

    A process that cannot start ends the node with its exit code. One that dies later, or that a full disk keeps from
    starting, is started again, after a wait that grows from half a second to half a minute while it keeps dying. SIGHUP
    goes on to the worker and those who receive by DIMSE.
    """
    supervisor = _Supervisor([_Seat(post) for post in posts])
    try:
        return supervisor.run()
    finally:
        supervisor.stop()


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process when its parent ends, also when that is killed (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


@dataclass
class _Seat:
    """A post, its process while it has one, and when it is to be started again while it has none."""

    post: Post
    process: subprocess.Popen[bytes] | None = None
    pidfd: int = -1
    started_at: float = 0.0
    start_at: float = 0.0
    deaths: int = 0


class _Supervisor:
    def __init__(self, seats: Sequence[_Seat]) -> None:
        self._seats = seats
        self._told_to_stop = False
        self._in_terminal = os.isatty(_STDERR)
        self._selector = selectors.DefaultSelector()
        # A signal wakes the selector by a byte on this pair; its handler only leaves a mark.
        self._signals, wakes = socket.socketpair()
        wakes.setblocking(False)
        self._wakes = wakes
        self._selector.register(self._signals, selectors.EVENT_READ)
        signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._be_told_to_stop)
        signal.signal(signal.SIGHUP, self._be_told_to_reload)

    def run(self) -> int:
        """Start every role, then keep them running; the exit code."""
        ready = [self._start(seat) for seat in self._seats]
        if self._told_to_stop:  # while they were started: those that were not there yet do not know
            self._terminate()
        serving = [_is_ready(descriptor) for descriptor in ready]
        if not all(serving):
            code = 0 if self._told_to_stop else self._exit_code_without(serving)
            if code or self._told_to_stop:
                return code
        _log.info("ready", processes=[seat.post.name for seat, serves in zip(self._seats, serving, strict=True) if serves])
        while not self._told_to_stop:
            self._selector.select(self._until_next_start())
            self._forget_wakes()
            for seat in self._seats:
                self._look_after(seat)
        return 0

    def stop(self) -> None:
        """End every process, kindly within nine seconds, then not."""
        self._terminate()
        deadline = time.monotonic() + _STOP_WITHIN_S
        for seat in self._seats:
            if seat.process is None:
                continue
            try:
                seat.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _log.error("a role did not stop and is killed", stopped=seat.post.name)
                seat.process.kill()
                seat.process.wait()
        signal.set_wakeup_fd(-1)

    def _be_told_to_stop(self, *_: object) -> None:
        self._told_to_stop = True
        self._terminate()

    def _be_told_to_reload(self, *_: object) -> None:
        """The worker reads the file, and says what it makes of it; who receives by DIMSE reads its certificates.

        When the terminal that the node was started in is closed, the same signal comes, and the node stops.
        """
        if self._in_terminal and not os.isatty(_STDERR):
            self._be_told_to_stop()
        for seat in self._seats:
            if seat.post.role in ("dimse", "worker") and seat.process is not None:
                seat.process.send_signal(signal.SIGHUP)

    def _forget_wakes(self) -> None:
        with suppress(BlockingIOError):
            self._signals.recv(4096, socket.MSG_DONTWAIT)

    def _terminate(self) -> None:
        for seat in self._seats:
            if seat.process is not None:
                seat.process.terminate()

    def _exit_code_without(self, serving: Sequence[bool]) -> int:
        """The code of a process that ended, or is about to, without having served; 0 where they only had no room."""
        ended = [seat for seat, serves in zip(self._seats, serving, strict=True) if not serves]
        codes = {seat.post.name: seat.process.wait() for seat in ended if seat.process is not None}
        if set(codes.values()) == {NO_ROOM}:
            return 0
        _log.error("a role cannot start, so the node stops", exit_codes=codes)
        return max([1, *codes.values()])

    def _until_next_start(self) -> float | None:
        waiting = [seat.start_at for seat in self._seats if seat.process is None]
        return max(0.0, min(waiting) - time.monotonic()) if waiting else None

    def _look_after(self, seat: _Seat) -> None:
        """See whether a role has died, or is to be started again."""
        if seat.process is None:
            if seat.start_at <= time.monotonic() and not self._told_to_stop:
                os.close(self._start(seat))
                _log.info("a role is started again", started=seat.post.name)
        elif seat.process.poll() is not None and not self._told_to_stop:
            self._bury(seat, seat.process.returncode)

    def _bury(self, seat: _Seat, code: int) -> None:
        self._selector.unregister(seat.pidfd)
        os.close(seat.pidfd)
        steady = time.monotonic() - seat.started_at > _STEADY_S
        seat.deaths = 1 if steady else seat.deaths + 1
        wait = min(_FIRST_WAIT_S * 2.0 ** (seat.deaths - 1), _LONGEST_WAIT_S)
        seat.process, seat.start_at = None, time.monotonic() + wait
        _log.error("a role has died", died=seat.post.name, exit_code=code, deaths=seat.deaths, starts_again_in_s=wait)

    def _start(self, seat: _Seat) -> int:
        """Start the process of a post; the descriptor on which it says that it serves."""
        readable, writable = os.pipe()
        post = seat.post
        command = [sys.executable, "-m", "segnode", "role", post.role, str(post.number), *post.arguments]
        command += ["--ready-fd", str(writable)]
        parent = os.getpid()
        seat.process = subprocess.Popen(  # noqa: S603  our own
            command,
            pass_fds=(writable, *post.descriptors),
            stdin=subprocess.DEVNULL,
            # Before it loads anything: while it does, which may take seconds, it would outlive us and keep the ports.
            preexec_fn=lambda: _settle_in(parent),  # noqa: PLW1509  there is one thread here
        )
        os.close(writable)
        seat.started_at = time.monotonic()
        seat.pidfd = os.pidfd_open(seat.process.pid)
        self._selector.register(seat.pidfd, selectors.EVENT_READ)
        return readable


def _settle_in(parent: int) -> None:
    """End with the parent from the first moment; and a SIGHUP waits until the process listens for it."""
    die_with_parent(parent)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])


def _is_ready(descriptor: int) -> bool:
    """Wait until the role serves, or has ended without."""
    with os.fdopen(descriptor, "rb") as pipe:
        return pipe.read(1) != b""
