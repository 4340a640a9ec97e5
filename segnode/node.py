"""The composition root: the only place that names concrete adapters together.

Imports stand inside the functions of a role, so that a process loads only what its role needs.
"""

import fcntl
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from segnode.config import Config, DestinationConfig, is_http, parse_address, parse_dimse_address
from segnode.errors import ConfigError
from segnode.pipeline.ports import Destination
from segnode.pipeline.receive import Receiver
from segnode.roles import Role
from segnode.store.database import open_database, workflow_database
from segnode.store.filesystem import require_local
from segnode.store.index import Index
from segnode.store.jobs import Jobs
from segnode.store.objects import ObjectStore

_log = structlog.get_logger()

_SWEEP_S: Final = 0.5
_TIDY_S: Final = 600
_ABANDONED_S: Final = 3600


@dataclass(frozen=True)
class Store:
    """The state that roles share."""

    objects: ObjectStore
    index: Index
    jobs: Jobs


def open_store(config: Config, owner: str) -> Store:
    """Open the data folder, made where there is none; readable by this user only. Raises ConfigError on a network disk."""
    data = config.data
    require_local(data)
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Store(
        ObjectStore(data / "objects", owner),
        Index(open_database(data / "index.sqlite")),
        Jobs(open_database(data / "pipeline.sqlite")),
    )


def open_jobs(config: Config) -> Jobs:
    """The rows of the pipeline, to be read; made where there are none. Raises ConfigError when there is no data folder."""
    if not config.data.is_dir():
        raise ConfigError(f"node.data: there is no folder {config.data}: has a node run with this configuration?")
    return Jobs(open_database(config.data / "pipeline.sqlite"))


def run_role(role: Role, config: Config, ready: Callable[[], None]) -> None:
    """Run one role in this process until SIGTERM or SIGINT; `ready` is called when it serves."""
    os.umask(0o077)
    with _only(config.data, role):
        store = open_store(config, role)
        store.objects.delete_half_written()
        receiver = Receiver(store.objects, store.index, time.time)
        if role == "dimse":
            _run_dimse(config, receiver, ready)
        elif role == "web":
            _run_web(config, receiver, ready)
        else:
            _run_worker(config, store, receiver, ready)


def destinations(config: Config) -> Mapping[str, Destination]:
    """An adapter for each destination of a configuration."""
    return {d.name: destination(d, config.node.ae_title) for d in config.destinations}


def destination(config: DestinationConfig, calling_ae: str) -> Destination:
    """The adapter that reaches a destination."""
    if is_http(config.to):
        from segnode.dicomweb.client import StowDestination

        return StowDestination(config.to)
    from segnode.dimse.scu import DimseDestination

    return DimseDestination(parse_dimse_address(config.to, config.name), calling_ae)


def _run_dimse(config: Config, receiver: Receiver, ready: Callable[[], None]) -> None:
    from segnode.dimse.scp import start_scp

    stop = _stop_signal()
    scp = start_scp(receiver, config.node.ae_title, parse_address(config.node.dicom, "node.dicom"))
    ready()
    while not stop.wait(_TIDY_S):
        # An association that broke off in the middle of an object leaves its file.
        receiver.objects.delete_half_written(_ABANDONED_S)
    scp.stop()


def _run_web(config: Config, receiver: Receiver, ready: Callable[[], None]) -> None:
    from segnode.web.app import create_app
    from segnode.web.server import serve_http

    serve_http(create_app(receiver), parse_address(config.node.http, "node.http"), ready)


def _run_worker(config: Config, store: Store, receiver: Receiver, ready: Callable[[], None]) -> None:
    from segnode.models.process import ModelProcess
    from segnode.pipeline.assemble import Assembler
    from segnode.pipeline.deliver import Deliverer
    from segnode.pipeline.encode import Encoder
    from segnode.pipeline.infer import Inferrer, Labelmaps
    from segnode.pipeline.rules import resolve_rules
    from segnode.pipeline.sweep import Sweep
    from segnode.pipeline.workflows import Stages, Workflows

    stop = _stop_signal()
    rules = resolve_rules(config)
    first_loaded = store.jobs.load_rules((rule.digest for rule in rules), time.time())
    assembler = Assembler(store.objects, store.index)
    labelmaps = Labelmaps(config.data / "work")
    models = {model.name: ModelProcess(model, config.data / "work" / "models" / model.name) for model in config.models}
    for model in models.values():
        model.check()
    inferrer = Inferrer(assembler, store.jobs, models, labelmaps, time.time)
    secret = _kept(config.data / "secret", lambda: secrets.token_hex(32)).encode()
    encoder = Encoder(assembler, receiver, store.jobs, labelmaps, config.node.ae_title, secret, time.time)
    forms = {d.name: d.seg for d in config.destinations}
    deliverer = Deliverer(store.objects, store.index, store.jobs, destinations(config), forms, time.time)
    stages = Stages(inferrer, encoder, deliverer, store.jobs, rules, time.time)
    executor_id = _kept(config.data / "executor-id", lambda: secrets.token_hex(8))
    workflows = Workflows(stages, workflow_database(config.data / "workflows.sqlite"), executor_id)
    sweep = Sweep(store.index, store.jobs, rules, first_loaded, time.time)
    ready()
    while not stop.wait(_SWEEP_S):
        try:
            sweep.decide()
            workflows.run(store.jobs.waiting(), store.jobs.due(time.time()))
        except Exception:  # noqa: BLE001  the worker's loop: the next sweep looks at the same rows again
            _log.exception("sweep broke")
    # A model may run on for minutes: every step is repeatable and taken up at the next start.
    os._exit(0)


def _stop_signal() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


@contextmanager
def _only(data: Path, role: Role) -> Iterator[None]:
    """One process of each role on a data folder: its lock is gone with the process, however that ends."""
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (data / f"{role}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"node.data: another node runs on {data}: stop it, or give this one its own folder") from error
        yield


def _kept(path: Path, make: Callable[[], str]) -> str:
    """The text in a file of the data folder, made once."""
    if not path.exists():
        beside = path.with_suffix(".tmp")
        beside.write_text(make())
        beside.rename(path)
    return path.read_text()
