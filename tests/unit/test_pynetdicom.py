"""What of pynetdicom is private, and used all the same, is what it was when the storage lane was written."""

import hashlib
import inspect
import queue
import threading
from importlib.metadata import version

import pytest
from pynetdicom import AE, transport
from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import TRANSITION_TABLE
from pynetdicom.transport import AssociationSocket, RequestHandler

SOURCES = "segnode/dimse/guarded_socket.py, polled_socket.py and storage_lane.py"
READ_AGAIN = f"read it again, hold {SOURCES} against it, and then change the digest"


def test_version() -> None:
    """The version that was read."""
    assert version("pynetdicom") == "3.0.4", READ_AGAIN


@pytest.mark.parametrize(
    ("code", "digest"),
    [
        (DULServiceProvider._read_pdu_data, "19f2d4e38c13c835"),
        (DULServiceProvider._is_transport_event, "8725ed03bb8fbdef"),
        (DULServiceProvider._process_recv_primitive, "4c0ebbb3e646e35e"),
        (DULServiceProvider.run_reactor, "e3a10eb3a0931e48"),
        (DULServiceProvider.stop_dul, "28a7e0be126e7b30"),
        (Association._run_reactor, "f28838c5559e462a"),
        (Association.kill, "8f9713666a7f4cff"),
        (AssociationSocket, "4f95b1dce6067f32"),
        (RequestHandler._create_association, "05c8d12b79863cdb"),
        (AE._create_socket, "f56bca8888e1ce9f"),
    ],
)
def test_code(code: object, digest: str) -> None:
    """What is replaced, and what calls what replaces it."""
    assert hashlib.sha256(inspect.getsource(code).encode()).hexdigest()[:16] == digest, READ_AGAIN


def test_attributes() -> None:
    """The attributes of an association that are read or replaced."""
    association = Association(AE(), "acceptor")
    assert isinstance(association._reactor_checkpoint, threading.Event)
    assert association._reactor_checkpoint.is_set()
    assert association._accepted_cx == {}
    assert association.dimse.message is None
    for one in (association.dimse.msg_queue, association.dul.to_user_queue, association.dul.to_provider_queue):
        assert type(one) is queue.Queue
    assert association.dul.state_machine.current_state == "Sta1"
    assert association.dul._idle_timer.timeout == 60


def test_events() -> None:
    """A closed connection (Evt17) and what is no PDU (Evt19) are events of every state that reads."""
    for state in ("Sta2", "Sta3", "Sta6", "Sta7", "Sta8"):
        assert ("Evt17", state) in TRANSITION_TABLE
        assert ("Evt19", state) in TRANSITION_TABLE
    assert transport.RequestHandler is RequestHandler
