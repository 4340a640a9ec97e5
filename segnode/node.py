"""The composition root: the only place that names concrete adapters together.

Imports stand inside the functions of a role, so that a process loads only what its role needs.
"""

import fcntl
import gc
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec
import structlog
from sqlalchemy import Engine

from segnode.config import (
    Config,
    DestinationConfig,
    ModelConfig,
    hidden_from,
    is_http,
    parse_dimse_address,
    read_config,
    require_access,
    require_peers,
)
from segnode.descriptors import readable
from segnode.errors import ConfigError, LabelError, OutOfResources
from segnode.logs import configure_logs
from segnode.pipeline.ports import Archive, Catalogue, Committer, Destination, Segmentation
from segnode.pipeline.receive import Receiver
from segnode.pipeline.rules import documents, resolve_rules
from segnode.posts import Inherited, patiently
from segnode.programs import with_versions
from segnode.roles import NO_ROOM, Role
from segnode.store.commitments import Commitments
from segnode.store.database import is_no_room, open_database, workflow_database
from segnode.store.documents import Documents
from segnode.store.filesystem import require_local
from segnode.store.index import Index, Instance
from segnode.store.jobs import Jobs
from segnode.store.leases import HEARTBEAT_S, Lease, Leases, new_lease
from segnode.store.measures import Measures, Meter
from segnode.store.notices import Notices
from segnode.store.objects import ABANDONED_S, SHELVES, ObjectStore, object_path
from segnode.store.standings import Standings

if TYPE_CHECKING:
    import ssl

    from segnode.dicomweb.find import DicomWebCatalogue
    from segnode.dimse.find import DimseCatalogue
    from segnode.dimse.query_scp import QueryDoor
    from segnode.models.pool import ModelPool
    from segnode.pipeline.assemble import ReadAhead
    from segnode.pipeline.confirm import Confirmer
    from segnode.pipeline.dispatch import Dispatch
    from segnode.pipeline.notify import Notifier
    from segnode.pipeline.reject import Rejecter
    from segnode.pipeline.report_commitment import Reporter
    from segnode.pipeline.slim import Slimmer
    from segnode.pipeline.sweep import Sweep
    from segnode.pipeline.workflows import Stages, Workflows
    from segnode.web.access import Access

_log = structlog.get_logger()

_PIPELINE: Final = "pipeline.sqlite"
_SWEEP_S: Final = 0.5
_TIDY_S: Final = 5.0
_DOCUMENTS_S: Final = 2.0
# For so many times they wait while objects come in, which they would slow down; then they catch up.
_ARRIVING: Final = 15
_TIDY_ALL_EVERY: Final = 120
_RECORDS_STAY_S: Final = 86400.0


@dataclass(frozen=True)
class Store:
    """The state that roles share."""

    objects: ObjectStore
    index: Index
    documents: Documents
    jobs: Jobs
    standings: Standings
    leases: Leases
    measures: Measures
    notices: Notices
    commitments: Commitments


def run_role(role: Role, number: int, inherited: Inherited, ready: Callable[[], None]) -> None:
    """Run one process of a role until SIGTERM or SIGINT; `ready` is called when it serves.

    Where the disk has no room for it to start, the process ends with NO_ROOM, and its supervisor tries it again.
    """
    # While it loads, nothing that is made is garbage; to look for some takes an eighth of the time.
    gc.disable()
    configure_logs(f"{role}-{number}")
    os.umask(0o077)

    def serves() -> None:
        gc.enable()
        ready()

    with _room_to_start():
        _run_role(role, number, inherited, serves)


def _run_role(role: Role, number: int, inherited: Inherited, ready: Callable[[], None]) -> None:
    config = inherited.config
    lease = new_lease(f"{role}-{number}")
    with _only(config.data, lease.owner):
        store = open_store(config, lease)
        store.leases.take(lease, time.time())
        store.objects.delete_half_written()
        meter = Meter(role)
        watermark, on_conflict = config.storage.low_watermark_bytes, config.storage.on_conflict
        receiver = Receiver(store.objects, store.index, meter, config.node.ae_title, watermark, time.time, on_conflict)
        if role == "dimse":
            _run_dimse(store, receiver, lease, inherited, ready)
        elif role == "web":
            _run_web(store, receiver, lease, inherited, ready)
        else:
            _Worker(config, store, receiver, lease).run(inherited, ready)


def open_store(config: Config, lease: Lease) -> Store:
    """Open the data folder, made where there is none; readable by this user only. Raises ConfigError on a network disk."""
    data = config.data
    require_local(data)
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    index = open_database(data / "index.sqlite")
    pipeline = open_database(data / _PIPELINE)
    objects = ObjectStore(data / "objects", lease, config.storage.largest_object_bytes)
    jobs, standings, notices, commitments = Jobs(pipeline), Standings(pipeline), Notices(pipeline), Commitments(pipeline)
    documents = Documents(open_database(data / "documents.sqlite"))
    return Store(objects, Index(index), documents, jobs, standings, Leases(index), Measures(index), notices, commitments)


def open_jobs(config: Config) -> Jobs:
    """The rows of the pipeline, to be read; made where there are none. Raises ConfigError when there is no data folder."""
    return Jobs(_open_pipeline(config))


def open_standings(config: Config) -> Standings:
    """The rows of destinations; made where there are none. Raises ConfigError when there is no data folder."""
    return Standings(_open_pipeline(config))


def _open_pipeline(config: Config) -> Engine:
    if not config.data.is_dir():
        raise ConfigError(f"node.data: there is no folder {config.data}: has a node run with this configuration?")
    return open_database(config.data / _PIPELINE)


def open_index(config: Config) -> Index:
    """The rows of what is held, to be read; made where there are none. The data folder is there."""
    return Index(open_database(config.data / "index.sqlite"))


def object_file(config: Config, key: str) -> Path:
    """Where the object of that key lies."""
    return object_path(config.data / "objects", key)


def destinations(config: Config) -> Mapping[str, Destination]:
    """An adapter for each destination of a configuration. Raises ConfigError where a secret cannot be read."""
    return {d.name: destination(d, config.node.ae_title, config.folder) for d in config.destinations}


def destination(config: DestinationConfig, calling_ae: str, folder: Path) -> Destination:
    """The adapter that reaches a destination, whose files are named from a folder. Raises ConfigError."""
    if is_http(config.to):
        from segnode.dicomweb.client import StowDestination
        from segnode.dicomweb.peer import dicomweb_peer

        return StowDestination(dicomweb_peer(config, folder))
    from segnode.dimse.peer import dimse_peer
    from segnode.dimse.scu import DimseDestination

    return DimseDestination(dimse_peer(config, calling_ae, folder))


def committers(config: Config) -> Mapping[str, Committer]:
    """An adapter for each destination that is reached by DIMSE: it can be asked for storage commitment, and be told.

    Raises ConfigError where a certificate cannot be read.
    """
    dimse = [d for d in config.destinations if not is_http(d.to)]
    if not dimse:
        return {}
    from segnode.dimse.commitment_scu import DimseCommitter
    from segnode.dimse.peer import dimse_peer

    return {d.name: DimseCommitter(dimse_peer(d, config.node.ae_title, config.folder)) for d in dimse}


def catalogues(config: Config) -> Mapping[str, Catalogue]:
    """An adapter for each destination that a rule asks what it has of a series. Raises ConfigError."""
    asked = {rule.ask for rule in config.rules}
    return {d.name: _catalogue(d, config.node.ae_title, config.folder) for d in config.destinations if d.name in asked}


def slimmer(config: Config, name: str, overlap: Literal["error", "split"], *, dry_run: bool) -> "Slimmer":
    """What slims the destination of that name. Raises ConfigError where that is offered no LABELMAP."""
    from segnode.pipeline.slim import Slimmer
    from segnode.seg.forms import FORMS

    found = next(d for d in config.destinations if d.name == name)
    forms = tuple(form for form in found.seg if FORMS[form].type == "LABELMAP")
    if not forms:
        raise ConfigError(f"destination {name}: seg has no form of LABELMAP, so nothing there can be slimmed")
    reached = found, config.node.ae_title, config.folder
    return Slimmer(_catalogue(*reached), destination(*reached), forms, overlap, dry_run, time.time)


def archive(destination: DestinationConfig, config: Config) -> Archive:
    """What searches a destination, and fetches what it holds. Raises ConfigError."""
    return _catalogue(destination, config.node.ae_title, config.folder)


def _catalogue(config: DestinationConfig, calling_ae: str, folder: Path) -> "DicomWebCatalogue | DimseCatalogue":
    if is_http(config.to):
        from segnode.dicomweb.find import DicomWebCatalogue
        from segnode.dicomweb.peer import dicomweb_peer

        return DicomWebCatalogue(dicomweb_peer(config, folder))
    from segnode.dimse.find import DimseCatalogue
    from segnode.dimse.peer import dimse_peer

    return DimseCatalogue(dimse_peer(config, calling_ae, folder))


def _run_dimse(store: Store, receiver: Receiver, lease: Lease, inherited: Inherited, ready: Callable[[], None]) -> None:
    from segnode.dimse.accepting import Listening
    from segnode.dimse.commitment_scp import CommitmentDoor
    from segnode.dimse.scp import start_scp

    stop, reload = _Told(signal.SIGTERM, signal.SIGINT), _Told(signal.SIGHUP)
    commitment = CommitmentDoor(store.commitments, store.index, store.objects, time.time)
    tls = _Certificates(inherited.config)
    sockets = [Listening(one, speaks) for one, speaks in zip(inherited.listening(), (None, tls.now), strict=False)]
    scp = start_scp(receiver, commitment, _query_door(store, inherited), lease, _ConfigNow(inherited), sockets)
    _start_heart(store, receiver.meter, lease, lambda: scp.associations)
    # What is there by now stays: looking through it for garbage would take longer than a hundred objects.
    gc.freeze()
    ready()
    while not stop.wait(_TIDY_S, reload.descriptor):
        if reload.wait(0):
            reload.forget()
            tls.read_again()
        with _going_on("tidying broke"):
            # An association that broke off in the middle of an object leaves its file.
            store.objects.delete_half_written(ABANDONED_S)
            scp.close_ended()
    scp.stop()
    store.measures.add(receiver.meter)


def _query_door(store: Store, inherited: Inherited) -> "QueryDoor":
    """What answers queries and retrievals; what a destination is follows the configuration as it is now."""
    from segnode.dimse.find_scp import FindDoor
    from segnode.dimse.peer import dimse_peer
    from segnode.dimse.query_scp import QueryDoor
    from segnode.dimse.retrieve_scp import MoveDestination, RetrieveDoor

    ae_title = inherited.config.node.ae_title

    def destination_of(called: str) -> MoveDestination | None:
        config = inherited.config
        for known in config.destinations:
            if not is_http(known.to) and parse_dimse_address(known.to, known.name).ae_title == called:
                return MoveDestination(dimse_peer(known, ae_title, config.folder), known.seg)
        return None

    def segmentation(held: Instance) -> Segmentation:
        from segnode.pipeline.deliver import HeldSegmentation

        # Made, it is the object that it was, or would be, when it was delivered.
        decided_at = store.jobs.decided_at(held.sop_instance_uid) or held.received_at
        return HeldSegmentation(store.objects, held, decided_at, "" if held.origin == "made" else ae_title)

    find = FindDoor(store.index, store.objects, ae_title)
    return QueryDoor(find, RetrieveDoor(store.index, store.objects, segmentation, destination_of))


class _Certificates:
    """How the DICOM port speaks TLS, by certificates as they were when they were last read and could be used."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._context = self._read()

    def now(self) -> "ssl.SSLContext":
        """For the next connection; there is one where there is a port for it."""
        assert self._context is not None  # noqa: S101
        return self._context

    def read_again(self) -> None:
        """Read the files again; what is open stays as it was agreed on."""
        try:
            self._context = self._read()
        except ConfigError as error:
            _log.error("the certificate cannot be used: the old one stays", reason=str(error))
        else:
            if self._context is not None:
                _log.info("the certificate is read again")

    def _read(self) -> "ssl.SSLContext | None":
        from segnode.connections import accepting

        dimse = self._config.dimse
        return accepting(dimse.certificate, dimse.client_ca, self._config.folder, "dimse") if dimse.certificate else None


class _ConfigNow:
    """The configuration as it is now, which the worker has read and found to be good."""

    def __init__(self, inherited: Inherited) -> None:
        self._inherited = inherited
        self._known = (inherited.digest, inherited.config)

    def __call__(self) -> Config:
        digest = self._inherited.digest
        if digest != self._known[0]:
            self._known = (digest, self._inherited.config)
        return self._known[1]


def _run_web(store: Store, receiver: Receiver, lease: Lease, inherited: Inherited, ready: Callable[[], None]) -> None:
    from segnode.pipeline.associations import Associations
    from segnode.web.access import Guard
    from segnode.web.app import create_app
    from segnode.web.server import serve_http, server_tls

    def give_up() -> None:
        # A sender that hangs has no success yet, and sends again.
        with _going_on("counts are not kept"):
            store.measures.add(receiver.meter)
        os._exit(0)

    requests = Associations(store.index, lease)
    _start_heart(store, receiver.meter, lease, lambda: 0, requests.close_ended)
    rules = lambda: resolve_rules(inherited.config)  # noqa: E731
    application = create_app(
        receiver, requests, store.documents, store.jobs, store.leases, store.measures, rules, inherited.config.web
    )
    guard = Guard(application, _AccessNow(inherited))
    tls = server_tls(inherited.config.web, inherited.config.folder)
    (listening,) = inherited.listening()
    serve_http(guard, listening, tls, ready, give_up)
    store.measures.add(receiver.meter)


def access(config: Config, before: "Access | None" = None) -> "Access":
    """Who is let in by HTTP; an issuer that is the same as before keeps what it knows. Raises ConfigError."""
    from segnode.web.access import Access

    oidc = config.web.oidc
    if oidc is None:
        return Access(config.web, None)
    if before is not None and before.issuer is not None and before.web.oidc == oidc:
        return Access(config.web, before.issuer)
    from segnode.web.issuer import token_issuer

    return Access(config.web, token_issuer(oidc, config.folder))


class _AccessNow:
    """Who is let in by the configuration as it is now, which the worker has read and found to be good."""

    def __init__(self, inherited: Inherited) -> None:
        self._inherited = inherited
        self._digest = inherited.digest
        self._access = access(inherited.config)

    def __call__(self) -> "Access":
        digest = self._inherited.digest
        if digest != self._digest:
            config = self._inherited.config
            if config.web != self._access.web:
                self._access = access(config, self._access)
            self._digest = digest
        return self._access


@dataclass(frozen=True)
class _Wiring:
    """What follows from a configuration, and is wired anew when that changes."""

    stages: "Stages"
    sweep: "Sweep"
    read_ahead: "ReadAhead"
    dispatch: "Dispatch"
    rejecter: "Rejecter"
    confirmer: "Confirmer"
    reporter: "Reporter"
    notifiers: Sequence["Notifier"]
    models: Mapping[tuple[str, str], "ModelPool"]


class _Worker:
    """The worker's process: sweeps, and has the engine run what the rows ask for."""

    def __init__(self, config: Config, store: Store, receiver: Receiver, lease: Lease) -> None:
        self._config = config
        self._store = store
        self._receiver = receiver
        self._lease = lease
        self._models = config.data / "work" / "models"
        self._notified: dict[str, threading.Thread] = {}
        self._reporting: threading.Thread | None = None

    def run(self, inherited: Inherited, ready: Callable[[], None]) -> None:
        """Work until SIGTERM or SIGINT; read the configuration again at SIGHUP."""
        from segnode.models.process import clear_behind
        from segnode.pipeline.slots import Slots
        from segnode.pipeline.workflows import Workflows

        for model in self._config.models:
            clear_behind(model, self._models / model.name)
        stop, reload = _Told(signal.SIGTERM, signal.SIGINT), _Told(signal.SIGHUP)
        wiring = self._wire(self._config, {})
        executor_id = _kept(self._config.data / "executor-id", lambda: secrets.token_hex(8))
        database = workflow_database(self._config.data / "workflows.sqlite")
        woken = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        slots = Slots(self._config.models)
        workflows = Workflows(wiring.stages, slots, database, executor_id, partial(os.eventfd_write, woken, 1))
        _start_heart(self._store, self._receiver.meter, self._lease, lambda: 0)
        threading.Thread(target=self._tidy, args=(workflows,), name="tidying", daemon=True).start()
        threading.Thread(target=self._make_documents, args=(workflows,), name="documents", daemon=True).start()
        # What is there by now stays: a job of a thousand headers would have all of it looked through for garbage.
        gc.freeze()
        ready()
        due_in = _SWEEP_S
        while not stop.wait(min(due_in, _SWEEP_S), woken):
            with suppress(BlockingIOError):
                os.eventfd_read(woken)
            due_in = _SWEEP_S
            if reload.wait(0):
                reload.forget()
                wiring = self._reloaded(wiring, inherited)
                workflows.stages = wiring.stages
                slots.become(self._config.models)
            with _going_on("sweep broke"):  # the next sweep looks at the same rows again
                due_in = wiring.sweep.decide()
                wiring.read_ahead.tire()
            with _going_on("dispatching broke"):
                wiring.dispatch.give_up(time.time())
                wiring.confirmer.wake()
                workflows.run(self._store.jobs.waiting(), wiring.dispatch.due(time.time()))
            with _going_on("rejecting broke"):
                wiring.rejecter.owe_notes()
            self._notify(wiring.notifiers)
            self._report(wiring.reporter)
        with _going_on("counts are not kept"):
            self._store.measures.add(self._receiver.meter)
        # A model may run on for minutes: every step is repeatable and taken up at the next start.
        with _going_on("what is broken off counts as a crash"):
            self._store.jobs.break_off(workflows.making)
        os._exit(0)

    def _wire(self, config: Config, running: Mapping[tuple[str, str], "ModelPool"]) -> _Wiring:
        """Wire a configuration, with the models that run already where they are the same. Raises ConfigError, LabelError."""
        from segnode.pipeline.assemble import Assembler, ReadAhead, image_values, is_stat
        from segnode.pipeline.confirm import Confirmer
        from segnode.pipeline.deliver import Deliverer
        from segnode.pipeline.dispatch import Dispatch
        from segnode.pipeline.encode import Encoder, Maker
        from segnode.pipeline.find import Finder
        from segnode.pipeline.forwarder import Forwarder
        from segnode.pipeline.infer import Inferrer
        from segnode.pipeline.labelmaps import Labelmaps
        from segnode.pipeline.reject import Rejecter
        from segnode.pipeline.report_commitment import Reporter
        from segnode.pipeline.sweep import Sweep, former_rules
        from segnode.pipeline.workflows import Stages

        store, receiver = self._store, self._receiver
        rules = resolve_rules(config)
        models = {
            (model.name, model.version): self._model(model, hidden_from(model, config), running) for model in config.models
        }
        assembler = Assembler(store.objects, store.index)
        labelmaps = Labelmaps(config.data / "work")
        inferrer = Inferrer(assembler, store.jobs, models, labelmaps, time.time)
        secret = _kept(config.data / "secret", lambda: secrets.token_hex(32)).encode()
        maker = Maker(config.node.ae_title, config.output, secret)
        encoder = Encoder(assembler, receiver, store.jobs, labelmaps, maker, time.time)
        configs = {d.name: d for d in config.destinations}
        archives = destinations(config)
        peers = committers(config)
        store.jobs.await_reports_of([d.name for d in config.destinations if d.confirm == "commitment"], time.time())
        confirmer = Confirmer(store.commitments, peers, configs, time.time)
        deliverer = Deliverer(
            store.objects, store.index, store.jobs, store.standings, archives, configs, confirmer, receiver.meter, time.time
        )
        by_ae_title = {peer.where: peer for peer in peers.values()}
        reporter = Reporter(store.commitments, store.index, store.objects, by_ae_title, time.time)
        dispatch = Dispatch(store.jobs, store.standings, configs)
        forwarder = Forwarder(deliverer, config.node.ae_title)
        stages = Stages(inferrer, encoder, deliverer, forwarder, store.jobs, receiver.meter, time.time)
        finder, notifiers = Finder(catalogues(config), store.index, time.time), self._notifiers(config)
        # From here on nothing is wrong with the configuration.
        now = time.time()
        first_loaded = store.jobs.load_rules(documents(rules), now)
        store.jobs.put_in_force([rule.digest for rule in rules], now)
        values = image_values(store.index, store.objects.path)
        read_ahead = ReadAhead(assembler, lambda: bool(store.jobs.waiting()), time.monotonic)
        sweep = Sweep(
            store.index,
            store.jobs,
            rules,
            first_loaded,
            values,
            finder.ask,
            time.time,
            read_ahead.expect,
            lambda image: is_stat(store.objects.path(image.object_key)),
            former_rules(store.jobs, now),
        )
        rejecter = Rejecter(receiver, store.jobs, time.time)
        return _Wiring(stages, sweep, read_ahead, dispatch, rejecter, confirmer, reporter, notifiers, models)

    def _notifiers(self, config: Config) -> Sequence["Notifier"]:
        """What tells the webhooks. Raises ConfigError where a secret cannot be read."""
        from segnode.pipeline.notify import Notifier
        from segnode.web.webhook import HttpWebhook, signing_key

        found = []
        for index, webhook in enumerate(config.webhooks):
            path = f"webhooks[{index}].secret"
            told = HttpWebhook(webhook.url, signing_key(webhook.secret.read(config.folder, path), path))
            found.append(Notifier(webhook, told, self._store.jobs, self._store.index, self._store.notices, time.time))
        return found

    def _model(
        self, config: ModelConfig, hidden: frozenset[str], running: Mapping[tuple[str, str], "ModelPool"]
    ) -> "ModelPool":
        """The processes of a model, of which one has loaded it. Raises ConfigError when it cannot."""
        from segnode.models.pool import ModelPool

        same = running.get((config.name, config.version))
        if same is not None and (same.config, same.hidden) == (config, hidden):
            return same
        pool = ModelPool(config, self._models / config.name, hidden)
        pool.check()
        return pool

    def _reloaded(self, wiring: _Wiring, inherited: Inherited) -> _Wiring:
        """The wiring of the configuration as it is in the file now; the old one where that cannot be used."""
        try:
            config = with_versions(_as_it_listens(read_config(inherited.config_file), self._config))
            access(config)
            new = self._wire(config, wiring.models)
        except (ConfigError, LabelError) as error:
            _log.error("the configuration cannot be used: the old one stays", reason=str(error))
            return wiring
        self._config = config
        inherited.keep(config)
        gone = [process for process in wiring.models.values() if process not in new.models.values()]
        for process in gone:  # each ends when it has done what it is at
            threading.Thread(target=process.close, daemon=True).start()
        _log.info(
            "the configuration is read again", rules=len(config.rules), destinations=[d.name for d in config.destinations]
        )
        return new

    def _notify(self, notifiers: Sequence["Notifier"]) -> None:
        """Have each webhook told in a thread of its own, unless the one before is still at it: none waits for another."""
        for notifier in notifiers:
            name = notifier.config.name
            if name not in self._notified or not self._notified[name].is_alive():
                self._notified[name] = threading.Thread(target=_tell_all, args=(notifier,), name=f"webhook {name}", daemon=True)
                self._notified[name].start()

    def _report(self, reporter: "Reporter") -> None:
        """Have peers told of storage commitment in a thread of its own, unless the one before is still at it."""
        if self._reporting is None or not self._reporting.is_alive():
            self._reporting = threading.Thread(target=_report_all, args=(reporter,), name="commitments", daemon=True)
            self._reporting.start()

    def _tidy(self, workflows: "Workflows") -> None:
        """Tidy up for ever: a shelf of the objects each time, the rest every ten minutes."""
        from segnode.pipeline.labelmaps import Labelmaps
        from segnode.pipeline.tidy import Tidier

        store = self._store
        turn = 0
        while True:
            retention = self._config.retention
            labelmaps = Labelmaps(self._config.data / "work")
            tidier = Tidier(
                store.objects, store.index, store.documents, store.jobs, store.leases, labelmaps, retention, time.time
            )
            with _going_on("tidying broke"):
                tidier.close_associations()
                tidier.delete_unacknowledged(turn % SHELVES)
                tidier.read_items()
                if turn % _TIDY_ALL_EVERY == 0:
                    tidier.delete_abandoned()
                    tidier.delete_no_longer_held()
                    tidier.delete_prints()
                    tidier.expire()
                    workflows.purge(time.time() - _RECORDS_STAY_S)
            turn += 1
            time.sleep(_TIDY_S)

    def _make_documents(self, workflows: "Workflows") -> None:
        """Make the metadata of what has come, for ever, in a process that gives way to others; a result is not kept waiting."""
        from segnode.dicomweb.decoding import Decoders
        from segnode.dicomweb.metadata import Metadata

        store = self._store
        metadata = Metadata(store.objects, store.index, store.documents, Decoders(1, niceness=19))
        newest = waited = 0
        while True:
            more = False
            with _going_on("metadata are not kept"):
                before, newest = newest, store.index.newest()
                if newest != before and waited < _ARRIVING:
                    waited += 1
                else:
                    more = not workflows.is_working and metadata.make_more()
                    waited = waited if more else 0
            if not more:
                time.sleep(_DOCUMENTS_S)


def _as_it_listens(config: Config, running: Config) -> Config:
    """A configuration for a node that runs: what listens and what is open stays as it is. Raises ConfigError."""
    old = running.web
    web = msgspec.structs.replace(old, api_keys=config.web.api_keys, oidc=config.web.oidc, origins=config.web.origins)
    changed = msgspec.structs.replace(config, node=running.node, storage=running.storage, dimse=running.dimse, web=web)
    require_access(changed)  # where it listens, and not where the file says
    require_peers(changed)
    return changed


def _report_all(reporter: "Reporter") -> None:
    with _going_on("reporting broke"):
        reporter.report_all()


def _tell_all(notifier: "Notifier") -> None:
    with _going_on("notices broke"):
        notifier.tell_all()


def _start_heart(
    store: Store, meter: Meter, lease: Lease, associations: Callable[[], int], close_ended: Callable[[], None] = lambda: None
) -> None:
    """Say every few seconds that this process is alive, what it has counted, and what has ended and could not be said."""

    def beat() -> None:
        while True:
            with _going_on("heartbeat missed"):
                store.leases.beat(lease, associations(), time.time())
                store.measures.add(meter)
                close_ended()
            time.sleep(HEARTBEAT_S)

    threading.Thread(target=beat, name="heart", daemon=True).start()


@contextmanager
def _going_on(what: str) -> Iterator[None]:
    """A turn of a loop that goes on after whatever breaks it, and says so."""
    try:
        yield
    except OutOfResources as error:  # in every turn while the disk is full: a line is enough
        _log.error(what, reason=str(error).partition("\n")[0])
    except Exception:  # noqa: BLE001  the border of a loop that must not end
        _log.exception(what)


@contextmanager
def _room_to_start() -> Iterator[None]:
    """End this process with NO_ROOM where a full disk ends it; what runs longer sees to that itself."""
    try:
        yield
    except Exception as error:
        if not is_no_room(error):
            raise
        _log.error("there is no room to start", reason=str(error).partition("\n")[0])
        sys.exit(NO_ROOM)


class _Told:
    """Whether one of some signals has come; its handler takes no lock, so that a second one cannot find it taken."""

    def __init__(self, *numbers: signal.Signals) -> None:
        self._count = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        for number in numbers:
            signal.signal(number, lambda *_: os.eventfd_write(self._count, 1))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)

    @property
    def descriptor(self) -> int:
        """What can be read once it has come."""
        return self._count

    def wait(self, seconds: float, *woken: int) -> bool:
        """Wait that long for it at most, or until one of some descriptors can be read; whether it has come."""
        return self._count in readable(seconds, self._count, *woken)

    def forget(self) -> None:
        """Wait for the next."""
        os.eventfd_read(self._count)


@contextmanager
def _only(data: Path, owner: str) -> Iterator[None]:
    """One process of that name on a data folder: its lock is gone with the process, however that ends."""
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (data / f"{owner}.lock").open("w") as lock:
        try:
            patiently(lambda: fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB), BlockingIOError)
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
