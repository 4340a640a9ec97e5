"""Decoding of what came from outside, in warm processes of its own: a codestream that is too much ends one, and no more."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from queue import Empty, LifoQueue
from typing import Any, Final

from segnode.errors import NotFound, SegnodeError, UnreadablePixels

_FRAME_CPU_S: Final = 10
_OBJECT_CPU_S: Final = 120
# By the clock beyond that, as others compute as well.
_PATIENCE_S: Final = 30
_BLOCK: Final = 1 << 20


class Decoders:
    """So many processes at most, started when they are needed, kept, and replaced when they end."""

    def __init__(self, processes: int, niceness: int = 0) -> None:
        self._niceness = niceness
        self._free = threading.BoundedSemaphore(processes)
        self._idle: LifoQueue[subprocess.Popen[bytes]] = LifoQueue()

    def frame(self, path: Path, index: int) -> bytes:
        """A frame of a Part 10 file, native little endian. Raises NotFound, and UnreadablePixels, which says why not."""
        return self._ask({"path": str(path), "frame": index}, _FRAME_CPU_S)

    def write(self, path: Path, transfer_syntax: str, file: Path) -> None:
        """Write a Part 10 file in another transfer syntax, native or lossless. Raises UnreadablePixels, which says why not."""
        try:
            self._ask({"path": str(path), "transfer_syntax": transfer_syntax, "file": str(file)}, _OBJECT_CPU_S)
        except BaseException:
            file.unlink(missing_ok=True)
            raise

    def document(self, path: Path, location: str) -> bytes:
        """The metadata of a Part 10 file as DICOM JSON, with URIs of bulk data under a location. Raises UnreadablePixels."""
        return self._ask({"path": str(path), "location": location}, _OBJECT_CPU_S)

    def value(self, path: Path, place: str) -> bytes:
        """A value of a Part 10 file, little endian. Raises NotFound, and UnreadablePixels, which says why not."""
        return self._ask({"path": str(path), "value": place}, _OBJECT_CPU_S)

    def close(self) -> None:
        """End those that have nothing to do."""
        with suppress(Empty):
            while True:
                _end(self._idle.get_nowait())

    def _ask(self, request: dict[str, Any], cpu_s: int) -> bytes:
        line = json.dumps({**request, "cpu_s": cpu_s}).encode() + b"\n"
        with self._free:
            child = self._take()
            try:
                answer = _exchange(child, line, time.monotonic() + cpu_s + _PATIENCE_S)
            except BaseException:
                _end(child)
                raise
            self._idle.put(child)
        if isinstance(answer, SegnodeError):
            raise answer
        return answer

    def _take(self) -> subprocess.Popen[bytes]:
        """One that lives."""
        with suppress(Empty):
            while True:
                child = self._idle.get_nowait()
                if child.poll() is None:
                    return child
                _end(child)
        return subprocess.Popen(  # noqa: S603  our own program
            [sys.executable, "-m", "segnode.dicomweb.decoding_child", str(self._niceness)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )


def _exchange(child: subprocess.Popen[bytes], line: bytes, deadline: float) -> bytes | SegnodeError:
    """What it answers: bytes, or why there are none. Raises UnreadablePixels when it ends or takes too long."""
    assert child.stdin is not None  # noqa: S101  both are pipes
    try:
        child.stdin.write(line)
    except BrokenPipeError as error:
        raise _ended(child) from error
    received = bytearray()
    while (end := received.find(b"\n")) < 0:
        received += _some(child, deadline)
    answer = json.loads(received[:end])
    if "error" in answer:
        return UnreadablePixels(answer["error"])
    if "missing" in answer:
        return NotFound(answer["missing"])
    body = received[end + 1 :]
    while len(body) < answer["size"]:
        body += _some(child, deadline)
    return bytes(body)


def _some(child: subprocess.Popen[bytes], deadline: float) -> bytes:
    assert child.stdout is not None  # noqa: S101
    readable = select.poll()  # select(2) knows no more than 1024 descriptors
    readable.register(child.stdout, select.POLLIN)
    if not readable.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise UnreadablePixels("it takes too long to decode")
    block = os.read(child.stdout.fileno(), _BLOCK)
    if not block:
        raise _ended(child)
    return block


def _ended(child: subprocess.Popen[bytes]) -> UnreadablePixels:
    code = child.wait()
    if code == -signal.SIGXCPU:
        return UnreadablePixels("it takes too long to decode")
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return UnreadablePixels(f"it ended its decoder ({how})")


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()
