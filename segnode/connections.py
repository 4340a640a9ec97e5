"""TLS with others: whom it trusts, what it shows, and what is wrong with a connection that fails."""

import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

from segnode.config import CertificateConfig, DestinationConfig
from segnode.errors import ConfigError

# Verification errors of OpenSSL (x509_vfy.h).
_OTHER_NAME: Final = (62, 63, 64)
_NOT_NOW: Final = (9, 10)
_UNKNOWN_ISSUER: Final = (2, 18, 19, 20, 21)


def tls_context(
    config: DestinationConfig, folder: Path, by_default: Callable[[], ssl.SSLContext] = ssl.create_default_context
) -> ssl.SSLContext:
    """How a destination is spoken to by TLS: 1.2 or 1.3, its host name verified (PS3.15 B.12, BCP 195). Raises ConfigError.

    With `ca` its authorities alone are trusted; without, those that are trusted by default.
    """
    where = f"destination {config.name}"
    context = trusting(config.ca, folder, f"{where}: ca", by_default)
    if config.certificate:
        load_certificate(context, config.certificate, folder, f"{where}: certificate")
    return context


def trusting(
    ca: str | None, folder: Path, where: str, by_default: Callable[[], ssl.SSLContext] = ssl.create_default_context
) -> ssl.SSLContext:
    """TLS 1.2 or 1.3 with a server that one of the authorities in `ca` knows, or by default. Raises ConfigError."""
    try:
        context = ssl.create_default_context(cafile=folder / ca) if ca else by_default()
    except OSError as error:
        raise _unusable(str(ca), where, error) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def accepting(certificate: CertificateConfig, client_ca: str | None, folder: Path, where: str) -> ssl.SSLContext:
    """TLS 1.2 or 1.3 with who connects (PS3.15 B.12, BCP 195), with `client_ca` only by a certificate of that.

    Of 1.2 only the suites of RFC 9325 4.2: forward secrecy, and authenticated encryption. Raises ConfigError.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.options |= ssl.OP_NO_RENEGOTIATION
    load_certificate(context, certificate, folder, f"{where}.certificate")
    if client_ca:
        try:
            context.load_verify_locations(folder / client_ca)
        except OSError as error:
            raise _unusable(client_ca, f"{where}.client_ca", error) from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def load_certificate(context: ssl.SSLContext, certificate: CertificateConfig, folder: Path, where: str) -> None:
    """Have a certificate and its key shown by TLS. Raises ConfigError where they cannot be used."""
    file, key = certificate.file, certificate.key or certificate.file
    try:
        # Without a password OpenSSL would ask the terminal for that of an encrypted key.
        context.load_cert_chain(folder / file, folder / key, password=lambda: "")
    except OSError as error:
        raise ConfigError(
            f"{where}: {file} with the key {key} cannot be used: {error.strerror or error}:"
            " name files in PEM, and a key that belongs to it and has no password"
        ) from error


def _unusable(ca: str, where: str, error: OSError) -> ConfigError:
    return ConfigError(f"{where}: {ca} cannot be used: {error.strerror or error}: name a file in PEM")


def trouble(error: BaseException) -> str:
    """What is wrong with a connection, and what to do; an error that was raised from one of the network tells that."""
    seen = error
    while not isinstance(seen, OSError) and (below := seen.__cause__ or seen.__context__) is not None:
        seen = below
    if isinstance(seen, ssl.SSLCertVerificationError):
        return _distrust(seen)
    if isinstance(seen, ssl.SSLError):
        return _tls_trouble(seen.reason or "")
    if isinstance(seen, socket.gaierror):
        return f"the name of its host is not known ({seen.strerror}): see that it is written as it should be"
    if isinstance(seen, TimeoutError):
        return "no answer in time: see that it runs, and that the way to it is open"
    if isinstance(seen, OSError) and seen.strerror:
        return f"{seen.strerror}: see that it runs, and that the way to it is open"
    return f"it broke off ({type(error).__name__})"


def _distrust(error: ssl.SSLCertVerificationError) -> str:
    said = f"its certificate is not trusted ({error.verify_message})"
    if error.verify_code in _OTHER_NAME:
        return f"{said}: reach it by the name that its certificate is for"
    if error.verify_code in _NOT_NOW:
        return f"{said}: have it renewed, or see to the clock of this machine"
    if error.verify_code in _UNKNOWN_ISSUER:
        return f"{said}: give the certificate of its authority as `ca`"
    return said


def _tls_trouble(reason: str) -> str:
    words = reason.lower().replace("_", " ")
    if "EOF" in reason:
        return f"it broke off ({words})"
    if "ALERT" in reason and "VERSION" not in reason:
        return f"it refuses TLS with this node ({words}): see the `certificate` that it is shown, and which it asks for"
    if "VERSION_NUMBER" in reason or "RECORD" in reason:
        return f"it speaks no TLS there ({words}): see the port, or the address without TLS"
    return f"TLS with it fails ({words or 'no reason given'}): it must offer TLS 1.2 or 1.3"
