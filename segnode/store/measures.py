"""Measures: counts that each process keeps, and adds to the node's every few seconds; a crash loses those of the last."""

import json
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Final

from sqlalchemy import Column, Engine, Float, MetaData, String, Table, select
from sqlalchemy.dialects.sqlite import insert

from segnode.store.database import reading

STAGE_BUCKETS_S: Final = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3600.0)

_metadata = MetaData()
_measure = Table(
    "measure",
    _metadata,
    Column("name", String, primary_key=True),
    Column("labels", String, primary_key=True),
    Column("value", Float, nullable=False),
)


@dataclass(frozen=True)
class Measure:
    """What something has come to since the data folder was made."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Meter:
    """Counts what a process does; safe to be called by its threads."""

    role: str
    _counts: "Counter[tuple[str, str]]" = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def received(self, size: int) -> None:
        """An object of that many bytes was acknowledged."""
        self._add("received", 1, role=self.role)
        self._add("received_bytes", size, role=self.role)

    def refused(self, status: int) -> None:
        """An object was refused with that status."""
        self._add("refused", 1, role=self.role, status=f"{status:04X}")

    def stage(self, name: str, seconds: float) -> None:
        """A stage of a job took that long."""
        self._add("stage_sum", seconds, stage=name)
        bucket = next((f"{bound:g}" for bound in STAGE_BUCKETS_S if seconds <= bound), "+Inf")
        self._add("stage_bucket", 1, stage=name, le=bucket)

    def attempted(self, destination: str, result: str) -> None:
        """A delivery was attempted: delivered, stored (and not proved yet), deferred or refused."""
        self._add("delivery_attempts", 1, destination=destination, result=result)

    def taken(self) -> "Counter[tuple[str, str]]":
        """What was counted since it was last taken."""
        with self._lock:
            counts = self._counts.copy()
            self._counts.clear()
        return counts

    def give_back(self, counts: "Counter[tuple[str, str]]") -> None:
        """Count again what was taken and could not be added."""
        with self._lock:
            self._counts.update(counts)

    def _add(self, name: str, count: float, **labels: str) -> None:
        with self._lock:
            self._counts[name, _packed(*labels.items())] += count  # type: ignore[assignment]


@cache
def _packed(*labels: tuple[str, str]) -> str:
    return json.dumps(dict(labels), sort_keys=True)


class Measures:
    """The node's counts, in the index's database."""

    def __init__(self, engine: Engine) -> None:
        self._writer = engine
        self._reader = reading(engine)
        _metadata.create_all(engine)

    def add(self, meter: Meter) -> None:
        """Add what a process has counted since it was last asked; when that fails, it stays counted there."""
        counts = meter.taken()
        if not counts:
            return
        try:
            self._add(counts)
        except Exception:
            meter.give_back(counts)
            raise

    def all(self) -> list[Measure]:
        """Every count."""
        with self._reader.connect() as connection:
            rows = connection.execute(select(_measure).order_by(_measure.c.name, _measure.c.labels)).all()
        return [Measure(row.name, json.loads(row.labels), row.value) for row in rows]

    def _add(self, counts: "Counter[tuple[str, str]]") -> None:
        with self._writer.begin() as connection:
            for (name, labels), count in counts.items():
                row = insert(_measure).values(name=name, labels=labels, value=count)
                more = {"value": _measure.c.value + row.excluded.value}
                connection.execute(row.on_conflict_do_update(index_elements=["name", "labels"], set_=more))
