"""Roles as processes: `segnode serve` starts one for each, starts it again when it dies, and none outlives it."""

import ctypes
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

import structlog

_log = structlog.get_logger()

Role = Literal["dimse", "web", "worker"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)

_PR_SET_PDEATHSIG: Final = 1
_STOP_WITHIN_S: Final = 9
_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 30.0
_STEADY_S: Final = 60.0


def supervise(roles: Sequence[Role], config: Path | None) -> int:
    """Run each role in a process of its own until SIGTERM or SIGINT; the exit code.

    A role that cannot start ends the node with that role's exit code. One that dies later is started again, after a
    wait that grows from half a second to half a minute while it keeps dying.
    """
    supervisor = _Supervisor([_Seat(role) for role in roles], config)
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
    """A role, its process while it has one, and when it is to be started again while it has none."""

    role: Role
    process: subprocess.Popen[bytes] | None = None
    pidfd: int = -1
    started_at: float = 0.0
    start_at: float = 0.0
    deaths: int = 0


class _Supervisor:
    def __init__(self, seats: Sequence[_Seat], config: Path | None) -> None:
        self._seats = seats
        self._config = config
        self._told_to_stop = False
        self._selector = selectors.DefaultSelector()
        # A signal wakes the selector by a byte on this pair; its handler only leaves a mark.
        self._signals, wakes = socket.socketpair()
        wakes.setblocking(False)
        self._wakes = wakes
        self._selector.register(self._signals, selectors.EVENT_READ)
        signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._be_told_to_stop)

    def run(self) -> int:
        """Start every role, then keep them running; the exit code."""
        ready = [self._start(seat) for seat in self._seats]
        if self._told_to_stop:  # while they were started: those that were not there yet do not know
            self._terminate()
        serving = [_is_ready(descriptor) for descriptor in ready]
        if not all(serving):
            return 0 if self._told_to_stop else self._first_exit_code()
        _log.info("ready", roles=[seat.role for seat in self._seats])
        while not self._told_to_stop:
            self._selector.select(self._until_next_start())
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
                _log.error("a role did not stop and is killed", stopped=seat.role)
                seat.process.kill()
                seat.process.wait()
        signal.set_wakeup_fd(-1)

    def _be_told_to_stop(self, *_: object) -> None:
        self._told_to_stop = True
        self._terminate()

    def _terminate(self) -> None:
        for seat in self._seats:
            if seat.process is not None:
                seat.process.terminate()

    def _first_exit_code(self) -> int:
        """The code of a role that ended without having served."""
        codes = {seat.role: seat.process.poll() for seat in self._seats if seat.process is not None}
        ended = {role: code for role, code in codes.items() if code is not None}
        _log.error("a role cannot start, so the node stops", exit_codes=ended)
        return max(1, *ended.values())

    def _until_next_start(self) -> float | None:
        waiting = [seat.start_at for seat in self._seats if seat.process is None]
        return max(0.0, min(waiting) - time.monotonic()) if waiting else None

    def _look_after(self, seat: _Seat) -> None:
        """See whether a role has died, or is to be started again."""
        if seat.process is None:
            if seat.start_at <= time.monotonic() and not self._told_to_stop:
                os.close(self._start(seat))
                _log.info("a role is started again", started=seat.role)
        elif seat.process.poll() is not None and not self._told_to_stop:
            self._bury(seat, seat.process.returncode)

    def _bury(self, seat: _Seat, code: int) -> None:
        self._selector.unregister(seat.pidfd)
        os.close(seat.pidfd)
        steady = time.monotonic() - seat.started_at > _STEADY_S
        seat.deaths = 1 if steady else seat.deaths + 1
        wait = min(_FIRST_WAIT_S * 2.0 ** (seat.deaths - 1), _LONGEST_WAIT_S)
        seat.process, seat.start_at = None, time.monotonic() + wait
        _log.error("a role has died", died=seat.role, exit_code=code, deaths=seat.deaths, starts_again_in_s=wait)

    def _start(self, seat: _Seat) -> int:
        """Start a role's process; the descriptor on which it says that it serves."""
        readable, writable = os.pipe()
        command = [sys.executable, "-m", "segnode", "role", seat.role, "--parent", str(os.getpid())]
        command += ["--ready-fd", str(writable)] + (["--config", str(self._config)] if self._config else [])
        seat.process = subprocess.Popen(command, pass_fds=(writable,), stdin=subprocess.DEVNULL)  # noqa: S603  our own
        os.close(writable)
        seat.started_at = time.monotonic()
        seat.pidfd = os.pidfd_open(seat.process.pid)
        self._selector.register(seat.pidfd, selectors.EVENT_READ)
        return readable


def _is_ready(descriptor: int) -> bool:
    """Wait until the role serves, or has ended without."""
    with os.fdopen(descriptor, "rb") as pipe:
        return pipe.read(1) != b""
