"""Logging: one JSON object a line on standard error; events and ids, never a patient's data."""

import logging
import sys

import structlog


def configure_logs(role: str) -> None:
    """Set up this process's log; libraries say warnings only, in the same form."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    as_json = structlog.processors.JSONRenderer()
    structlog.configure(processors=[*shared, as_json], logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    structlog.contextvars.bind_contextvars(role=role)
    libraries = logging.StreamHandler(sys.stderr)
    without_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    libraries.setFormatter(structlog.stdlib.ProcessorFormatter(processors=[without_meta, as_json], foreign_pre_chain=shared))
    logging.basicConfig(level=logging.WARNING, handlers=[libraries])
