"""Ports for servers of tests: no other server, test or client gets them meanwhile."""

import json
import socket
import subprocess
import sys

from segnode.testing.servers import free_port


def test_ports_of_one_process_differ() -> None:
    """Two servers that are configured before either listens get two ports."""
    assert len({free_port() for _ in range(50)}) == 50


def test_ports_of_two_processes_differ() -> None:
    """What another process is given is not given here while it lives."""
    asks = "from segnode.testing.servers import free_port; print([free_port() for _ in range(100)], flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", asks], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        theirs = set(json.loads(other.stdout.readline()))
        assert len(theirs) == 100
        assert not theirs & {free_port() for _ in range(100)}
    finally:
        other.communicate("\n")


def test_a_port_that_is_taken_is_passed_over() -> None:
    """A port that something listens on is not given out."""
    with socket.create_server(("127.0.0.1", free_port())) as server:
        assert server.getsockname()[1] not in {free_port() for _ in range(99)}
