"""Leases: which processes of the node are alive, by a row with a heartbeat each."""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Column, Engine, Float, Integer, MetaData, String, Table, select

from segnode.store.database import reading

HEARTBEAT_S: Final = 5.0
LEASE_S: Final = 30.0

_metadata = MetaData()
_lease = Table(
    "lease",
    _metadata,
    Column("id", String, primary_key=True),
    Column("owner", String, nullable=False, unique=True),
    Column("associations", Integer, nullable=False, default=0),
    Column("heartbeat_at", Float, nullable=False),
)


@dataclass(frozen=True)
class Lease:
    """A process's claim to be alive: `owner` is what it is called, `id` tells it from an earlier one of that name."""

    id: str
    owner: str


@dataclass(frozen=True)
class Heartbeat:
    """When a process was last heard of, and how many associations were open in it."""

    lease: Lease
    associations: int
    heartbeat_at: float

    def is_alive(self, now: float) -> bool:
        """Whether it was heard of within the length of a lease."""
        return self.heartbeat_at > now - LEASE_S


def new_lease(owner: str) -> Lease:
    """A lease that nobody has had; `Leases.take` makes it known."""
    return Lease(secrets.token_hex(6), owner)


class Leases:
    """The rows of leases, in the index's database."""

    def __init__(self, engine: Engine) -> None:
        self._writer = engine
        self._reader = reading(engine)
        _metadata.create_all(engine)

    def take(self, lease: Lease, now: float) -> None:
        """Begin a lease; those that earlier processes of that name had are over."""
        with self._writer.begin() as connection:
            connection.execute(_lease.delete().where(_lease.c.owner == lease.owner))
            connection.execute(_lease.insert().values(id=lease.id, owner=lease.owner, associations=0, heartbeat_at=now))

    def beat(self, lease: Lease, associations: int, now: float) -> None:
        """Say that a process is alive."""
        with self._writer.begin() as connection:
            mine = _lease.update().where(_lease.c.id == lease.id)
            connection.execute(mine.values(heartbeat_at=now, associations=associations))

    def forget(self, before: float) -> None:
        """Forget processes that were not heard of since then: the node may have fewer now."""
        with self._writer.begin() as connection:
            connection.execute(_lease.delete().where(_lease.c.heartbeat_at < before))

    def heartbeats(self) -> list[Heartbeat]:
        """What is known of every process that has run, by name."""
        with self._reader.connect() as connection:
            rows = connection.execute(select(_lease).order_by(_lease.c.owner)).all()
        return [Heartbeat(Lease(row.id, row.owner), row.associations, row.heartbeat_at) for row in rows]

    def alive(self, now: float) -> list[Lease]:
        """The leases that hold."""
        return [heartbeat.lease for heartbeat in self.heartbeats() if heartbeat.is_alive(now)]


def lease_ids(leases: Iterable[Lease]) -> frozenset[str]:
    """The ids of leases."""
    return frozenset(lease.id for lease in leases)
