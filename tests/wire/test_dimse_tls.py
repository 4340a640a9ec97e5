"""DIMSE over TLS: which versions, whose certificates, what a reload changes, and that a slow peer holds up nobody."""

import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest
import trustme
from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind, StudyRootQueryRetrieveInformationModelGet

from segnode.config import DimseAddress
from segnode.dimse.peer import DimsePeer
from segnode.dimse.scu import echo
from segnode.doctor import examine
from segnode.testing.part10 import encode_part10
from segnode.testing.servers import Server, ServerFailed, free_port, node_config, segnode, until
from tests.associating import call, read_pdu, request
from tests.conftest import installed
from tests.wire.test_serve import events
from tests.wire.test_storage import held, small

NO_WORK = "models = []\nrules = []\n"
PEERS = """
[[peers]]
ae_title = "CT1"
hosts = ["127.0.0.1"]
certificate_subject = "CN=ct1.hospital"
[[peers]]
ae_title = "ANY"
hosts = ["127.0.0.1"]
"""


class Authority:
    """An authority, and what it signed in files of a folder: NAME.pem and NAME.key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.signer = trustme.CA()
        self.signer.cert_pem.write_to_path(str(folder / "ca.pem"))

    def issue(self, name: str, common_name: str | None = None) -> None:
        """Sign a certificate for 127.0.0.1."""
        issued = self.signer.issue_cert("127.0.0.1", common_name=common_name)
        issued.cert_chain_pems[0].write_to_path(str(self.folder / f"{name}.pem"))
        issued.private_key_pem.write_to_path(str(self.folder / f"{name}.key"))

    def client(self, name: str = "") -> ssl.SSLContext:
        """How a client speaks TLS, with that certificate."""
        context = ssl.create_default_context(cafile=self.folder / "ca.pem")
        if name:
            context.load_cert_chain(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority with certificates for the node and two peers."""
    made = Authority(tmp_path_factory.mktemp("authority"))
    made.issue("node")
    made.issue("ct1", "ct1.hospital")
    made.issue("other", "other.hospital")
    return made


def tables(*more: str) -> str:
    """The configuration of a node that speaks TLS."""
    certificate = 'certificate = { file = "../node.pem", key = "../node.key" }'
    return "\n".join((NO_WORK, "[dimse]", certificate, *more, ""))


@pytest.fixture(scope="module")
def node(authority: Authority) -> Iterator[Server]:
    """A node that speaks TLS with everybody."""
    with segnode(authority.folder / "open", tables(), roles=("dimse",), dicom_tls=address(free_port())) as server:
        yield server


@pytest.fixture(scope="module")
def mutual(authority: Authority) -> Iterator[Server]:
    """A node that asks for certificates, and knows whose CT1's is."""
    more = ('client_ca = "../ca.pem"', PEERS)
    with segnode(authority.folder / "mutual", tables(*more), roles=("dimse",), dicom_tls=address(free_port())) as server:
        yield server


def address(port: int) -> str:
    """A port of loopback, as TOML."""
    return f'"127.0.0.1:{port}"'


def tls_port(node: Server) -> int:
    """Where a node speaks TLS."""
    return int(str(node_config(node).node.dicom_tls).rpartition(":")[2])


@pytest.mark.parametrize(("version", "accepted"), [("-tls1", False), ("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)])
def test_versions(node: Server, version: str, accepted: bool) -> None:
    """OpenSSL gets 1.2 and 1.3, and an alert for what is older, even where it would take any cipher."""
    command = [installed("openssl", "openssl"), "s_client", "-connect", f"127.0.0.1:{tls_port(node)}", version]
    ended = subprocess.run([*command, "-cipher", "ALL:@SECLEVEL=0"], input="", capture_output=True, text=True, check=False)
    spoken = re.search(r"New, (\S+), Cipher is (\S+)", ended.stdout)
    assert spoken is not None
    assert (spoken[2] != "(NONE)") == accepted
    assert ("alert protocol version" in ended.stderr) == (not accepted)


@pytest.mark.parametrize("cipher", ["AES128-GCM-SHA256", "ECDHE-RSA-AES128-SHA256", "DHE-RSA-AES128-GCM-SHA256"])
def test_weak_suites_are_refused(node: Server, cipher: str) -> None:
    """Of TLS 1.2 nothing without forward secrecy by elliptic curves, and nothing but authenticated encryption."""
    command = [installed("openssl", "openssl"), "s_client", "-connect", f"127.0.0.1:{tls_port(node)}", "-tls1_2"]
    ended = subprocess.run([*command, "-cipher", cipher], input="", capture_output=True, text=True, check=False)
    assert "Cipher is (NONE)" in ended.stdout


def test_dcmtk_by_tls(node: Server, mutual: Server, authority: Authority, dcmtk: Callable[[str], str], tmp_path: Path) -> None:
    """echoscu and storescu, with and without a certificate of their own; what is stored by TLS is held."""
    path = tmp_path / "sent.dcm"
    path.write_bytes(encode_part10(small("1.2.30.1"), ExplicitVRLittleEndian))
    trusting = ["+cf", str(authority.folder / "ca.pem")]
    shown = ["+tls", str(authority.folder / "ct1.key"), str(authority.folder / "ct1.pem")]
    environment = {**os.environ, "TCP_NODELAY": "1"}
    for server, how in ((node, ["+tla"]), (mutual, shown)):
        called = ["-aet", "CT1", "-aec", "SEGNODE", "127.0.0.1", str(tls_port(server))]
        for program, more in (("echoscu", []), ("storescu", [str(path)])):
            command = [dcmtk(program), *how, *trusting, *called, *more]
            ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            assert ended.returncode == 0, ended.stderr
        assert held(server, "1.2.30.1") is not None
        assert "Some^Body" not in server.log.read_text()


def test_stored_found_and_fetched_in_one_association(node: Server, authority: Authority) -> None:
    """By TLS an association may store, search and fetch in turn: three megabytes come back as they went."""
    sent, got = small("1.2.30.7"), []
    sent.EncapsulatedDocument = os.urandom(3_000_000)
    sent = dcmread(BytesIO(encode_part10(sent, ExplicitVRLittleEndian)))
    find, fetch = StudyRootQueryRetrieveInformationModelFind, StudyRootQueryRetrieveInformationModelGet
    asked = Dataset()
    asked.QueryRetrieveLevel = "IMAGE"
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        setattr(asked, keyword, sent[keyword].value)

    def keep(event: evt.Event) -> int:
        got.append(event.encoded_dataset(include_meta=False))
        return 0

    kinds = [build_context(uid, ExplicitVRLittleEndian) for uid in (CTImageStorage, find, fetch)]
    association = AE("TEST").associate(
        "127.0.0.1",
        tls_port(node),
        contexts=kinds,
        ae_title="SEGNODE",
        ext_neg=[build_role(CTImageStorage, scu_role=True, scp_role=True)],
        evt_handlers=[(evt.EVT_C_STORE, keep)],
        tls_args=(authority.client(), "127.0.0.1"),
    )
    assert association.is_established
    for _ in range(2):
        assert association.send_c_store(sent).Status == 0
        assert [status.Status for status, _ in association.send_c_find(asked, find)] == [0xFF00, 0]
        assert [status.Status for status, _ in association.send_c_get(asked, fetch)][-1] == 0
        assert association.send_c_store(sent).Status == 0
    association.release()
    assert association.is_released
    assert [sent.EncapsulatedDocument in data for data in got] == [True, True]


def answer(node: Server, context: ssl.SSLContext, calling: str) -> tuple[int, bytes]:
    """What a request for an association is answered by TLS: the type of the PDU, and why it is a rejection."""
    with socket.create_connection(("127.0.0.1", tls_port(node)), 30) as connection:
        with context.wrap_socket(connection, server_hostname="127.0.0.1") as encrypted:
            encrypted.sendall(request(calling, "SEGNODE"))
            kind, body = read_pdu(encrypted)
            return kind, body[7:10]


@pytest.mark.parametrize(
    ("certificate", "calling", "expected"),
    [
        ("ct1", "CT1", (0x02, None)),
        ("other", "CT1", (0x03, b"\1\1\3")),
        ("other", "ANY", (0x02, None)),
        ("ct1", "CT9", (0x03, b"\1\1\3")),
    ],
)
def test_title_is_bound_to_the_subject(mutual: Server, authority: Authority, certificate: str, calling: str, expected) -> None:
    """Who calls itself CT1 shows CT1's certificate, and is rejected otherwise; the log says why."""
    kind, reason = answer(mutual, authority.client(certificate), calling)
    assert kind == expected[0]
    assert expected[1] in (None, reason)
    if (certificate, calling) == ("other", "CT1"):
        assert "certificate_subject" in events(mutual, "association rejected")[-1]["reason"]


def test_no_certificate_no_association(mutual: Server, authority: Authority, tmp_path: Path) -> None:
    """Neither with none nor with one of another authority; and CT1 is not let in without TLS."""
    stranger = Authority(tmp_path)
    stranger.issue("ct1", "ct1.hospital")
    with_other = authority.client()
    with_other.load_cert_chain(tmp_path / "ct1.pem", tmp_path / "ct1.key")
    for context in (authority.client(), with_other):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            assert answer(mutual, context, "CT1")[0] == 0x02
    assert call(mutual.dicom_port, request("CT1", "SEGNODE")).rejected == (1, 1, 3)
    call(mutual.dicom_port, request("ANY", "SEGNODE")).release()
    assert {event["host"] for event in events(mutual, "no TLS")} == {"127.0.0.1"}


def test_segnode_speaks_it_as_user_too(mutual: Server, authority: Authority) -> None:
    """A destination with `tls`, its certificate and ours."""
    where = DimseAddress("SEGNODE", "127.0.0.1", tls_port(mutual))
    assert echo(DimsePeer(where, "CT1", 30, authority.client("ct1")))[1].startswith("SEGNODE")


def serial(node: Server) -> bytes:
    """What the node shows now."""
    return ssl.get_server_certificate(("127.0.0.1", tls_port(node))).encode()


def test_certificate_is_read_again(authority: Authority) -> None:
    """SIGHUP: who connects then sees the new one, who is there stays; one that cannot be used changes nothing."""
    folder = authority.folder
    authority.issue("reloaded")
    names = ("node.pem", "node.key")
    mine = folder / "renewing"
    mine.mkdir()
    for name in names:
        shutil.copy(folder / name.replace("node", "reloaded"), mine / name)
    more = '[dimse]\ncertificate = { file = "node.pem", key = "node.key" }\n'
    with segnode(mine, NO_WORK + more, roles=("dimse",), dicom_tls=address(free_port()), dimse_processes=2) as node:
        first = serial(node)
        with (
            socket.create_connection(("127.0.0.1", tls_port(node)), 30) as connection,
            authority.client().wrap_socket(connection, server_hostname="127.0.0.1") as open_one,
        ):
            open_one.sendall(request("A", "SEGNODE"))
            assert read_pdu(open_one)[0] == 0x02
            authority.issue("reloaded")
            for name in names:
                shutil.copy(folder / name.replace("node", "reloaded"), mine / name)
            assert serial(node) == first
            node.process.send_signal(signal.SIGHUP)
            until(lambda: len(events(node, "the certificate is read again")) == 2)
            second = serial(node)
            assert second != first
            (mine / "node.key").write_text("none")
            node.process.send_signal(signal.SIGHUP)
            until(lambda: len(events(node, "the certificate cannot be used: the old one stays")) == 2)
            assert serial(node) == second
            open_one.sendall(b"\x05\0\0\0\0\x04\0\0\0\0")
            assert read_pdu(open_one)[0] == 0x06


def test_slow_handshakes_hold_up_nobody(authority: Authority) -> None:
    """Thirty who connect and say nothing, or half a word: an echo is answered at once, and they are cut in time."""
    more = tables("artim = 3.0")
    with segnode(authority.folder / "slow", more, roles=("dimse",), dicom_tls=address(free_port())) as node:
        silent = [socket.create_connection(("127.0.0.1", tls_port(node)), 30) for _ in range(30)]
        for number, connection in enumerate(silent):
            connection.sendall(b"\x16\x03\x01\x02"[: number % 5])
        start = time.monotonic()
        where = DimseAddress("SEGNODE", "127.0.0.1", tls_port(node))
        echo(DimsePeer(where, "A", 30, authority.client()))
        assert time.monotonic() - start < 2.5
        for connection in silent:
            assert read_pdu(connection)[0] == 0
            connection.close()
        assert time.monotonic() - start > 2.0
        until(lambda: len(events(node, "no TLS")) == 30)


def test_doctor_looks_at_the_port_and_the_certificate(node: Server) -> None:
    """What is spoken there, and for how long the certificate is good."""
    found = {finding.check: finding for finding in examine(node_config(node))}
    assert found["port node.dicom_tls"].detail.endswith("TLSv1.3 is spoken there")
    assert found["dimse.certificate"].ok
    assert "is valid for" in found["dimse.certificate"].detail


def test_start_names_a_certificate_that_cannot_be_used(tmp_path: Path) -> None:
    """A node whose TLS port would have nothing to show does not start."""
    more = f'{NO_WORK}[dimse]\ncertificate = {{ file = "none.pem" }}\n'
    with pytest.raises(ServerFailed, match=r"dimse\.certificate: none\.pem"):
        with segnode(tmp_path / "node", more, roles=("dimse",), dicom_tls=address(free_port())):
            pass


def test_plain_words_on_the_tls_port(node: Server) -> None:
    """Who speaks DICOM without TLS there is closed on, and the node serves on."""
    with socket.create_connection(("127.0.0.1", tls_port(node)), 30) as connection:
        connection.sendall(request("A", "SEGNODE", [(CTImageStorage, [ExplicitVRLittleEndian])]))
        with pytest.raises((ConnectionError, AssertionError)):
            assert read_pdu(connection)[0] == 0x02
    call(node.dicom_port, request("A", "SEGNODE")).release()
