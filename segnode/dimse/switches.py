"""pynetdicom's module-wide switches, set in one place."""

import tempfile
from pathlib import Path

from pynetdicom import _config


def set_switches(spool: Path | None = None) -> None:
    """Stream files instead of data sets in memory, log nothing of a data set; received ones are spooled to a folder."""
    _config.LOG_HANDLER_LEVEL = "none"
    _config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False
    _config.STORE_SEND_CHUNKED_DATASET = True
    if spool is not None:
        _config.STORE_RECV_CHUNKED_DATASET = True
        tempfile.tempdir = str(spool)
