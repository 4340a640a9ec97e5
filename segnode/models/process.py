"""A model in a process of its own: warm, watched, and ended with all that it started when it crashes, hangs or swells."""

import contextlib
import json
import math
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile, mkdtemp
from typing import IO, Any, Final

import msgspec
import numpy as np

from segnode.config import ModelConfig
from segnode.descriptors import readable
from segnode.dicom.volume import MappedVolume, Volume
from segnode.errors import ConfigError, ModelCrashed, ModelFailed, OutOfResources, SegnodeError
from segnode.models.command import clear
from segnode.models.doors import patience
from segnode.models.prints import Prints
from segnode.pipeline.ports import Heard, Result
from segnode.process_family import MARK, await_end, end_all, end_family, family, how, marked, memory_of
from segnode.store.filesystem import room_for

_WATCH_S: Final = 0.25
_HEARD_S: Final = 1.0
_LONGEST_TEXT: Final = 120
# Of an answer, and of what a model says of its progress.
_LONGEST_LINE: Final = 1 << 20
_LOAD_S: Final = 600.0
_GIB: Final = 1 << 30
_SCRATCH: Final = "scratch-"


@dataclass
class _Child:
    """A running child, its mark and folder, the socket of its requests, the descriptor that it lives as long as, its prints."""

    process: subprocess.Popen[bytes]
    mark: str
    scratch: Path
    requests: socket.socket
    life: int
    prints: Prints

    def end(self, patience: float) -> None:
        """End the child and everything that it has started; it may do so itself within some seconds."""
        os.close(self.life)
        if self.process.poll() is None:  # or its number may be another's by now
            await_end([self.process.pid], time.monotonic() + patience)
        if self.process.poll() is None:
            end_family(self.process.pid)
        # Where it has ended by itself, what it had started may be under another process by now.
        end_all(lambda: family(self.process.pid) | marked(self.mark), grace=0)
        self.process.wait()
        self.requests.close()
        self.prints.end()


class ModelProcess:
    """The port Model, by a child process that is started when it is needed and kept for the next volume.

    Arrays go by files without a name on the disk of `folder`, whose descriptors are handed over: the child may be of another
    user. What the model prints goes to `prints.log` there while it has no volume. `hidden` are variables of the environment
    that it does not see. `number` says which of the model's processes it is, and so on which of its devices; each has a
    folder of its own.
    """

    def __init__(self, config: ModelConfig, folder: Path, hidden: frozenset[str] = frozenset(), number: int = 0) -> None:
        self.config = config
        self._folder = folder
        self._hidden = hidden
        self._number = number
        folder.mkdir(parents=True, exist_ok=True)
        self._prints_now = self.prints
        self._child: _Child | None = None
        self._asked = 0
        self._one_at_a_time = threading.Lock()

    def __call__(self, volume: Volume, heard: Heard = lambda *_: None, prints: Path | None = None) -> Result:
        """Segment a volume; `heard` is told of progress, at most once a second; what is printed meanwhile goes to `prints`.

        Raises ModelCrashed when the child does; ModelFailed when it takes too long or too much memory, or says why not;
        OutOfResources.
        """
        with self._one_at_a_time, self._printing_to(prints or self.prints), self._exchange(volume) as (array, labelmap):
            self._asked += 1
            request = {
                "number": self._asked,
                "affine": volume.affine.tolist(),
                "series": dict(volume.series),
                "sop_instance_uids": volume.sop_instance_uids,
                "frame_numbers": volume.frame_numbers,
                "files": [str(file.absolute()) for file in volume.files],
            }
            answer = self._ask(request, (array, labelmap.fileno()), heard)
            if "no_room" in answer:
                raise OutOfResources(answer["no_room"])
            if "failed" in answer:
                raise ModelFailed(f"{answer['failed']}{self._printed()}")
            affine = None if answer["affine"] is None else np.array(answer["affine"])
            labelmap.seek(0)
            return Result(np.load(labelmap, allow_pickle=False), affine=affine, scores=dict(answer["scores"]))

    def check(self) -> None:
        """Start the child and have it load the model. Raises ConfigError when it cannot."""
        try:
            self._start()
        except ModelFailed as error:
            raise ConfigError(str(error)) from error

    def close(self) -> None:
        """End the child once it has done what it is at; a later call starts another."""
        with self._one_at_a_time:
            self._end()

    @property
    def prints(self) -> Path:
        """The file that holds what the model printed when it had no volume; there when it printed something."""
        return self._folder / "prints.log"

    def told(self, error: SegnodeError) -> str:
        """What a failure says, with the last line that the model printed, where the file of what it printed does not stay."""
        reason = str(error).removesuffix(f"; {self.prints} has what it printed")
        lines = self.prints.read_text(encoding="utf-8", errors="replace").split("\n") if self.prints.exists() else []
        return reason + next((f"; it printed last: {line}" for line in reversed(lines) if line.strip()), "")

    @contextmanager
    def _exchange(self, volume: Volume) -> Iterator[tuple[int, IO[bytes]]]:
        """The descriptor of a file that holds the volume's array, to read it, and a file for the labelmap."""
        with ExitStack() as stack, room_for("a volume"):
            labelmap = stack.enter_context(TemporaryFile(dir=self._folder, buffering=0))
            if isinstance(volume, MappedVolume):
                held = volume.file.descriptor
            else:
                array = stack.enter_context(TemporaryFile(dir=self._folder, buffering=0))
                np.save(array, volume.array)
                held = array.fileno()
            # Opened anew: by that of the file itself a model could write to it.
            given = os.open(f"/proc/self/fd/{held}", os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, given)
            left = stack.pop_all()
        with left:
            yield given, labelmap

    @contextmanager
    def _printing_to(self, file: Path) -> Iterator[None]:
        """Have what is printed go to a file until the end, behind what is there; there is none where nothing is printed."""
        self._prints_now = file
        if child := self._living():
            child.prints.go_to(file)
        try:
            yield
        finally:
            self._prints_now = self.prints
            if self._child is not None:
                self._child.prints.go_to(self.prints)

    def _printed(self) -> str:
        """Where what is printed now can be read, as the end of a message."""
        if self._child is not None:
            self._child.prints.go_to(self._prints_now)
        return f"; {self._prints_now} has what it printed" if self._prints_now.exists() else "; it printed nothing"

    def _living(self) -> _Child | None:
        """The child that is kept; none when it has died since its last answer."""
        if self._child is not None and self._child.process.poll() is not None:
            self._end()
        return self._child

    def _start(self) -> _Child:
        ours, theirs = socket.socketpair()
        dies, lives = os.pipe()
        command = [sys.executable, "-m", "segnode", "model", msgspec.json.encode(self.config).decode()]
        command += ["--requests-fd", str(theirs.fileno()), "--life-fd", str(dies)]
        command += ["--patience", str(patience(self.config))]
        read, write = os.pipe()
        mark, scratch = secrets.token_hex(16), self._make_scratch()
        process = subprocess.Popen(  # noqa: S603  our own program
            command,
            stdin=subprocess.DEVNULL,
            stdout=write,
            stderr=write,
            env=self._environment(mark, scratch),
            pass_fds=(theirs.fileno(), dies),
            start_new_session=True,
        )
        os.close(write)
        theirs.close()
        os.close(dies)
        self._child = _Child(process, mark, scratch, ours, lives, Prints(read, self._prints_now))
        loaded = self._await_answer(self._child, 0, _LOAD_S, lambda *_: None)
        if "error" in loaded:
            self._end()
            raise ModelFailed(loaded["error"])
        return self._child

    def _make_scratch(self) -> Path:
        """Where the child has room for files: on the disk that has room for volumes, where it is found when it was left behind.

        Another user cannot get there, and has it where temporary files are.
        """
        user = self.config.user
        folder = Path(mkdtemp(prefix=_SCRATCH, dir=None if user else self._folder)).absolute()
        if user is not None:
            with contextlib.suppress(LookupError, PermissionError):  # the child says what is wrong with the user
                shutil.chown(folder, user)
        return folder

    def _environment(self, mark: str, scratch: Path) -> dict[str, Any]:
        """What the child sees of the node's own, with its device; by the mark what it starts is known."""
        environment = {name: value for name, value in os.environ.items() if name not in self._hidden}
        if self.config.devices:
            environment["CUDA_VISIBLE_DEVICES"] = self.config.devices[self._number]
        return {**environment, MARK: mark, "TMPDIR": str(scratch)}

    def _ask(self, request: dict[str, Any], descriptors: tuple[int, int], heard: Heard) -> dict[str, Any]:
        """The child's answer to a request; one that ended without having read it is no failure. Raises ModelFailed."""
        line = json.dumps(request).encode() + b"\n"
        try:
            return self._send(line, descriptors, heard)
        except ConnectionError:
            self._end()
        try:
            return self._send(line, descriptors, heard)
        except ConnectionError as error:
            raise self._crashed("ended before it read the volume, twice") from error

    def _send(self, line: bytes, descriptors: tuple[int, int], heard: Heard) -> dict[str, Any]:
        """The answer to a line. Raises ModelFailed; ConnectionError when the child ended without having read it."""
        child = self._living() or self._start()
        sent = socket.send_fds(child.requests, [line], descriptors)
        child.requests.sendall(line[sent:])
        return self._await_answer(child, self._asked, self.config.timeout, heard)

    def _await_answer(self, child: _Child, number: int, timeout: float, heard: Heard) -> dict[str, Any]:
        """The child's answer of that number; while it is waited for, its time and memory are watched. Raises ModelFailed."""
        deadline = time.monotonic() + timeout
        received = b""
        said: tuple[float, str] | None = None
        heard_at = -math.inf
        while True:
            has_ended = child.process.poll() is not None
            has_said = bool(readable(_WATCH_S, child.requests.fileno()))
            block = child.requests.recv(_LONGEST_LINE) if has_said else None
            # What it has forked may hold its end of the socket open.
            if block == b"" or (has_ended and not has_said):
                raise self._crashed(f"ended {how(child.process.wait())}")
            *lines, received = (received + (block or b"")).split(b"\n")
            for line in lines:
                answer = _read(line)
                if answer is None:
                    raise self._failed("answered something else")
                if "progress" in answer:
                    said = _progress(answer) or said
                # A model that forks may answer twice, and what is of one volume must never be taken for another's.
                elif answer.get("number", 0) == number:
                    return answer
            now = time.monotonic()
            if said is not None and now - heard_at >= _HEARD_S:
                heard(*said)
                said, heard_at = None, now
            if now > deadline:
                raise self._failed(f"did not answer within {timeout:g} s (timeout)")
            self._require_modest(child, received)

    def _require_modest(self, child: _Child, received: bytes) -> None:
        if len(received) > _LONGEST_LINE:
            raise self._failed("answered something else")
        if memory_of(child.process.pid) > self.config.memory * _GIB:
            raise self._failed(f"took more than {self.config.memory:g} GiB (memory)")

    def _failed(self, how: str) -> ModelFailed:
        """End what is left of the child; the next volume gets a new one."""
        self._end()
        return ModelFailed(f"the process of model {self.config.name!r} {how}{self._printed()}")

    def _crashed(self, how: str) -> ModelCrashed:
        """The same, where it has ended by itself."""
        return ModelCrashed(str(self._failed(how)))

    def _end(self) -> None:
        if self._child is not None:
            scratch = self._child.scratch
            self._child.end(patience(self.config))
            self._child = None
            _clear(self.config, scratch)


def clear_behind(config: ModelConfig, folder: Path) -> None:
    """Clean up behind processes of a model that nobody was left to clean up behind; none runs in that folder, or below."""
    for scratch in [*folder.rglob(f"{_SCRATCH}*/")]:
        _clear(config, scratch)


def _clear(config: ModelConfig, scratch: Path) -> None:
    clear(config, scratch)
    shutil.rmtree(scratch, ignore_errors=True)


def _read(line: bytes) -> dict[str, Any] | None:
    """The fields of a line of a child; None when it is none of ours: the model may write there as well."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _progress(fields: dict[str, Any]) -> tuple[float, str] | None:
    """What a model says of its progress, as it may be shown; None where that is no number."""
    fraction, text = fields["progress"], fields.get("text")
    if not isinstance(fraction, int | float) or not math.isfinite(fraction):
        return None
    printable = "".join(c if c.isprintable() else " " for c in text[:_LONGEST_TEXT]) if isinstance(text, str) else ""
    return min(max(float(fraction), 0.0), 1.0), printable.strip()
