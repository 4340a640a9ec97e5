"""DICOMweb beside Orthanc's, in turn, on the same objects in one run; what both answer is held against each other.

How an answer takes longer with more that is held is measured on two nodes, of a thousand and of a hundred thousand rows.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import click
import httpx
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from sqlalchemy import Select, String, cast, insert, literal, select, true

from segnode.config import parse_dimse_address
from segnode.dicom.header import Header
from segnode.dimse.scu import send_files
from segnode.store.database import open_database
from segnode.store.index import Index
from segnode.store.tables import instance
from segnode.testing.phantom import write_ct
from segnode.testing.servers import Server, node_config, orthanc, segnode

_NOTHING: Final = "models = []\nrules = []"
_OTHERS: Final = 6
_A_SERIES: Final = 100
_SERIES_OF_A_STUDY: Final = 2
_GOAL: Final = 2.0


@dataclass(frozen=True)
class Question:
    """A search that both are asked; `goal` is how many times faster segnode is to be."""

    name: str
    query: str
    matches: int
    goal: float


@click.command()
@click.option("--slices", default=400, show_default=True, help="Images of the series.")
@click.option("--size", default=512, show_default=True, help="Their rows and columns.")
@click.option("--runs", default=15, show_default=True, help="How often each is asked; the median counts.")
def dicomweb(slices: int, size: int, runs: int) -> None:
    """QIDO-RS beside Orthanc's, and with a hundred times as much held."""
    with tempfile.TemporaryDirectory(prefix="segnode-bench-") as scratch:
        _searches(Path(scratch), slices, size, runs)
        _scaling(Path(scratch), runs)


def _searches(folder: Path, slices: int, size: int, runs: int) -> None:
    with orthanc(folder / "archive") as archive, segnode(folder / "node", _NOTHING) as node, httpx.Client(timeout=60) as client:
        for number, count in enumerate((slices, *[2] * _OTHERS)):
            files = sorted(write_ct(folder / f"ct {number}", count, size, seed=number).folder.iterdir())
            for server in (node, archive):
                list(send_files(files, parse_dimse_address(server.dimse, ""), "BENCH"))
        (series,) = (item for item in _answer(client, f"{node.dicomweb}/series") if item["00201209"]["Value"] == [slices])
        study, uid = (series[tag]["Value"][0] for tag in ("0020000D", "0020000E"))
        patient = series["00100020"]["Value"][0]
        click.echo(f"{'QIDO-RS, ms':<30} {'segnode':>10} {'Orthanc':>10} {'ratio':>7} {'goal':>5}")
        one = len(_answer(client, f"{node.dicomweb}/studies?PatientID={patient}"))
        for question in (
            Question("studies of a patient", f"studies?PatientID={patient}", one, 4),
            Question(f"all {_OTHERS + 1} studies", "studies", _OTHERS + 1, 4),
            Question(f"{slices} instances of a series", f"studies/{study}/series/{uid}/instances", slices, 50),
        ):
            _compare(client, question, (node, archive), runs)


def _compare(client: httpx.Client, question: Question, servers: Sequence[Server], runs: int) -> None:
    urls = [f"{server.dicomweb}/{question.query}" for server in servers]
    answers = [_uids(_answer(client, url)) for url in urls]
    if answers[0] != answers[1] or len(answers[0]) != question.matches:
        raise click.ClickException(f"{question.name}: they do not find the same")
    ours, theirs = _in_turn([partial(_get, client, url) for url in urls], runs)
    met = " " if theirs / ours >= question.goal else "!"
    click.echo(f"{question.name:<30} {ours:10.1f} {theirs:10.1f} {theirs / ours:6.1f}x {question.goal:4.0f}x {met}")


def _scaling(folder: Path, runs: int) -> None:
    with (
        segnode(folder / "few", _NOTHING) as few,
        segnode(folder / "many", _NOTHING) as many,
        httpx.Client(timeout=60) as client,
    ):
        for node, instances in ((few, 1_000), (many, 100_000)):
            _fill(node_config(node).data / "index.sqlite", instances)
        click.echo(f"\n{'QIDO-RS by a key, ms':<30} {'1,000':>10} {'100,000':>10} {'ratio':>7} {'goal':>5}")
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
            urls = [f"{node.dicomweb}/{query}" for node in (few, many)]
            found = [_uids(_answer(client, url)) for url in urls]
            if not found[0] or len(found[0]) != len(found[1]):
                raise click.ClickException(f"{query}: the two nodes do not find as much")
            small, large = _in_turn([partial(_get, client, url) for url in urls], runs)
            met = " " if large / small <= _GOAL else "!"
            click.echo(f"{query[:58]:<58} {small:6.1f} {large:6.1f} {large / small:6.1f}x {_GOAL:4.0f}x {met}")


def _in_turn(requests: Sequence[Callable[[], Any]], runs: int) -> list[float]:
    """The median milliseconds of each, made in turn."""
    took: list[list[float]] = [[] for _ in requests]
    for _ in range(runs):
        for request, times in zip(requests, took, strict=True):
            start = time.perf_counter()
            request()
            times.append((time.perf_counter() - start) * 1e3)
    return [median(times) for times in took]


def _get(client: httpx.Client, url: str) -> httpx.Response:
    return client.get(url, headers={"Accept": "application/dicom+json"}).raise_for_status()


def _answer(client: httpx.Client, url: str) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = _get(client, url).json()
    return answer


def _uids(answer: Sequence[dict[str, Any]]) -> set[tuple[str, ...]]:
    """What was found, by the UIDs of every level that a match names."""
    tags = ("0020000D", "0020000E", "00080018")
    return {tuple(item[tag]["Value"][0] for tag in tags if tag in item) for item in answer}


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
            index.add(header, uid, 1, "", "made", time.time())
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
        "object_key": instance.c.object_key + "." + number,
        "InstanceNumber": number,
    }
    copied = [changed.get(column.name, column) for column in instance.columns]
    return select(*copied).select_from(instance.join(numbers, true()))
