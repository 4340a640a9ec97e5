"""The processes of a running node, as the system lists them (proc(5))."""

import socket
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path


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
    except OSError:
        return ""
    if "role" in words:
        return "-".join(words[words.index("role") + 1 :][:2])
    return "model" if "--life-fd" in words else ""


def is_alive(process: int) -> bool:
    """Whether a process runs; one that is dead and not reaped does not."""
    try:
        return _stat(Path(f"/proc/{process}"))[0] != "Z"
    except OSError:
        return False


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
