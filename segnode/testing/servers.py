"""Real servers on loopback, for tests and the demonstration: a segnode, and an Orthanc with its DICOMweb plug-in."""

import inspect
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import httpx

from segnode.config import Config, read_config
from segnode.node import open_jobs
from segnode.roles import ROLES, Role, die_with_parent
from segnode.store.jobs import Job
from segnode.testing.processes import listens

_START_S: Final = 60
_STOP_S: Final = 15
_POLL_S: Final = 0.02
_LOWEST_PORT: Final = 10_000
_HIGHEST_PORT: Final = 32_000  # Linux gives clients those from 32768 on
_BLOCK: Final = 100
_PLUGIN_FOLDERS: Final = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc/plugins", "/usr/local/share/orthanc/plugins")


class ServerFailed(Exception):
    """A server did not start; the message holds the end of its log."""


@dataclass(frozen=True)
class Server:
    """A running server: its process, where it logs, and how it is reached."""

    process: subprocess.Popen[bytes]
    log: Path
    ae_title: str
    dicom_port: int
    http_port: int
    serves: Callable[[], bool]

    @property
    def dicomweb(self) -> str:
        """Its DICOMweb root."""
        return f"http://127.0.0.1:{self.http_port}/dicom-web"

    def await_ready(self) -> None:
        """Wait until it serves. Raises ServerFailed."""
        until(lambda: self.serves() or self.process.poll() is not None, _START_S)
        if not self.serves():
            end = self.log.read_text(errors="replace")[-2000:]
            raise ServerFailed(f"{self.process.args!r} did not start (exit code {self.process.poll()}):\n{end}")

    @property
    def dimse(self) -> str:
        """Its address as AETITLE@host:port."""
        return f"{self.ae_title}@127.0.0.1:{self.dicom_port}"


def free_port() -> int:
    """A TCP port of loopback that nothing listens on now, and that this process has not given out for a while."""
    for port in islice(_own_ports(), _BLOCK):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise ServerFailed(f"none of {_BLOCK} ports of loopback is free: end what listens there")


@cache
def _own_ports() -> Iterator[int]:
    """The ports of a block that no other process takes, over and over.

    They lie below those that the system gives to clients: a server that starts a second later finds its port free.
    """
    for first in range(_LOWEST_PORT, _HIGHEST_PORT, _BLOCK):
        with socket.socket(socket.AF_UNIX) as claim, suppress(OSError):
            claim.bind(f"\0segnode.testing.ports.{first}")  # held as long as this process lives
            yield from cycle(range(first, first + _BLOCK))
    raise ServerFailed("all ports of loopback for tests are taken: end what is left of earlier tests")


def orthanc_program() -> str | None:
    """The Orthanc on this machine, if it is there with its DICOMweb plug-in."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
    plugins = [plugin for folder in _PLUGIN_FOLDERS for plugin in Path(folder).glob("*OrthancDicomWeb*")]
    return program if plugins else None


@contextmanager
def orthanc(folder: Path, **settings: Any) -> Iterator[Server]:
    """A serving Orthanc that keeps everything in a folder. Raises ServerFailed."""
    with launch_orthanc(folder, **settings) as server:
        server.await_ready()
        yield server


@contextmanager
def launch_orthanc(folder: Path, **settings: Any) -> Iterator[Server]:
    """An Orthanc that may not serve yet. Raises ServerFailed."""
    program = orthanc_program()
    if program is None:
        raise ServerFailed("Orthanc with its DICOMweb plug-in is not installed (Debian: orthanc orthanc-dicomweb)")
    dicom_port, http_port = free_port(), free_port()
    folder.mkdir(parents=True, exist_ok=True)
    configuration = {
        "Name": "archive",
        "DicomAet": "ORTHANC",
        "DicomPort": dicom_port,
        "HttpPort": http_port,
        "HttpBindAddresses": ["127.0.0.1"],
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [path for path in _PLUGIN_FOLDERS if Path(path).is_dir()],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        **settings,
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with relaunch_orthanc(folder, program) as server:
        yield server


@contextmanager
def relaunch_orthanc(folder: Path, program: str) -> Iterator[Server]:
    """An Orthanc that may not serve yet, on the configuration and storage that an earlier one left in a folder."""
    configuration = json.loads((folder / "orthanc.json").read_text())
    dicom_port, http_port = configuration["DicomPort"], configuration["HttpPort"]
    log = folder / "orthanc.log"
    # Without TCP_NODELAY Debian's Orthanc and DCMTK wait 40 ms in every C-STORE.
    with _process([program, str(folder / "orthanc.json")], log, {"TCP_NODELAY": "1"}) as process:
        serves = lambda: _answers(f"http://127.0.0.1:{http_port}/system")  # noqa: E731
        yield Server(process, log, configuration["DicomAet"], dicom_port, http_port, serves)


@contextmanager
def segnode(
    folder: Path, tables: str = "", ae_title: str = "SEGNODE", roles: Sequence[Role] = ROLES, **settings: object
) -> Iterator[Server]:
    """A serving node with its configuration and data in a folder. Raises ServerFailed.

    `tables` is TOML beside `[node]`; `settings` are further keys of that, as TOML: without them one process serves each port.
    """
    with launch_segnode(folder, tables, ae_title, roles, **settings) as server:
        server.await_ready()
        yield server


@contextmanager
def restarted_segnode(folder: Path) -> Iterator[Server]:
    """A serving node on the configuration and data that an earlier one left in a folder. Raises ServerFailed."""
    with relaunch_segnode(folder) as server:
        server.await_ready()
        yield server


@contextmanager
def launch_segnode(
    folder: Path, tables: str = "", ae_title: str = "SEGNODE", roles: Sequence[Role] = ROLES, **settings: object
) -> Iterator[Server]:
    """A node that may not serve yet."""
    folder.mkdir(parents=True, exist_ok=True)
    dicom_port, http_port = free_port(), free_port()
    node = f'[node]\nae_title = "{ae_title}"\ndicom = "127.0.0.1:{dicom_port}"\nhttp = "127.0.0.1:{http_port}"\n'
    node += "".join(f"{key} = {value}\n" for key, value in {"dimse_processes": 1, "web_workers": 1, **settings}.items())
    (folder / "segnode.toml").write_text(f"{tables}\n{node}")
    with relaunch_segnode(folder, roles) as server:
        yield server


@contextmanager
def relaunch_segnode(folder: Path, roles: Sequence[Role] = ROLES) -> Iterator[Server]:
    """A node that may not serve yet, on the configuration and data that an earlier one left in a folder."""
    config = read_config(folder / "segnode.toml")
    log = folder / "segnode.log"
    offset = log.stat().st_size if log.exists() else 0
    command = [sys.executable, "-m", "segnode", "serve", "--config", str(folder / "segnode.toml")]
    command += [word for role in roles for word in ("--role", role)]
    with _process(command, log, {}) as process:
        serves = lambda: b'"event": "ready"' in log.read_bytes()[offset:]  # noqa: E731
        ports = _port(config.node.dicom), _port(config.node.http)
        yield Server(process, log, config.node.ae_title, *ports, serves)


def node_config(server: Server) -> Config:
    """The configuration of a segnode that was started here."""
    return read_config(server.log.parent / "segnode.toml")


@contextmanager
def storescp(folder: Path) -> Iterator[Server]:
    """DCMTK's storescp, a process for each association, which writes what comes into a folder. Raises ServerFailed."""
    program = shutil.which("storescp")
    if program is None:
        raise ServerFailed("DCMTK is not installed (Debian: dcmtk)")
    folder.mkdir(parents=True, exist_ok=True)
    port, log = free_port(), folder / "storescp.log"
    command = [program, "--fork", "--max-pdu", "131072", "-aet", "STORESCP", "-od", str(folder), str(port)]
    with _process(command, log, {"TCP_NODELAY": "1"}) as process:
        server = Server(process, log, "STORESCP", port, 0, lambda: listens(port))
        server.await_ready()
        yield server


@contextmanager
def bare(folder: Path) -> Iterator[Server]:
    """A serving bare responder on the files of a folder (segnode.testing.bare). Raises ServerFailed."""
    folder.mkdir(parents=True, exist_ok=True)
    port, log = free_port(), folder / "bare.log"
    with _process([sys.executable, "-m", "segnode.testing.bare", str(folder), str(port)], log, {}) as process:
        server = Server(process, log, "", 0, port, lambda: listens(port))
        server.await_ready()
        yield server


@contextmanager
def _process(command: list[str], log: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    parent = os.getpid()
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603  programs of this package's own choosing
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **environment},
            preexec_fn=lambda: die_with_parent(parent),  # noqa: PLW1509  what a test starts does not outlive it
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    try:  # one that wants to know who asks serves as well
        return httpx.get(url).status_code in (httpx.codes.OK, httpx.codes.UNAUTHORIZED)
    except httpx.TransportError:
        return False


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def await_jobs(config: Config, count: int = 1, within: float = 60) -> list[Job]:
    """The jobs of a node once that many have ended or are held, and every other too; a cancelled one is followed by another.

    Raises ServerFailed when that takes too long.
    """
    jobs = open_jobs(config)

    def going_on() -> list[Job]:
        return [job for job in jobs.all() if job.state != "cancelled"]

    until(lambda: len(going_on()) >= count and all(job.state in ("delivered", "failed", "held") for job in going_on()), within)
    return going_on()


def until(condition: Callable[[], bool], within: float = 60) -> None:
    """Return as soon as a condition holds. Raises ServerFailed when it does not in that many seconds."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise ServerFailed(f"not within {within:g} s: {inspect.getsource(condition).strip()}")
        time.sleep(_POLL_S)
