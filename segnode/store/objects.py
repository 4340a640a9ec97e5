"""Objects: immutable Part 10 files under opaque keys; a peer's UID is never part of a path."""

import itertools
import os
import re
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final, Self

from segnode.dicom.digest import DataSetDigest
from segnode.errors import ObjectTooLong, OutOfResources
from segnode.store.filesystem import begin_to_synchronise, no_room, room_for, synchronise
from segnode.store.leases import Lease, lease_ids

_KEY = re.compile(r"[0-9a-f]{32}")
_INCOMING: Final = "incoming"
_LEASE_LENGTH: Final = 12
# What is written in smaller blocks is gathered.
_BUFFER: Final = 4096
SHELVES: Final = 256
_ON_A_SHELF: Final = 64
# What nobody has written to for so long, nobody is at work on.
ABANDONED_S: Final = 3600.0


class ObjectStore:
    """Objects in a folder of this machine: written beside, renamed into place, then synchronised.

    What a process is writing lies in a folder of its name, and the key of what it has written ends with its lease: so
    whoever finds something there that nothing leads to knows who may still be at work on it. `largest` is how many bytes
    one may have.
    """

    def __init__(self, folder: Path, lease: Lease, largest: int = sys.maxsize) -> None:
        self._folder = folder
        self._lease = lease
        self._largest = largest
        self._kept = itertools.count()
        self._shelf = secrets.token_hex(2)
        self._making = threading.Lock()
        self._made: set[str] = set()
        self.incoming = folder / _INCOMING / lease.owner
        self.incoming.mkdir(parents=True, exist_ok=True)

    def delete_half_written(self, older_than_s: float = 0) -> None:
        """Delete what this owner has not written to for that long in its incoming folder; nothing there was acknowledged."""
        _delete_files(self.incoming, time.time() - older_than_s)

    def delete_abandoned(self, living: Iterable[Lease], before: float) -> None:
        """Delete what processes that are no longer alive have not written to since then in their incoming folders."""
        owners = {lease.owner for lease in living}
        for folder in (self._folder / _INCOMING).iterdir():
            if folder.name not in owners:
                _delete_files(folder, before)

    def left_behind(self, shelf: int, living: Iterable[Lease], before: float) -> list[str]:
        """Keys on a shelf (0 to 255) whose files were written before then, by processes that are no longer alive."""
        ids = lease_ids(living)
        paths = (self._folder / f"{shelf:02x}").glob("*/*")
        return [path.name for path in paths if path.name[-_LEASE_LENGTH:] not in ids and _written_before(path, before)]

    def spool(self) -> "Spool":
        """A new file to write an object into. Raises OutOfResources."""
        return Spool(self.incoming / secrets.token_hex(16), self._largest)

    def keep(self, spool: "Spool") -> str:
        """Make a complete file an object: durable, immutable, under the key that is returned.

        Raises OutOfResources when the disk does not take it.
        """
        return self.keep_all([spool])[0]

    def keep_all(self, spools: Sequence["Spool"]) -> list[str]:
        """Make several files objects, as `keep` does with one; where the disk does not take them, there is none of them."""
        keys = [self._new_key() for _ in spools]
        folders = [f"{self._folder}/{key[:2]}/{key[2:4]}" for key in keys]
        try:
            with room_for("an object"):
                for spool, folder, key in zip(spools, folders, keys, strict=True):
                    self._make_folder(folder)
                    os.rename(spool.path, f"{folder}/{key}")  # noqa: PTH104  pathlib's take as long to make as the file to be renamed
                # Names first: one write of the file system's journal has both then. No row leads to a file before.
                if len(spools) > 1:
                    for spool in spools:
                        begin_to_synchronise(spool.file.fileno())
                for spool in spools:
                    spool.synchronise()
                for folder in set(folders):
                    synchronise(folder)
        except OutOfResources:
            for key in keys:
                self.delete(key)
            raise
        for spool in spools:
            spool.is_kept = True
        return keys

    def _new_key(self) -> str:
        """A key; those of objects that come one after the other share a folder: a new one has to be synchronised itself."""
        if next(self._kept) % _ON_A_SHELF == 0:
            self._shelf = secrets.token_hex(2)
        return self._shelf + secrets.token_hex(8) + self._lease.id

    def delete(self, key: str) -> None:
        """Delete an object; it is no error when it is gone."""
        self.path(key).unlink(missing_ok=True)

    def free_bytes(self) -> int:
        """How much room there is on the disk of the objects."""
        return shutil.disk_usage(self._folder).free

    def path(self, key: str) -> Path:
        """Where the object of that key lies."""
        return object_path(self._folder, key)

    def _make_folder(self, folder: str) -> None:
        """Make a folder durable; that another thread has made it does not say that it has synchronised it."""
        with self._making:
            if folder in self._made:
                return
            for level in (Path(folder).parent, Path(folder)):
                level.mkdir(exist_ok=True)
                synchronise(level.parent)
            self._made.add(folder)


class Spool:
    """A file that an object is being written into; as a context manager it is gone at the end unless it was kept.

    `file` may be read when it is complete; `size` is how many bytes it has, and `digest` takes them as they come.
    """

    def __init__(self, path: Path, largest: int) -> None:
        self.path = path
        self.size = 0
        self.digest = DataSetDigest()
        self.is_kept = False
        self._largest = largest
        with room_for("an object"):
            self.file: BinaryIO = path.open("x+b", _BUFFER)

    def write(self, block: bytes | memoryview) -> None:
        """Append bytes. Raises OutOfResources, and ObjectTooLong where there are more than an object may have."""
        self.size += len(block)
        if self.size > self._largest:
            raise ObjectTooLong(f"an object may have {self._largest} bytes at most (storage.largest_object)")
        try:
            self.file.write(block)
        except OSError as error:
            raise no_room("an object", error) from error
        self.digest.update(block)

    def complete(self) -> None:
        """Hand all bytes to the operating system; nothing is written after this. Raises OutOfResources."""
        with room_for("an object"):
            self.file.flush()

    def overwrite(self, start: bytes) -> None:
        """Have other bytes at the start of a file that is complete, and complete it again. Raises OutOfResources."""
        self.file.seek(0)
        with room_for("an object"):
            self.file.write(start)
        self.complete()

    def synchronise(self) -> None:
        """Have its bytes on the disk."""
        os.fsync(self.file.fileno())

    def discard(self) -> None:
        """Close the file, and delete it unless it was kept."""
        with suppress(OSError):
            self.file.close()
        if not self.is_kept:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()


def _delete_files(folder: Path, before: float) -> None:
    for path in folder.iterdir():
        if _written_before(path, before):
            path.unlink(missing_ok=True)


def _written_before(path: Path, before: float) -> bool:
    try:
        return path.stat().st_mtime <= before
    except FileNotFoundError:
        return False


def object_path(folder: Path, key: str) -> Path:
    """Where the object of that key lies in a folder of objects."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"not an object key: {key!r}")
    return folder.joinpath(key[:2], key[2:4], key)
