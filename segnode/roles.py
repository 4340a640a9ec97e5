"""Roles as processes: `segnode serve` starts one for each, and none outlives it."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, get_args

import structlog

_log = structlog.get_logger()

Role = Literal["dimse", "web", "worker"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)

_PR_SET_PDEATHSIG: Final = 1
_STOP_WITHIN_S: Final = 10


def supervise(roles: Sequence[Role], config: Path | None) -> int:
    """Run each role in a process of its own until SIGTERM or SIGINT, or until one of them ends; the exit code."""
    children: dict[Role, subprocess.Popen[bytes]] = {}
    told_to_stop = False

    def stop(*_: object) -> None:
        nonlocal told_to_stop
        told_to_stop = True
        _terminate(children)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    ready = []
    for role in roles:
        children[role], descriptor = _start(role, config)
        ready.append(descriptor)
    if told_to_stop:  # while they were started, when stop() knew only some of them
        _terminate(children)
    serving = [_is_ready(descriptor) for descriptor in ready]
    if all(serving) and not told_to_stop:
        _log.info("ready", roles=list(roles))
    with suppress(ChildProcessError):  # all have ended, and stop() has seen it
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    codes = {role: code for role, child in children.items() if (code := child.poll()) is not None}
    if not told_to_stop:
        _log.error("a role has ended, so the node stops", exit_codes=codes)
    _end(children)
    return 0 if told_to_stop else max(1, *codes.values())


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process when its parent ends, also when that is killed (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _start(role: Role, config: Path | None) -> tuple[subprocess.Popen[bytes], int]:
    """A role's process, and the descriptor on which it says that it serves."""
    readable, writable = os.pipe()
    command = [sys.executable, "-m", "segnode", "role", role, "--parent", str(os.getpid()), "--ready-fd", str(writable)]
    if config is not None:
        command += ["--config", str(config)]
    child = subprocess.Popen(command, pass_fds=(writable,), stdin=subprocess.DEVNULL)  # noqa: S603  our own program
    os.close(writable)
    return child, readable


def _is_ready(descriptor: int) -> bool:
    """Wait until the role serves, or has ended without."""
    with os.fdopen(descriptor, "rb") as pipe:
        return pipe.read(1) != b""


def _terminate(children: dict[Role, subprocess.Popen[bytes]]) -> None:
    for child in children.values():
        if child.poll() is None:
            child.terminate()


def _end(children: dict[Role, subprocess.Popen[bytes]]) -> None:
    _terminate(children)
    for role, child in children.items():
        try:
            child.wait(_STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            _log.error("a role did not stop and is killed", stopped=role)
            child.kill()
            child.wait()
