"""The file system: what is on the disk for good, and whether a folder lies on this machine, as SQLite's locks need."""

import ctypes
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

from segnode.errors import ConfigError, OutOfResources

_SYNC_FILE_RANGE_WRITE: Final = 2
_MOUNTS: Final = Path("/proc/self/mountinfo")
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")
_MOUNT_POINT: Final = 4
_FIRST_OPTIONAL: Final = 6
# Not 9p and virtiofs: they bring a folder of the machine that a guest runs on, its processes see each other's locks, and
# where they cannot map a file together SQLite refuses the write-ahead log at the start instead of losing rows later.
_NETWORK: Final = frozenset(("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "ceph", "glusterfs", "ceph-fuse", "sshfs"))


def filesystem_of(path: Path, mountinfo_text: str) -> str:
    """The type of the file system that an absolute path without links lies on, from the text of /proc/self/mountinfo.

    The longest mount point above the path counts, and of equal ones the last, which covers the others; see proc(5).
    Empty where none is above it.
    """
    longest, found = -1, ""
    # Not splitlines() and split(): the kernel escapes blanks of ASCII only, and a mount point may hold others.
    for line in filter(None, mountinfo_text.split("\n")):
        fields = line.split(" ")
        mount_point = Path(_ESCAPED.sub(lambda octal: chr(int(octal[1], 8)), fields[_MOUNT_POINT]))
        if path.is_relative_to(mount_point) and len(mount_point.parts) >= longest:
            longest, found = len(mount_point.parts), fields[fields.index("-", _FIRST_OPTIONAL) + 1]
    return found


def filesystem_here(path: Path) -> str:
    """The type of the file system that a path of this machine lies on; empty where the system does not tell."""
    try:
        # A mount point's name need not be UTF-8; names of files are read in the same way.
        mounts = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
    return filesystem_of(path.resolve(), mounts)


def require_local(path: Path) -> None:
    """Raise ConfigError where a data folder lies on a network file system; nothing where the system does not tell."""
    kind = filesystem_here(path)
    if kind.removeprefix("fuse.") in _NETWORK:
        raise ConfigError(
            f"node.data: {path} is on {kind}, a network file system: SQLite's locks do not hold there; use a local disk"
        )


def synchronise(path: Path | str) -> None:
    """Have what was written to a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def begin_to_synchronise(descriptor: int) -> None:
    """Have the system begin to write a file to the disk, where it can be told to (sync_file_range(2)); nothing is said of it.

    Files that have all begun are written side by side, and with one write of the file system's journal, where it has one.
    """
    _sync_file_range()(descriptor, 0, 0, _SYNC_FILE_RANGE_WRITE)


@cache
def _sync_file_range() -> Callable[[int, int, int, int], object]:
    try:
        function = ctypes.CDLL(None).sync_file_range
    except AttributeError:  # a libc without it
        return lambda *_: None
    function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return function


@contextmanager
def room_for(what: str) -> Iterator[None]:
    """Say a disk that does not take something as OutOfResources."""
    try:
        yield
    except OSError as error:
        raise no_room(what, error) from error


def no_room(what: str, error: OSError) -> OutOfResources:
    """What to say of something that the disk does not take."""
    return OutOfResources(f"{what} cannot be written to disk: {error.strerror or error}")
