"""The processes of a running node, as the system lists them (proc(5))."""

import os
import socket
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from segnode.roles import ROLES

_THREADS = 16  # behind the state (proc(5), stat)


def descendants(process: int) -> set[int]:
    """The processes under a process."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):
                parents[int(folder.name)] = int(_stat(folder)[1])
    found = {process}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {process}


def post_of(process: int) -> str:
    """The post of a process of a node, for example dimse-1, or `model`; nothing for another process, or one that is gone."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_text().split("\0")
        name = Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return ""
    if name.partition("-")[0] in ROLES:
        return name
    return "model" if "--life-fd" in words and name != "model-watch" else ""


def leads_to(process: int) -> Counter[str]:
    """What the descriptors of a process lead to, without the numbers of pipes and sockets."""
    found: Counter[str] = Counter()
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:  # closed meanwhile
            continue
        found[target.partition(":[")[0] if target.startswith(("pipe:", "socket:")) else target] += 1
    return found


def is_alive(process: int) -> bool:
    """Whether a process, or a thread of it, runs; one that is dead and not reaped does not."""
    try:
        state, *rest = _stat(Path(f"/proc/{process}"))
    except OSError:
        return False
    return state != "Z" or int(rest[_THREADS]) > 1


def listens(port: int) -> bool:
    """Whether something listens on a port of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def are_gone(processes: Collection[int], ports: Collection[int]) -> bool:
    """Whether these processes have ended and nothing listens on the ports."""
    return not any(map(is_alive, processes)) and not any(map(listens, ports))


def _stat(folder: Path) -> list[str]:
    """The fields of a process from its state on; its name, which may hold anything, stands before them."""
    return (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()


def cpu_seconds(processes: Collection[int]) -> float:
    """The CPU time that these, and those under them that have ended, have had, in the system's ticks of mostly 10 ms."""
    ticks = 0
    for process in processes:
        with suppress(OSError):
            ticks += sum(map(int, _stat(Path(f"/proc/{process}"))[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def forget_peak(process: int) -> None:
    """Have `peak` count from now on (proc(5), clear_refs)."""
    with suppress(OSError):
        Path(f"/proc/{process}/clear_refs").write_text("5")


def peak(process: int) -> int:
    """The most bytes of memory that a process has had; of one that has ended nothing."""
    return _memory(process, "VmHWM")


def resident(process: int) -> int:
    """The bytes of memory that a process has now."""
    return _memory(process, "VmRSS")


def _memory(process: int, which: str) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(which)), 0)
