"""Decoding and rendering in warm processes of their own: what came from outside and is too much ends one, and no more."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from queue import Empty, LifoQueue
from typing import Any, Final

from segnode.descriptors import readable
from segnode.dicomweb.rendering import Rendering
from segnode.errors import BadRequest, NotFound, OutOfResources, SegnodeError, UnreadablePixels
from segnode.store.filesystem import room_for

_FRAME_CPU_S: Final = 10
_OBJECT_CPU_S: Final = 120
_PICTURE_CPU_S: Final = 30
# By the clock beyond that, as others compute as well.
_PATIENCE_S: Final = 30
_BLOCK: Final = 1 << 20


class Decoders:
    """So many processes at most, started when they are needed, kept, and replaced when they end."""

    def __init__(self, processes: int, niceness: int = 0) -> None:
        self._niceness = niceness
        self._free = threading.BoundedSemaphore(processes)
        self._idle: LifoQueue[subprocess.Popen[bytes]] = LifoQueue()

    def frame(self, path: Path, index: int, codec: str | None = None) -> bytes:
        """A frame of a Part 10 file, native little endian or as a codec writes it.

        Raises NotFound, OutOfResources, UnreadablePixels.
        """
        asked = {"path": str(path), "frame": index}
        return self._ask({**asked, "codec": codec} if codec else asked, _FRAME_CPU_S)

    def write(self, path: Path, transfer_syntax: str, file: Path) -> None:
        """Write a Part 10 file in another transfer syntax, native or lossless, as a new file. Raises as frame() does."""
        self._write({"path": str(path), "transfer_syntax": transfer_syntax}, file)

    def write_value(self, path: Path, place: str, file: Path) -> None:
        """Write a value of a Part 10 file, little endian, as a new file. Raises as frame() does."""
        self._write({"path": str(path), "value": place}, file)

    def document(self, path: Path, location: str) -> bytes:
        """The metadata of a Part 10 file as DICOM JSON, with URIs of bulk data under a location. Raises as frame() does."""
        return self._ask({"path": str(path), "location": location}, _OBJECT_CPU_S)

    def picture(
        self,
        path: Path,
        how: Rendering,
        media_type: str,
        frame: int | None,
        *,
        is_segmentation: bool,
        over: Sequence[tuple[Path, Sequence[int]]] | None = None,
    ) -> bytes:
        """A frame (from 0) of a Part 10 file as a picture; see Renderer. Raises BadRequest, NotFound, UnreadablePixels."""
        render = {
            "how": asdict(how),
            "media_type": media_type,
            "frame": frame,
            "is_segmentation": is_segmentation,
            "over": None if over is None else [(str(source), numbers) for source, numbers in over],
        }
        return self._ask({"path": str(path), "render": render}, _PICTURE_CPU_S)

    def sources(self, path: Path, frame: int | None) -> dict[str, Any]:
        """What a frame (from 0) of a Segmentation was drawn on; see Renderer. Raises NotFound, UnreadablePixels."""
        found: dict[str, Any] = json.loads(self._ask({"path": str(path), "sources_of": frame}, _PICTURE_CPU_S))
        return found

    def close(self) -> None:
        """End those that have nothing to do."""
        with suppress(Empty):
            while True:
                _end(self._idle.get_nowait())

    def _write(self, request: dict[str, Any], file: Path) -> None:
        with room_for("an object"):
            file.touch(exist_ok=False)  # what is deleted below was made here
        try:
            self._ask({**request, "file": str(file)}, _OBJECT_CPU_S)
        except BaseException:
            file.unlink(missing_ok=True)
            raise

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
        try:
            return subprocess.Popen(  # noqa: S603  our own program
                [sys.executable, "-m", "segnode.dicomweb.decoding_child", str(self._niceness)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        except OSError as error:
            raise OutOfResources(f"no decoder can be started ({error.strerror}): ask again") from error


def _exchange(child: subprocess.Popen[bytes], line: bytes, deadline: float) -> bytes | SegnodeError:
    """What it answers: bytes, or why there are none. Raises OutOfResources, UnreadablePixels when it ends or takes too long."""
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
    if "refused" in answer:
        return BadRequest(answer["refused"])
    if "missing" in answer:
        return NotFound(answer["missing"])
    if "no_room" in answer:
        return OutOfResources(answer["no_room"])
    body = received[end + 1 :]
    while len(body) < answer["size"]:
        body += _some(child, deadline)
    return bytes(body)


def _some(child: subprocess.Popen[bytes], deadline: float) -> bytes:
    assert child.stdout is not None  # noqa: S101
    if not readable(deadline - time.monotonic(), child.stdout.fileno()):
        raise UnreadablePixels("it takes too long to decode")
    block = os.read(child.stdout.fileno(), _BLOCK)
    if not block:
        raise _ended(child)
    return block


def _ended(child: subprocess.Popen[bytes]) -> UnreadablePixels | OutOfResources:
    code = child.wait()
    if code == -signal.SIGKILL:  # a system without memory does so
        return OutOfResources("its decoder was killed, perhaps for want of memory: ask again")
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
