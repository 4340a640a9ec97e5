"""How the node is: for whoever starts it again (/health/live), sends to it (/health/ready) and watches it (/metrics)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from segnode.pipeline.receive import Receiver
from segnode.store.jobs import Jobs
from segnode.store.leases import LEASE_S, Heartbeat, Leases
from segnode.store.measures import STAGE_BUCKETS_S, Measure, Measures

_log = structlog.get_logger()

_BOUNDS = [f"{bound:g}" for bound in STAGE_BUCKETS_S] + ["+Inf"]


class Ready(msgspec.Struct, frozen=True):
    """Whether the node does its work; for each thing that it needs, `ok` or what is wrong."""

    ready: bool
    database: str
    disk: str
    worker: str


@dataclass(frozen=True)
class Health:
    """The resources that say how a node is, on one store."""

    receiver: Receiver
    jobs: Jobs
    leases: Leases
    measures: Measures

    def routes(self) -> list[Route]:
        """What is to be mounted at the root."""
        return [
            Route("/health/live", self._live),
            Route("/health/ready", self._ready),
            Route("/metrics", self._metrics),
        ]

    def _live(self, _request: Request) -> Response:
        return _json({"live": True})

    def _ready(self, _request: Request) -> Response:
        found = [_checked(check) for check in (self._database, self._disk, self._worker)]
        ready = all(detail == "ok" for detail in found)
        return _json(Ready(ready, *found), 200 if ready else 503)

    def _metrics(self, _request: Request) -> Response:
        registry = CollectorRegistry()
        registry.register(_Rows(self))
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    def _database(self) -> str:
        self.jobs.count()
        self.leases.heartbeats()
        return "ok"

    def _disk(self) -> str:
        free = self.receiver.objects.free_bytes()
        return "ok" if free >= self.receiver.low_watermark else f"{free} bytes are free: new objects are refused"

    def _worker(self) -> str:
        now = self.receiver.clock()
        beats = [beat for beat in self.leases.heartbeats() if beat.lease.owner.startswith("worker-")]
        if any(beat.is_alive(now) for beat in beats):
            return "ok"
        last = max((now - beat.heartbeat_at for beat in beats), default=None)
        return "no worker has run" if last is None else f"no worker was heard of for {last:.0f} s"


def _checked(check: Callable[[], str]) -> str:
    try:
        return check()
    except Exception as error:  # noqa: BLE001  whatever a check breaks on is what is wrong
        _log.exception("a check of readiness broke")
        return f"{type(error).__name__}: the node's log has the details"


class _Rows(Collector):
    """The measures of all processes and the state of the rows, in the words of Prometheus."""

    def __init__(self, health: Health) -> None:
        self._health = health

    def collect(self) -> Iterator[Metric]:
        """Every metric."""
        measured = self._health.measures.all()
        yield _counter("segnode_objects_received", "Objects acknowledged", ["role"], "received", measured)
        yield _counter("segnode_received_bytes", "Bytes of objects acknowledged", ["role"], "received_bytes", measured)
        yield _counter("segnode_objects_refused", "Objects refused, by status", ["role", "status"], "refused", measured)
        attempts = ["destination", "result"]
        yield _counter("segnode_delivery_attempts", "Attempts at deliveries", attempts, "delivery_attempts", measured)
        yield _stages(measured)
        yield from self._rows()
        yield from _processes(self._health.leases.heartbeats(), self._health.receiver.clock())
        free = GaugeMetricFamily("segnode_disk_free_bytes", "Room on the disk of the objects")
        free.add_metric([], self._health.receiver.objects.free_bytes())
        yield free

    def _rows(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("segnode_jobs", "Jobs, by state", labels=["state"])
        for state, count in self._health.jobs.count().items():
            jobs.add_metric([state], count)
        deliveries = GaugeMetricFamily("segnode_deliveries", "Deliveries, by state", labels=["destination", "state"])
        for (destination, delivery_state), count in self._health.jobs.count_deliveries().items():
            deliveries.add_metric([destination, delivery_state], count)
        yield from (jobs, deliveries)


def _counter(name: str, documentation: str, labels: Sequence[str], measure: str, measured: Sequence[Measure]) -> Metric:
    counter = CounterMetricFamily(name, documentation, labels=labels)
    for found in measured:
        if found.name == measure:
            counter.add_metric([found.labels[label] for label in labels], found.value)
    return counter


def _stages(measured: Sequence[Measure]) -> Metric:
    histogram = HistogramMetricFamily("segnode_stage_seconds", "How long stages of jobs took", labels=["stage"])
    sums = {found.labels["stage"]: found.value for found in measured if found.name == "stage_sum"}
    counts = {(f.labels["stage"], f.labels["le"]): f.value for f in measured if f.name == "stage_bucket"}
    for stage, total in sums.items():
        so_far, buckets = 0.0, []
        for bound in _BOUNDS:
            so_far += counts.get((stage, bound), 0.0)
            buckets.append((bound, so_far))
        histogram.add_metric([stage], buckets=buckets, sum_value=total)
    return histogram


def _processes(heartbeats: Sequence[Heartbeat], now: float) -> Iterator[Metric]:
    alive = GaugeMetricFamily("segnode_process_alive", f"Whether a process was heard of in {LEASE_S:g} s", labels=["process"])
    associations = GaugeMetricFamily("segnode_associations", "Associations that are open", labels=["process"])
    for beat in heartbeats:
        alive.add_metric([beat.lease.owner], float(beat.is_alive(now)))
        if beat.lease.owner.startswith("dimse-"):
            associations.add_metric([beat.lease.owner], beat.associations if beat.is_alive(now) else 0)
    yield from (alive, associations)


def _json(document: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(document), status, media_type="application/json")
