"""An association by hand: what a peer is answered, as it comes over the wire."""

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from pydicom.uid import UID
from pynetdicom import build_context
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification

VERIFICATION = ("1.2.840.10008.1.1", ["1.2.840.10008.1.2"])
DICOM = "1.2.840.10008.3.1.1.1"
_RELEASE_RQ = b"\x05\0\0\0\0\x04\0\0\0\0"


@dataclass
class Called:
    """A connection on which an association was asked for, and the answer."""

    connection: socket.socket
    rejected: tuple[int, int, int] | None = None
    results: list[tuple[int, str]] = field(default_factory=list)

    def release(self) -> None:
        """Release the association, and close."""
        self.connection.sendall(_RELEASE_RQ)
        assert read_pdu(self.connection)[0] == 0x06
        self.connection.close()


def request(
    calling: str, called: str, contexts: Sequence[tuple[str, Sequence[str]]] = (VERIFICATION,), application: str = DICOM
) -> bytes:
    """An A-ASSOCIATE-RQ that proposes contexts of SOP class and transfer syntaxes."""
    asked = A_ASSOCIATE()
    asked.application_context_name, asked.calling_ae_title, asked.called_ae_title = application, calling, called
    proposed = [build_context(sop_class, list(syntaxes)) for sop_class, syntaxes in contexts]
    for number, context in enumerate(proposed):
        context.context_id = 2 * number + 1
    asked.presentation_context_definition_list = proposed
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received, implementation.implementation_class_uid = 16382, UID("1.2.3")
    asked.user_information = [length, implementation]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(asked)
    return pdu.encode()


def call(port: int, sent: bytes, within: float = 30) -> Called:
    """Send a request to a port of loopback; the answer."""
    connection = socket.create_connection(("127.0.0.1", port), within)
    connection.sendall(sent)
    kind, body = read_pdu(connection)
    if kind == 0x03:
        rejection = A_ASSOCIATE_RJ()
        rejection.decode(body)
        connection.close()
        return Called(connection, (rejection.result, rejection.source, rejection.reason_diagnostic))
    assert kind == 0x02, kind
    accepted = A_ASSOCIATE_AC()
    accepted.decode(body)
    return Called(connection, None, [(item.result, str(item.transfer_syntax)) for item in accepted.presentation_context])


def read_pdu(connection: socket.socket) -> tuple[int, bytes]:
    """Type and bytes of the PDU that comes; 0 where the connection is closed instead."""
    with connection.makefile("rb", buffering=0) as file:
        start = file.read(6) or b""
        if len(start) < 6:
            return 0, b""
        body = start
        while len(body) < 6 + struct.unpack(">I", start[2:])[0]:
            body += file.read(6 + struct.unpack(">I", start[2:])[0] - len(body)) or b""
        return start[0], body
