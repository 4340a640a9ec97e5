"""The posts of a node: which processes it has, and what they inherit: the configuration and the listening sockets."""

import hashlib
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from segnode.config import Address, Config, pack_config, parse_address, unpack_config
from segnode.descriptors import allow_many
from segnode.errors import CannotStart
from segnode.roles import Post, Role, supervise

# An earlier node that was killed needs a moment to let go of its ports and locks.
_LET_GO_S: Final = 3.0
_RETRY_S: Final = 0.05
_BACKLOG: Final = 1024
_DIGEST_SIZE: Final = 32

_T = TypeVar("_T")


@dataclass(frozen=True)
class Inherited:
    """What a role's process has from its supervisor: descriptors of the configuration and of listening sockets."""

    config_file: Path | None
    config_fd: int
    listening_fds: Sequence[int] = ()

    @property
    def config(self) -> Config:
        """The configuration as it was last found to be good."""
        return unpack_config(patiently(self._packed, BlockingIOError))

    @property
    def digest(self) -> bytes:
        """What tells whether the configuration is another than before, without reading it."""
        return os.pread(self.config_fd, _DIGEST_SIZE, 0)

    def keep(self, config: Config) -> None:
        """Make this the configuration that processes have from now on, or when they are started again."""
        packed = pack_config(config)
        os.pwrite(self.config_fd, _digest(packed) + packed, 0)
        os.truncate(self.config_fd, _DIGEST_SIZE + len(packed))

    def _packed(self) -> bytes:
        """The configuration as it is kept. Raises BlockingIOError where another process is about to write it."""
        kept = os.pread(self.config_fd, os.fstat(self.config_fd).st_size, 0)
        if _digest(kept[_DIGEST_SIZE:]) != kept[:_DIGEST_SIZE]:
            raise BlockingIOError("the configuration is being written")
        return kept[_DIGEST_SIZE:]

    def listening(self) -> list[socket.socket]:
        """The sockets on which this role listens, with its siblings."""
        return [socket.socket(fileno=descriptor) for descriptor in self.listening_fds]


# What runs a process of a role, by its number, and calls the last when it serves.
RunRole = Callable[[Role, int, Inherited, Callable[[], None]], None]


def serve_roles(roles: Sequence[Role], config: Config, config_file: Path | None, run: RunRole) -> int:
    """Run these roles, each in processes of its own, until SIGTERM or SIGINT; the exit code. Raises CannotStart."""
    allow_many()
    config_fd = os.memfd_create("segnode-config")
    Inherited(config_file, config_fd).keep(config)
    inherited = {role: Inherited(config_file, config_fd, _listen(role, config)) for role in roles}
    posts = [
        Post(role, number, (config_fd, *inherited[role].listening_fds))
        for role in roles
        for number in range(1, _processes(role, config) + 1)
    ]
    try:
        outcome = supervise(posts)
    except OSError as error:
        raise CannotStart(
            f"there is no room for its {len(posts)} processes (ulimit -u, -n): {error.strerror or error}"
        ) from error
    if isinstance(outcome, int):
        return outcome
    run(outcome.post.role, outcome.post.number, inherited[outcome.post.role], outcome.ready)
    return 0


def listen(address: Address) -> socket.socket:
    """A socket that listens there. Raises OSError."""
    family = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server(address, family=family, backlog=_BACKLOG)


def patiently(attempt: Callable[[], _T], error: type[OSError]) -> _T:
    """What an attempt returns; tried again for a moment while it raises that error."""
    deadline = time.monotonic() + _LET_GO_S
    while True:
        try:
            return attempt()
        except error:
            if time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_S)


def _digest(packed: bytes) -> bytes:
    return hashlib.sha256(packed).digest()


def _listen(role: Role, config: Config) -> Sequence[int]:
    """The descriptors of the listening sockets that a role's processes share; none for the worker. Raises CannotStart."""
    node = config.node
    dimse = {"node.dicom": node.dicom, **({"node.dicom_tls": node.dicom_tls} if node.dicom_tls else {})}
    addresses: dict[Role, dict[str, str]] = {"dimse": dimse, "web": {"node.http": node.http}, "worker": {}}
    return [_listen_there(key, value) for key, value in addresses[role].items()]


def _listen_there(key: str, value: str) -> int:
    address = parse_address(value, key)
    try:
        return patiently(lambda: listen(address), OSError).detach()
    except OSError as error:
        raise CannotStart(
            f"{key}: cannot listen on {value}: {error.strerror or error}: does another program use it?"
        ) from error


def _processes(role: Role, config: Config) -> int:
    """How many processes a role has: the pipeline's worker is one."""
    return {"dimse": config.node.dimse_processes, "web": config.node.web_workers, "worker": 1}[role]
