"""Backups: a consistent copy of a data folder that a node may be running on, and the way back.

A backup has the layout of a data folder, and `backup.json`, which is written last: without it a backup is incomplete.
The rows of the pipeline are copied first, then those of the index, then what the index names: so no row names an object
that is not there. What of a series was decided in between is decided again, by the same derived ids. Workflows are not
copied: they follow from the rows.
"""

import fcntl
import hashlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

from segnode.dicom.digest import data_set_digest
from segnode.dicom.header import read_header
from segnode.errors import BackupFailed, ConfigError, Refusal
from segnode.store.objects import object_path
from segnode.store.snapshot import (
    Held,
    considered_series,
    delete_others,
    drop,
    held_objects,
    no_longer_held,
    put_in_place,
    set_considered,
    take_snapshot,
    totals,
    written,
)

Watch = Callable[[Iterable[Held], int], AbstractContextManager[Iterable[Held]]]

_PIPELINE: Final = "pipeline.sqlite"
_INDEX: Final = "index.sqlite"
_SECRET: Final = "secret"  # noqa: S105  the name of its file
_OBJECTS: Final = "objects"
_RECORD: Final = "backup.json"
# It marks a folder as a backup, also as one that is incomplete, and is held while one is written.
_LOCK: Final = "backup.lock"


@dataclass(frozen=True)
class Backup:
    """What `backup.json` says: when it was made and by which segnode, what it holds, and the SHA-256 of its other files."""

    made_at: str
    segnode: str
    objects: int
    bytes: int
    files: Mapping[str, str]


class _Missing(Exception):
    """There is nothing to copy."""


class _Damaged(Exception):
    """A copy that is not what it should be."""


def back_up(data: Path, dest: Path, now: float, watch: Watch) -> Backup:
    """Copy a data folder to `dest`; what an earlier backup left there is not copied again.

    The earlier one stands until all that the new one needs is there; a repeat completes what was interrupted. `watch` is
    given the objects as they are copied, and how many they are. Raises ConfigError when there is no data folder, or
    `dest` is in it or holds something else; BackupFailed when an object is missing or damaged, or there is no room.
    """
    data, dest = data.resolve(), dest.resolve()
    if not ((data / _INDEX).exists() and (data / _PIPELINE).exists()):
        raise ConfigError(f"node.data: there is no node's data in {data}: has a node run with this configuration?")
    with _explained(f"{dest}: the backup cannot be completed; repeat it when this is mended"):
        _require_place_for_backup(dest, data)
        dest.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _sole(dest):
            return _back_up(data, dest, now, watch)


def restore_backup(src: Path, data: Path, watch: Watch) -> Backup:
    """Make the data folder anew from a backup, and verify every object of it; an interrupted one leaves no data folder.

    `watch` is given the objects as they are copied, and how many they are. Raises ConfigError when there is a data
    folder already, or `src` is no complete backup; BackupFailed, naming every object that is missing or damaged.
    """
    src, data = src.resolve(), data.resolve()
    backup = _read_record(src)
    _require_no_data(data)
    beside = data.with_name(f"{data.name}.restoring")
    with _explained(f"{data} is not restored"):
        beside.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _sole_restore(beside):
            _restore(src, beside, backup, watch)
            if _read_record(src) != backup:
                raise BackupFailed(f"{src}: was written anew meanwhile: restore it again")
            put_in_place(beside, data)
    return backup


def _back_up(data: Path, dest: Path, now: float, watch: Watch) -> Backup:
    pipeline, index = (dest / f"{name}.new" for name in (_PIPELINE, _INDEX))
    # What is considered by now has its decision in the snapshot that follows.
    considered = considered_series(data / _INDEX)
    take_snapshot(data / _PIPELINE, pipeline)
    take_snapshot(data / _INDEX, index)
    set_considered(index, considered)
    missing, damaged = _copy_objects(index, data / _OBJECTS, dest / _OBJECTS, watch)
    gone = no_longer_held(data / _INDEX, missing)
    problems = damaged | {held.sop_instance_uid: "is missing" for held in missing if held not in gone}
    _require_none(problems, f"{dest}: the backup cannot be completed: objects of {data} are missing or damaged")
    drop(index, gone)
    if (data / _SECRET).exists():
        with written(dest / _SECRET) as beside:
            shutil.copyfile(data / _SECRET, beside)
    # From here on the earlier backup is none any more.
    (dest / _RECORD).unlink(missing_ok=True)
    put_in_place(pipeline, dest / _PIPELINE)
    put_in_place(index, dest / _INDEX)
    delete_others(dest / _OBJECTS, {held.object_key for held in held_objects(dest / _INDEX)})
    made_at = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
    files = {name: _sha256(dest / name) for name in (_PIPELINE, _INDEX, _SECRET) if (dest / name).exists()}
    backup = Backup(made_at, version("segnode"), *totals(dest / _INDEX), files)
    with written(dest / _RECORD) as beside:
        beside.write_bytes(msgspec.json.encode(backup))
    return backup


def _restore(src: Path, target: Path, backup: Backup, watch: Watch) -> None:
    for name, digest in backup.files.items():
        with written(target / name) as beside:
            shutil.copyfile(src / name, beside)
            if _sha256(beside) != digest:
                raise BackupFailed(f"{src / name}: is damaged: use another backup")
    missing, damaged = _copy_objects(target / _INDEX, src / _OBJECTS, target / _OBJECTS, watch)
    problems = damaged | {held.sop_instance_uid: "is missing" for held in missing}
    _require_none(problems, f"{src}: objects are missing or damaged: use another backup")


def _copy_objects(index: Path, source: Path, target: Path, watch: Watch) -> tuple[list[Held], dict[str, str]]:
    """Copy every object that an index names; those that are missing, and by their UID what is wrong with others."""
    missing: list[Held] = []
    damaged: dict[str, str] = {}
    with watch(held_objects(index), totals(index)[0]) as objects:
        for held in objects:
            try:
                _copy_object(held, object_path(source, held.object_key), object_path(target, held.object_key))
            except _Missing:
                missing.append(held)
            except _Damaged as reason:
                damaged[held.sop_instance_uid] = str(reason)
    return missing, damaged


def _copy_object(held: Held, source: Path, target: Path) -> None:
    with suppress(FileNotFoundError):
        if target.stat().st_size == held.size:
            return
    try:
        file = source.open("rb")
    except FileNotFoundError as error:
        raise _Missing from error
    with file, written(target) as beside:
        with beside.open("wb") as copy:
            shutil.copyfileobj(file, copy)
        _require_whole(held, beside)


def _require_whole(held: Held, path: Path) -> None:
    size = path.stat().st_size
    if size != held.size:
        raise _Damaged(f"has {size} bytes instead of {held.size}")
    try:
        with path.open("rb") as file:
            digest = data_set_digest(file, read_header(file), like=held.digest)
    except Refusal as refusal:
        raise _Damaged(f"cannot be read: {refusal}") from refusal
    if digest != held.digest:
        raise _Damaged("has other bytes than were received")


def _require_none(problems: Mapping[str, str], what: str) -> None:
    if problems:
        raise BackupFailed("\n".join((what, *(f"    SOP instance {uid} {problem}" for uid, problem in problems.items()))))


def _require_place_for_backup(dest: Path, data: Path) -> None:
    if dest.is_relative_to(data):
        raise ConfigError(f"{dest}: lies in the data folder {data}: give the backup a folder of its own, on another disk")
    if not dest.exists():
        return
    names = {path.name for path in dest.iterdir()}
    if names and names.isdisjoint((_RECORD, _LOCK)):
        raise ConfigError(f"{dest}: is not empty and holds no backup: give the backup a folder of its own")
    if _SECRET in names and _bytes(dest / _SECRET) != _bytes(data / _SECRET):
        raise ConfigError(f"{dest}: holds the backup of another node: give the backup a folder of its own")


def _require_no_data(data: Path) -> None:
    for lock in data.glob("*-[0-9]*.lock"):  # of the node's processes
        if not _is_free(lock):
            raise ConfigError(f"node.data: a node runs on {data}: stop it, move the folder away, then restore")
    if data.exists() and any(data.iterdir()):
        raise ConfigError(f"node.data: {data} is not empty: move it away, then restore")
    if data.is_mount():
        raise ConfigError(f"node.data: {data} is a mount point: restoring renames a folder into place; set a folder on it")


def _read_record(src: Path) -> Backup:
    """Raises ConfigError when there is none."""
    try:
        backup = msgspec.json.decode((src / _RECORD).read_bytes(), type=Backup)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{src}: is no complete backup: there is no {_RECORD} that can be read") from error
    if not {_PIPELINE, _INDEX} <= backup.files.keys() <= {_PIPELINE, _INDEX, _SECRET}:
        raise ConfigError(f"{src}: is no backup that this version can restore: {_RECORD} names other files")
    return backup


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """A disk that is full or fails, said in the words of this module."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise BackupFailed(f"{what}: {reason or error}") from error


@contextmanager
def _sole(dest: Path) -> Iterator[None]:
    """One backup at a time in a folder."""
    with (dest / _LOCK).open("w") as lock:
        if not _lock(lock.fileno()):
            raise ConfigError(f"{dest}: another backup is being written there: wait for its end")
        yield


@contextmanager
def _sole_restore(beside: Path) -> Iterator[None]:
    """One restore at a time, in a folder that is empty at first, and gone at the end unless it was renamed."""
    descriptor = os.open(beside, os.O_RDONLY)
    try:
        if not _lock(descriptor):
            raise ConfigError(f"{beside}: another restore is writing there: wait for its end")
        _empty(beside)
        try:
            yield
        finally:
            if beside.exists():
                shutil.rmtree(beside)
    finally:
        os.close(descriptor)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _is_free(lock: Path) -> bool:
    with closing(lock.open()) as file:
        return _lock(file.fileno())


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
