"""Snapshots: databases as they were at one moment, the objects they name, and files that are whole or not there."""

import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from segnode.store.filesystem import synchronise

_BUSY_TIMEOUT_S: Final = 30
_HELD: Final = "SOPInstanceUID, object_key, size, digest"


@dataclass(frozen=True)
class Held:
    """An object as a row of the index names it."""

    sop_instance_uid: str
    object_key: str
    size: int
    digest: str


def take_snapshot(database: Path, target: Path) -> None:
    """Write a database as it is now to another file, while others write to it. Raises sqlite3.Error."""
    for left in (target, target.with_name(f"{target.name}-journal")):
        left.unlink(missing_ok=True)
    with _opened(database) as connection:
        connection.execute("VACUUM INTO ?", (str(target),))


def held_objects(index: Path) -> Iterator[Held]:
    """Every object that an index names, in the order they came. Raises sqlite3.Error."""
    with _opened(index) as connection:
        yield from (Held(*row) for row in connection.execute(f"SELECT {_HELD} FROM instance ORDER BY rowid"))  # noqa: S608


def totals(index: Path) -> tuple[int, int]:
    """How many objects an index names, and their bytes. Raises sqlite3.Error."""
    with _opened(index) as connection:
        count, size = connection.execute("SELECT count(*), coalesce(sum(size), 0) FROM instance").fetchone()
    return count, size


def no_longer_held(index: Path, objects: Iterable[Held]) -> list[Held]:
    """Those of the objects that an index does not name any more. Raises sqlite3.Error."""
    query = "SELECT 1 FROM instance WHERE SOPInstanceUID = ? AND object_key = ?"
    with _opened(index) as connection:
        return [o for o in objects if connection.execute(query, (o.sop_instance_uid, o.object_key)).fetchone() is None]


def drop(index: Path, objects: Iterable[Held]) -> None:
    """Take the rows of objects out of a snapshot, and those of series and studies that are empty then. Raises sqlite3.Error."""
    with _opened(index) as connection:
        for held in objects:
            query = "SELECT SeriesInstanceUID, StudyInstanceUID FROM instance JOIN series USING (SeriesInstanceUID)"
            above = connection.execute(f"{query} WHERE SOPInstanceUID = ?", (held.sop_instance_uid,)).fetchone()
            connection.execute("DELETE FROM instance WHERE SOPInstanceUID = ?", (held.sop_instance_uid,))
            empty = "NOT EXISTS (SELECT 1 FROM instance WHERE SeriesInstanceUID = series.SeriesInstanceUID)"
            connection.execute(f"DELETE FROM series WHERE SeriesInstanceUID = ? AND {empty}", above[:1])  # noqa: S608
            empty = "NOT EXISTS (SELECT 1 FROM series WHERE StudyInstanceUID = study.StudyInstanceUID)"
            connection.execute(f"DELETE FROM study WHERE StudyInstanceUID = ? AND {empty}", above[1:])  # noqa: S608


def considered_series(index: Path) -> Mapping[str, float]:
    """Up to which image the rules have been asked about each series. Raises sqlite3.Error."""
    with _opened(index) as connection:
        return dict(connection.execute("SELECT SeriesInstanceUID, considered_at FROM series").fetchall())


def set_considered(index: Path, earlier: Mapping[str, float]) -> None:
    """Have the series of a snapshot considered as they were earlier, so that the rules are asked again about the others.

    What the node made itself is never asked about, and stays as it is. Raises sqlite3.Error.
    """
    changed = [(earlier.get(uid, 0.0), uid) for uid, at in considered_series(index).items() if at != earlier.get(uid, 0.0)]
    received = "SELECT 1 FROM instance WHERE SeriesInstanceUID = series.SeriesInstanceUID AND origin = 'received'"
    update = f"UPDATE series SET considered_at = ? WHERE SeriesInstanceUID = ? AND EXISTS ({received})"  # noqa: S608
    with _opened(index) as connection:
        connection.executemany(update, changed)


def delete_others(folder: Path, keys: Collection[str]) -> None:
    """Delete every file in a folder of objects that has none of these keys as its name."""
    for path in folder.rglob("*"):
        if path.name not in keys and path.is_file():
            path.unlink()


@contextmanager
def written(target: Path) -> Iterator[Path]:
    """A name beside a file to be: what is written there is synchronised and renamed, unless an error is raised."""
    _make_folder(target.parent)
    beside = target.with_name(f"{target.name}.part")
    try:
        yield beside
        put_in_place(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def put_in_place(path: Path, target: Path) -> None:
    """Give a file or folder that is complete its name, durably."""
    synchronise(path)
    path.rename(target)
    synchronise(target.parent)


@contextmanager
def _opened(database: Path) -> Iterator[sqlite3.Connection]:
    """A connection whose changes are committed at the end. A snapshot keeps no files beside it, as a node's database does."""
    with closing(sqlite3.connect(database, timeout=_BUSY_TIMEOUT_S)) as connection, connection:
        connection.execute("PRAGMA foreign_keys = ON")  # what hangs on a row goes with it
        yield connection


def _make_folder(folder: Path) -> None:
    if not folder.exists():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True, mode=0o700)
        synchronise(folder.parent)
