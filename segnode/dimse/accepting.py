"""Accepting associations: pynetdicom's server, with a shared socket, TLS, who is let in and a negotiation of our own."""

import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

import structlog
from pynetdicom import AE
from pynetdicom.acse import ACSE
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu import A_ASSOCIATE_AC, _PDUType
from pynetdicom.pdu_primitives import A_ASSOCIATE, SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from segnode.config import Config
from segnode.dicom.status import SOP_CLASS_NOT_SUPPORTED
from segnode.dimse.admission import (
    NO_REASON,
    TOO_MANY,
    TOO_MANY_OF_PEER,
    Admitted,
    Caller,
    Rejection,
    judge,
)
from segnode.dimse.negotiation import Negotiator, Proposal, join_answer, split_request
from segnode.dimse.places import NoPlace, Places
from segnode.dimse.services import Service

_log = structlog.get_logger()

_A_ASSOCIATE_RQ: Final = 1
_SERVICE_PROVIDER: Final = 2  # as the source of an abort
# Each association has two; a connection has a descriptor, and more than 1024 of them pynetdicom cannot wait for.
_MOST_THREADS: Final = 1400


@dataclass(frozen=True)
class Reception:
    """What decides about associations: the configuration as it is now, what is served, and how many places there are."""

    config: Callable[[], Config]
    negotiator: Negotiator
    places: Places


class Listening(NamedTuple):
    """A socket that listens already; `tls` is how it speaks TLS now, if it does."""

    socket: socket.socket
    tls: Callable[[], ssl.SSLContext] | None = None


class SharingServer(ThreadedAssociationServer):
    """An association server on a socket that listens already, and that other processes may share."""

    daemon_threads = True  # those of handshakes: the end of the process waits for none

    def __init__(
        self, ae: AE, listening: Listening, reception: Reception, handlers: list[Any], furnish: Callable[[Association], None]
    ) -> None:
        self._listening = listening.socket
        self.tls = listening.tls
        self.reception = reception
        self.furnish = furnish
        # Of those that are woken by a connection all but one find it taken: they must not wait for the next.
        self._listening.setblocking(False)
        where = listening.socket.getsockname()
        super().__init__(ae, where, ae.ae_title, [], evt_handlers=handlers, request_handler=_Connection)
        ae._servers.append(self)  # which its shutdown wants to take it from

    def server_bind(self) -> None:
        """Take the socket that listens."""
        super().server_close()  # one of its own, that does not listen
        self.socket = self._listening

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002
        """Whether a connection is looked after: with no more of them than select(2) can tell apart."""
        return threading.active_count() < _MOST_THREADS

    def server_activate(self) -> None:
        """It listens already."""

    def server_close(self) -> None:
        """Close this process's share; a shutdown would be one for all."""
        self._listening.close()


class _Connection(RequestHandler):
    """What becomes of a connection, in a thread of its own."""

    server: SharingServer

    def handle(self) -> None:
        """Have TLS agreed on, where it is spoken, and begin the association."""
        if self.server.tls is not None and not self._agree_on_tls(self.server.tls()):
            return
        super().handle()

    def _agree_on_tls(self, tls: ssl.SSLContext) -> bool:
        # A socket's time-out is that of the whole handshake.
        self.request.settimeout(self.server.ae.acse_timeout)
        try:
            self.request = tls.wrap_socket(self.request, server_side=True)
        except OSError as error:
            reason = getattr(error, "reason", None) or error.strerror or type(error).__name__
            _log.warning("no TLS", host=self.client_address[0], reason=reason)
            self.request.close()
            return False
        self.request.settimeout(None)
        return True

    def _create_association(self) -> Association:
        association = super()._create_association()
        certificate = self.request.getpeercert(binary_form=True) if isinstance(self.request, ssl.SSLSocket) else None
        association.acse = Acceptance(association, self.server.reception, self.client_address[0], certificate)
        self.server.furnish(association)
        return association


class Acceptance(ACSE):
    """Decides about one association: whether it is accepted, and with which presentation contexts."""

    def __init__(self, association: Association, reception: Reception, host: str, certificate: bytes | None) -> None:
        super().__init__(association)
        self._reception = reception
        self._host = host
        self._certificate = certificate
        self._proposals: list[Proposal] = []
        self._answers: list[PresentationContext] = []
        self._place: int | None = None
        self.admitted = Admitted(frozenset(), 0)
        dul = association.dul
        self._decode_whole, self._send_whole, self._serve_any = dul._decode_pdu, dul._send, association._serve_request
        dul._decode_pdu, dul._send = self._decode, self._send  # type: ignore[method-assign]
        association._serve_request = self._serve  # type: ignore[method-assign, assignment]

    def leave(self) -> None:
        """Let go of the association's place; it is no error when that was done before."""
        if self._place is not None:
            self._reception.places.leave(self._place)

    def _decode(self, bytestream: bytearray) -> tuple[_PDUType, str]:
        """Take presentation contexts out of a request before pynetdicom takes long to decode them. Raises BadRequest."""
        if bytestream[0] != _A_ASSOCIATE_RQ:
            return self._decode_whole(bytestream)
        rest, self._proposals = split_request(bytes(bytestream))
        return self._decode_whole(bytearray(rest))

    def _negotiate_as_acceptor(self) -> None:
        decided = self._decide()
        if isinstance(decided, Admitted):
            self.admitted = decided
            try:
                super()._negotiate_as_acceptor()
            except Exception:  # noqa: BLE001  an item that it cannot make sense of: else the thread ends, and no event tells of it
                _log.exception("negotiating broke")
                self.leave()
                self.send_abort(_SERVICE_PROVIDER)
                self.assoc.kill()
            return
        self._say_rejected(decided)
        self.assoc.is_rejected = True
        self.send_reject(decided.result, decided.source, decided.reason)
        self.assoc.kill()

    def _decide(self) -> Admitted | Rejection:
        proposed = cast("A_ASSOCIATE", self.requestor.primitive)
        calling, called = proposed.calling_ae_title.strip(), proposed.called_ae_title.strip()
        context = str(proposed.application_context_name)
        try:
            decided = judge(Caller(calling, called, self._host, context, self._certificate), self._reception.config())
            if isinstance(decided, Admitted):
                self._place = self._reception.places.take(calling, decided.max_associations)
        except NoPlace as full:
            return TOO_MANY_OF_PEER if full.of_peer else TOO_MANY
        except Exception:  # noqa: BLE001  whoever cannot be judged is not let in
            _log.exception("judging broke")
            return NO_REASON
        return decided

    def _say_rejected(self, rejection: Rejection) -> None:
        proposed = cast("A_ASSOCIATE", self.requestor.primitive)
        _log.warning(
            "association rejected",
            reason=rejection.why,
            code=f"{rejection.result}/{rejection.source}/{rejection.reason}",
            calling_ae=proposed.calling_ae_title.strip(),
            called_ae=proposed.called_ae_title.strip(),
            host=self._host,
        )

    def send_accept(self) -> None:
        """Negotiate the presentation contexts, and send A-ASSOCIATE-AC."""
        asked = {str(uid): (bool(item.scu_role), bool(item.scp_role)) for uid, item in self.requestor.role_selection.items()}
        self._answers, answered = self._reception.negotiator.negotiate(self._proposals, asked, self._may_use)
        self.assoc._accepted_cx = {int(context.context_id or 0): context for context in self._answers if context.result == 0}
        self.assoc._rejected_cx = [context for context in self._answers if context.result != 0]
        for role in _role_items(answered):
            self.acceptor.add_negotiation_item(role)
        proposed, accepted = cast("A_ASSOCIATE", self.requestor.primitive), A_ASSOCIATE()
        accepted.application_context_name = proposed.application_context_name
        accepted.calling_ae_title, accepted.called_ae_title = proposed.calling_ae_title, proposed.called_ae_title
        accepted.result, accepted.result_source = 0, 1
        accepted.user_information = self.acceptor.user_information
        self.acceptor.primitive = accepted
        self.dul.send_pdu(accepted)

    def _send(self, pdu: _PDUType) -> None:
        """Put the presentation contexts into the acceptance; pynetdicom takes long for that too."""
        if isinstance(pdu, A_ASSOCIATE_AC):
            whole = join_answer(pdu.encode(), self._answers)
            pdu.encode = lambda: whole  # type: ignore[method-assign]
        self._send_whole(pdu)

    def _serve(self, message: Any, context_id: int) -> None:
        """Have a request served that is of its presentation context: of that it was decided what the peer may use.

        pynetdicom serves whatever class a command names. An object's is looked at by who receives it.
        """
        context = self.assoc._accepted_cx.get(context_id)
        named = getattr(message, "AffectedSOPClassUID", None) or getattr(message, "RequestedSOPClassUID", None)
        if context is None or context.abstract_syntax == named or isinstance(message, C_STORE) or not message.is_valid_request:
            self._serve_any(message, context_id)
            return
        _log.warning("a request is not of its presentation context", calling_ae=self.assoc.requestor.ae_title, sop_class=named)
        refusal = type(message)()
        refusal.MessageIDBeingRespondedTo, refusal.Status = message.MessageID, SOP_CLASS_NOT_SUPPORTED
        if hasattr(refusal, "AffectedSOPClassUID"):
            refusal.AffectedSOPClassUID = named
        self.assoc.dimse.send_msg(refusal, context_id)

    def _may_use(self, service: Service) -> bool:
        return service.right is None or service.right in self.admitted.may


def _role_items(answered: Mapping[str, tuple[bool, bool]]) -> list[SCP_SCU_RoleSelectionNegotiation]:
    items = []
    for uid, (scu, scp) in answered.items():
        item = SCP_SCU_RoleSelectionNegotiation()
        item.sop_class_uid, item.scu_role, item.scp_role = uid, scu, scp
        items.append(item)
    return items
