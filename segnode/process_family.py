"""The processes that one has started, and those that these have, however they have tried to get away (proc(5))."""

import ctypes
import os
import signal
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Final

from segnode.descriptors import close_all_but, readable

MARK: Final = "SEGNODE_MODEL_PROCESS"

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_KILL_S: Final = 5.0


def adopt() -> None:
    """Have what descends from this process stay under it when its own parent ends: a daemon too (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_with(life: int, patience: float) -> None:
    """Have this process end with its family when nothing holds the other end of the pipe `life` any longer.

    It is asked to (SIGTERM) first, where there is patience, in seconds. A process beside it sees to that, and no thread: what
    a model calls may hold the interpreter's lock for hours.
    """
    process = os.getpid()
    if os.fork():
        os.close(life)
        return
    try:
        prctl = ctypes.CDLL(None).prctl
        prctl(_PR_SET_NAME, b"model-watch")
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        # Pipes and sockets end with the process that they are of.
        os.dup2(life, 0)
        close_all_but({0})
        os.read(0, 1)
        prctl(_PR_SET_PDEATHSIG, 0)
        if os.getppid() == process:
            if patience:
                os.kill(process, signal.SIGTERM)
                await_end([process], time.monotonic() + patience)
            end_family(process)
    finally:
        os._exit(0)


def family(process: int) -> set[int]:
    """The living processes of a session, and those that descend from the process that leads it; not that one, nor this."""
    parents: dict[int, int] = {}
    found = {process}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError, IndexError, ValueError):
                state, parent, _, session, *_ = _stat(folder)
                if state not in "ZX":
                    parents[int(folder.name)] = int(parent)
                    if int(session) == process:
                        found.add(int(folder.name))
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {process, os.getpid()}


def marked(mark: str) -> set[int]:
    """The living processes that were started with a mark in their environment, or by such a one."""
    wanted, found = f"{MARK}={mark}".encode(), set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):  # gone, or another user's
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.add(int(folder.name))
    return found


def memory_of(process: int) -> int:
    """The resident bytes of a process and its family, without what they share with others (statm)."""
    total = 0
    for pid in {process, *family(process)}:
        with suppress(OSError, ValueError):
            _, resident, shared, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
            total += (resident - shared) * _PAGE
    return total


def end_family(process: int) -> None:
    """End a process and its family at once. It is stopped first: nobody is left without a parent, and nobody is new."""
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGSTOP)
    end_all(lambda: family(process), grace=0)
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def end_all(living: Callable[[], Collection[int]], *, grace: float) -> None:
    """Ask processes to end (SIGTERM), and end those (SIGKILL) that have not after `grace` seconds; none are asked without."""
    if grace:
        _tell(living(), signal.SIGTERM)
        deadline = time.monotonic() + grace
        while (left := living()) and time.monotonic() < deadline:
            await_end(left, deadline)
    deadline = time.monotonic() + _KILL_S
    while (left := living()) and time.monotonic() < deadline:
        _tell(left, signal.SIGKILL)
        await_end(left, deadline)


def await_end(processes: Collection[int], deadline: float) -> None:
    """Wait until processes have ended, or until a time (time.monotonic())."""
    for process in processes:
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(process)
            try:
                readable(deadline - time.monotonic(), descriptor)
            finally:
                os.close(descriptor)


def how(code: int) -> str:
    """How a process has ended, by the exit code that Popen has for it."""
    names = {each.value: each.name for each in signal.Signals}
    return f"with exit code {code}" if code >= 0 else f"by {names.get(-code, f'signal {-code}')}"


def _tell(processes: Collection[int], what: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError, PermissionError):  # one of another user's is not ours to end
            os.kill(process, what)


def _stat(folder: Path) -> list[str]:
    """The fields of a process from its state on; its name, which may hold anything, stands before them."""
    return (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
