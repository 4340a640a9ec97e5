"""What keeps a node from its work, and what to do: looked at from outside, whether the node runs or not.

Imports stand inside the checks, so that something that cannot even be imported is trouble of its own check and no other's.
"""

import asyncio
import http.client
import os
import shutil
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from segnode.config import (
    CertificateConfig,
    Config,
    DestinationConfig,
    DimseAddress,
    DimseConfig,
    IssuerConfig,
    ModelConfig,
    WebConfig,
    hidden_from,
    is_http,
    parse_address,
)
from segnode.dicom.uids import IMPLEMENTATION_CLASS_UID
from segnode.errors import ConfigError, DeliveryFailed, NotLetIn, SegnodeError, Trouble
from segnode.posts import listen
from segnode.store.filesystem import filesystem_here, require_local

_GIB: Final = 1 << 30
_BLOCK: Final = 1 << 16
_WRITES: Final = 20
_SLOWEST_MS: Final = 100
_ANSWER_S: Final = 5
_DAY_S: Final = 86400
_RENEW_S: Final = 14 * _DAY_S
_CODECS: Final = ("native", "implicit", "deflate", "deflate-frames", "rle", "jpeg-ls", "jpeg-2000", "htj2k")
_DATABASES: Final = ("index", "pipeline", "workflows")


@dataclass(frozen=True)
class Finding:
    """What a check found: `detail` says what is well, or what is wrong and what to do next."""

    check: str
    ok: bool
    detail: str


def examine(config: Config) -> Iterator[Finding]:
    """Run every check, whatever the others found; each is yielded when it is done, those that take long last."""
    for check, look in _checks(config):
        yield _finding(check, look)


def _checks(config: Config) -> Iterator[tuple[str, Callable[[], str]]]:
    """The name of each check, and what returns its detail or raises an error that is one."""
    yield "data folder", partial(_data_folder, config.data, config.storage.low_watermark_bytes)
    yield "fsync speed", partial(_fsync_speed, config.data)
    for database in _DATABASES:
        yield f"database {database}", partial(_database, config.data / f"{database}.sqlite")
    yield "port node.dicom", partial(_dicom_port, config)
    if config.node.dicom_tls:
        yield "port node.dicom_tls", partial(_tls_port, config.node.dicom_tls)
    yield "port node.http", partial(_http_port, config)
    if config.web.certificate:
        yield "web.certificate", partial(_web_certificate, config.web, config.folder)
    if config.dimse.certificate:
        yield "dimse.certificate", partial(_dimse_certificate, config.dimse, config.dimse.certificate, config.folder)
    if config.web.oidc:
        yield "web.oidc", partial(_issuer, config.web.oidc, config.folder)
    for codec in _CODECS:
        yield f"codec {codec}", partial(_codec, codec)
    for destination in config.destinations:
        yield f"destination {destination.name}", partial(ask_destination, destination, config, _ANSWER_S)
    for model in config.models:
        yield f"labels of {model.name}", partial(_labels, model, config.folder)
        look = _served if model.run.startswith("kserve:") else partial(_model, hidden_from(model, config))
        yield f"model {model.name}", partial(look, model)


def _finding(check: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(check, True, look())
    except (SegnodeError, OSError) as error:
        detail = str(error)
    except Exception as error:  # noqa: BLE001  the border of a check: what it did not foresee must not hide the others
        detail = f"unforeseen {type(error).__name__}: {error}"
    return Finding(check, False, " ".join(detail.split()))


def _data_folder(data: Path, low_watermark: int) -> str:
    require_local(data)
    nearest = _nearest(data)
    if not nearest.is_dir():
        raise Trouble(f"node.data: {nearest} is no folder: move it away, or name another")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise Trouble(f"node.data: this user cannot write to {nearest}: become the user of the node, or give it the folder")
    free = shutil.disk_usage(nearest).free
    room = f"{free / _GIB:.1f} GiB free"
    if free < low_watermark:
        raise Trouble(
            f"{data} has only {room}: make room; what comes in is refused (storage.low_watermark); no restart is needed"
        )
    there = "" if nearest == data else ", is made at the first start"
    return f"{data} on {filesystem_here(data) or 'an unknown file system'}, {room}{there}"


def _nearest(path: Path) -> Path:
    """The path, or what exists of the folders above it."""
    return next(above for above in (path, *path.parents) if above.exists())


def _fsync_speed(data: Path) -> str:
    took = []
    block = os.urandom(_BLOCK)
    # A file with a name: for one without, some file systems have nothing to synchronise.
    with tempfile.NamedTemporaryFile(dir=_nearest(data), prefix=".doctor-", buffering=0) as file:
        for _ in range(_WRITES):
            start = time.perf_counter()
            file.write(block)
            os.fsync(file.fileno())
            took.append((time.perf_counter() - start) * 1000)
    speed = f"64 KiB are written and synchronised in {median(took):.1f} ms (median of {_WRITES})"
    if median(took) > _SLOWEST_MS:
        raise Trouble(f"{speed}; every object waits for that: see what else writes to the disk, or use a faster one")
    return speed


def _database(path: Path) -> str:
    from segnode.store.database import require_sound

    if not path.exists():
        return "is made at the first start"
    require_sound(path)
    return f"passes SQLite's quick check, {path.stat().st_size / (1 << 20):.1f} MiB"


def _dicom_port(config: Config) -> str:
    node = config.node

    def answer() -> str:
        from segnode.dimse.peer import DimsePeer
        from segnode.dimse.scu import echo

        address = DimseAddress(node.ae_title, *parse_address(node.dicom, "node.dicom"))
        try:
            implementation = echo(DimsePeer(address, node.ae_title, _ANSWER_S))[0]
        except NotLetIn:
            if config.peers:
                return "what answers there lets in peers alone, as [[peers]] has it"
            raise
        if implementation != IMPLEMENTATION_CLASS_UID:
            raise Trouble("what answers C-ECHO there is no segnode")
        return "a segnode answers C-ECHO there"

    return _port(node.dicom, "node.dicom", answer)


def _tls_port(where: str) -> str:
    def answer() -> str:
        address = parse_address(where, "node.dicom_tls")
        # Whether its certificate is good is another check's; its name need not be this address.
        context = ssl._create_unverified_context()  # noqa: S323
        try:
            with (
                socket.create_connection(address, _ANSWER_S) as connection,
                context.wrap_socket(connection, server_hostname=address.host) as encrypted,
            ):
                return f"{encrypted.version()} is spoken there"
        except OSError as error:
            raise Trouble(f"what uses it does not speak TLS ({getattr(error, 'reason', None) or error})") from error

    return _port(where, "node.dicom_tls", answer)


def _http_port(config: Config) -> str:
    host, port = parse_address(config.node.http, "node.http")

    def answer() -> str:
        # Not by httpx, which would ask the proxy that destinations are reached through.
        connection = http.client.HTTPConnection(host, port, timeout=_ANSWER_S)
        if config.web.certificate:
            # Whether its certificate is good is another check's; its name need not be this address.
            connection = http.client.HTTPSConnection(host, port, timeout=_ANSWER_S, context=ssl._create_unverified_context())  # noqa: S323
        try:
            connection.request("GET", "/dicom-web/studies?limit=1", headers={"Accept": "application/dicom+json"})
            response = connection.getresponse()
        except ssl.SSLError as error:
            if config.web.client_ca and "CERTIFICATE_REQUIRED" in (error.reason or ""):
                return "a certificate is asked for there, as web.client_ca has it"
            raise Trouble(f"what uses it does not speak TLS ({error.reason})") from error
        except (OSError, http.client.HTTPException) as error:
            raise Trouble(f"what uses it does not answer by HTTP ({type(error).__name__})") from error
        finally:
            connection.close()
        if config.web.asks_for_tokens and response.status == 401 and "segnode" in response.headers.get("WWW-Authenticate", ""):
            return "DICOMweb is served there, to who shows a key or token"
        if response.status not in (200, 204):
            raise Trouble(f"what uses it answers a search for studies with HTTP {response.status}")
        return "DICOMweb is served there"

    return _port(config.node.http, "node.http", answer)


def _web_certificate(config: WebConfig, folder: Path) -> str:
    from segnode.web.server import server_tls

    tls = server_tls(config, folder)
    assert tls is not None  # noqa: S101
    return _validity(tls.certificate, "start the node again")


def _dimse_certificate(config: DimseConfig, certificate: CertificateConfig, folder: Path) -> str:
    from segnode.connections import accepting

    accepting(certificate, config.client_ca, folder, "dimse")
    return _validity(folder / certificate.file, "send the node SIGHUP")


def _validity(certificate: Path, then: str) -> str:
    from cryptography.x509 import load_pem_x509_certificate

    left = load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc.timestamp() - time.time()
    days = f"{abs(left) / _DAY_S:.0f} days"
    if left < 0:
        raise Trouble(f"{certificate} has expired {days} ago: have it renewed, and {then}")
    if left < _RENEW_S:
        raise Trouble(f"{certificate} expires in {days}: have it renewed, and {then}")
    return f"{certificate} is valid for {days}"


def _issuer(config: IssuerConfig, folder: Path) -> str:
    from segnode.web.issuer import token_issuer

    return f"{config.issuer} answers, with {len(asyncio.run(token_issuer(config, folder).keys()))} keys"


def _port(where: str, key: str, answer: Callable[[], str]) -> str:
    """Whether the node could listen on a port, or does: `answer` says what does, or raises what speaks against a node."""
    try:
        listen(parse_address(where, key)).close()
    except OSError as taken:
        try:
            return f"{where}: {answer()}"
        except (Trouble, DeliveryFailed) as problem:
            raise Trouble(
                f"{where} cannot be listened on ({taken.strerror}), and {problem}:"
                f" end the program that uses it (ss -ltnp names it), or change {key}"
            ) from problem
    return f"{where} is free: no node runs there"


def _codec(name: str) -> str:
    import numpy as np

    from segnode.seg.codecs import CODECS, FrameShape
    from segnode.seg.pixels import pixel_data, read_frames

    codec = next(codec for known, codec in CODECS.items() if known == name)
    for bits in codec.bits:
        frames = (np.indices((1, 64, 80)).sum(axis=0) // 9 * (1 << bits >> 4 or 1)) % (1 << bits)
        typed = frames.astype({1: np.bool_, 8: np.uint8, 16: np.uint16}[bits])
        data = pixel_data(typed, codec)
        read = read_frames(data, codec.transfer_syntax_uid, FrameShape(64, 80, bits), 1, "OB")
        if not np.array_equal(read.all(), frames):
            raise Trouble(f"a frame of {bits} bits is not read back as it was written: install segnode anew")
    return f"frames of {', '.join(map(str, codec.bits))} bits are read back as they were written"


def ask_destination(destination: DestinationConfig, config: Config, within: float) -> str:
    """Have a destination answer, within some seconds, as it would be asked for anything else; what it answered.

    Raises ConfigError where its settings cannot be used, DeliveryFailed and Trouble with what is wrong and what to do.
    """
    if is_http(destination.to):
        from segnode.dicomweb.client import ask
        from segnode.dicomweb.peer import dicomweb_peer

        answer = ask(dicomweb_peer(destination, config.folder).within(within))
        is_open = destination.auth is not None and destination.to.startswith("http://")
        return f"{answer}; what shows who asks goes there unencrypted: use https://, where it can" if is_open else answer
    from segnode.dimse.peer import dimse_peer
    from segnode.dimse.scu import echo

    peer = dimse_peer(destination, config.node.ae_title, config.folder).within(within)
    try:
        _, version = echo(peer)
    except NotLetIn as rejection:
        raise Trouble(
            f"{rejection}: see that it knows the AE title {peer.calling_ae}, and is called {peer.address.ae_title}"
        ) from rejection
    return f"{peer.where} answers C-ECHO{f' ({version})' if version else ''}"


def _labels(config: ModelConfig, folder: Path) -> str:
    from segnode.seg.segments import read_label_dictionary

    return f"{config.labels} has {len(read_label_dictionary(config.labels, folder).segment)} segments"


def _served(config: ModelConfig) -> str:
    from segnode.models.kserve import NotReached, reach

    try:
        reach(config)
    except NotReached as error:
        return f"cannot be reached now, and its jobs fail until it can; the node starts without it: {error}"
    return f"{config.run} is ready"


def _model(hidden: frozenset[str], config: ModelConfig) -> str:
    from segnode.models.process import ModelProcess
    from segnode.programs import with_version

    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="segnode-doctor-") as folder:
        model = ModelProcess(with_version(config), Path(folder), hidden)
        try:
            model.check()
        except ConfigError as error:
            raise Trouble(model.told(error)) from error
        finally:
            model.close()
    return f"{config.run} is loaded in {time.perf_counter() - start:.1f} s"
