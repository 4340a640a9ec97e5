"""Another object with the UID of one that is held: it is not kept, refused, or takes its place, as the configuration says."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from segnode.config import RetentionConfig
from segnode.node import open_store
from segnode.pipeline.labelmaps import Labelmaps
from segnode.pipeline.tidy import Tidier
from segnode.roles import Role
from segnode.store.database import open_database
from segnode.store.documents import Documents
from segnode.store.leases import new_lease
from segnode.store.objects import ABANDONED_S
from segnode.testing.part10 import encode_part10
from segnode.testing.servers import Server, node_config, restarted_segnode, segnode, until
from tests.rows import index_of
from tests.wire.test_durability import by_c_store, by_stow
from tests.wire.test_kills import (
    BROKEN,
    FOR_EVER_US,
    await_starts,
    half_written,
    insist,
    kill_role,
    on_shelves,
    orphans,
    require_tidied,
    stopped_at,
)
from tests.wire.test_storage import FAILED, STORED, items, kept_bytes, small, store, stow

SOP = "1.2.40.1"
DOORS: Sequence[Role] = ("dimse", "web")


def tables(policy: str) -> str:
    """A node without rules."""
    return f'models = []\nrules = []\n[storage]\non_conflict = "{policy}"\nlow_watermark = "0 B"\n'


def version(description: str, syntax: str = ExplicitVRLittleEndian, **attributes) -> bytes:
    """The object as it is described."""
    return encode_part10(small(SOP, SeriesDescription=description, **attributes), syntax)


def expire(node: Server, now: float) -> None:
    """Delete what is to be deleted by then, as the worker would."""
    opened = open_store(node_config(node), new_lease("test"))
    labelmaps = Labelmaps(Path("none"))
    Tidier(
        opened.objects, opened.index, opened.documents, opened.jobs, opened.leases, labelmaps, RetentionConfig(), lambda: now
    ).expire()


@pytest.mark.parametrize(
    ("policy", "status", "http_status", "reasons", "stays"),
    [
        ("keep", 0x0000, 200, [], "first"),
        ("refuse", 0x0111, 409, [0x0111], "first"),
        ("replace", 0x0000, 200, [], "last"),
    ],
)
def test_both_doors_answer_as_the_policy_says(
    tmp_path: Path, policy: str, status: int, http_status: int, reasons: list[int], stays: str
) -> None:
    """The status of C-STORE, the failure reason of STOW-RS, which bytes are held then; the same bytes again are no conflict."""
    with segnode(tmp_path / "node", tables(policy), roles=DOORS) as node:
        assert stow(node, version("first")).status_code == 200
        assert store(node, version("second"), tmp_path).Status == status
        response = stow(node, version("third"))
        assert response.status_code == http_status
        assert [reason for reason, _ in items(response, FAILED)] == reasons
        assert len(items(response, STORED)) == 1 - len(reasons)
        held = kept_bytes(node, SOP)
        assert held == version({"first": "first", "last": "third"}[stays])
        key = index_of(node).instances("1.2.3")[0].object_key
        assert stow(node, held).status_code == 200
        assert store(node, version("fourth", ImplicitVRLittleEndian), tmp_path, syntax=ImplicitVRLittleEndian).Status == 0x0000
        assert index_of(node).instances("1.2.3")[0].object_key == key
        assert kept_bytes(node, SOP) == held


def test_replaced_object_is_found_by_what_it_says_now(tmp_path: Path) -> None:
    """Search and retrieval give the last; its old study and series are gone when nothing else is in them."""
    with segnode(tmp_path / "node", tables("replace"), roles=("web",)) as node:
        stow(node, version("first", PatientID="A"))
        stow(node, version("second", PatientID="B"))
        (study,) = httpx.get(f"{node.dicomweb}/studies").json()
        assert study["00100020"]["Value"] == ["B"]
        moved = version("third", PatientID="C", StudyInstanceUID="1.2.41", SeriesInstanceUID="1.2.41.1")
        (url,) = (item["00081190"]["Value"][0] for item in stow(node, moved).json()[STORED]["Value"])
        (study,) = httpx.get(f"{node.dicomweb}/studies").json()
        assert (study["0020000D"]["Value"], study["00100020"]["Value"]) == (["1.2.41"], ["C"])
        assert httpx.get(url, headers={"Accept": "application/dicom"}).content == moved
        assert httpx.get(f"{node.dicomweb}/studies/1.2.3/metadata").status_code == 404


def test_file_that_was_replaced_stays_for_its_hour(tmp_path: Path) -> None:
    """Who found it before may still read it; after an hour it is deleted, and the one that is held stays."""
    with segnode(tmp_path / "node", tables("replace"), roles=("web",)) as node:
        stow(node, version("first"))
        old = set(on_shelves(node))
        stow(node, version("second"))
        assert len(on_shelves(node)) == 2
        expire(node, time.time())
        assert len(on_shelves(node)) == 2
        expire(node, time.time() + ABANDONED_S + 1)
        assert len(on_shelves(node)) == 1
        assert not old & set(on_shelves(node))


@pytest.mark.parametrize("where", ["delay_enter", "delay_exit"])
@pytest.mark.parametrize(("role", "send"), [("dimse", by_c_store), ("web", by_stow)])
def test_door_killed_while_it_replaces(tmp_path: Path, role: str, send: Callable, where: str) -> None:
    """Killed before and after the rename: the first is held as it was; sent again, the second takes its place."""
    (tmp_path / "second.dcm").write_bytes(version("second"))
    with segnode(tmp_path / "node", tables("replace"), roles=DOORS) as node, ThreadPoolExecutor(1) as pool:
        stow(node, version("first"))
        with stopped_at(node, role, f"{where}={FOR_EVER_US}", tmp_path / "trace") as trace:
            sent = pool.submit(send, node, tmp_path / "second.dcm")
            if where == "delay_exit":
                until(lambda: len(orphans(node)) == 1)
            else:
                until(lambda: f"/incoming/{role}-" in trace() and half_written(node, role) != [])
            left = orphans(node)
            starts = kill_role(node, role)
        await_starts(node, starts)
        with pytest.raises(BROKEN):
            sent.result(60)
        assert kept_bytes(node, SOP) == version("first")
        require_tidied(node, left)
        insist(send, node, tmp_path / "second.dcm")
        assert b"second" in kept_bytes(node, SOP)


def test_killed_at_any_moment_exactly_one_is_held(tmp_path: Path) -> None:
    """Killed again and again while objects replace each other: one of them is held whole, the last acknowledged or a later."""
    sent = acknowledged = 0

    def kill(node: Server, after: int) -> int:
        until(lambda: sent >= after)
        return kill_role(node, "web")

    with segnode(tmp_path / "node", tables("replace"), roles=("web",)) as node, ThreadPoolExecutor(1) as pool:
        for _ in range(4):
            killing = pool.submit(kill, node, sent + 5)
            while not killing.done():
                sent += 1
                with suppress(httpx.TransportError):
                    assert stow(node, version(f"version {sent:06}")).status_code == 200
                    acknowledged = sent
            await_starts(node, killing.result())
            held = kept_bytes(node, SOP)
            assert held in [version(f"version {number:06}") for number in range(acknowledged, sent + 1)]
            assert len(index_of(node).instances("1.2.3")) == 1
    with restarted_segnode(tmp_path / "node") as node:
        assert kept_bytes(node, SOP) == held


def test_what_the_node_has_made_is_never_replaced(tmp_path: Path) -> None:
    """Another object that claims the UID of one of the node's own is refused."""
    made = small(SOP, SeriesDescription="made")
    made.ContributingEquipmentSequence = [small("1")]
    equipment = made.ContributingEquipmentSequence[0]
    equipment.Manufacturer, equipment.StationName = "segnode", "SEGNODE"
    with segnode(tmp_path / "node", tables("replace"), roles=("web",)) as node:
        assert stow(node, encode_part10(made, ExplicitVRLittleEndian)).status_code == 200
        response = stow(node, version("other"))
        assert [reason for reason, _ in items(response, FAILED)] == [0x0111]
        assert kept_bytes(node, SOP) == encode_part10(made, ExplicitVRLittleEndian)


def test_metadata_of_a_replaced_object_are_made_before_anybody_asks(tmp_path: Path) -> None:
    """As of one that is new; and of one that is sent again after it was deleted."""
    with segnode(tmp_path / "node", tables("replace") + "[web]\ndelete = true\n") as node:
        documents = Documents(open_database(node_config(node).data / "documents.sqlite"))

        def are_kept() -> bool:
            keys = [held.object_key for held in index_of(node).instances("1.2.3")]
            return len(documents.find(keys)) == len(keys)

        for description in ("first", "second"):
            assert stow(node, version(description)).status_code == 200
            until(are_kept)
        assert httpx.delete(f"{node.dicomweb}/studies/1.2.3").status_code == 204
        until(lambda: documents.progress() == 0)
        assert stow(node, version("third")).status_code == 200
        until(are_kept)
