"""pynetdicom's module-wide switches, set in one place."""

from collections.abc import Callable

from pynetdicom import _config, dimse_messages


def set_switches(spool: Callable[..., object] | None = None) -> None:
    """Stream files instead of data sets in memory, log nothing of a data set; `spool` makes those for what comes in."""
    _config.LOG_HANDLER_LEVEL = "none"
    _config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False
    _config.STORE_SEND_CHUNKED_DATASET = True
    if spool is not None:
        _config.STORE_RECV_CHUNKED_DATASET = True
        # Its own would end the association, without an answer, when the disk is full.
        dimse_messages.NamedTemporaryFile = spool  # type: ignore[attr-defined, assignment]
