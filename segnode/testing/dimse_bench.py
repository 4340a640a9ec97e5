"""DIMSE beside Orthanc and DCMTK's storescp, in turn, with the same objects and clients in one run.

Every peer runs with TCP_NODELAY=1: without it Debian's wait 40 ms in each C-STORE, and beating them proves nothing. The
node synchronises each object and commits its row before it says success, Orthanc synchronises its files, storescp neither
synchronises nor indexes. The node's CPU time is that of the processes that receive; what the others do meanwhile and
afterwards, which is to make metadata of what came, stands beside.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import click
from pynetdicom import AllStoragePresentationContexts

from segnode.config import NodeConfig
from segnode.dicom.transfer_syntaxes import STORED_TRANSFER_SYNTAXES
from segnode.store.database import open_database
from segnode.store.index import Index
from segnode.testing.corpus import Series, ct_series, multi_frame, renamed
from segnode.testing.light_sender import IMPLICIT, VERIFICATION, LightAssociation, Sendable, sendable
from segnode.testing.processes import cpu_seconds, descendants, forget_peak, peak, post_of, resident
from segnode.testing.query_bench import LET_IN, c_find_and_c_get
from segnode.testing.send_bench import c_store_out
from segnode.testing.servers import Server, node_config, orthanc, segnode, storescp
from segnode.testing.turns import Used, await_documents, in_turn

_SETTINGS: Final = "models = []\nrules = []"
_FRAMES: Final = 200
_IDLE: Final = 200
_IDLE_S: Final = 10.0
_SET_UPS: Final = 15
_MOST_CONTEXTS: Final = 128

# Does a row's work at a server with the objects of a run, and says the seconds that it took.
Work = Callable[[Server, Series], float]


@dataclass(frozen=True)
class Row:
    """Work that the servers do in turn; `ahead` says how many times as fast as which of them the node is to be."""

    name: str
    work: Work
    series: Series
    ahead: Mapping[str, float]
    runs: int
    cpu_ms: float | None = None


@click.command()
@click.option("--slices", default=400, show_default=True, help="Images of the series.")
@click.option("--size", default=512, show_default=True, help="Rows and columns of an image.")
@click.option("--runs", default=2, show_default=True, help="How often each row is measured; the median counts.")
@click.option("--only", default="", help="Measure only the rows whose name contains this.")
def dimse(slices: int, size: int, runs: int, only: str) -> None:
    """DIMSE: what comes in, beside Orthanc and storescp; what is asked for, beside Orthanc; what goes out, beside dcmsend."""
    with tempfile.TemporaryDirectory(prefix="segnode-bench-") as scratch:
        folder = Path(scratch)
        series = ct_series(folder / "ct", slices, size, 0)
        with (
            segnode(folder / "node", _SETTINGS, dimse_processes=NodeConfig().dimse_processes) as node,
            orthanc(folder / "archive", **LET_IN) as archive,
            storescp(folder / "storescp") as stream,
        ):
            servers = {"segnode": node, "Orthanc": archive, "storescp": stream}
            stored = 0
            _heading(servers)
            for row in _rows(folder, series, runs):
                if only in row.name:
                    _measure(servers, row, stored)
                    stored += row.runs
            if only in "100 MiB multi-frame":
                _measure_growth(node, archive, multi_frame(size, _FRAMES), runs)
            if only in "association set-up":
                _measure_set_up(node)
            if only in "idle associations":
                _measure_idle(node)
            if only in "C-FIND, C-GET":
                _echo(c_find_and_c_get(node, archive, folder / "ct", runs))
        if only in "C-STORE out":
            _echo(c_store_out(folder / "ct", runs))


def _echo(rows: Iterator[str]) -> None:
    for row in rows:
        click.echo(row)


def _rows(folder: Path, series: Series, runs: int) -> list[Row]:
    count = len(series.files)

    def row(client: str, work: Work, orthanc: float, storescp: float | None, cpu_ms: float | None = None) -> Row:
        ahead = {"Orthanc": orthanc} | ({} if storescp is None else {"storescp": storescp})
        return Row(f"C-STORE in of {count}, {client}", work, series, ahead, runs, cpu_ms)

    return [
        row("light client x1", _light(1), 5, 0.9, 2.5),
        row("light client x4", _light(4), 4, 0.9, 2.5),
        row("dcmsend x1", _dcmsend(folder, 1), 3, None),
        row("dcmsend x4", _dcmsend(folder, 4), 2.5, None),
    ]


def _measure(servers: Mapping[str, Server], row: Row, stored: int) -> None:
    """Measure a row, each time with other UIDs."""

    def work(server: Server) -> Callable[[], float]:
        left: Iterator[Series] = (renamed(row.series, stored + run) for run in range(row.runs))

        def run() -> float:
            took = row.work(server, next(left))
            if server is servers["segnode"]:  # what it does afterwards would be in the others' times
                await_documents(server)
            return took

        return run

    others = [process for process in descendants(servers["segnode"].process.pid) if not post_of(process).startswith("dimse")]
    before = cpu_seconds(others)
    requests = [work(server) for server in servers.values()]
    used = in_turn(requests, row.runs, list(servers.values()), counted=lambda process: process not in others)
    afterwards = (cpu_seconds(others) - before) / row.runs / len(row.series.files) * 1e3
    for run in range(row.runs):
        _require_held(servers["segnode"], renamed(row.series, stored + run))
    _line(row, dict(zip(servers, used, strict=True)), afterwards)


def _require_held(node: Server, series: Series) -> None:
    index = Index(open_database(node_config(node).data / "index.sqlite"))
    if {held.sop_instance_uid for held in index.instances(series.study)} != series.files.keys():
        raise click.ClickException("the node does not hold what it has acknowledged")


def _light(associations: int) -> Work:
    """The light client, with everything packed before the clock starts."""

    def work(server: Server, series: Series) -> float:
        items = [sendable(file) for file in series.files.values()]
        opened = [_associate(server, items[0]) for _ in range(associations)]
        packed = [
            [one.packed(item, message % 65536) for message, item in enumerate(items[number::associations], 1)]
            for number, one in enumerate(opened)
        ]
        start = time.perf_counter()
        with ThreadPoolExecutor(associations) as pool:
            answers = list(pool.map(_send, opened, packed))
        took = time.perf_counter() - start
        if not all(status == 0 for some in answers for status in some):
            raise click.ClickException("not everything is stored")
        for one in opened:
            with one:
                pass
        return took

    return work


def _associate(server: Server, item: Sendable) -> LightAssociation:
    return LightAssociation(server.dicom_port, server.ae_title, [(item.sop_class_uid, [item.transfer_syntax_uid])])


def _send(association: LightAssociation, packed: Sequence[bytes]) -> list[int]:
    return [association.send(message) for message in packed]


def _dcmsend(folder: Path, processes: int) -> Work:
    """DCMTK's dcmsend, of files that lie in the page cache."""
    folders = [folder / f"dcmsend {processes}" / str(number) for number in range(processes)]
    for each in folders:
        each.mkdir(parents=True)

    def work(server: Server, series: Series) -> float:
        # In the places of those before: where files were deleted, a file system may take long to make others.
        for number, each in enumerate(folders):
            for place, file in enumerate(list(series.files.values())[number::processes]):
                (each / f"{place}.dcm").write_bytes(file)
        command = ["dcmsend", "--scan-directories", "-aec", server.ae_title, "127.0.0.1", str(server.dicom_port)]
        environment = {**os.environ, "TCP_NODELAY": "1"}
        start = time.perf_counter()
        running = [subprocess.Popen([*command, str(each)], env=environment) for each in folders]  # noqa: S603  DCMTK's
        codes = [process.wait() for process in running]
        took = time.perf_counter() - start
        if any(codes):
            raise click.ClickException("dcmsend has failed")
        return took

    return work


def _heading(servers: Mapping[str, Server]) -> None:
    click.echo(f"{' / '.join(servers):<40} {'objects/s':>21}   {'CPU ms an object':>20} {'peak MB':>18}   ahead of")


def _line(row: Row, used: Mapping[str, Used], afterwards: float) -> None:
    count = len(row.series.files)
    rates = " / ".join(f"{count / each.seconds:5.0f}" for each in used.values())
    cpu = " / ".join(f"{each.cpu / count * 1e3:5.2f}" for each in used.values())
    peaks = " / ".join(f"{each.peak >> 20:4}" for each in used.values())
    goals = [_goal(used[name].seconds / used["segnode"].seconds, goal, name) for name, goal in row.ahead.items()]
    if row.cpu_ms is not None:
        own = used["segnode"].cpu / count * 1e3
        goals.append(f"CPU {own:.2f} ms <= {row.cpu_ms:g}{'' if own <= row.cpu_ms else ' !'} (others {afterwards:.2f})")
    click.echo(f"{row.name:<40} {rates:>21}   {cpu:>20} {peaks:>18}   {', '.join(goals)}")


def _goal(ahead: float, goal: float, name: str) -> str:
    return f"{name} {ahead:.2f} x >= {goal:g}{'' if ahead >= goal else ' !'}"


def _measure_growth(node: Server, archive: Server, series: Series, runs: int) -> None:
    """One large object: the rate beside Orthanc's, and by how much the node's memory grows."""
    work, took = _light(1), list[list[float]]()
    receiving = [process for process in descendants(node.process.pid) if post_of(process).startswith("dimse")]
    for process in receiving:
        forget_peak(process)
    before = sum(map(resident, receiving))
    for run in range(runs):
        took.append([work(server, renamed(series, run)) for server in (node, archive)])
    growth = (sum(map(peak, receiving)) - before) / 2**20
    ours, theirs = (median(each) for each in zip(*took, strict=True))
    over = "" if growth < 32 else " !"
    click.echo(
        f"{'100 MiB multi-frame object in':<40} {ours * 1e3:.0f} / {theirs * 1e3:.0f} ms   "
        f"{_goal(theirs / ours, 1, 'Orthanc')}, memory grows by {growth:.1f} MiB < 32{over}"
    )


def _measure_set_up(node: Server) -> None:
    """The time to an association with every storage class that one may offer, each in every transfer syntax."""
    classes = [str(context.abstract_syntax) for context in AllStoragePresentationContexts][:_MOST_CONTEXTS]
    offered = [(each, STORED_TRANSFER_SYNTAXES) for each in classes]
    took = []
    for _ in range(_SET_UPS):
        start = time.perf_counter()
        association = LightAssociation(node.dicom_port, node.ae_title, offered)
        took.append(time.perf_counter() - start)
        with association:
            pass
    ms = median(took) * 1e3
    name = f"association set-up, {len(offered)} contexts x {len(STORED_TRANSFER_SYNTAXES)} syntaxes"
    click.echo(f"{name:<60} {ms:.1f} ms <= 15{'' if ms <= 15 else ' !'}")


def _measure_idle(node: Server) -> None:
    """The cores that associations take with which nothing is done."""
    with _associations(node, _IDLE):
        processes = descendants(node.process.pid)
        before = cpu_seconds(processes)
        time.sleep(_IDLE_S)
        cores = (cpu_seconds(processes) - before) / _IDLE_S
    click.echo(f"{f'{_IDLE} idle associations':<40} {cores:.2f} cores <= 0.5{'' if cores <= 0.5 else ' !'}")


@contextmanager
def _associations(node: Server, count: int) -> Iterator[None]:
    opened = [LightAssociation(node.dicom_port, node.ae_title, [(VERIFICATION, [IMPLICIT])]) for _ in range(count)]
    try:
        yield
    finally:
        for one in opened:
            with one:
                pass
