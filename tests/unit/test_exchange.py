"""What of pynetdicom is private, and used all the same where requests are answered by hand, is as it was then."""

import hashlib
import inspect
from importlib.metadata import version

import pytest
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dul import DULServiceProvider

READ_AGAIN = "read it again, hold segnode/dimse/exchange.py against it, and then change the digest"


def test_version() -> None:
    """The version that was read."""
    assert version("pynetdicom") == "3.0.4", READ_AGAIN


@pytest.mark.parametrize(
    ("code", "digest"),
    [
        (Association._serve_request, "2f24c1759cdf6c8c"),
        (Association._run_reactor, "f28838c5559e462a"),
        (Association._abort_blocking, "10b43ef8c63c6764"),
        (DULServiceProvider._is_transport_event, "8725ed03bb8fbdef"),
        (DULServiceProvider._decode_pdu, "fc71dd1bf853e1ce"),
        (DULServiceProvider._read_pdu_data, "19f2d4e38c13c835"),
        (DULServiceProvider.run_reactor, "e3a10eb3a0931e48"),
        (DIMSEServiceProvider.receive_primitive, "5f99c86b14a15cef"),
    ],
)
def test_code(code: object, digest: str) -> None:
    """What is replaced, what calls what replaces it, and what is called."""
    assert hashlib.sha256(inspect.getsource(code).encode()).hexdigest()[:16] == digest, READ_AGAIN


def test_attributes() -> None:
    """The attributes of an association that are read or set."""
    association = Association(AE(), "acceptor")
    assert association._accepted_cx == {}
    assert association.dimse.cancel_req == {}
    assert association.dul._recv_pdu.empty()
    assert association.dul._idle_timer.timeout == 60
