"""A small disk that can be filled to its last page, for those who test what happens then."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class MayNotMount(Exception):
    """This user may not mount a file system."""


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[None]:
    """A disk of that size in a folder. Raises MayNotMount."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, capture_output=True).returncode:  # noqa: S603  a fixed command
        raise MayNotMount("a tmpfs cannot be mounted: become root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S603, S607  a fixed command


def fill(disk: Path, leave: int = 0) -> Path:
    """Fill a disk until that many bytes are left, by default to its last page; the file that does it."""
    filler = disk / "filler"
    free = os.statvfs(disk)
    room = free.f_bavail * free.f_frsize - leave
    with filler.open("wb") as file, suppress(OSError):
        file.write(bytes(room if leave else room + (1 << 20)))
    return filler
