"""Roles as processes: `segnode serve` forks them, forks again what dies, and none outlives it."""

import ctypes
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal, get_args

import structlog

from segnode.descriptors import close_all_but, readable

_log = structlog.get_logger()

Role = Literal["dimse", "web", "worker"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)
# The exit code of a role that a full disk keeps from starting: it may start later.
NO_ROOM: Final = os.EX_TEMPFAIL

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_STOP_WITHIN_S: Final = 9
_OWN_NAME: Final = "segnode"
_STDIN: Final = 0
_STDOUT: Final = 1
_STDERR: Final = 2
_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 30.0
_STEADY_S: Final = 60.0
_HEARD: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class Post:
    """A process to be kept running: its role, its number among those of that role, and the descriptors that it has."""

    role: Role
    number: int
    descriptors: Sequence[int]

    @property
    def name(self) -> str:
        """What the process is called in logs, rows and the system's lists, for example dimse-2."""
        return f"{self.role}-{self.number}"


@dataclass(frozen=True)
class Forked:
    """What a process that the supervisor has forked is to do, and where it says that it serves."""

    post: Post
    ready_fd: int

    def ready(self) -> None:
        """Tell the supervisor that it serves; after a restart it does not wait for that."""
        with suppress(BrokenPipeError):
            os.write(self.ready_fd, b"1")
        os.close(self.ready_fd)


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process when its parent ends, also when that is killed (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _be_called(name: str) -> None:
    """Have the system's lists call this process so, and what it forks (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode())


def supervise(posts: Sequence[Post]) -> int | Forked:
    """Keep a process running for each post until SIGTERM or SIGINT; the exit code. In such a process, Forked: what it is to do.

    They are forked, with what is loaded here, so that one that died is there again at once. A process that cannot start ends
    the node with its exit code. One that dies later, or that a full disk keeps from starting, is started again, after a wait
    that grows from half a second to half a minute while it keeps dying. SIGHUP goes on to the worker and those who receive
    by DIMSE.
    """
    supervisor = _Supervisor([_Seat(post) for post in posts])
    try:
        code = supervisor.run()
    except _InChild as child:
        return child.forked
    except BaseException:
        supervisor.stop()
        raise
    supervisor.stop()
    return code


class _InChild(BaseException):
    """This is the process that was forked: it leaves the supervisor's functions, and does what it is to do."""

    def __init__(self, forked: Forked) -> None:
        super().__init__(forked)
        self.forked = forked


@dataclass(frozen=True)
class _Process:
    """A process that was forked, by its descriptor: its number may be another's once it has ended."""

    pidfd: int

    def tell(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def ends_within(self, seconds: float) -> bool:
        return bool(readable(seconds, self.pidfd))

    def exit_code(self) -> int:
        """Wait for its end; negative where a signal was that."""
        ended = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOWAIT)
        assert ended is not None  # noqa: S101  it waits
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def bury(self) -> None:
        """Wait for its end, and let go of it."""
        os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        os.close(self.pidfd)


@dataclass
class _Seat:
    """A post, its process while it has one, and when it is to be started again while it has none."""

    post: Post
    process: _Process | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    deaths: int = 0

    def put_off(self, *, is_steady: bool = False) -> float:
        """Have it wait before it is started again, the longer the more often; how many seconds. One that was steady has not."""
        self.deaths = 1 if is_steady else self.deaths + 1
        wait = min(_FIRST_WAIT_S * 2.0 ** (self.deaths - 1), _LONGEST_WAIT_S)
        self.start_at = time.monotonic() + wait
        return wait


class _Supervisor:
    def __init__(self, seats: Sequence[_Seat]) -> None:
        self._seats = seats
        self._pid = os.getpid()
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
        serving = [self._is_ready(descriptor) for descriptor in ready]
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

    def _is_ready(self, descriptor: int) -> bool:
        """Wait until the role serves, or has ended without; or until all are to stop, which one that hangs does not hear."""
        try:
            while not self._told_to_stop:
                if descriptor in readable(_LONGEST_WAIT_S, descriptor, self._signals.fileno()):
                    return os.read(descriptor, 1) != b""
                self._forget_wakes()
            return False
        finally:
            os.close(descriptor)

    def stop(self) -> None:
        """End every process, kindly within nine seconds, then not."""
        self._terminate()
        deadline = time.monotonic() + _STOP_WITHIN_S
        for seat in self._seats:
            if seat.process is None:
                continue
            if not seat.process.ends_within(deadline - time.monotonic()):
                _log.error("a role did not stop and is killed", stopped=seat.post.name)
                seat.process.tell(signal.SIGKILL)
            seat.process.bury()
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
                seat.process.tell(signal.SIGHUP)

    def _forget_wakes(self) -> None:
        with suppress(BlockingIOError):
            self._signals.recv(4096, socket.MSG_DONTWAIT)

    def _terminate(self) -> None:
        for seat in self._seats:
            if seat.process is not None:
                seat.process.tell(signal.SIGTERM)

    def _exit_code_without(self, serving: Sequence[bool]) -> int:
        """The code of a process that ended, or is about to, without having served; 0 where they only had no room."""
        ended = [seat for seat, serves in zip(self._seats, serving, strict=True) if not serves]
        codes = {seat.post.name: seat.process.exit_code() for seat in ended if seat.process is not None}
        if set(codes.values()) == {NO_ROOM}:
            return 0
        _log.error("a role cannot start, so the node stops", exit_codes=codes)
        return max([1, *codes.values()])

    def _until_next_start(self) -> float | None:
        waiting = [seat.start_at for seat in self._seats if seat.process is None]
        return max(0.0, min(waiting) - time.monotonic()) if waiting else None

    def _look_after(self, seat: _Seat) -> None:
        """See whether a role has died, or is to be started again."""
        if self._told_to_stop:
            return
        if seat.process is None:
            if seat.start_at <= time.monotonic():
                self._start_again(seat)
        elif seat.process.ends_within(0):
            self._bury(seat, seat.process)

    def _bury(self, seat: _Seat, process: _Process) -> None:
        code = process.exit_code()
        self._selector.unregister(process.pidfd)
        process.bury()
        seat.process = None
        wait = seat.put_off(is_steady=time.monotonic() - seat.started_at > _STEADY_S)
        _log.error("a role has died", died=seat.post.name, exit_code=code, deaths=seat.deaths, starts_again_in_s=wait)

    def _start_again(self, seat: _Seat) -> None:
        try:
            os.close(self._start(seat))
        except OSError as error:  # there may be room for it later; the others serve on
            wait = seat.put_off()
            reason = error.strerror or str(error)
            _log.error("a role cannot be started again now", stopped=seat.post.name, reason=reason, starts_again_in_s=wait)
        else:
            _log.info("a role is started again", started=seat.post.name)

    def _start(self, seat: _Seat) -> int:
        """Fork the process of a post; the descriptor on which it says that it serves. Raises OSError where there is no room.

        Raises _InChild in that process.
        """
        says, ready_fd = os.pipe()
        with suppress(OSError):  # nobody reads it any more
            sys.stdout.flush()
            sys.stderr.flush()
        # What is told to this process is not heard by the other as long as that has the same ears.
        signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
        _be_called(seat.post.name)  # by which it is known from its first moment
        try:
            seat.process = self._fork(seat.post, ready_fd)
        except OSError:
            os.close(says)
            raise
        finally:
            if os.getpid() == self._pid:
                _be_called(_OWN_NAME)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
                os.close(ready_fd)
        seat.started_at = time.monotonic()
        self._selector.register(seat.process.pidfd, selectors.EVENT_READ)
        return says

    def _fork(self, post: Post, ready_fd: int) -> _Process:
        process = os.fork()
        if not process:
            try:
                self._settle_in(post, self._pid, ready_fd)
            except OSError:
                os._exit(1)  # its siblings are not its own to end
            raise _InChild(Forked(post, ready_fd))
        try:
            return _Process(os.pidfd_open(process))
        except OSError:
            os.kill(process, signal.SIGKILL)  # nobody would know of it
            os.waitpid(process, 0)
            raise

    def _settle_in(self, post: Post, parent: int, ready_fd: int) -> None:
        """Become a process of its own, which has nothing of the supervisor and ends with it."""
        die_with_parent(parent)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # A SIGHUP waits until the process listens for it.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
        self._selector.close()
        self._signals.close()
        self._wakes.close()
        stdin = os.open(os.devnull, os.O_RDONLY)
        os.dup2(stdin, _STDIN)
        close_all_but({_STDIN, _STDOUT, _STDERR, ready_fd, *post.descriptors})
