"""Backups of a running node, and nodes that are started on what was restored."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom.uid import ExplicitVRLittleEndian

from segnode.config import parse_dimse_address
from segnode.dimse.scu import send_files
from segnode.node import open_jobs
from segnode.store.database import open_database
from segnode.store.index import Index, Instance
from segnode.store.objects import object_path
from segnode.testing.part10 import encode_part10
from segnode.testing.phantom import Phantom
from segnode.testing.servers import Server, await_jobs, free_port, node_config, restarted_segnode, segnode, until
from tests.wire.test_serve import run
from tests.wire.test_storage import small


@contextmanager
def sending(node: Server, folder: Path) -> Iterator[list[str]]:
    """Objects that come in one after the other until the end of the block; the UIDs of those that are acknowledged."""
    acknowledged: list[str] = []
    enough, path = threading.Event(), folder / "sent.dcm"

    def send() -> None:
        for number in count():
            if enough.is_set():
                return
            sop = f"1.2.40.{number}"
            path.write_bytes(encode_part10(small(sop, Modality="CT"), ExplicitVRLittleEndian))
            list(send_files([path], parse_dimse_address(node.dimse, ""), "TEST"))
            acknowledged.append(sop)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield acknowledged
    finally:
        enough.set()
        sender.join()


def rows(data: Path) -> dict[str, Instance]:
    """The rows of the objects that a folder holds."""
    return {i.sop_instance_uid: i for i in Index(open_database(data / "index.sqlite")).instances("1.2.3")}


def held(data: Path) -> dict[str, bytes]:
    """Every object that the index of a folder names."""
    return {sop: object_path(data / "objects", i.object_key).read_bytes() for sop, i in rows(data).items()}


def test_backup_while_objects_come_in(tmp_path: Path) -> None:
    """A backup of a node that receives holds what was acknowledged before it; restored, a node serves that, byte for byte."""
    here, there, backup = tmp_path / "here", tmp_path / "there", str(tmp_path / "backup")
    with segnode(here, "models = []\nrules = []") as node, sending(node, tmp_path) as acknowledged:
        config = ("--config", str(here / "segnode.toml"))
        for more in (5, 10):
            until(lambda more=more: len(acknowledged) >= more)
            before = set(acknowledged)
            made = run("backup", *config, "--json", backup)
            assert made.returncode == 0, made.stderr
        after = len(acknowledged)
        until(lambda: len(acknowledged) > after)
    there.mkdir()
    (there / "segnode.toml").write_text((here / "segnode.toml").read_text())
    ended = run("restore", "--config", str(there / "segnode.toml"), backup)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(made.stdout) == json.loads((tmp_path / "backup" / "backup.json").read_text())
    with restarted_segnode(there) as node:
        kept, all_of_them = held(node_config(node).data), held(here / "segnode-data")
        assert before <= kept.keys() < all_of_them.keys()
        assert kept.items() <= all_of_them.items()
        assert ended.stdout.startswith(f"{len(kept)} objects, {sum(map(len, kept.values()))} bytes, of 20")
        client = DICOMwebClient(node.dicomweb)
        found = client.search_for_instances("1.2.3", limit=len(all_of_them))
        assert {instance["00080018"]["Value"][0] for instance in found} == kept.keys()
        assert {str(dataset.SOPInstanceUID) for dataset in client.retrieve_study("1.2.3")} == kept.keys()


def test_what_was_owed_is_delivered_after_the_restore(tmp_path: Path, phantom: Phantom) -> None:
    """A result that an archive could not take when the backup was made reaches it from the node that was restored."""
    port = free_port()
    tables = (
        f'[[destinations]]\nname = "archive"\nto = "http://127.0.0.1:{port}/dicom-web"\n'
        '[[rules]]\nwhen = {}\nmodel = "threshold"\nsend_to = ["archive"]\nquiet = 1.0\n'
    )
    with segnode(tmp_path / "node", tables) as node:
        config = ("--config", str(tmp_path / "node" / "segnode.toml"))
        list(send_files(sorted(phantom.folder.iterdir()), parse_dimse_address(node.dimse, ""), "TEST"))
        jobs = open_jobs(node_config(node))
        until(lambda: any(delivery.attempts for job in jobs.all() for delivery in job.deliveries))
        assert run("backup", *config, str(tmp_path / "backup")).returncode == 0
        refused = run("restore", *config, str(tmp_path / "backup"))
        assert (refused.returncode, "a node runs on" in refused.stderr) == (2, True)
    node_config(node).data.rename(tmp_path / "node" / "lost")
    assert run("restore", *config, str(tmp_path / "backup")).returncode == 0
    archive_folder = tmp_path / "archive"
    archive_folder.mkdir()
    at = f'[node]\ndicom = "127.0.0.1:{free_port()}"\nhttp = "127.0.0.1:{port}"\n'
    (archive_folder / "segnode.toml").write_text(f"models = []\nrules = []\n{at}")
    with restarted_segnode(archive_folder) as archive, restarted_segnode(tmp_path / "node") as node:
        (job,) = await_jobs(node_config(node))
        assert (job.state, job.error) == ("delivered", "")
        found = DICOMwebClient(archive.dicomweb).search_for_instances()
        assert [instance["00080018"]["Value"][0] for instance in found] == [job.sop_instance_uid]


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("backup", "data/inside"), 2, "lies in the data folder"),
        (("backup", "theirs"), 2, "holds no backup"),
        (("backup", "/proc/backup"), 1, "cannot be completed"),
        (("restore", "nowhere"), 2, "is no complete backup"),
    ],
)
def test_exit_codes(tmp_path: Path, arguments: tuple[str, str], code: int, reason: str) -> None:
    """Wrong usage ends with 2, failed work with 1, and both with the reason on standard error."""
    (tmp_path / "segnode.toml").write_text('[node]\ndata = "data"\n')
    (tmp_path / "data").mkdir()
    for name in ("index", "pipeline"):
        open_database(tmp_path / "data" / f"{name}.sqlite")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").touch()
    ended = run(*arguments, cwd=tmp_path)
    assert (ended.returncode, reason in ended.stderr, ended.stdout) == (code, True, "")
