"""Who is let in by HTTP: keys, tokens of a real issuer, certificates, names of hosts, and pages of other origins."""

import asyncio
import base64
import hashlib
import hmac
import json
import math
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import requests
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from dicomweb_client.api import DICOMwebClient
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from pydicom import dcmread
from starlette.responses import PlainTextResponse

from segnode.config import IssuerConfig, WebConfig, parse_config, parse_dimse_address
from segnode.dimse.scu import send_files
from segnode.doctor import examine
from segnode.errors import IssuerSilent, NotAuthenticated
from segnode.testing.answering import answering
from segnode.testing.servers import Server, await_jobs, free_port, node_config, restarted_segnode, segnode, until
from segnode.web.access import Access, Guard
from segnode.web.issuer import Issuer
from tests.wire.test_destinations import Authority
from tests.wire.test_serve import run
from tests.wire.test_service import events, reload

AUDIENCE = "segnode"
NO_WORK = "models = []\nrules = []\n"


@dataclass
class SigningKey:
    """A key of an issuer."""

    kid: str
    algorithm: str = "RS256"
    private: Any = None

    def __post_init__(self) -> None:
        """Make it, of the kind that its algorithm takes."""
        if self.algorithm.startswith("ES"):
            self.private = ec.generate_private_key(ec.SECP256R1())
        elif self.algorithm == "EdDSA":
            self.private = ed25519.Ed25519PrivateKey.generate()
        else:
            self.private = rsa.generate_private_key(65537, 2048)

    @property
    def jwk(self) -> dict[str, Any]:
        """What the issuer tells of it."""
        kind = {"E": ECAlgorithm, "R": RSAAlgorithm, "P": RSAAlgorithm}[self.algorithm[0]]
        kind = OKPAlgorithm if self.algorithm == "EdDSA" else kind
        return {**kind.to_jwk(self.private.public_key(), as_dict=True), "kid": self.kid, "use": "sig"}

    @property
    def pem(self) -> bytes:
        """Its public half."""
        return self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@dataclass
class OidcServer:
    """An issuer of tokens: its keys, how often it was asked for them, and whether it answers."""

    keys: list[SigningKey]
    url: str = ""
    asked: list[str] = field(default_factory=list)
    is_down: bool = False
    told: Mapping[str, Any] = field(default_factory=dict)  # of itself, in place of what is true
    drips: bool = False  # an answer that goes on, a space at a time, as long as somebody listens

    def token(self, key: SigningKey | None = None, scope: Any = "dicom.read dicom.write", **claims: Any) -> str:
        """A signed token; a claim of None is left out."""
        key = key or self.keys[0]
        now = time.time()
        said = {"iss": self.url, "aud": AUDIENCE, "exp": now + 300, "iat": now, "sub": "someone@example", "scope": scope}
        said = {name: value for name, value in {**said, **claims}.items() if value is not None}
        return jwt.encode(said, key.private, key.algorithm, {"kid": key.kid})


@contextmanager
def issuing(issuer: OidcServer) -> Iterator[OidcServer]:
    """Have it answer, on a port of its own; its `url` is set."""

    class Asked(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.asked.append(self.path)
            if issuer.is_down:
                self.send_error(503)
                return
            told = {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/keys", **issuer.told}
            body = json.dumps({"keys": [key.jwk for key in issuer.keys]} if self.path == "/keys" else told).encode()
            self.send_response(200)
            if issuer.drips:
                self.end_headers()
                with suppress(OSError):
                    while True:
                        self.wfile.write(b" ")
                        time.sleep(0.01)
                return
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with answering(ThreadingHTTPServer(("127.0.0.1", 0), Asked)) as address:
        issuer.url = f"http://{address}"
        yield issuer


def new_key(name: str, *scopes: str) -> tuple[str, str]:
    """A key as `segnode key` makes it, and its table."""
    made = json.loads(run("key", name, "--json", *(word for scope in scopes for word in ("--scope", scope))).stdout)
    return made["key"], f'{{ name = "{name}", hash = "{made["hash"]}", scopes = {json.dumps(made["scopes"])} }}'


@dataclass
class Protected:
    """A node that asks for keys and tokens, and what opens it."""

    node: Server
    issuer: OidcServer
    reader: str
    writer: str

    def get(self, shown: str | None, path: str = "/dicom-web/studies", **headers: str) -> httpx.Response:
        """Ask it for something."""
        return self.ask("GET", shown, path, **headers)

    def ask(self, method: str, shown: str | None, path: str = "/dicom-web/studies", **headers: str) -> httpx.Response:
        """Have it do something."""
        authorization = {} if shown is None else {"Authorization": f"Bearer {shown}"}
        return httpx.request(method, f"http://127.0.0.1:{self.node.http_port}{path}", headers={**authorization, **headers})


@pytest.fixture(scope="module")
def protected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Protected]:
    """A node of two web processes with a key to read, one to write, and an issuer."""
    (reader, first), (writer, second) = new_key("viewer", "dicom.read"), new_key("sender", "dicom.write")
    keys = [SigningKey("one"), SigningKey("two", "ES256"), SigningKey("three", "EdDSA"), SigningKey("four", "PS256")]
    with issuing(OidcServer(keys)) as issuer:
        tables = f'{NO_WORK}[web]\napi_keys = [{first}, {second}]\norigins = ["https://viewer.example"]\n'
        tables += f'oidc = {{ issuer = "{issuer.url}/", audience = "{AUDIENCE}" }}\n'
        with segnode(tmp_path_factory.mktemp("protected") / "node", tables, web_workers=2) as node:
            yield Protected(node, issuer, reader, writer)


def test_who_shows_nothing_is_asked_to(protected: Protected) -> None:
    """Every resource but health answers 401 with the challenge of RFC 6750, whether there is such a resource or not."""
    for path in ("/dicom-web/studies", "/api/jobs", "/api/openapi.json", "/metrics", "/nothing", "/"):
        answer = protected.get(None, path)
        assert answer.status_code == 401, path
        assert answer.headers["www-authenticate"] == 'Bearer realm="segnode"'
    assert "error" in protected.get(None, "/api/jobs").json()
    assert protected.get(None, "/health/live").json() == {"live": True}
    assert protected.get(None, "/health/ready").status_code == 200


def test_a_key_opens_what_it_is_for(protected: Protected) -> None:
    """One to read searches and sees jobs, and may not store or steer; one to write stores, and may not search."""
    for path in ("/dicom-web/studies", "/api/jobs", "/metrics"):
        assert protected.get(protected.reader, path).is_success, path
    steps = ("/dicom-web/studies", "/api/jobs/replay", "/api/jobs/a/retry", "/api/jobs/a/cancel", "/api/jobs/a/release")
    for path in steps:
        refused = protected.ask("POST", protected.reader, path)
        assert refused.status_code == 403, path
        challenge = 'Bearer realm="segnode", error="insufficient_scope", scope="dicom.write"'
        assert refused.headers["www-authenticate"] == challenge
    assert protected.ask("POST", protected.writer).status_code == 415
    assert protected.get(protected.writer).status_code == 403
    for method in ("DELETE", "PUT", "TRACE"):
        assert protected.ask(method, protected.reader).status_code == 403, method


def unsigned(issuer: OidcServer) -> str:
    """A token with the algorithm `none`."""
    return jwt.encode({"iss": issuer.url, "aud": AUDIENCE, "exp": time.time() + 300, "scope": "dicom.read"}, "", "none")


def signed_with_what_all_know(issuer: OidcServer) -> str:
    """A token whose secret is the public key: a verifier that goes by the token's own algorithm takes it."""
    encode = lambda part: base64.urlsafe_b64encode(part).rstrip(b"=")  # noqa: E731
    claims = {"iss": issuer.url, "aud": AUDIENCE, "exp": time.time() + 300, "scope": "dicom.read"}
    text = encode(json.dumps({"alg": "HS256", "kid": "one"}).encode()) + b"." + encode(json.dumps(claims).encode())
    return (text + b"." + encode(hmac.digest(issuer.keys[0].pem, text, hashlib.sha256))).decode()


REFUSED: Mapping[str, Callable[[OidcServer], str]] = {
    "expired": lambda issuer: issuer.token(exp=time.time() - 60),
    "not yet valid": lambda issuer: issuer.token(nbf=time.time() + 300),
    "no end": lambda issuer: issuer.token(exp=None),
    "another audience": lambda issuer: issuer.token(aud="pacs"),
    "no audience": lambda issuer: issuer.token(aud=None),
    "another issuer": lambda issuer: issuer.token(iss="https://evil.example"),
    "no issuer": lambda issuer: issuer.token(iss=None),
    "unsigned": unsigned,
    "signed with a secret that all know": signed_with_what_all_know,
    "signed by somebody else": lambda issuer: issuer.token(SigningKey("one")),
    "algorithm of another kind of key": lambda issuer: issuer.token(SigningKey("two")),
    "unknown key": lambda issuer: issuer.token(SigningKey("nobody's")),
    "changed": lambda issuer: issuer.token()[:-8] + "AAAAAAAA",
    "garbage": lambda _: "a.b.c",
    "number beyond bounds": lambda issuer: issuer.token(exp=math.inf),
    "name of a key that is a list": lambda _: "eyJhbGciOiJSUzI1NiIsImtpZCI6WzFdfQ.e30.AA",
    "a key of nobody": lambda _: "segnode_" + "A" * 43,
}


@pytest.mark.parametrize("what", REFUSED)
def test_token_that_is_not_valid_is_refused(protected: Protected, what: str) -> None:
    """401 invalid_token, whatever is wrong; neither the answer nor the log repeats the token."""
    token = REFUSED[what](protected.issuer)
    answer = protected.get(token)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="segnode", error="invalid_token"'
    assert token not in answer.text
    assert token not in protected.node.log.read_text()


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA", "PS256"])
def test_token_of_the_issuer_is_taken(protected: Protected, algorithm: str) -> None:
    """Signed with any of its keys; a clock may differ by some seconds; scopes are words of `scope` or a list in `scp`."""
    (key,) = (key for key in protected.issuer.keys if key.algorithm == algorithm)
    for claims in (
        {},
        {"exp": time.time() - 5},
        {"nbf": time.time() + 5},
        {"aud": ["other", AUDIENCE]},
        {"scope": None, "scp": ["dicom.read"]},
        {"scope": "openid dicom.read"},
    ):
        assert protected.get(protected.issuer.token(key, **claims)).status_code == 204, claims
    for scope in ("openid", "dicom.readx", None, 3, "dicom.write"):
        assert protected.get(protected.issuer.token(key, scope)).status_code == 403, scope
    assert protected.ask("POST", protected.issuer.token(key, "dicom.read")).status_code == 403


@pytest.mark.parametrize("value", ["Basic dTpw", "Bearer", "Bearer a b", 'Bearer "', ""])
def test_other_credentials_are_not_taken(protected: Protected, value: str) -> None:
    """Something else than one bearer token is asked for one."""
    assert protected.get(None, Authorization=value).status_code == 401


def test_body_is_not_read_of_who_is_not_let_in(protected: Protected) -> None:
    """The answer comes before any of the body is asked for (100-continue)."""
    head = b"POST /dicom-web/studies HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection(("127.0.0.1", protected.node.http_port)) as connection:
        connection.sendall(head)
        assert connection.recv(4096).startswith(b"HTTP/1.1 401 ")


def test_header_beyond_the_limit_is_refused(protected: Protected) -> None:
    """A header of 600 kB is 431, and a URL that is too long 414; one of 60 kB is read."""
    assert protected.get(protected.reader, **{"X-Long": "a" * 600_000}).status_code == 431
    assert protected.get(protected.reader, **{f"X-{number}": "a" for number in range(200)}).status_code == 431
    with socket.create_connection(("127.0.0.1", protected.node.http_port)) as connection:  # httpx sends none that is so long
        connection.sendall(b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 414 ")
    assert protected.get(protected.reader, **{"X-Long": "a" * 60_000}).status_code == 204


def test_page_of_a_listed_origin_may_ask(protected: Protected) -> None:
    """What a browser asks beforehand is answered without a key; answers can be read, also 401."""
    origin = "https://viewer.example"
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, content-type, range"}
    allowed = protected.ask("OPTIONS", None, Origin=origin, **asked)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == origin
    assert {"authorization", "content-type"} <= set(allowed.headers["access-control-allow-headers"].lower().split(", "))
    for shown, status in ((protected.reader, 204), (None, 401)):
        answer = protected.get(shown, Origin=origin)
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == origin
        assert {"ETag", "Warning", "Content-Range"} <= set(answer.headers["access-control-expose-headers"].split(", "))
    foreign = {"Origin": "https://viewer.example.evil"}
    assert protected.ask("OPTIONS", None, **foreign, **asked).status_code == 400
    assert "access-control-allow-origin" not in protected.get(protected.reader, **foreign).headers


def test_logs_name_the_key_and_no_person(protected: Protected) -> None:
    """A refusal is a line with the reason; no line has a key, a subject or a query."""
    protected.get(None, "/dicom-web/studies?PatientName=SECRET")
    protected.get(protected.issuer.token(aud="pacs"))
    log = protected.node.log.read_text()
    assert {"status": 401, "method": "GET", "host": "127.0.0.1"}.items() <= events(protected.node, "not let in")[0].items()
    for secret in (protected.reader, protected.writer, "someone@example", "SECRET", "Traceback"):
        assert secret not in log


@pytest.fixture(scope="module")
def open_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A node that asks nobody, on loopback."""
    with segnode(tmp_path_factory.mktemp("open") / "node", NO_WORK) as node:
        yield node


@pytest.mark.parametrize("path", ["/dicom-web/studies", "/api/jobs", "/metrics"])
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("viewer.localhost:8080", 200),
        ("127.0.0.1", 200),
        ("127.1.2.3:8080", 200),
        ("[::1]:8080", 200),
        ("evil.example", 421),
        ("evil.example:8080", 421),
        ("localhost.evil.example", 421),
        ("evillocalhost", 421),
        ("127.0.0.1.evil.example", 421),
        ("10.0.0.1", 421),
        ("[::2]", 421),
        ("localhost@evil.example", 421),
        ("", 421),
    ],
)
def test_open_node_answers_to_names_of_loopback_only(open_node: Server, path: str, host: str, status: int) -> None:
    """A page whose name leads here (DNS rebinding) is refused everywhere."""
    answer = httpx.get(f"http://127.0.0.1:{open_node.http_port}{path}", headers={"Host": host})
    assert answer.status_code == (204 if status == 200 and "dicom-web" in path else status)


def test_two_names_are_no_name(open_node: Server) -> None:
    """A second Host does not slip by behind the first."""
    with socket.create_connection(("127.0.0.1", open_node.http_port)) as connection:
        connection.sendall(b"GET /api/jobs HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 421 ")


def test_health_answers_to_every_name(open_node: Server) -> None:
    """What starts a node again reaches it as it likes."""
    url = f"http://127.0.0.1:{open_node.http_port}/health/live"
    assert httpx.get(url, headers={"Host": "evil.example"}).status_code == 200


def test_keys_of_the_issuer_are_asked_for_again() -> None:
    """At once for a token of a new key, though not more often than every ten seconds; those withdrawn are forgotten."""

    async def rotate() -> None:
        old, new = SigningKey("old", "ES256"), SigningKey("new", "ES256")
        now = 0.0
        with issuing(OidcServer([old])) as server:
            issuer = Issuer(IssuerConfig(issuer=server.url, audience=AUDIENCE), ssl.create_default_context(), lambda: now)
            for _ in range(3):
                assert "dicom.read" in await issuer.scopes(server.token())
            assert server.asked.count("/keys") == 1
            server.keys = [new]
            with pytest.raises(NotAuthenticated, match="no such key"):
                await issuer.scopes(server.token())
            now += 11
            shown = [server.token(), server.token(), *(server.token(SigningKey(str(n), "ES256")) for n in range(20))]
            answers = await asyncio.gather(*map(issuer.scopes, shown), return_exceptions=True)
            assert [isinstance(answer, frozenset) for answer in answers] == [True, True] + 20 * [False]
            assert server.asked.count("/keys") == 2
            with pytest.raises(NotAuthenticated):
                await issuer.scopes(server.token(old))

    asyncio.run(rotate())


def test_issuer_that_is_down_matters_to_new_keys_only() -> None:
    """What is signed with a key that is known is taken; else it is answered 503, which does not say where the issuer is."""

    async def fall() -> None:
        now = 0.0
        with issuing(OidcServer([SigningKey("old", "ES256")], is_down=True)) as server:
            web = WebConfig(oidc=IssuerConfig(issuer=server.url, audience=AUDIENCE))
            issuer = Issuer(web.oidc, ssl.create_default_context(), lambda: now)
            guard = Guard(PlainTextResponse("in"), lambda: Access(web, issuer))
            async with httpx.AsyncClient(transport=httpx.ASGITransport(guard), base_url="http://node") as client:

                async def ask(token: str) -> httpx.Response:
                    return await client.get("/dicom-web/studies", headers={"Authorization": f"Bearer {token}"})

                answer = await ask(server.token())
                assert answer.status_code == 503
                assert answer.headers["retry-after"] == "10"
                assert server.url not in answer.text
                now += 11
                server.is_down = False
                assert (await ask(server.token())).text == "in"
                server.is_down = True
                now += 10_000
                assert (await ask(server.token())).text == "in"
                assert (await ask(server.token(SigningKey("new", "ES256")))).status_code == 503

    asyncio.run(fall())


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"issuer": "https://other.example"}, "does not describe that issuer"),
        ({"jwks_uri": "http://keys.example/keys"}, "can be changed on their way"),
        ({"jwks_uri": None}, "or nowhere"),
        ({"jwks_uri": "https://[keys.example/keys"}, "or nowhere"),
        ({"padding": " " * (1 << 20)}, "more than 1048576 bytes"),
    ],
)
def test_issuer_that_cannot_be_trusted_gives_no_keys(told: dict, said: str) -> None:
    """One that calls itself otherwise, gives its keys where somebody can change them, or talks without end."""
    with issuing(OidcServer([SigningKey("one", "ES256")], told=told)) as server:
        issuer = Issuer(IssuerConfig(issuer=server.url, audience=AUDIENCE), ssl.create_default_context())
        with pytest.raises(IssuerSilent, match=said):
            asyncio.run(issuer.keys())


def test_issuer_that_never_comes_to_an_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its whole answer has its time, and not each piece of it: else whoever shows a token of a new key would wait for ever."""
    monkeypatch.setattr("segnode.web.issuer._ANSWER_S", 0.3)
    with issuing(OidcServer([SigningKey("one", "ES256")], drips=True)) as server:
        issuer = Issuer(IssuerConfig(issuer=server.url, audience=AUDIENCE), ssl.create_default_context())
        with pytest.raises(IssuerSilent):
            asyncio.run(asyncio.wait_for(issuer.scopes(server.token()), 30))


def test_keys_are_changed_while_the_node_runs(tmp_path: Path) -> None:
    """SIGHUP: every web process takes the new key and no longer the old one; a wrong file changes nothing."""
    (old, first), (new, second) = new_key("old"), new_key("new")
    with segnode(tmp_path / "node", f"{NO_WORK}[web]\napi_keys = [{first}]\n", web_workers=2) as node:

        def ask(key: str) -> int:
            url = f"http://127.0.0.1:{node.http_port}/api/jobs"
            return httpx.get(url, headers={"Authorization": f"Bearer {key}"}).status_code

        assert {ask(old) for _ in range(10)} == {200}
        assert {ask(new) for _ in range(10)} == {401}
        reload(node, f"{NO_WORK}[web]\napi_keys = [{second}]\n")
        until(lambda: len(events(node, "the configuration is read again")) == 1)
        assert {ask(new) for _ in range(10)} == {200}
        assert {ask(old) for _ in range(10)} == {401}
        reload(node, f'{NO_WORK}[web]\noidc = {{ issuer = "https://a", audience = "a", ca = "nowhere.pem" }}\n')
        until(lambda: len(events(node, "the configuration cannot be used: the old one stays")) == 1)
        assert ask(new) == 200


def test_node_beyond_loopback_is_never_left_open(tmp_path: Path) -> None:
    """Without a way to let in it does not start; with one it serves, and keeps it whatever the file says of its address."""
    own = f'[node]\ndicom = "127.0.0.1:{free_port()}"\n'
    port = free_port()
    file = tmp_path / "segnode.toml"
    file.write_text(f'{NO_WORK}{own}http = "0.0.0.0:{port}"\n')
    ended = run("serve", "--config", str(file))
    assert ended.returncode == 2
    assert "node.http: 0.0.0.0" in ended.stderr
    key, table = new_key("viewer")
    file.write_text(f'{NO_WORK}{own}http = "0.0.0.0:{port}"\n[web]\napi_keys = [{table}]\nplain_http = true\n')
    with restarted_segnode(tmp_path) as node:
        url = f"http://127.0.0.1:{port}/api/jobs"
        assert httpx.get(url).status_code == 401
        file.write_text(f'{NO_WORK}{own}http = "127.0.0.1:{port}"\n')
        node.process.send_signal(signal.SIGHUP)
        until(lambda: len(events(node, "the configuration cannot be used: the old one stays")) == 1)
        assert httpx.get(url).status_code == 401
        assert httpx.get(url, headers={"Authorization": f"Bearer {key}", "Host": "node.example"}).status_code == 200


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority, with certificates for a node and for who asks it."""
    made = Authority(tmp_path_factory.mktemp("authority"))
    made.issue("127.0.0.1")
    made.issue("client")
    return made


@pytest.fixture(scope="module")
def by_tls(authority: Authority) -> Iterator[tuple[Server, str]]:
    """A node that asks for a certificate and for a key; and the key."""
    key, table = new_key("node", "dicom.read", "dicom.write")
    tables = f'{NO_WORK}[web]\ncertificate = {{ file = "../127.0.0.1.pem" }}\nclient_ca = "../ca.pem"\napi_keys = [{table}]\n'
    with segnode(authority.folder / "node", tables) as node:
        yield node, key


def test_client_without_a_certificate_is_not_let_in(by_tls: tuple[Server, str], authority: Authority, tmp_path: Path) -> None:
    """Neither with none nor with one of another authority, not even to health; with one, it needs the key too."""
    node, key = by_tls
    url = f"https://127.0.0.1:{node.http_port}"
    other = Authority(tmp_path)
    for certificate in (None, other.issue("client")):
        context = ssl.create_default_context(cafile=authority.folder / "ca.pem")
        if certificate:
            context.load_cert_chain(certificate)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/health/live", verify=context)
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = ssl.create_default_context(cafile=authority.folder / "ca.pem")
        context.load_cert_chain(authority.folder / "client.pem")
        context.maximum_version = version
        assert httpx.get(f"{url}/api/jobs", verify=context).status_code == 401
        assert httpx.get(f"{url}/api/jobs", verify=context, headers={"Authorization": f"Bearer {key}"}).status_code == 200
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{node.http_port}/health/live")


def test_a_certificate_is_enough_where_nothing_else_is_asked_for(authority: Authority) -> None:
    """It opens everything, by whatever name the node is called."""
    tables = f'{NO_WORK}[web]\ncertificate = {{ file = "../127.0.0.1.pem" }}\nclient_ca = "../ca.pem"\n'
    with segnode(authority.folder / "certificate", tables) as node:
        context = ssl.create_default_context(cafile=authority.folder / "ca.pem")
        context.load_cert_chain(authority.folder / "client.pem")
        with httpx.Client(verify=context, base_url=f"https://127.0.0.1:{node.http_port}") as client:
            assert client.get("/dicom-web/studies", headers={"Host": "node.example"}).status_code == 204
            assert client.post("/dicom-web/studies").status_code == 415


def test_dicomweb_client_stores_and_fetches(by_tls: tuple[Server, str], authority: Authority, ct: Path) -> None:
    """The Python client of other people, with a session that has a key and a certificate; URLs lead back by https."""
    node, key = by_tls
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {key}"
        session.trust_env = False  # authorities that the environment names would come before those of the session
        session.verify, session.cert = str(authority.folder / "ca.pem"), str(authority.folder / "client.pem")
        client = DICOMwebClient(node.dicomweb.replace("http:", "https:"), session=session)
        images = [dcmread(file) for file in sorted(ct.iterdir())]
        client.store_instances(images)
        (study,) = client.search_for_studies()
        assert study["00081190"]["Value"][0].startswith("https://127.0.0.1/")  # it says no port in Host
        fetched = client.retrieve_study(images[0].StudyInstanceUID)
        assert {image.SOPInstanceUID for image in fetched} == {image.SOPInstanceUID for image in images}
        with pytest.raises(requests.HTTPError, match="401"):
            session.headers["Authorization"] = "Bearer segnode_nobody"
            client.search_for_studies()


def test_node_delivers_to_a_node_that_asks(by_tls: tuple[Server, str], authority: Authority, ct: Path) -> None:
    """By the settings that its destinations have; `segnode echo` and `segnode doctor` find both well."""
    node, key = by_tls
    (authority.folder / "token").write_text(key)
    to = node.dicomweb.replace("http:", "https:")
    tables = f'[[destinations]]\nname = "archive"\nto = "{to}"\nconfirm = "read-back"\nca = "../ca.pem"\n'
    tables += 'certificate = { file = "../client.pem" }\nauth = { bearer = { file = "../token" } }\n'
    tables += '[[rules]]\nwhen = {}\nmodel = "threshold"\nsend_to = ["archive"]\nquiet = 0.2\n'
    with segnode(authority.folder / "sender", tables) as sender:
        list(send_files(sorted(ct.iterdir()), parse_dimse_address(sender.dimse, ""), "TEST"))
        (job,) = await_jobs(node_config(sender))
        assert job.state == "delivered", job
        echo = run("echo", "archive", "--config", str(authority.folder / "sender" / "segnode.toml"))
        assert echo.returncode == 0, echo.stdout
    assert key not in node.log.read_text()


def test_doctor_knows_how_a_node_is_protected(by_tls: tuple[Server, str], protected: Protected, authority: Authority) -> None:
    """A port that asks for a key or a certificate is well; so is a certificate for a while, and an issuer that answers."""
    found = {finding.check: finding for finding in examine(node_config(by_tls[0]))}
    assert found["port node.http"].ok, found["port node.http"]
    assert "a certificate is asked for" in found["port node.http"].detail
    assert "is valid for" in found["web.certificate"].detail
    found = {finding.check: finding for finding in examine(node_config(protected.node))}
    assert "to who shows a key or token" in found["port node.http"].detail
    assert found["web.oidc"].detail.endswith("answers, with 4 keys")
    authority.issue("127.0.0.1", "old", datetime(2020, 1, 1))
    authority.issue("127.0.0.1", "soon", datetime.now() + timedelta(days=3))
    for file, said in {"old": "has expired", "soon": "expires in 3 days", "none": "cannot be used"}.items():
        text = (
            f'{NO_WORK}[web]\ncertificate = {{ file = "{file}.pem" }}\noidc = {{ issuer = "http://[::1]:1", audience = "a" }}\n'
        )
        found = {finding.check: finding for finding in examine(parse_config(text, authority.folder))}
        assert not found["web.certificate"].ok
        assert said in found["web.certificate"].detail
        assert not found["web.oidc"].ok
