"""Places for associations: how many may be open at once, counted over the processes that share the port."""

import fcntl
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_LOCK: Final = struct.Struct("hhqqi4x")  # of fcntl(2)
_RECORD: Final = 24
_ONE_TITLE: Final = 16


class NoPlace(Exception):
    """All places are taken; `of_peer` when it is those of the peer."""

    def __init__(self, *, of_peer: bool) -> None:
        super().__init__("all places are taken")
        self.of_peer = of_peer


class Places:
    """A file with a record for each place, locked by the process whose association has it.

    The kernel lets go of the locks of a process that ends, however it does: its places are free at once.
    """

    def __init__(self, file: Path, count: int) -> None:
        self._count: Final = count
        self._descriptor: Final = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.posix_fallocate(self._descriptor, 0, count * _RECORD)  # a full disk keeps nobody out who is to be told of it
        self._mine: Final[set[int]] = set()
        self._lock: Final = threading.Lock()

    def take(self, ae_title: str, most: int | None) -> int:
        """A place for a peer, that may have so many at most. Raises NoPlace."""
        wanted = f"={ae_title[:_ONE_TITLE]}".encode().ljust(_RECORD, b"\0")[:_RECORD]
        with self._alone():
            taken = self._taken()
            if most is not None and list(taken.values()).count(wanted) >= most:
                raise NoPlace(of_peer=True)
            place = next((place for place in range(self._count) if place not in taken), None)
            if place is None:
                raise NoPlace(of_peer=False)
            self._ask(fcntl.F_OFD_SETLK, fcntl.F_WRLCK, place)
            os.pwrite(self._descriptor, wanted, place * _RECORD)
            self._mine.add(place)
            return place

    def leave(self, place: int) -> None:
        """Let go of a place; it is no error when that was done before."""
        with self._lock:
            if place in self._mine:
                self._mine.remove(place)
                os.pwrite(self._descriptor, bytes(_RECORD), place * _RECORD)
                self._ask(fcntl.F_OFD_SETLK, fcntl.F_UNLCK, place)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._lock:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _taken(self) -> dict[int, bytes]:
        """What is written in the places that are taken; a process that was killed leaves its words, and no lock."""
        written = os.pread(self._descriptor, self._count * _RECORD, 0)
        records = {place: written[place * _RECORD : (place + 1) * _RECORD] for place in range(len(written) // _RECORD)}
        return {place: record for place, record in records.items() if any(record) and self._is_taken(place)}

    def _is_taken(self, place: int) -> bool:
        return place in self._mine or self._ask(fcntl.F_OFD_GETLK, fcntl.F_WRLCK, place) != fcntl.F_UNLCK

    def _ask(self, command: int, kind: int, place: int) -> int:
        answer = fcntl.fcntl(self._descriptor, command, _LOCK.pack(kind, os.SEEK_SET, place, 1, 0))
        return int(_LOCK.unpack(answer)[0])
