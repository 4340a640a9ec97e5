"""Backups of a folder and their way back; what a running node adds is in tests/wire."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom.uid import ExplicitVRLittleEndian

from segnode.backup import Backup, back_up, restore_backup
from segnode.config import parse_config
from segnode.dicom.query import Query
from segnode.errors import BackupFailed, ConfigError
from segnode.node import Store, open_store
from segnode.pipeline.assemble import image_values
from segnode.pipeline.receive import Receiver
from segnode.pipeline.rules import Rule, documents, resolve_rules
from segnode.pipeline.sweep import Sweep
from segnode.store.jobs import Job
from segnode.store.leases import Lease
from segnode.store.measures import Meter
from segnode.store.snapshot import Held
from segnode.testing.part10 import encode_part10
from tests.unit.test_sweep import ask_nobody
from tests.wire.test_disk_full import fill, small_disk
from tests.wire.test_storage import small

__all__ = ["small_disk"]

NOW = 1000.0


@dataclass
class Node:
    """A data folder, what is in it, and a clock that stands where it is set."""

    data: Path
    store: Store
    now: float = NOW

    def receive(self, *sops: str, series: str = "1.2.3.5") -> None:
        """Objects come in now."""
        receiver = Receiver(self.store.objects, self.store.index, Meter("test"), "SEGNODE", 0, lambda: self.now)
        for sop in sops:
            with self.store.objects.spool() as spool:
                spool.write(encode_part10(small(sop, SeriesInstanceUID=series, Modality="CT"), ExplicitVRLittleEndian))
                spool.complete()
                receiver.receive(spool)

    def file(self, sop: str) -> Path:
        """The file of an object."""
        instance = self.store.index.find(sop)
        assert instance is not None
        return self.store.objects.path(instance.object_key)

    def held(self) -> dict[str, bytes]:
        """Every object by its UID."""
        found = self.store.index.instances("1.2.3")
        return {i.sop_instance_uid: self.store.objects.path(i.object_key).read_bytes() for i in found}

    def sweep(self, *rules: Rule) -> list[Job]:
        """Sweep now, as a worker that has these rules; all jobs after that."""
        first_loaded = self.store.jobs.load_rules(documents(rules), self.now)
        values = image_values(self.store.index, self.store.objects.path)
        Sweep(self.store.index, self.store.jobs, rules, first_loaded, values, ask_nobody, lambda: self.now).decide()
        return self.store.jobs.all()


def node_on(data: Path) -> Node:
    """The node of a data folder."""
    return Node(data, open_store(parse_config(f'[node]\ndata = "{data}"', Path()), Lease("a" * 12, "dimse-1")))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node that holds three objects and a secret."""
    node = node_on(tmp_path / "data")
    (node.data / "secret").write_text("secret")
    node.receive("1.1", "1.2", "1.3")
    return node


def unwatched(objects: Iterable[Held], count: int) -> nullcontext[Iterable[Held]]:
    """Nobody looks on."""
    return nullcontext(objects)


def backed_up(node: Node, dest: Path) -> Backup:
    """A backup that nobody watches."""
    return back_up(node.data, dest, NOW, unwatched)


def restored(src: Path, data: Path) -> Node:
    """The node of a restored backup."""
    restore_backup(src, data, unwatched)
    return node_on(data)


def rule(version: str = "1") -> Rule:
    """A rule for every CT, without a wait."""
    model = f'[[models]]\nname = "m"\nrun = "python:m"\nlabels = "threshold"\nversion = "{version}"\n'
    (resolved,) = resolve_rules(
        parse_config(model + '[[rules]]\nwhen = { Modality = "CT" }\nmodel = "m"\nquiet = 0.0\n', Path())
    )
    return resolved


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file of a folder: its inode and its bytes."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_ino, path.read_bytes()) for path in found}


def test_restored_is_what_was_backed_up(node: Node, tmp_path: Path) -> None:
    """Objects, index, rows of the pipeline and the secret come back, and nothing else is there."""
    (job,) = node.sweep(rule())
    record = backed_up(node, tmp_path / "backup")
    back = restored(tmp_path / "backup", tmp_path / "back")
    assert back.held() == node.held()
    assert back.store.index.instances("1.2.3") == node.store.index.instances("1.2.3")
    assert back.store.jobs.all() == [job]
    assert (back.data / "secret").read_text() == "secret"
    size = sum(map(len, node.held().values()))
    assert (record.made_at, record.objects, record.bytes) == ("1970-01-01T00:16:40+00:00", 3, size)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "backup", "back"}
    names = {path.name for path in (tmp_path / "backup").iterdir()}
    assert names == {"objects", "index.sqlite", "pipeline.sqlite", "secret", "backup.json", "backup.lock"}


def test_repeat_copies_only_what_is_new(node: Node, tmp_path: Path) -> None:
    """A repeat leaves the files that are there, adds what came, and deletes what the node does not hold any more."""
    backed_up(node, tmp_path / "backup")
    before = files(tmp_path / "backup" / "objects")
    node.receive("1.4")
    stray = tmp_path / "backup" / "objects" / "00" / "00" / ("0" * 32)
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"deleted since")
    assert backed_up(node, tmp_path / "backup").objects == 4
    after = files(tmp_path / "backup" / "objects")
    assert before.items() <= after.items()
    assert len(after) == 4
    assert restored(tmp_path / "backup", tmp_path / "back").held() == node.held()


def test_object_that_is_deleted_meanwhile_leaves_the_backup(node: Node, tmp_path: Path) -> None:
    """An object whose row and file go while objects are copied is not in the backup, nor its series that is empty then."""
    node.receive("1.9", series="1.2.3.6")

    @contextmanager
    def deleting(objects: Iterable[Held], count: int) -> Iterator[Iterable[Held]]:
        for sop in ("1.2", "1.9"):
            node.file(sop).unlink()
            with node.store.index._writer.begin() as connection:
                connection.exec_driver_sql("DELETE FROM instance WHERE SOPInstanceUID = ?", (sop,))
        yield objects

    assert back_up(node.data, tmp_path / "backup", NOW, deleting).objects == 2
    back = restored(tmp_path / "backup", tmp_path / "back")
    assert sorted(back.held()) == ["1.1", "1.3"]
    found = back.store.index.search(Query("series"), ["SeriesInstanceUID"], 10)
    assert [*found.attributes["SeriesInstanceUID"]] == ["1.2.3.5"]


def truncate(path: Path) -> None:
    """End a file too early."""
    path.write_bytes(path.read_bytes()[:-1])


def change(path: Path) -> None:
    """Change a value in a file."""
    path.write_bytes(path.read_bytes().replace(b"Some^Body", b"Some^Bodz"))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(Path.unlink, "is missing"), (truncate, "bytes instead of"), (change, "other bytes")],
)
def test_damaged_object_is_named(node: Node, tmp_path: Path, damage, reason: str) -> None:
    """What the index names and is missing or damaged ends backup and restore with its UID; both leave what was there."""
    backed_up(node, tmp_path / "backup")
    copy = tmp_path / "backup" / node.file("1.2").relative_to(node.data)
    damage(copy)
    with pytest.raises(BackupFailed, match=f"SOP instance 1.2 .*{reason}"):
        restore_backup(tmp_path / "backup", tmp_path / "back", unwatched)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "backup"}
    damage(node.file("1.3"))
    with pytest.raises(BackupFailed, match=f"SOP instance 1.3 .*{reason}"):
        backed_up(node, tmp_path / "other")
    assert not (tmp_path / "other" / "backup.json").exists()


def test_damaged_rows_are_not_restored(node: Node, tmp_path: Path) -> None:
    """A database that is not what was backed up is said."""
    backed_up(node, tmp_path / "backup")
    truncate(tmp_path / "backup" / "pipeline.sqlite")
    with pytest.raises(BackupFailed, match="pipeline.sqlite: is damaged"):
        restore_backup(tmp_path / "backup", tmp_path / "back", unwatched)
    assert not (tmp_path / "back").exists()


def test_failed_repeat_leaves_the_earlier_backup(node: Node, tmp_path: Path) -> None:
    """A repeat that cannot be completed does not cost the backup that was there."""
    backed_up(node, tmp_path / "backup")
    held = node.held()
    node.receive("1.4")
    node.file("1.4").unlink()
    with pytest.raises(BackupFailed, match="SOP instance 1.4"):
        backed_up(node, tmp_path / "backup")
    assert restored(tmp_path / "backup", tmp_path / "back").held() == held


def test_decision_that_came_after_the_rows_were_copied_is_made_again(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A series that is considered between the two snapshots has no decision in the backup: it is made again, the same one."""
    from segnode import backup

    before = node.sweep(rule())
    node.now += 10
    node.receive("1.4")

    def take_snapshot(database: Path, target: Path) -> None:
        snapshot(database, target)
        node.sweep(rule())

    snapshot = backup.take_snapshot
    monkeypatch.setattr(backup, "take_snapshot", take_snapshot)
    backed_up(node, tmp_path / "backup")
    back = restored(tmp_path / "backup", tmp_path / "back")
    back.now = node.now + 10
    assert node.store.index.quiet_series() == []
    assert back.store.jobs.all() == before
    assert [job.id for job in back.sweep(rule())] == [job.id for job in node.store.jobs.all()]
    assert len(node.store.jobs.all()) == 2


def test_nothing_is_decided_anew_by_a_restore(node: Node, tmp_path: Path) -> None:
    """A rule that was out of the configuration while a series came, and is in it again, is not asked about it then either."""
    node.sweep(rule("1"))
    node.now += 10
    node.receive("1.4")
    before = node.sweep(rule("2"))
    node.now += 10
    assert node.sweep(rule("1")) == before
    backed_up(node, tmp_path / "backup")
    back = restored(tmp_path / "backup", tmp_path / "back")
    back.now = node.now + 10
    assert back.sweep(rule("1")) == before


def test_what_the_node_made_is_not_asked_about(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result that comes between the two snapshots is no series to be considered after a restore."""
    from segnode import backup

    monkeypatch.setattr(backup, "considered_series", lambda _: {})
    with node.store.index._writer.begin() as connection:
        connection.exec_driver_sql("UPDATE instance SET origin = 'made'")
        connection.exec_driver_sql("UPDATE series SET considered_at = last_received_at")
    backed_up(node, tmp_path / "backup")
    assert restored(tmp_path / "backup", tmp_path / "back").store.index.quiet_series() == []


def test_nothing_of_anybody_is_overwritten(node: Node, tmp_path: Path) -> None:
    """A backup into the data folder, over other files or over another node's backup is refused, and changes nothing."""
    theirs, others = tmp_path / "theirs", tmp_path / "others"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("years")
    other = node_on(tmp_path / "other data")
    (other.data / "secret").write_text("of another")
    backed_up(other, others)
    before = files(tmp_path)
    for dest, reason in (
        (node.data, "lies in the data folder"),
        (node.data / "objects" / ".." / "backup", "lies in the data folder"),
        (tmp_path, "holds no backup"),
        (theirs, "holds no backup"),
        (others, "of another node"),
    ):
        with pytest.raises(ConfigError, match=reason):
            backed_up(node, dest)
    assert files(tmp_path) == before


def test_folder_without_a_node_is_no_data(tmp_path: Path) -> None:
    """A configuration whose node has never run has nothing to be backed up, and no backup is begun."""
    with pytest.raises(ConfigError, match="has a node run"):
        back_up(tmp_path / "data", tmp_path / "backup", NOW, unwatched)
    assert list(tmp_path.iterdir()) == []


def test_restore_replaces_nothing(node: Node, tmp_path: Path) -> None:
    """A data folder that is not empty is not restored over, and what is no complete backup is not restored."""
    backed_up(node, tmp_path / "backup")
    with pytest.raises(ConfigError, match="is not empty: move it away"):
        restore_backup(tmp_path / "backup", node.data, unwatched)
    for src in (node.data, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="is no complete backup"):
            restore_backup(src, tmp_path / "back", unwatched)
    (tmp_path / "back").mkdir()
    before = files(tmp_path / "backup")
    assert restored(tmp_path / "backup", tmp_path / "back").held() == node.held()
    assert files(tmp_path / "backup") == before


def test_record_cannot_name_files_elsewhere(node: Node, tmp_path: Path) -> None:
    """A backup.json that names a file outside of the backup is refused."""
    backed_up(node, tmp_path / "backup")
    record = json.loads((tmp_path / "backup" / "backup.json").read_text())
    record["files"]["../../etc/passwd"] = ""
    (tmp_path / "backup" / "backup.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="names other files"):
        restore_backup(tmp_path / "backup", tmp_path / "back", unwatched)


def test_one_at_a_time(node: Node, tmp_path: Path) -> None:
    """A backup into a folder that one is being written to, and a second restore of a data folder, are refused."""

    @contextmanager
    def again(objects: Iterable[Held], count: int) -> Iterator[Iterable[Held]]:
        with pytest.raises(ConfigError, match="another backup"):
            backed_up(node, tmp_path / "backup")
        yield objects

    @contextmanager
    def restoring(objects: Iterable[Held], count: int) -> Iterator[Iterable[Held]]:
        with pytest.raises(ConfigError, match="another restore"):
            restore_backup(tmp_path / "backup", tmp_path / "back", unwatched)
        yield objects

    back_up(node.data, tmp_path / "backup", NOW, again)
    restore_backup(tmp_path / "backup", tmp_path / "back", restoring)
    assert node_on(tmp_path / "back").held() == node.held()


STUCK = """
import sys
from contextlib import nullcontext
from pathlib import Path
from segnode.backup import back_up, restore_backup

def stuck(objects, count):
    def one_by_one():
        for number, held in enumerate(objects):
            if number == 2:
                print("in the middle", flush=True)
                sys.stdin.read()
            yield held
    return nullcontext(one_by_one())

source, target = map(Path, sys.argv[2:])
back_up(source, target, 0.0, stuck) if sys.argv[1] == "backup" else restore_backup(source, target, stuck)
"""


def kill_in_the_middle(command: str, source: Path, target: Path) -> None:
    """Kill a backup or restore that has copied two objects."""
    arguments = [sys.executable, "-c", STUCK, command, str(source), str(target)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in the middle\n"
        process.kill()
        assert process.wait() == -signal.SIGKILL


def test_killed_backup_is_refused_and_completed_by_a_repeat(node: Node, tmp_path: Path) -> None:
    """Killed in the middle, a backup is incomplete and is not restored; the repeat copies the rest and is whole."""
    kill_in_the_middle("backup", node.data, tmp_path / "backup")
    before = files(tmp_path / "backup" / "objects")
    assert len(before) == 2
    with pytest.raises(ConfigError, match="no complete backup"):
        restore_backup(tmp_path / "backup", tmp_path / "back", unwatched)
    backed_up(node, tmp_path / "backup")
    assert before.items() <= files(tmp_path / "backup" / "objects").items()
    assert restored(tmp_path / "backup", tmp_path / "back").held() == node.held()


def test_killed_restore_leaves_no_data_folder(node: Node, tmp_path: Path) -> None:
    """Killed in the middle, a restore leaves no data folder; the repeat makes it, and removes what was left."""
    backed_up(node, tmp_path / "backup")
    kill_in_the_middle("restore", tmp_path / "backup", tmp_path / "back")
    assert not (tmp_path / "back").exists()
    assert restored(tmp_path / "backup", tmp_path / "back").held() == node.held()
    assert {path.name for path in tmp_path.iterdir()} == {"data", "backup", "back"}


def test_full_disk_is_said_and_the_backup_can_be_repeated(node: Node, small_disk: Path) -> None:
    """A backup that finds the disk full is incomplete and says so; with room again the repeat completes it."""
    dest = small_disk / "backup"
    filler = fill(small_disk)
    with pytest.raises(BackupFailed, match="cannot be completed; repeat it"):
        backed_up(node, dest)
    assert not (dest / "backup.json").exists()
    filler.unlink()
    assert backed_up(node, dest).objects == 3
