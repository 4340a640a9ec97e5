"""pynetdicom's module-wide switches, set in one place."""

from collections.abc import Callable

from pynetdicom import _config, ae, dimse_messages

from segnode.dimse.polled_socket import PolledSocket


def set_switches(spool: Callable[..., object] | None = None) -> None:
    """Stream files, log nothing of a data set, ask on sockets of any number; `spool` makes the files for what comes in."""
    _config.LOG_HANDLER_LEVEL = "none"
    _config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False
    _config.STORE_SEND_CHUNKED_DATASET = True
    ae.AssociationSocket = PolledSocket  # type: ignore[attr-defined]  # of those that are asked for
    if spool is not None:
        _config.STORE_RECV_CHUNKED_DATASET = True
        # Else a C-STORE of a class that it does not know ends the association; which are taken is negotiated before.
        _config.UNRESTRICTED_STORAGE_SERVICE = True
        # Its own would end the association, without an answer, when the disk is full.
        dimse_messages.NamedTemporaryFile = spool  # type: ignore[attr-defined, assignment]
