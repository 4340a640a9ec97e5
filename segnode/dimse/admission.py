"""Who may open an association: by AE title, host and certificate, as the configuration has it."""

import ipaddress
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final, get_args

from segnode.config import Config, PeerConfig, Right

APPLICATION_CONTEXT: Final = "1.2.840.10008.3.1.1.1"
_EVERYTHING: Final[frozenset[Right]] = frozenset(get_args(Right))


@dataclass(frozen=True)
class Caller:
    """Who asks for an association; `certificate` is what TLS has shown of it (DER), where it has."""

    calling_ae: str
    called_ae: str
    host: str
    application_context: str = APPLICATION_CONTEXT
    certificate: bytes | None = None


@dataclass(frozen=True)
class Admitted:
    """What a caller may do, and how many associations it may have open; without a number as many as there may be in all."""

    may: AbstractSet[Right] = _EVERYTHING
    max_associations: int | None = None


@dataclass(frozen=True)
class Rejection:
    """Why an association is rejected: result, source and reason as in A-ASSOCIATE-RJ (PS3.8 9.3.4), and for the log."""

    result: int
    source: int
    reason: int
    why: str


NO_REASON: Final = Rejection(1, 1, 1, "an unforeseen error")
OTHER_CONTEXT: Final = Rejection(1, 1, 2, "its application context is not that of DICOM")
OTHER_TITLE: Final = Rejection(1, 1, 7, "the called AE title is none of this node's (dimse.ae_titles)")
UNKNOWN: Final = Rejection(1, 1, 3, "its AE title is none of [[peers]]")
OTHER_HOST: Final = Rejection(1, 1, 3, "it does not come from `hosts` of its [[peers]]")
OTHER_SUBJECT: Final = Rejection(1, 1, 3, "it does not show a certificate with `certificate_subject` of its [[peers]]")
TOO_MANY: Final = Rejection(2, 3, 2, "as many associations are open as may be (dimse.max_associations)")
TOO_MANY_OF_PEER: Final = Rejection(2, 3, 2, "it has as many associations open as it may (max_associations of its [[peers]])")
# In the order of the conformance statement.
REJECTIONS: Final = (OTHER_CONTEXT, OTHER_TITLE, UNKNOWN, OTHER_HOST, OTHER_SUBJECT, TOO_MANY, TOO_MANY_OF_PEER, NO_REASON)


def judge(caller: Caller, config: Config) -> Admitted | Rejection:
    """Whether a caller is let in; how many associations are open is looked at elsewhere."""
    if caller.application_context != APPLICATION_CONTEXT:
        return OTHER_CONTEXT
    if caller.called_ae not in map(str.strip, config.ae_titles) and not config.dimse.any_called_ae:
        return OTHER_TITLE
    peer = next((peer for peer in config.peers if peer.ae_title.strip() == caller.calling_ae), None)
    if peer is None:
        return Admitted() if config.dimse.accept_any or not config.peers else UNKNOWN
    if not _is_of(caller.host, peer):
        return OTHER_HOST
    if peer.certificate_subject and not (caller.certificate and has_subject(caller.certificate, peer.certificate_subject)):
        return OTHER_SUBJECT
    return Admitted(frozenset(peer.may), peer.max_associations)


def _is_of(host: str, peer: PeerConfig) -> bool:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])  # a link-local address has its interface behind it
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return any((mapped or address) in network for network in peer.networks)


def has_subject(certificate: bytes, wanted: str) -> bool:
    """Whether the subject of a certificate (DER) has every attribute of a distinguished name (RFC 4514)."""
    from cryptography.x509 import Name, load_der_x509_certificate  # noqa: PLC0415  few nodes need it

    return set(Name.from_rfc4514_string(wanted)) <= set(load_der_x509_certificate(certificate).subject)
