"""An application entity of other people: how it is reached, as what, and how long it may take."""

import socket
from contextlib import suppress
from pathlib import Path
from ssl import SSLContext
from typing import Final, NamedTuple

from segnode.config import DestinationConfig, DimseAddress, parse_dimse_address
from segnode.connections import trouble, trusted_by

ANSWER_S: Final = 120.0
_LOOK_S: Final = 2.0


class DimsePeer(NamedTuple):
    """An application entity; `timeout_s` is how many seconds an answer may take, `tls` is how it is spoken to by TLS."""

    address: DimseAddress
    calling_ae: str
    timeout_s: float = ANSWER_S
    tls: SSLContext | None = None

    @property
    def where(self) -> str:
        """How messages name it."""
        return f"{self.address.ae_title}@{self.address.host}:{self.address.port}"

    def within(self, seconds: float) -> "DimsePeer":
        """The same, where an answer may take so long at most."""
        return self._replace(timeout_s=min(self.timeout_s, seconds))


def dimse_peer(config: DestinationConfig, calling_ae: str, folder: Path) -> DimsePeer:
    """The application entity of a destination; `calling_ae` is how the node is called. Raises ConfigError."""
    address = parse_dimse_address(config.to, config.name)
    return DimsePeer(
        address, config.calling_ae or calling_ae, config.timeout, trusted_by(config, folder) if config.tls else None
    )


def look_at(peer: DimsePeer) -> str:
    """What keeps a connection from being opened; empty where nothing does. pynetdicom does not say."""
    within = min(_LOOK_S, peer.timeout_s)
    try:
        with socket.create_connection((peer.address.host, peer.address.port), within) as connection:
            if peer.tls is None:
                return ""
            encrypted = peer.tls.wrap_socket(connection, server_hostname=peer.address.host)
            # By TLS 1.3 a peer says only now that it wants another certificate; one that is content waits.
            with encrypted, suppress(TimeoutError):
                encrypted.recv(1)
    except OSError as error:
        return trouble(error)
    return ""
