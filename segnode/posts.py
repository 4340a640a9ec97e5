"""The posts of a node: which processes it has, and what they inherit: the configuration and the listening sockets.

The supervisor runs on this and little else, so that it is light and starts at once.
"""

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from segnode.config import Address, Config, pack_config, parse_address, unpack_config
from segnode.errors import CannotStart
from segnode.roles import Post, Role, supervise

# An earlier node that was killed needs a moment to let go of its ports and locks.
_LET_GO_S: Final = 3.0
_RETRY_S: Final = 0.05
_BACKLOG: Final = 1024

_T = TypeVar("_T")


@dataclass(frozen=True)
class Inherited:
    """What a role's process has from its supervisor: descriptors of the configuration and of a listening socket."""

    config_file: Path | None
    config_fd: int
    listening_fd: int | None

    @property
    def config(self) -> Config:
        """The configuration as it was last found to be good."""
        return unpack_config(os.pread(self.config_fd, os.fstat(self.config_fd).st_size, 0))

    def keep(self, config: Config) -> None:
        """Make this the configuration that processes have when they are started again."""
        packed = pack_config(config)
        os.pwrite(self.config_fd, packed, 0)
        os.truncate(self.config_fd, len(packed))

    def listening(self) -> socket.socket:
        """The socket on which this role listens, with its siblings."""
        return socket.socket(fileno=self.listening_fd)


def serve_roles(roles: Sequence[Role], config: Config, config_file: Path | None) -> int:
    """Run these roles, each in processes of its own, until SIGTERM or SIGINT; the exit code. Raises CannotStart."""
    config_fd = os.memfd_create("segnode-config", 0)
    Inherited(config_file, config_fd, None).keep(config)
    arguments = ["--config-fd", str(config_fd), *(["--config", str(config_file)] if config_file else [])]
    posts = []
    for role in roles:
        shared = _listen(role, config)
        more = [*arguments, *(word for descriptor in shared for word in ("--listening-fd", str(descriptor)))]
        posts += [Post(role, number, more, [config_fd, *shared]) for number in range(1, _processes(role, config) + 1)]
    return supervise(posts)


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


def _listen(role: Role, config: Config) -> Sequence[int]:
    """The descriptor of the listening socket that a role's processes share; none for the worker. Raises CannotStart."""
    keys = {"dimse": ("node.dicom", config.node.dicom), "web": ("node.http", config.node.http)}
    if role not in keys:
        return []
    key, value = keys[role]
    address = parse_address(value, key)
    try:
        return [patiently(lambda: listen(address), OSError).detach()]
    except OSError as error:
        raise CannotStart(
            f"{key}: cannot listen on {value}: {error.strerror or error}: does another program use it?"
        ) from error


def _processes(role: Role, config: Config) -> int:
    """How many processes a role has: the pipeline's worker is one."""
    return {"dimse": config.node.dimse_processes, "web": config.node.web_workers, "worker": 1}[role]
