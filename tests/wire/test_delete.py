"""DELETE of studies, series and objects: what is deleted, what stays, and what a kill leaves."""

import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from segnode.config import parse_dimse_address
from segnode.dimse.scu import send_files
from segnode.testing.part10 import encode_part10
from segnode.testing.servers import Server, free_port, node_config, segnode, until
from tests.rows import index_of, jobs_of
from tests.wire.test_conflicts import expire
from tests.wire.test_kills import await_starts, kill_role, on_shelves, traced
from tests.wire.test_serve import SLOW_MODEL
from tests.wire.test_service import events
from tests.wire.test_storage import small, stow

TABLES = "models = []\nrules = []\n[web]\ndelete = true\n"
STUDY = "/studies/1.2.3"
SERIES = f"{STUDY}/series/1.2.3.5"
OBJECT = f"{SERIES}/instances/1.2.50.1"


def bytes_of(sop: str, series: str = "1.2.3.5") -> bytes:
    """An object with a name to be found by."""
    return encode_part10(small(sop, SeriesInstanceUID=series, PatientName="Deleted^Body"), ExplicitVRLittleEndian)


def sent(node: Server) -> None:
    """Two objects in a series, and one in another, with their metadata made."""
    assert stow(node, bytes_of("1.2.50.1"), bytes_of("1.2.50.2"), bytes_of("1.2.50.3", "1.2.3.6")).status_code == 200
    assert len(httpx.get(f"{node.dicomweb}{STUDY}/metadata", timeout=60).json()) == 3


def found(node: Server, level: str = "instances") -> list[str]:
    """The UIDs of what QIDO-RS finds by the patient's name."""
    answer = httpx.get(f"{node.dicomweb}/{level}", params={"PatientName": "deleted*"}, timeout=60)  # it may just start
    uid = {"instances": "00080018", "series": "0020000E", "studies": "0020000D"}[level]
    return [item[uid]["Value"][0] for item in (answer.json() if answer.status_code == 200 else [])]


def documents(node: Server) -> int:
    """How many metadata are kept."""
    with closing(sqlite3.connect(node_config(node).data / "documents.sqlite")) as connection:
        count: int = connection.execute("SELECT count(*) FROM document").fetchone()[0]
        return count


def test_it_is_off_by_default(tmp_path: Path) -> None:
    """Without the key DELETE is answered 405, Allow does not name it, and nothing is gone."""
    with segnode(tmp_path, "models = []\nrules = []", roles=("web",)) as node:
        sent(node)
        for path in (STUDY, SERIES, OBJECT):
            answer = httpx.delete(node.dicomweb + path)
            assert (answer.status_code, "DELETE" in answer.headers["Allow"]) == (405, False)
        assert len(found(node)) == 3


@pytest.mark.parametrize(
    ("path", "stays"),
    [(OBJECT, ["1.2.50.2", "1.2.50.3"]), (SERIES, ["1.2.50.3"]), (STUDY, [])],
    ids=["object", "series", "study"],
)
def test_what_is_named_is_gone_and_the_rest_stays(tmp_path: Path, path: str, stays: list[str]) -> None:
    """204, then 404; nothing finds or gives it, no file, metadata or name of it is left; sent again, it is there again."""
    with segnode(tmp_path, TABLES, roles=("web",)) as node:
        sent(node)
        answer = httpx.delete(node.dicomweb + path)
        assert (answer.status_code, answer.content) == (204, b"")
        for url in (path, f"{path}/metadata"):
            assert httpx.get(node.dicomweb + url).status_code == 404
        assert httpx.delete(node.dicomweb + path).status_code == 404
        assert found(node) == stays
        assert len(found(node, "studies")) == bool(stays)
        assert (len(on_shelves(node)), documents(node)) == (len(stays), len(stays))
        assert "Deleted" not in node.log.read_text()
        assert stow(node, bytes_of("1.2.50.1")).status_code == 200
        assert found(node) == sorted({"1.2.50.1", *stays})
        assert httpx.get(node.dicomweb + OBJECT, headers={"Accept": "application/dicom"}).content == bytes_of("1.2.50.1")


def test_what_is_not_held_there_is_not_found(tmp_path: Path) -> None:
    """An unknown UID, and one that is held elsewhere: 404, and nothing is deleted."""
    with segnode(tmp_path, TABLES, roles=("web",)) as node:
        sent(node)
        for path in (
            "/studies/1.2.4",
            f"{STUDY}/series/1.2.3.7",
            "/studies/1.2.4/series/1.2.3.5",
            f"{SERIES}/instances/1.2.50.3",
        ):
            assert httpx.delete(node.dicomweb + path).status_code == 404
            assert len(found(node)) == 3


def test_what_cannot_be_deleted_from_the_disk_yet_is_deleted(tmp_path: Path) -> None:
    """A file that stays when its rows are gone does not make the answer another: asked again, nothing would be found."""
    with segnode(tmp_path, TABLES, roles=("web",)) as node:
        sent(node)
        file = min(on_shelves(node).values())
        file.unlink()
        file.mkdir()
        assert httpx.delete(node.dicomweb + STUDY).status_code == 204
        assert httpx.delete(node.dicomweb + STUDY).status_code == 404
        assert found(node) == []
        (said,) = events(node, "what was deleted is still on the disk, until the node tidies up")
        assert str(tmp_path) not in said["reason"]


def test_many_are_deleted_at_once(tmp_path: Path) -> None:
    """Each waits for its turn, and of those that delete the same one has."""
    with segnode(tmp_path, TABLES, roles=("web",)) as node, ThreadPoolExecutor(40) as pool:
        assert stow(node, *(bytes_of(f"1.2.50.{number}") for number in range(20))).status_code == 200
        urls = [f"{node.dicomweb}{SERIES}/instances/1.2.50.{number}" for number in range(20)]
        answers = list(pool.map(lambda url: httpx.delete(url, timeout=60).status_code, [*urls, *urls]))
        assert sorted(answers) == 20 * [204] + 20 * [404]
        assert (found(node), on_shelves(node)) == ([], {})


@pytest.mark.parametrize("locked", ["index", "documents"])
def test_killed_before_and_after_the_commit(tmp_path: Path, locked: str) -> None:
    """Killed before the rows are deleted, all is there; killed after it, nothing is found, and the files go by themselves."""
    with segnode(tmp_path, TABLES) as node, ThreadPoolExecutor(1) as pool:
        sent(node)
        database = node_config(node).data / f"{locked}.sqlite"
        locking = traced(node, "web", tmp_path / "trace", "trace=fcntl")
        with locking as seen, closing(sqlite3.connect(database, timeout=30)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            deleted = pool.submit(httpx.delete, node.dicomweb + SERIES, timeout=60)
            if locked == "documents":
                until(lambda: len(index_of(node).instances("1.2.3")) == 1)
            else:
                until(lambda: "EAGAIN" in seen())  # it waits for the lock
            starts = kill_role(node, "web")
            with pytest.raises(httpx.TransportError):
                deleted.result(60)
        await_starts(node, starts)
        stays = ["1.2.50.1", "1.2.50.2", "1.2.50.3"] if locked == "index" else ["1.2.50.3"]
        assert found(node) == stays
        expire(node, time.time())
        assert on_shelves(node).keys() == {i.object_key for i in index_of(node).instances("1.2.3")}
        assert len(on_shelves(node)) == len(stays)
        assert stow(node, bytes_of("1.2.50.1")).status_code == 200
        assert "1.2.50.1" in found(node)


def test_what_a_job_needs_stays_until_it_has_ended(tmp_path: Path, ct: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """409 while a model is at the images, and while their SEG is owed; when the job is cancelled, all can be deleted."""
    marker = tmp_path / "marker"
    (tmp_path / "slow_model.py").write_text(SLOW_MODEL.replace("time.sleep(600)", "while marker.exists(): time.sleep(0.05)"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("SLOW_MODEL_MARKER", str(marker))
    tables = (
        f"{TABLES.replace('models = []', '').replace('rules = []', '')}"
        '[[models]]\nname = "slow"\nrun = "python:slow_model"\nlabels = "threshold"\nversion = "1"\n'
        f'[[destinations]]\nname = "nobody"\nto = "http://127.0.0.1:{free_port()}/dicom-web"\n'
        '[[rules]]\nwhen = {}\nmodel = "slow"\nsend_to = ["nobody"]\nquiet = 0.5\n'
    )
    with segnode(tmp_path / "node", tables) as node:
        list(send_files(sorted(ct.iterdir()), parse_dimse_address(node.dimse, ""), "TEST"))
        until(marker.exists)
        jobs = jobs_of(node)
        (job,) = jobs.all()
        images = index_of(node).images(job.series_instance_uid)
        study = f"{node.dicomweb}/studies/{images[0].study_instance_uid}"
        image = f"{study}/series/{images[0].series_instance_uid}/instances/{images[0].sop_instance_uid}"
        for url in (study, image):
            answer = httpx.delete(url)
            assert (answer.status_code, job.id in answer.text, "inferring" in answer.text) == (409, True, True)
        marker.unlink()
        until(lambda: jobs.job(job.id).state == "delivering")
        made = index_of(node).find(jobs.job(job.id).sop_instance_uid)
        assert made is not None
        answer = httpx.delete(f"{study}/series/{made.series_instance_uid}")
        assert (answer.status_code, "delivering" in answer.text) == (409, True)
        assert len(index_of(node).instances(made.study_instance_uid)) == len(images) + 1
        jobs.cancel(job.id, time.time())
        assert httpx.delete(study).status_code == 204
        assert on_shelves(node) == {}
