"""Who may open an association."""

from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_certificate

from segnode.config import Config, parse_config
from segnode.dimse.admission import (
    OTHER_HOST,
    OTHER_SUBJECT,
    OTHER_TITLE,
    REJECTIONS,
    UNKNOWN,
    Admitted,
    Caller,
    Rejection,
    has_subject,
    judge,
)

PEERS = """
[[peers]]
ae_title = "CT1"
hosts = ["10.1.2.3", "10.1.3.0/24", "fe80::/10"]
may = ["store"]
max_associations = 5
"""


def config(text: str = "") -> Config:
    """A configuration."""
    return parse_config(text, Path("/"))


@pytest.mark.parametrize(
    ("host", "is_let_in"),
    [
        ("10.1.2.3", True),
        ("10.1.3.255", True),
        ("10.1.2.4", False),
        ("::ffff:10.1.2.3", True),
        ("fe80::1%eth0", True),
        ("2001:db8::1", False),
        ("", False),
    ],
)
def test_hosts_are_addresses_and_networks(host: str, is_let_in: bool) -> None:
    """By IPv4, IPv6 and IPv4 as a socket for both sees it."""
    expected = Admitted(frozenset({"store"}), 5) if is_let_in else OTHER_HOST
    assert judge(Caller("CT1", "SEGNODE", host), config(PEERS)) == expected


@pytest.mark.parametrize(
    ("table", "calling", "called", "expected"),
    [
        ("", "ANYBODY", "SEGNODE", Admitted()),
        ("", "ANYBODY", "OTHER", OTHER_TITLE),
        ("[dimse]\nany_called_ae = true\n", "ANYBODY", "OTHER", Admitted()),
        (PEERS, "ANYBODY", "SEGNODE", UNKNOWN),
        (f"[dimse]\naccept_any = true\n{PEERS}", "ANYBODY", "SEGNODE", Admitted()),
        (f"[dimse]\naccept_any = true\n{PEERS}", "CT1", "SEGNODE", OTHER_HOST),
    ],
)
def test_without_a_list_everybody_and_with_one_nobody_else(table: str, calling: str, called: str, expected: object) -> None:
    """Titles that are called and that call, as the configuration has it."""
    assert judge(Caller(calling, called, "127.0.0.1"), config(table)) == expected


def test_subjects() -> None:
    """What a peer's certificate must have is a part of its subject: one attribute, or several in any order."""
    issued = trustme.CA().issue_cert("a.example", common_name="ct1", organization_name="Hospital")
    certificate = load_pem_x509_certificate(issued.cert_chain_pems[0].bytes()).public_bytes(Encoding.DER)
    for wanted in ("CN=ct1", "O=Hospital", "O=Hospital,CN=ct1", "CN=ct1,O=Hospital"):
        assert has_subject(certificate, wanted)
    for wanted in ("CN=ct", "CN=CT1", "CN=ct1,O=Other", "OU=ct1"):
        assert not has_subject(certificate, wanted)
    text = '[node]\ndicom_tls = "127.0.0.1:2762"\n[dimse]\nclient_ca = "a"\ncertificate = { file = "a" }\n'
    text += '[[peers]]\nae_title = "CT1"\nhosts = ["::1"]\ncertificate_subject = "CN=ct1"\n'
    assert judge(Caller("CT1", "SEGNODE", "::1"), config(text)) == OTHER_SUBJECT
    assert isinstance(judge(Caller("CT1", "SEGNODE", "::1", certificate=certificate), config(text)), Admitted)


@pytest.mark.parametrize("rejection", REJECTIONS)
def test_rejections_are_of_the_standard(rejection: Rejection) -> None:
    """Result, source and reason are a row of PS3.8 table 9-21."""
    reasons = {1: (1, 2, 3, 7), 2: (1, 2), 3: (1, 2)}
    assert rejection.result in (1, 2)
    assert rejection.reason in reasons[rejection.source]
