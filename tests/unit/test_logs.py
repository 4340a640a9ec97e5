"""The log: one JSON object a line, whoever else writes."""

import json
import sys

import pytest
import structlog

from segnode.logs import configure_logs


def test_line_is_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event and the end of its line are one write: the lines of several processes do not run together."""
    written: list[str] = []
    monkeypatch.setattr(sys.stderr, "write", written.append)
    configure_logs("web-1")
    structlog.get_logger().info("something", number=1)
    structlog.reset_defaults()
    (line,) = written
    assert line.endswith("\n")
    assert json.loads(line)["number"] == 1
