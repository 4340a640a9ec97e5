"""A model in a process of its own: warm, watched, and ended with all that it started when it crashes, hangs or swells."""

import contextlib
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from segnode.config import ModelConfig
from segnode.dicom.volume import Volume
from segnode.errors import ConfigError, ModelFailed, OutOfResources
from segnode.pipeline.ports import Result
from segnode.store.objects import room_for

_WATCH_S: Final = 0.25
_LOAD_S: Final = 600.0
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_GIB: Final = 1 << 30


@dataclass
class _Child:
    """A running child, the socket its requests go by, and the descriptor that it lives as long as."""

    process: subprocess.Popen[bytes]
    requests: socket.socket
    life: int

    def end(self) -> None:
        """End the child and everything that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.requests.close()
        os.close(self.life)


class ModelProcess:
    """The port Model, by a child process that is started when it is needed and kept for the next volume.

    Arrays go by files of `folder`, which belongs to this model; what the model prints goes to `prints.log` there.
    """

    def __init__(self, config: ModelConfig, folder: Path) -> None:
        self.config = config
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._child: _Child | None = None
        self._one_at_a_time = threading.Lock()

    def __call__(self, volume: Volume) -> Result:
        """Segment a volume.

        Raises ModelFailed when the child crashes, takes too long or too much memory, or says why not; OutOfResources.
        """
        with self._one_at_a_time, self._exchange(volume) as (array, labelmap):
            child = self._living() or self._start()
            request = {
                "array": str(array),
                "labelmap": str(labelmap),
                "affine": volume.affine.tolist(),
                "series": dict(volume.series),
                "sop_instance_uids": volume.sop_instance_uids,
            }
            answer = self._ask(child, request)
            if "no_room" in answer:
                raise OutOfResources(f"a labelmap cannot be written to disk: {answer['no_room']}")
            if "error" in answer:
                raise ModelFailed(f"model {self.config.name!r} {answer['error']}; {self.prints} has what it printed")
            return Result(_load(labelmap, self.config.name))

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
        """The file that holds what the model prints."""
        return self._folder / "prints.log"

    @contextmanager
    def _exchange(self, volume: Volume) -> Iterator[tuple[Path, Path]]:
        """A file that holds the volume's array, and one for the labelmap; both are gone at the end."""
        token = secrets.token_hex(8)
        array, labelmap = self._folder / f"{token}.array.npy", self._folder / f"{token}.labelmap.npy"
        try:
            with room_for("a volume"):
                np.save(array, volume.array)
            yield array, labelmap
        finally:
            array.unlink(missing_ok=True)
            labelmap.unlink(missing_ok=True)

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
        with room_for("what a model prints"):
            prints = self.prints.open("ab")
        with prints:
            process = subprocess.Popen(  # noqa: S603  our own program
                command,
                stdin=subprocess.DEVNULL,
                stdout=prints,
                stderr=prints,
                pass_fds=(theirs.fileno(), dies),
                start_new_session=True,
            )
        theirs.close()
        os.close(dies)
        self._child = _Child(process, ours, lives)
        loaded = self._await_answer(self._child, _LOAD_S)
        if "error" in loaded:
            self._end()
            raise ModelFailed(loaded["error"])
        return self._child

    def _ask(self, child: _Child, request: dict[str, Any]) -> dict[str, str]:
        """The child's answer to a request. Raises ModelFailed."""
        try:
            child.requests.sendall(json.dumps(request).encode() + b"\n")
            return self._await_answer(child, self.config.timeout)
        except ConnectionError as error:  # it has ended without having read the request
            raise self._failed(f"ended {_how(child.process.wait())}") from error

    def _await_answer(self, child: _Child, timeout: float) -> dict[str, str]:
        """The child's next answer; while it is waited for, its time and memory are watched. Raises ModelFailed."""
        deadline = time.monotonic() + timeout
        received = b""
        while not received.endswith(b"\n"):
            readable, _, _ = select.select([child.requests], [], [], _WATCH_S)
            block = child.requests.recv(1 << 16) if readable else None
            if block == b"":
                raise self._failed(f"ended {_how(child.process.wait())}")
            received += block or b""
            if time.monotonic() > deadline:
                raise self._failed(f"did not answer within {timeout:g} s (timeout)")
            if _memory_of_group(child.process.pid) > self.config.memory * _GIB:
                raise self._failed(f"took more than {self.config.memory:g} GiB (memory)")
        answer: dict[str, str] = json.loads(received)
        return answer

    def _failed(self, how: str) -> ModelFailed:
        """End what is left of the child; the next volume gets a new one."""
        self._end()
        return ModelFailed(f"the process of model {self.config.name!r} {how}; {self.prints} has what it printed")

    def _end(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None


def _load(path: Path, name: str) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ModelFailed(f"model {name!r} returned something that is no array of numbers") from error


def _how(code: int) -> str:
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"


def _memory_of_group(group: int) -> int:
    """The resident bytes of a process group, without what its processes share with others (proc(5), statm)."""
    total = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError, IndexError, ValueError):
                if int((folder / "stat").read_text().rpartition(")")[2].split()[2]) == group:
                    _, resident, shared, *_ = map(int, (folder / "statm").read_text().split())
                    total += (resident - shared) * _PAGE
    return total
