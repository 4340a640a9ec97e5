"""Logging: one JSON object a line on standard error; events and ids, never a patient's data."""

import io
import logging
import sys
import warnings
from contextlib import suppress
from typing import TextIO, cast

import structlog


class _Stderr(io.TextIOBase):
    """Standard error, where a full disk behind it ends no work: what cannot be logged is not."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()


def configure_logs(process: str) -> None:
    """Set up this process's log; libraries say warnings only, in the same form."""

    def name(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return {"process": process, **event}

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        name,
    ]
    as_json = structlog.processors.JSONRenderer()
    # Not a PrintLogger: it writes the end of a line by itself, and the lines of threads and processes would run together.
    structlog.configure(processors=[*shared, as_json], logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _Stderr())))
    libraries = logging.StreamHandler(sys.stderr)
    without_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    libraries.setFormatter(structlog.stdlib.ProcessorFormatter(processors=[without_meta, as_json], foreign_pre_chain=shared))
    # Of the process that this one was forked from, nothing stays.
    logging.basicConfig(level=logging.WARNING, handlers=[libraries], force=True)
    # What pydicom warns of repeats the value, which may be a patient's.
    logging.getLogger("pydicom").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", UserWarning)
