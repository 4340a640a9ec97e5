"""Destinations that want to know who asks, by TLS or by a proxy: with scripted peers, DCMTK and Orthanc at the ends."""

import base64
import json
import signal
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from urllib.parse import parse_qs, quote_plus, urlsplit

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from pydicom import dcmread
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind, Verification

from segnode.config import (
    AuthConfig,
    BasicConfig,
    CertificateConfig,
    Config,
    SecretConfig,
    pack_config,
    parse_config,
    parse_dimse_address,
    unpack_config,
)
from segnode.dicom.header import read_header
from segnode.dimse.scu import send_files
from segnode.doctor import ask_destination
from segnode.errors import ConfigError, DeliveryDeferred, DeliveryFailed, FindFailed, NotLetIn, Trouble
from segnode.node import catalogues, destinations
from segnode.pipeline.ports import Destination, Encoded
from segnode.testing.answering import answering
from segnode.testing.servers import await_jobs, free_port, node_config, orthanc, orthanc_program, segnode, until
from tests.conftest import absent
from tests.outbox import RESULT, SERIES, STUDY, outbox, require_truth, segmentation, truth
from tests.wire.test_delivery_matrix import go_on, storescp
from tests.wire.test_serve import run

SECRET = "s3cret+ /of:the-client"
NO_WORK = "models = []\nrules = []\n"


@dataclass
class Web:
    """A DICOMweb server that also gives tokens: what it is to do, and what it saw."""

    lets_in: Callable[[str], bool] = lambda _shown: True
    expires_in: float | None = 3600
    token_answer: tuple[int, dict] | None = None
    metadata: dict | None = None
    redirects_to: str = ""
    url: str = ""
    shown: list[str] = field(default_factory=list)  # the Authorization of each request, but those for tokens
    stored: list[bytes] = field(default_factory=list)
    forms: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)  # of each request for a token

    def token(self, shown: str, form: Mapping[str, str]) -> tuple[int, dict]:
        """Give the next token."""
        self.forms.append((shown, form))
        if self.token_answer:
            return self.token_answer
        answer = {"access_token": f"token-{len(self.forms)}", "token_type": "Bearer"}
        return 200, answer if self.expires_in is None else {**answer, "expires_in": self.expires_in}


class Asked(BaseHTTPRequestHandler):
    """A request to a scripted server."""

    server: "Listening"

    @property
    def web(self) -> Web:
        """What is scripted."""
        return self.server.web

    def do_GET(self) -> None:
        """Describe the issuer, or answer a search: of series one with four images, else nothing."""
        if self.path.endswith("/.well-known/openid-configuration"):
            self.answer(200, self.web.metadata)
        elif self.may_enter():
            series = [{"0020000E": {"vr": "UI", "Value": [SERIES]}, "00201209": {"vr": "IS", "Value": [4]}}]
            self.answer(200, series if "/series" in self.path else [])

    def do_POST(self) -> None:
        """Give a token, or store an object."""
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path.endswith("/token"):
            form = {key: values[0] for key, values in parse_qs(body.decode()).items()}
            self.answer(*self.web.token(self.headers.get("authorization", ""), form))
            return
        part10 = body.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0]
        self.web.stored.append(part10)
        if self.may_enter():
            item = {"00081155": {"vr": "UI", "Value": [read_header(BytesIO(part10)).sop_instance_uid]}}
            self.answer(200, {"00081199": {"vr": "SQ", "Value": [item]}})

    def may_enter(self) -> bool:
        """Whether a request is let in; it is answered if not."""
        shown = self.headers.get("authorization", "")
        self.web.shown.append(shown)
        if self.web.redirects_to:
            self.answer(307, None, Location=self.web.redirects_to + self.path)
            return False
        if not self.web.lets_in(shown):
            self.answer(401, {"shown": shown})
            return False
        return True

    def answer(self, status: int, document: object, **headers: str) -> None:
        """Answer with a document."""
        body = json.dumps(document).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Type": "application/dicom+json", "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: tests look at what was seen."""


class Listening(ThreadingHTTPServer):
    """What serves a script."""

    web: Web


@contextmanager
def serving(web: Web, tls: ssl.SSLContext | None = None) -> Iterator[Web]:
    """Have it serve, on a port of its own; its `url` is set."""
    server = Listening(("127.0.0.1", 0), Asked)
    server.web = web
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    with answering(server) as address:
        web.url = f"{'https' if tls else 'http'}://{address}"
        yield web


def config_of(folder: Path, to: str, more: str = "", name: str = "archive") -> Config:
    """A configuration of one destination, which a rule asks too."""
    rule = f'[[rules]]\nwhen = {{}}\nmodel = "threshold"\nexpect = "find"\nask = "{name}"\n'
    table = f'[[destinations]]\nname = "{name}"\nto = "{to}"\nseg = ["labelmap:rle"]\n{more}\n'
    return parse_config(table + rule, folder)


def encoded() -> Encoded:
    """A SEG on its way."""
    return Encoded("labelmap:rle", "1.2.840.10008.5.1.4.1.1.66.7", RESULT, SERIES, STUDY, segmentation(truth()))


def archive_in(config: Config) -> Destination:
    """What sends to its destination."""
    return destinations(config)["archive"]


def send(destination: Destination) -> str:
    """Send the SEG; what was answered."""
    with destination.reach(["labelmap:rle"]) as door:
        return door.store(encoded())


def trouble_of(config: Config, within: float = 5) -> str:
    """What is wrong with its destination; the doctor finds the same."""
    with pytest.raises((DeliveryFailed, Trouble)) as raised:
        ask_destination(config.destinations[0], config, within)
    return str(raised.value)


def oidc(web: Web, more: str = "") -> str:
    """The key for tokens of that server."""
    where = more or f'token_url = "{web.url}/token"'
    return f'auth = {{ oidc = {{ {where}, client_id = "node 1", client_secret = {{ env = "SECRET" }} }} }}'


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """The secret is in the environment."""
    monkeypatch.setenv("SECRET", SECRET)


@pytest.mark.parametrize(
    ("auth", "shown"),
    [
        ('{ bearer = { file = "token" } }', "Bearer abc.def~1="),
        (
            '{ basic = { user = "node", password = { env = "SECRET" } } }',
            "Basic " + base64.b64encode(f"node:{SECRET}".encode()).decode(),
        ),
    ],
)
def test_token_and_password_are_shown_in_every_request(tmp_path: Path, auth: str, shown: str) -> None:
    """To send, to look for what is held, to count a series and to be asked by the doctor."""
    (tmp_path / "token").write_text("abc.def~1=\n")
    with serving(Web(lets_in=lambda given: given == shown)) as web:
        config = config_of(tmp_path, web.url, f"auth = {auth}")
        assert send(archive_in(config)) == "HTTP 200"
        assert archive_in(config).held(encoded()) is None
        assert catalogues(config)["archive"].count_instances(STUDY, SERIES) == 4
        assert "HTTP 200; what shows who asks goes there unencrypted" in ask_destination(config.destinations[0], config, 5)
        assert web.shown == [shown] * 4
        without = config_of(tmp_path, web.url)
        with pytest.raises(NotLetIn, match="HTTP 401"):
            send(archive_in(without))
        assert "give it `auth`" in trouble_of(without)


def test_token_is_kept_while_it_holds(tmp_path: Path) -> None:
    """One token for several requests, asked for as RFC 6749 4.4 has it, with the secret encoded as 2.3.1 does."""
    with serving(Web()) as web:
        where = f'token_url = "{web.url}/token", scope = "dicom.write", audience = "pacs"'
        archive = archive_in(config_of(tmp_path, web.url, oidc(web, where)))
        for _ in range(3):
            send(archive)
    client = base64.b64encode(f"{quote_plus('node 1')}:{quote_plus(SECRET)}".encode()).decode()
    form = {"grant_type": "client_credentials", "scope": "dicom.write", "audience": "pacs"}
    assert web.forms == [(f"Basic {client}", form)]
    assert web.shown == ["Bearer token-1"] * 3


def test_token_that_has_expired_is_renewed(tmp_path: Path) -> None:
    """One that lasts no longer than its answer took is used once."""
    with serving(Web(expires_in=0)) as web:
        archive = archive_in(config_of(tmp_path, web.url, oidc(web)))
        for _ in range(3):
            send(archive)
    assert web.shown == ["Bearer token-1", "Bearer token-2", "Bearer token-3"]


def test_token_that_lasts_for_longer_than_any_number_is_kept(tmp_path: Path) -> None:
    """Whatever a server says of how long it lasts, it is used until it is refused."""
    with serving(Web(expires_in=10**400)) as web:
        archive = archive_in(config_of(tmp_path, web.url, oidc(web)))
        for _ in range(2):
            send(archive)
    assert web.shown == ["Bearer token-1"] * 2


def test_refused_token_is_renewed_once(tmp_path: Path) -> None:
    """After a 401 the whole object goes again with a new token; after a second 401 nothing more, and it is tried later."""
    with serving(Web(lets_in=lambda shown: shown == "Bearer token-2", expires_in=None)) as web:
        archive = archive_in(config_of(tmp_path, web.url, oidc(web)))
        assert send(archive) == "HTTP 200"
        assert web.shown == ["Bearer token-1", "Bearer token-2"]
        assert web.stored == [encoded().part10] * 2
        send(archive)
        assert len(web.forms) == 2
        web.lets_in = lambda _shown: False
        with pytest.raises(NotLetIn, match="^HTTP 401$"):
            send(archive)
        assert web.shown[2:] == ["Bearer token-2", "Bearer token-2", "Bearer token-3"]


def test_threads_share_a_token(tmp_path: Path) -> None:
    """Eight deliveries at once ask for one token."""
    with serving(Web()) as web:
        archive = archive_in(config_of(tmp_path, web.url, oidc(web)))
        threads = [threading.Thread(target=send, args=(archive,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (len(web.forms), web.shown) == (1, ["Bearer token-1"] * 8)


def test_issuer_says_where_tokens_are_had(tmp_path: Path) -> None:
    """And that it wants the secret in the body; an issuer of another name is not believed."""
    with serving(Web()) as web:
        web.metadata = {
            "issuer": f"{web.url}/realm",
            "token_endpoint": f"{web.url}/token",
            "token_endpoint_auth_methods_supported": ["client_secret_post"],
        }
        config = config_of(tmp_path, web.url, oidc(web, f'issuer = "{web.url}/realm/"'))
        send(archive_in(config))
        form = {"grant_type": "client_credentials", "client_id": "node 1", "client_secret": SECRET}
        assert web.forms == [("", form)]
        web.metadata["issuer"] = "https://elsewhere.example"
        assert "does not describe that issuer" in trouble_of(config)
        assert len(web.forms) == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((401, {"error": "invalid_client", "error_description": SECRET}), "HTTP 401 invalid_client: see client_id"),
        ((400, {"error": SECRET}), "HTTP 400: see client_id"),
        ((200, {"access_token": f"{SECRET}\r\nX: y"}), "no bearer token"),
        ((200, {"access_token": "mac", "token_type": "mac"}), "no bearer token"),
        ((503, {}), "HTTP 503"),
    ],
)
def test_no_token_is_said_and_tried_again(tmp_path: Path, answer: tuple[int, dict], said: str) -> None:
    """A server that gives no token defers what is sent and fails what is asked; nothing that it echoes is repeated."""
    with serving(Web(token_answer=answer)) as web:
        config = config_of(tmp_path, web.url, oidc(web))
        with pytest.raises(NotLetIn) as deferred:
            send(archive_in(config))
        with pytest.raises(FindFailed) as failed:
            catalogues(config)["archive"].count_instances(STUDY, SERIES)
        assert web.shown == []
    assert said in str(deferred.value)
    assert str(failed.value) == str(deferred.value)
    assert SECRET not in str(deferred.value)


def test_redirect_is_not_followed(tmp_path: Path) -> None:
    """What is shown to an archive is not shown to another host that it names."""
    with serving(Web()) as elsewhere, serving(Web(redirects_to=elsewhere.url)) as web:
        config = config_of(tmp_path, web.url, oidc(web))
        with pytest.raises(DeliveryFailed, match="HTTP 307"):
            send(archive_in(config))
        assert "leads elsewhere" in trouble_of(config)
    assert elsewhere.shown == []


@dataclass
class Authority:
    """An authority, and files of what it signed."""

    folder: Path
    signer: trustme.CA = field(default_factory=trustme.CA)

    def __post_init__(self) -> None:
        """Write its own certificate to ca.pem."""
        self.signer.cert_pem.write_to_path(str(self.folder / "ca.pem"))

    def issue(self, name: str, file: str = "", until: datetime | None = None) -> Path:
        """A certificate with its key, in a file of that name."""
        path = self.folder / f"{file or name}.pem"
        self.signer.issue_cert(name, not_after=until).private_key_and_cert_chain_pem.write_to_path(str(path))
        return path

    def server(self, file: Path, *, asks: bool = False) -> ssl.SSLContext:
        """How a server speaks TLS with that certificate, and whether it asks for one."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        if asks:
            context.verify_mode = ssl.CERT_REQUIRED
            self.signer.configure_trust(context)
        return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that nobody trusts unless told."""
    made = Authority(tmp_path_factory.mktemp("authority"))
    made.issue("127.0.0.1")
    made.issue("node")
    return made


CA = 'ca = "ca.pem"\n'
CERTIFICATE = 'certificate = { file = "node.pem" }\n'


def test_https_is_verified(authority: Authority) -> None:
    """A certificate is taken from the authority that `ca` names, for the host that is asked; else what is wrong is said."""
    folder = authority.folder
    with serving(Web(), authority.server(folder / "127.0.0.1.pem")) as web:
        assert send(archive_in(config_of(folder, web.url, CA + oidc(web)))) == "HTTP 200"
        config = config_of(folder, web.url, CA)
        assert catalogues(config)["archive"].count_instances(STUDY, SERIES) == 4
        assert ask_destination(config.destinations[0], config, 5).endswith("HTTP 200")
        unknown = trouble_of(config_of(folder, web.url))
        assert "its certificate is not trusted" in unknown
        assert "as `ca`" in unknown
        name = trouble_of(config_of(folder, web.url.replace("127.0.0.1", "localhost"), CA))
        assert "by the name that its certificate is for" in name
    with serving(Web(), authority.server(authority.issue("127.0.0.1", "expired", datetime(2020, 1, 1)))) as web:
        assert "(certificate has expired): have it renewed" in trouble_of(config_of(folder, web.url, CA))


def test_client_certificate_is_shown(authority: Authority) -> None:
    """A server that asks for a certificate is given that of `certificate`; without it, it is said what is missing."""
    folder = authority.folder
    with serving(Web(), authority.server(folder / "127.0.0.1.pem", asks=True)) as web:
        assert send(archive_in(config_of(folder, web.url, CA + CERTIFICATE))) == "HTTP 200"
        assert "`certificate`" in trouble_of(config_of(folder, web.url, CA))


def test_certificate_that_cannot_be_used_stops_the_start(authority: Authority) -> None:
    """A file that is missing or no certificate, a key of another, and an encrypted key, for which nobody is asked."""
    folder = authority.folder
    authority.issue("other")
    (folder / "none.pem").write_text("no certificate")
    own = load_pem_private_key((folder / "node.pem").read_bytes(), None)
    locked = own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"hidden"))
    (folder / "locked.key").write_bytes(locked)
    key = '{{ file = "node.pem", key = "{}" }}'
    for more, path in {
        'ca = "missing.pem"': "ca: missing.pem",
        'ca = "none.pem"': "ca: none.pem",
        'certificate = { file = "missing.pem" }': "certificate: missing.pem",
        f"certificate = {key.format('none.pem')}": "certificate: node.pem with the key none.pem",
        f"certificate = {key.format('other.pem')}": "certificate: node.pem with the key other.pem",
        f"certificate = {key.format('locked.key')}": "certificate: node.pem with the key locked.key",
    }.items():
        for to in ("https://a", "A@b:104"):
            config = config_of(folder, to, more + ("\ntls = true" if "@" in to else ""))
            with pytest.raises(ConfigError, match=f"^destination archive: {path}"):
                destinations(config)


@contextmanager
def scp(tls: ssl.SSLContext | None, called_by: str = "") -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """An application entity that takes everything and finds four images; its address, and what it got from whom."""
    got: list[tuple[str, bytes]] = []

    def keep(event: evt.Event) -> int:
        got.append((event.assoc.requestor.ae_title, event.encoded_dataset()))
        return 0

    def find(event: evt.Event) -> Iterator[tuple[int, object]]:
        found = event.identifier
        if found.QueryRetrieveLevel == "SERIES":
            found.NumberOfSeriesRelatedInstances = 4
            yield 0xFF00, found

    ae = AE("SINK")
    ae.supported_contexts = AllStoragePresentationContexts[:100]
    ae.add_supported_context("1.2.840.10008.5.1.4.1.1.66.7", "1.2.840.10008.1.2.5")
    ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    ae.add_supported_context(Verification)
    ae.require_calling_aet = [called_by] if called_by else []
    handlers = [(evt.EVT_C_STORE, keep), (evt.EVT_C_FIND, find)]
    server = ae.start_server(("127.0.0.1", 0), block=False, ssl_context=tls, evt_handlers=handlers)
    try:
        yield f"SINK@127.0.0.1:{server.server_address[1]}", got
    finally:
        server.shutdown()


def test_dimse_over_tls(authority: Authority) -> None:
    """With a certificate on both sides: sent, asked whether it is held, counted and echoed, as the AE that it is to be."""
    folder = authority.folder
    with scp(authority.server(folder / "127.0.0.1.pem", asks=True), "NODE_A") as (address, got):
        config = config_of(folder, address, 'tls = true\ncalling_ae = "NODE_A"\n' + CA + CERTIFICATE)
        assert send(archive_in(config)) == "status 0x0000"
        assert [calling for calling, _ in got] == ["NODE_A"]
        assert archive_in(config).held(encoded()) is None
        assert catalogues(config)["archive"].count_instances(STUDY, SERIES) == 4
        assert "answers C-ECHO (PYNETDICOM" in ask_destination(config.destinations[0], config, 5)
        tls = 'tls = true\ncalling_ae = "NODE_A"\n'
        assert "`certificate`" in trouble_of(config_of(folder, address, tls + CA))
        assert "as `ca`" in trouble_of(config_of(folder, address, tls + CERTIFICATE))
        named = address.replace("127.0.0.1", "localhost")
        assert "by the name that its certificate is for" in trouble_of(config_of(folder, named, tls + CA + CERTIFICATE))
        other = trouble_of(config_of(folder, address, "tls = true\n" + CA + CERTIFICATE))
        assert "knows the AE title SEGNODE, and is called SINK" in other
    with scp(None) as (address, _):
        assert "speaks no TLS" in trouble_of(config_of(folder, address, "tls = true\n" + CA))


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_tls_of_yesterday_is_refused(authority: Authority) -> None:
    """A server that offers TLS 1.1 at most is not spoken to, by https and by DIMSE (BCP 195)."""
    folder = authority.folder
    old = authority.server(folder / "127.0.0.1.pem")
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with serving(Web(), old) as web, scp(old) as (address, _):
        for config in (config_of(folder, web.url, CA), config_of(folder, address, "tls = true\n" + CA)):
            assert "it must offer TLS 1.2 or 1.3" in trouble_of(config)


def test_storescp_over_tls(authority: Authority, tmp_path: Path, dcmtk) -> None:
    """DCMTK's storescp, which asks for a certificate, gets the SEG by TLS."""
    pem, ca = str(authority.folder / "127.0.0.1.pem"), str(authority.folder / "ca.pem")
    shown = CertificateConfig(file=str(authority.folder / "node.pem"))
    with storescp(dcmtk("storescp"), tmp_path / "kept", "-pm", "+tls", pem, pem, "+cf", ca) as address:
        delivery = go_on(outbox(tmp_path / "node", address, tls=True, ca=ca, certificate=shown))
    assert (delivery.state, delivery.form) == ("delivered", "labelmap:native"), delivery
    (kept,) = (tmp_path / "kept").iterdir()
    require_truth(dcmread(kept))


def test_orthanc_with_users_takes_it_from_one_of_them(tmp_path: Path) -> None:
    """Over STOW-RS: without a password it is tried again, with it the SEG is stored."""
    if orthanc_program() is None:
        absent("Orthanc with its DICOMweb plug-in", "install orthanc and orthanc-dicomweb (scripts/peers does)")
    users = {"AuthenticationEnabled": True, "RegisteredUsers": {"node": SECRET}}
    with orthanc(tmp_path / "orthanc", **users) as server:
        delivery = go_on(outbox(tmp_path / "a", server.dicomweb))
        assert (delivery.state, delivery.last_answer) == ("waiting", "HTTP 401")
        basic = AuthConfig(basic=BasicConfig(user="node", password=SecretConfig(env="SECRET")))
        delivery = go_on(outbox(tmp_path / "b", server.dicomweb, auth=basic))
        assert (delivery.state, delivery.form) == ("delivered", "labelmap:rle"), delivery


@contextmanager
def proxy(tls: ssl.SSLContext | None = None) -> Iterator[tuple[str, list[str]]]:
    """A proxy for http and https; its URL, and the first lines of requests: once "refuse" is among them it answers 407."""
    lines: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        rbufsize = 0  # what follows the head is pumped

        def handle(self) -> None:
            head = [self.rfile.readline()]
            while head[-1] not in (b"\r\n", b""):
                head.append(self.rfile.readline())
            line = head[0].decode().strip()
            lines.append(line)
            method, target, _ = line.split()
            if "refuse" in lines:
                self.wfile.write(b"HTTP/1.1 407 Who asks\r\nContent-Length: 0\r\n\r\n")
                return
            where = urlsplit(target if "://" in target else f"//{target}")
            with socket.create_connection((where.hostname, where.port)) as server:
                if method == "CONNECT":
                    self.wfile.write(b"HTTP/1.1 200 Connected\r\n\r\n")
                else:
                    server.sendall(b"".join(head))
                back = threading.Thread(target=pump, args=(server, self.connection))
                back.start()
                pump(self.connection, server)
                back.join()

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    with answering(server) as address:
        yield f"{'https' if tls else 'http'}://{address}", lines


def test_proxy_is_gone_by(authority: Authority) -> None:
    """Http, https and what gives tokens are reached by the proxy, and the archive alone is shown who asks."""
    folder = authority.folder
    with proxy() as (url, lines):
        by = f'proxy = "{url}"\n'
        with serving(Web()) as web:
            send(archive_in(config_of(folder, web.url, by + oidc(web))))
            assert lines == [f"POST {web.url}/token HTTP/1.1", f"POST {web.url}/studies HTTP/1.1"]
            assert web.shown == ["Bearer token-1"]
        with serving(Web(), authority.server(folder / "127.0.0.1.pem")) as web:
            config = config_of(folder, web.url, by + CA)
            assert ask_destination(config.destinations[0], config, 5).endswith("HTTP 200")
            assert lines[2].startswith(f"CONNECT 127.0.0.1:{urlsplit(web.url).port} ")
            lines.append("refuse")
            assert f"by the proxy {url}: it wants to know who asks (HTTP 407)" in trouble_of(config)
    assert f"by the proxy {url}: Connection refused" in trouble_of(config)
    with serving(Web()) as web, proxy(authority.server(folder / "127.0.0.1.pem")) as (url, lines):
        by = f'proxy = "{url}"\n'
        assert send(archive_in(config_of(folder, web.url, by + CA))) == "HTTP 200"
        assert lines == [f"POST {web.url}/studies HTTP/1.1"]
        assert "as `ca`" in trouble_of(config_of(folder, web.url, by))


def test_what_is_silent_or_nowhere_is_said(tmp_path: Path) -> None:
    """A peer that takes connections and says nothing is given `timeout`; a host that has no address is named."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        for to in (f"http://{where}", f"PEER@{where}"):
            config = config_of(tmp_path, to, "timeout = 0.2")
            start = time.monotonic()
            with pytest.raises(DeliveryDeferred, match="cannot be reached"):
                send(archive_in(config))
            assert time.monotonic() - start < 5
        assert "no answer in time" in trouble_of(config_of(tmp_path, f"http://{where}", "timeout = 0.2"))
        token = oidc(Web(url=f"http://{where}"))
        said = trouble_of(config_of(tmp_path, f"http://127.0.0.1:{free_port()}", f"timeout = 0.2\n{token}"))
        assert f"http://{where}/token, which is to give a token for http" in said
        assert "no answer in time" in said
    for to in ("http://no.such.host.invalid", "PEER@no.such.host.invalid:104"):
        assert "the name of its host is not known" in trouble_of(config_of(tmp_path, to))
    for to in (f"http://127.0.0.1:{free_port()}", f"PEER@127.0.0.1:{free_port()}"):
        assert "Connection refused: see that it runs" in trouble_of(config_of(tmp_path, to))


def test_echo_asks_by_name_and_by_address(tmp_path: Path, authority: Authority) -> None:
    """Exit code 0 when it answers, 1 with what is wrong when it does not, 2 when there is no such destination."""
    with scp(authority.server(authority.folder / "127.0.0.1.pem")) as (address, got), serving(Web()) as web:
        file = authority.folder / "segnode.toml"
        tables = f'[[destinations]]\nname = "tls"\nto = "{address}"\ntls = true\n{CA}calling_ae = "NODE_A"\n'
        tables += f'[[destinations]]\nname = "web"\nto = "{web.url}"\n{oidc(web)}\n'
        file.write_text(tables)
        config = ("--config", str(file))
        ended = run("echo", "tls", *config)
        assert (ended.returncode, ended.stdout[:8].strip()) == (0, "ok"), ended.stdout
        assert f"{address} answers C-ECHO" in ended.stdout
        ended = run("echo", "web", "--json", *config)
        found = json.loads(ended.stdout)
        assert (ended.returncode, found["destination"], found["to"], found["ok"]) == (0, "web", web.url, True)
        assert found["seconds"] > 0
        ended = run("echo", f"{web.url}/", *config)
        assert (ended.returncode, web.shown) == (0, ["Bearer token-1", ""])
        ended = run("echo", address, *config)
        assert (ended.returncode, ended.stdout[:8].strip()) == (1, "TROUBLE"), "without TLS nothing answers there"
        ended = run("echo", "nobody", *config)
        assert (ended.returncode, ended.stderr) == (2, "segnode: there is no destination 'nobody'; allowed: tls, web\n")
        ended = run("echo", "https://user:hidden@host", *config)
        assert ended.returncode == 2
        assert "hidden" not in ended.stderr
        image = tmp_path / "image.dcm"
        image.write_bytes(segmentation(truth()))
        ended = run("send", str(image), "--to", "tls", *config)
        assert (ended.returncode, [calling for calling, _ in got]) == (0, ["NODE_A"]), ended.stderr


def test_missing_secret_stops_the_start(tmp_path: Path) -> None:
    """The node names the key, and the doctor finds the same."""
    (tmp_path / "segnode.toml").write_text(
        f'{NO_WORK}[[destinations]]\nname = "archive"\nto = "http://127.0.0.1:1"\nauth = {{ bearer = {{ env = "NOT_SET" }} }}\n'
        f'[node]\ndicom = "127.0.0.1:{free_port()}"\nhttp = "127.0.0.1:{free_port()}"\n'
    )
    config = ("--config", str(tmp_path / "segnode.toml"))
    said = "destination archive: auth.bearer: environment variable NOT_SET is empty or not there"
    ended = run("serve", *config)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert said in run("doctor", *config).stdout


def test_node_keeps_its_secrets(tmp_path: Path, ct: Path) -> None:
    """A token in a file and the secret of an issuer: renewed at SIGHUP, and in no log, row, file or answer."""
    secrets = (
        "the-old-token",
        "the-new-token",
        SECRET,
        base64.b64encode(SECRET.encode()).decode(),
        "token-1",
        quote_plus(SECRET),
    )
    (tmp_path / "token").write_text(secrets[0])
    with serving(Web(lets_in=lambda shown: shown == f"Bearer {secrets[1]}")) as bearer, serving(Web()) as issuer:
        tables = f'[[destinations]]\nname = "a"\nto = "{bearer.url}"\nauth = {{ bearer = {{ file = "../token" }} }}\n'
        tables += f'[[destinations]]\nname = "b"\nto = "{issuer.url}"\n{oidc(issuer)}\n'
        tables += '[[rules]]\nwhen = {}\nmodel = "threshold"\nsend_to = ["a", "b"]\nquiet = 0.2\n'
        with segnode(tmp_path / "node", tables) as node:
            config = ("--config", str(tmp_path / "node" / "segnode.toml"))
            list(send_files(sorted(ct.iterdir()), parse_dimse_address(node.dimse, ""), "TEST"))
            until(lambda: '"last_answer":"HTTP 401"' in run("destinations", "--json", *config).stdout)
            said = [run("echo", "a", *config).stdout]
            (tmp_path / "token").write_text(secrets[1])
            node.process.send_signal(signal.SIGHUP)
            until(lambda: b"the configuration is read again" in node.log.read_bytes())
            run("destinations", "resume", "a", *config)
            (job,) = await_jobs(node_config(node))
            assert job.state == "delivered", job
            asked = (("doctor",), ("echo", "b"), ("destinations",), ("jobs", "show", job.id))
            said += [*(run(*words, "--json", *config).stdout for words in asked), node.log.read_text()]
    assert {f"Bearer {secrets[0]}", f"Bearer {secrets[1]}"} == set(bearer.shown)
    assert issuer.shown[0] == "Bearer token-1"
    kept = [path.read_bytes() for path in node_config(node).data.rglob("*") if path.is_file()]
    for secret in secrets:
        assert not any(secret in text for text in said), secret
        assert not any(secret.encode() in content for content in kept), secret


def test_configuration_and_adapters_show_no_secret(tmp_path: Path) -> None:
    """What processes are handed, and how values print themselves."""
    with serving(Web()) as web:
        for auth in (oidc(web), 'auth = { basic = { user = "node", password = { env = "SECRET" } } }'):
            config = config_of(tmp_path, web.url, auth)
            archive, catalogue = archive_in(config), catalogues(config)["archive"]
            send(archive)
            shown = (pack_config(config).decode(), repr(config), repr(archive), repr(catalogue), repr(vars(archive)))
            assert not any(SECRET in text for text in shown)
            assert unpack_config(pack_config(config)) == config
