"""What a model prints: the end of it in a file, however much that is."""

import fcntl
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from segnode.descriptors import readable

LONGEST: Final = 1 << 20
_BLOCK: Final = 1 << 18
_PIPE: Final = 1 << 20
_WRITE_S: Final = 1.0


class Prints:
    """Reads what comes by a pipe, whose descriptor it owns, and keeps the last MiB of it in the file that is set at the time.

    A thread does so until the end of the pipe; the file is as of a second ago, and is there once something was printed.
    """

    def __init__(self, pipe: int, file: Path) -> None:
        self._pipe = pipe
        self._file = file
        self._lock = threading.Lock()
        self._tail = _read(file)
        self._unwritten = False
        self._ended = False
        os.set_blocking(pipe, False)
        with suppress(OSError):  # a user may have only so much of it; it is then as it is
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE)
        threading.Thread(target=self._read, name="prints", daemon=True).start()

    def go_to(self, file: Path) -> None:
        """What was printed so far is in its file; what is printed from now on goes to this one."""
        with self._lock:
            self._take()
            self._write()
            self._file = file
            self._tail = _read(file)

    def end(self) -> None:
        """What was printed is in its file; nobody prints any more."""
        with self._lock:
            self._take()
            self._write()
            self._ended = True

    def _read(self) -> None:
        written_at = 0.0
        while True:
            # What has left the group of its process may hold the pipe open for ever.
            readable(_WRITE_S, self._pipe)
            with self._lock:
                there_is_more = self._take()
                if time.monotonic() - written_at >= _WRITE_S or not there_is_more:
                    self._write()
                    written_at = time.monotonic()
                if self._ended or not there_is_more:
                    self._ended = True
                    os.close(self._pipe)
                    return

    def _take(self) -> bool:
        """Take what is in the pipe, as much as a pipe holds; False at its end."""
        if self._ended:
            return False
        for _ in range(_PIPE // _BLOCK):
            try:
                block = os.read(self._pipe, _BLOCK)
            except BlockingIOError:
                return True
            if not block:
                return False
            self._tail += block
            if len(self._tail) >= 2 * LONGEST:  # each time it would be moved for each block
                del self._tail[:-LONGEST]
            self._unwritten = True
        return True

    def _write(self) -> None:
        if self._unwritten:
            with suppress(OSError):  # what a model prints is worth no failure: a full disk has others
                self._file.parent.mkdir(parents=True, exist_ok=True)
                self._file.write_bytes(self._tail[-LONGEST:])
            self._unwritten = False


def _read(file: Path) -> bytearray:
    try:
        return bytearray(file.read_bytes())
    except OSError:
        return bytearray()
