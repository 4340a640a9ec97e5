"""The rows of a node, in databases that are opened once, however often a test looks."""

import os
import signal
import sqlite3
from contextlib import ExitStack, closing
from functools import lru_cache
from pathlib import Path

from segnode.store.commitments import Commitments
from segnode.store.database import open_database
from segnode.store.index import Index
from segnode.store.jobs import Jobs
from segnode.testing.servers import Server, node_config


def index_of(node: Server) -> Index:
    """What a node holds."""
    return _index(node_config(node).data)


def jobs_of(node: Server) -> Jobs:
    """The jobs of a node."""
    return _jobs(node_config(node).data)


def commitments_of(node: Server) -> Commitments:
    """What a node has been asked to commit to, and has asked for."""
    return _commitments(node_config(node).data)


def stop_between_writes(node: Server, *processes: int) -> None:
    """Stop processes of a node (SIGSTOP) while none of them writes: one that is stopped with a lock has all others wait."""
    with ExitStack() as locks:
        for path in sorted(node_config(node).data.glob("*.sqlite")):
            connection = locks.enter_context(closing(sqlite3.connect(path, timeout=60, isolation_level=None)))
            connection.execute("BEGIN IMMEDIATE")
        for process in processes:
            os.kill(process, signal.SIGSTOP)


@lru_cache(4)
def _index(data: Path) -> Index:
    return Index(open_database(data / "index.sqlite"))


@lru_cache(4)
def _jobs(data: Path) -> Jobs:
    return Jobs(open_database(data / "pipeline.sqlite"))


@lru_cache(4)
def _commitments(data: Path) -> Commitments:
    return Commitments(open_database(data / "pipeline.sqlite"))
