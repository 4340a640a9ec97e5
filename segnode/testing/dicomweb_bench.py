"""DICOMweb beside Orthanc's and a bare responder, in turn, on the same objects in one run; the answers are compared.

The bare responder sends the same bytes by the node's own HTTP server, out of files, and knows nothing of DICOM. How an
answer takes longer with more that is held is measured on two nodes, of a thousand and of a hundred thousand rows.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import click
from pydicom import dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from sqlalchemy import Select, String, cast, func, insert, literal, select, true

from segnode.config import NodeConfig
from segnode.dicom.header import Header
from segnode.store.database import open_database
from segnode.store.index import Index
from segnode.store.tables import instance
from segnode.testing.asking import Answer, Connection
from segnode.testing.corpus import BOUNDARY, Series, ct_series, multi_frame, renamed
from segnode.testing.servers import Server, bare, node_config, orthanc, segnode
from segnode.testing.turns import Used, await_documents, in_turn

_NOTHING: Final = "models = []\nrules = []"
_OTHERS: Final = 6
_FRAMES: Final = 200
_FRAME: Final = 100
_CONNECTIONS: Final = 4
_STORE_RUNS: Final = 2
_QUICK: Final = 8
_A_SERIES: Final = 100
_SERIES_OF_A_STUDY: Final = 2
_GOAL: Final = 2.0
_JSON: Final = "application/dicom+json"
_OBJECTS: Final = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_OCTETS: Final = 'multipart/related; type="application/octet-stream"'
_MESSAGES: Final = f'multipart/related; type="application/dicom"; boundary={BOUNDARY.decode()}'
_STUDY, _SERIES, _SOP = "0020000D", "0020000E", "00080018"
_REFERENCED, _REFERENCED_SOP, _INSTANCES = "00081199", "00081155", "00201209"


@dataclass(frozen=True)
class Row:
    """A request, made `runs` times of each server; how many times faster than Orthanc it is to be, and slower than bare.

    `is_right` is asked of an answer, and of that of the other server that knows DICOM.
    """

    name: str
    path: str
    accept: str
    is_right: Callable[[Answer, Answer], bool]
    faster: float
    slower: float
    runs: int


@dataclass(frozen=True)
class Trio:
    """The three servers, and a connection to each; the files of the bare one lie in a folder."""

    servers: Sequence[Server]
    connections: Sequence[Connection]
    folder: Path


@click.command()
@click.option("--slices", default=400, show_default=True, help="Images of the series.")
@click.option("--size", default=512, show_default=True, help="Their rows and columns.")
@click.option("--runs", default=5, show_default=True, help="How often each is asked; more often what takes little.")
@click.option("--part", type=click.Choice(["beside", "scaling"]), help="Only what is beside others, or with more held.")
def dicomweb(slices: int, size: int, runs: int, part: str | None) -> None:
    """STOW-RS, WADO-RS and QIDO-RS beside Orthanc's and a bare responder; QIDO-RS with a hundred times as much held."""
    with tempfile.TemporaryDirectory(prefix="segnode-bench-") as scratch:
        if part != "scaling":
            _beside(Path(scratch), slices, size, runs)
        if part != "beside":
            _scaling(Path(scratch), 3 * runs)


def _beside(folder: Path, slices: int, size: int, runs: int) -> None:
    with (
        segnode(folder / "node", _NOTHING, web_workers=NodeConfig().web_workers) as node,
        orthanc(folder / "archive") as archive,
        bare(folder / "bare") as responder,
        ExitStack() as stack,
    ):
        servers = (node, archive, responder)
        trio = Trio(servers, [stack.enter_context(_connected(s)) for s in servers], folder / "bare")
        click.echo(f"{'segnode / Orthanc / bare':<28} {'median ms':>27} {'Orthanc/segnode':>18} {'segnode/bare':>15}", nl=False)
        click.echo(f"{'CPU ms':>28} {'peak MB':>18}")
        held = _store(trio, ct_series(folder / "ct", slices, size, 0))
        many = multi_frame(size, _FRAMES)
        for other in (*(ct_series(folder / f"ct {seed}", 2, size, seed) for seed in range(1, _OTHERS + 1)), many):
            for connection in trio.connections[:2]:
                _require_stored(other, [_post(connection, message) for message in other.messages()])
        await_documents(node)
        for row in _rows(held, many, runs):
            _compare(trio, row)


def _rows(held: Series, many: Series, runs: int) -> Sequence[Row]:
    (uid, one), (multi, frames) = next(iter(held.files.items())), next(iter(many.files.items()))
    patient, count = dcmread(BytesIO(one)).PatientID, len(held.files)

    def frame(name: str, path: str, file: bytes, number: int, faster: float, runs: int) -> Row:
        dataset = dcmread(BytesIO(file))
        size = dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8
        pixels = dataset.PixelData[(number - 1) * size : number * size]
        return Row(name, f"{path}/frames/{number}", _OCTETS, lambda answer, _: [*answer.parts()] == [pixels], faster, 3, runs)

    def has_objects(answer: Answer, _: Answer) -> bool:
        return sorted(answer.parts()) == sorted(held.files.values())

    return [
        frame("one CT frame", f"{held.path}/instances/{uid}", one, 1, 4, runs * _QUICK),
        frame(f"frame {_FRAME} of {_FRAMES}", f"{many.path}/instances/{multi}", frames, _FRAME, 100, runs),
        Row(f"metadata of {count} slices", f"{held.path}/metadata", _JSON, _same_documents, 20, 3, runs),
        Row("QIDO one patient", f"studies?PatientID={patient}", _JSON, _same_matches, 4, 5, runs * _QUICK),
        Row("QIDO all studies", "studies", _JSON, _same_matches, 4, 5, runs * _QUICK),
        Row(f"QIDO {count} instances", f"{held.path}/instances", _JSON, _same_matches, 50, 5, runs),
        Row(f"whole series of {count}", held.path, _OBJECTS, has_objects, 2, 1.5, runs),
    ]


def _compare(trio: Trio, row: Row) -> None:
    """Ask for a row's resource: first for the right answer, then for the time."""
    node, archive, responder = trio.connections
    ours, theirs = (connection.get(_path(row.path), row.accept) for connection in (node, archive))
    (trio.folder / "answer").write_bytes(ours.body)
    sent = f"/answer?offset=0&size={len(ours.body)}"
    if not (row.is_right(ours, theirs) and row.is_right(theirs, ours) and responder.get(sent).body == ours.body):
        raise click.ClickException(f"{row.name}: they do not answer the same")
    size = len(ours.body)

    def ask(connection: Connection, path: str) -> float:
        answer = connection.get(path, row.accept)
        if connection is not archive and len(answer.body) != size:
            raise click.ClickException(f"{row.name}: not the same answer each time")
        return answer.took

    paths = (_path(row.path), _path(row.path), sent)
    requests = [partial(ask, c, path) for c, path in zip(trio.connections, paths, strict=True)]
    _line(row.name, in_turn(requests, row.runs, trio.servers), row.faster, row.slower)


def _store(trio: Trio, series: Series) -> Series:
    """Store a series under other UIDs in each run, by one connection and by four; the first of them."""
    node, *_ = trio.servers
    stored: list[Series] = []
    for connections in (1, _CONNECTIONS):
        runs = [renamed(series, len(stored) + number) for number in range(_STORE_RUNS)]
        stored += runs
        requests = [partial(_send_next, server, iter(runs), connections) for server in trio.servers]
        what = "one connection" if connections == 1 else f"{connections} connections"
        used = in_turn(requests, _STORE_RUNS, trio.servers, lambda: await_documents(node))
        _line(f"STOW {len(series.files)} CT, {what}", used, 5, 0)
    for connection in trio.connections[:2]:
        for one in stored:
            (said,) = json.loads(bytes(connection.get(_path(f"studies/{one.study}/series"), _JSON).body))
            if said[_INSTANCES]["Value"] != [len(series.files)]:
                raise click.ClickException("what was stored is not held")
    return stored[0]


def _send_next(server: Server, left: Iterator[Series], connections: int) -> float:
    """The seconds in which the next series is stored."""
    series = next(left)
    messages = [*series.messages()]

    def post_some(first: int) -> list[bytes]:
        with _connected(server) as connection:
            return [_post(connection, message) for message in messages[first::connections]]

    start = time.perf_counter()
    with ThreadPoolExecutor(connections) as pool:
        answers = [answer for some in pool.map(post_some, range(connections)) for answer in some]
    took = time.perf_counter() - start
    if server.dicom_port:
        _require_stored(series, answers)
    return took


def _post(connection: Connection, message: bytes) -> bytes:
    """Post a message; the answer."""
    return bytes(connection.post(_path("studies"), message, _MESSAGES).body)


def _require_stored(series: Series, answers: Sequence[bytes]) -> None:
    """Raise ClickException where the answers do not name every object of a series."""
    stored = [item[_REFERENCED_SOP]["Value"][0] for answer in answers for item in json.loads(answer)[_REFERENCED]["Value"]]
    if sorted(stored) != sorted(series.files):
        raise click.ClickException("not everything is stored")


def _line(name: str, used: Sequence[Used], faster: float, slower: float) -> None:
    ours, theirs, floor = used
    ahead, behind = theirs.seconds / ours.seconds, ours.seconds / floor.seconds
    times = " / ".join(f"{each.seconds * 1e3:7.1f}" for each in used)
    met = f"{ahead:6.1f} x >= {faster:g} {' ' if ahead >= faster else '!'}"
    goal = f"<= {slower:g} {' ' if behind <= slower else '!'}" if slower else ""
    cpu, most = " / ".join(f"{each.cpu * 1e3:.1f}" for each in used), " / ".join(f"{each.peak >> 20}" for each in used)
    click.echo(f"{name:<28} {times}  {met:<16} {behind:6.1f} x {goal:<9} {cpu:>23} {most:>18}")


@contextmanager
def _connected(server: Server) -> Iterator[Connection]:
    connection = Connection(server.http_port)
    try:
        yield connection
    finally:
        connection.close()


def _seconds(connection: Connection, path: str) -> float:
    return connection.get(path, _JSON).took


def _path(resource: str) -> str:
    return f"/dicom-web/{resource}"


def _same_documents(answer: Answer, other: Answer) -> bool:
    """Both describe the same instances in the same way; each has URIs of its own for bulk data."""
    mine, theirs = ({d[_SOP]["Value"][0]: d for d in json.loads(bytes(each.body))} for each in (answer, other))
    return mine.keys() == theirs.keys() and all(
        element == theirs[uid].get(tag) or "BulkDataURI" in element
        for uid, document in mine.items()
        for tag, element in document.items()
    )


def _same_matches(answer: Answer, other: Answer) -> bool:
    return _uids(answer) == _uids(other)


def _uids(answer: Answer) -> set[tuple[str, ...]]:
    """What was found, by the UIDs of every level that a match names."""
    found: list[dict[str, Any]] = json.loads(bytes(answer.body))
    return {tuple(match[tag]["Value"][0] for tag in (_STUDY, _SERIES, _SOP) if tag in match) for match in found}


def _scaling(folder: Path, runs: int) -> None:
    with (
        segnode(folder / "few", _NOTHING) as few,
        segnode(folder / "many", _NOTHING) as many,
        _connected(few) as one,
        _connected(many) as other,
    ):
        for node, instances in ((few, 1_000), (many, 100_000)):
            _fill(node_config(node).data / "index.sqlite", instances)
        click.echo(f"\n{'QIDO-RS by a key, ms':<58} {'1,000':>6} {'100,000':>6} {'ratio':>6} {'goal':>5}")
        for query in (
            "studies?PatientID=P0003",
            "studies?PatientName=NAME0003%5EGiven",
            "studies?PatientName=name0003%5E*",
            "studies?PatientName=name0003&fuzzymatching=true",
            "studies?AccessionNumber=A0003",
            "studies?StudyInstanceUID=1.9.3",
            "studies?StudyDate=20030103",
            "studies?StudyDate=20020601-20030601",
            "studies/1.9.3/series",
            "series?SeriesInstanceUID=1.9.3.1",
            "series?PatientID=P0003&Modality=CT",
            "studies/1.9.3/series/1.9.3.1/instances",
            "instances?SOPInstanceUID=1.9.3.1.0",
            "instances?PatientID=P0003&limit=10",
            "instances?SOPClassUID=1.2.840.10008.5.1.4.1.1.2&limit=10",
            "instances?SegmentSequence.SegmentLabel=Label%200003",
            "studies?limit=5",
        ):
            found = [_uids(connection.get(_path(query), _JSON)) for connection in (one, other)]
            if not found[0] or len(found[0]) != len(found[1]):
                raise click.ClickException(f"{query}: the two nodes do not find as much")
            requests = [partial(_seconds, connection, _path(query)) for connection in (one, other)]
            small, large = (1e3 * used.seconds for used in in_turn(requests, runs))
            met = " " if large / small <= _GOAL else "!"
            click.echo(f"{query[:58]:<58} {small:6.1f} {large:6.1f} {large / small:6.1f}x {_GOAL:4.0f}x {met}")


def _fill(database: Path, instances: int) -> None:
    """Rows of studies that a number tells apart: of each series the first by the index itself, the others copied from it."""
    index = Index(open_database(database))
    for number in range(instances // _A_SERIES // _SERIES_OF_A_STUDY):
        attributes = {
            "PatientID": f"P{number:04}",
            "PatientName": f"Name{number:04}^Given",
            "AccessionNumber": f"A{number:04}",
            "StudyDate": f"{2000 + number:04}0103",
            "Modality": "CT",
            "InstanceNumber": "0",
        }
        for series in range(_SERIES_OF_A_STUDY):
            uid = f"1.9.{number}.{series}"
            header = Header(CTImageStorage, f"{uid}.0", f"1.9.{number}", uid, ExplicitVRLittleEndian, 0, attributes)
            if series:
                header = replace(header, items={"SegmentSequence": [{"SegmentLabel": f"Label {number:04}"}]})
            index.add(header, f"{number:012x}{series:04x}{0:016x}", 1, "", "made", time.time())
    engine = open_database(database)
    with engine.begin() as connection:
        connection.execute(insert(instance).from_select([c.name for c in instance.columns], _copies()))
    engine.dispose()


def _copies() -> Select[Any]:
    numbers = select(literal(1).label("n")).cte(recursive=True)
    numbers = numbers.union_all(select(numbers.c.n + 1).where(numbers.c.n < _A_SERIES - 1))
    number = cast(numbers.c.n, String)
    changed = {
        "SOPInstanceUID": instance.c.SeriesInstanceUID + "." + number,
        "object_key": func.printf("%s%016x", func.substr(instance.c.object_key, 1, 16), numbers.c.n),
        "InstanceNumber": number,
    }
    copied = [changed.get(column.name, column) for column in instance.columns]
    return select(*copied).select_from(instance.join(numbers, true()))
