"""The rows of a node, in databases that are opened once, however often a test looks."""

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


@lru_cache(4)
def _index(data: Path) -> Index:
    return Index(open_database(data / "index.sqlite"))


@lru_cache(4)
def _jobs(data: Path) -> Jobs:
    return Jobs(open_database(data / "pipeline.sqlite"))


@lru_cache(4)
def _commitments(data: Path) -> Commitments:
    return Commitments(open_database(data / "pipeline.sqlite"))
