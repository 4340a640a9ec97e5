"""A full disk: what comes in is refused with the right status, what goes on waits, and both recover without a restart."""

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from segnode.config import parse_dimse_address
from segnode.dimse.peer import DimsePeer
from segnode.dimse.scu import associate, send_files
from segnode.errors import DeliveryDeferred
from segnode.node import open_index, open_jobs
from segnode.testing.disk import MayNotMount, fill
from segnode.testing.disk import small_disk as mounted
from segnode.testing.part10 import encode_part10
from segnode.testing.phantom import Phantom
from segnode.testing.servers import await_jobs, node_config, relaunch_segnode, segnode, until
from tests.conftest import absent
from tests.wire.test_serve import events, kill
from tests.wire.test_storage import FAILED, OTHER, held, items, small, stow

ROOM = '[storage]\nlow_watermark = "0 B"\n'
RULE = ROOM + '[[rules]]\nwhen = { Modality = "CT" }\nmodel = "threshold"\nquiet = 1.0\n'


UIDS = {"00080018": "1.2.15.3", "0020000D": "1.2.15.4", "0020000E": "1.2.15.5"}


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """The data folder of a node to be, on a disk of 32 MiB; not where pytest tidies up, which cannot remove a mount."""
    scratch = Path(tempfile.mkdtemp(prefix="segnode-small-disk-"))
    folder = scratch / "segnode-data"
    folder.mkdir()
    try:
        with mounted(folder, 32):
            yield folder
    except MayNotMount as reason:
        absent("the right to mount a tmpfs", str(reason))
    finally:
        shutil.rmtree(scratch)


def test_full_disk_refuses_and_recovers(small_disk: Path, tmp_path: Path) -> None:
    """With no room C-STORE answers A700 and STOW 503, nothing is kept, and with room again the same objects are taken."""
    data = encode_part10(small("1.2.15.1", SeriesDescription="x" * 60), ExplicitVRLittleEndian)
    large = tmp_path / "large.dcm"
    large.write_bytes(data + b"\xe0\x7f\x10\x00OW\0\0" + (1 << 20).to_bytes(4, "little") + bytes(1 << 20))
    with segnode(small_disk.parent, f"models = []\nrules = []\n{ROOM}") as node:
        filler = fill(small_disk)
        response = stow(node, large.read_bytes())
        assert response.status_code == 503
        assert [reason for reason, _ in items(response, OTHER) + items(response, FAILED)] == [0xA700]
        address = parse_dimse_address(node.dimse, "")
        with pytest.raises(DeliveryDeferred, match="0xA700"):
            list(send_files([large], address, "TEST"))
        assert held(node, "1.2.15.1") is None
        assert not any((small_disk / "objects" / "incoming").glob("*/*"))
        filler.unlink()
        assert stow(node, large.read_bytes()).status_code == 200
        assert [answer for _, answer in send_files([large], address, "TEST")] == ["status 0x0000"]


def test_full_disk_keeps_no_metadata_and_gives_them_out(small_disk: Path) -> None:
    """With no room STOW of metadata is 503, and what is held is described all the same."""
    document = [
        {"00080016": {"vr": "UI", "Value": [CTImageStorage]}, **{t: {"vr": "UI", "Value": [u]} for t, u in UIDS.items()}}
    ]
    with segnode(small_disk.parent, f"models = []\nrules = []\n{ROOM}", roles=("web",)) as node:
        assert stow(node, encode_part10(small("1.2.15.2"), ExplicitVRLittleEndian)).status_code == 200
        fill(small_disk)
        kind = {"Content-Type": 'multipart/related; type="application/dicom+json"; boundary=b'}
        body = b"--b\r\nContent-Type: application/dicom+json\r\n\r\n" + json.dumps(document).encode() + b"\r\n--b--\r\n"
        assert httpx.post(f"{node.dicomweb}/studies", content=body, headers=kind, timeout=60).status_code == 503
        (described,) = httpx.get(f"{node.dicomweb}/studies/{small('1.2.15.2').StudyInstanceUID}/metadata", timeout=60).json()
        assert described["00080018"]["Value"] == ["1.2.15.2"]


def test_job_waits_for_room(small_disk: Path, phantom: Phantom) -> None:
    """A job that finds the disk full is not failed: it goes on when there is room."""
    with segnode(small_disk.parent, RULE) as node:
        list(send_files(sorted(phantom.folder.iterdir()), parse_dimse_address(node.dimse, ""), "TEST"))
        filler = fill(small_disk)
        until(lambda: "full" in node.log.read_text() or "No space left" in node.log.read_text())
        filler.unlink()
        (job,) = await_jobs(node_config(node))
        assert (job.state, job.error) == ("delivered", "")
        assert events(node, "a role has died") == []


def test_association_that_ends_on_a_full_disk_does_not_stay_open(small_disk: Path, phantom: Phantom) -> None:
    """Its series is quiet when there is room again, though the end of the association could not be written down."""
    image = phantom.folder / "0001.dcm"
    with segnode(small_disk.parent, RULE.replace("1.0", "3600.0")) as node:
        index = open_index(node_config(node))
        kind = {(str(CTImageStorage), str(ExplicitVRLittleEndian))}
        with associate(DimsePeer(parse_dimse_address(node.dimse, ""), "TEST"), kind) as association:
            assert association.send_c_store(image).Status == 0
            assert [series.is_being_sent for series in index.quiet_series()] == [True]
            filler = fill(small_disk)
        until(lambda: len(events(node, "association closed")) == 1)
        filler.unlink()
        until(lambda: not index.quiet_series()[0].is_being_sent)


def test_node_starts_on_a_full_disk(small_disk: Path, phantom: Phantom) -> None:
    """Killed and started where there is no room, the node does not end: it serves when there is room, and goes on."""
    with segnode(small_disk.parent, RULE) as node:
        list(send_files(sorted(phantom.folder.iterdir()), parse_dimse_address(node.dimse, ""), "TEST"))
        kill(node)
    filler = fill(small_disk)
    with relaunch_segnode(small_disk.parent) as node:
        until(lambda: len(events(node, "there is no room to start")) >= 4)
        filler.unlink()
        (job,) = await_jobs(node_config(node))
        assert (job.state, job.error) == ("delivered", "")
        assert node.process.poll() is None


def test_job_whose_workflow_is_lost_is_done(small_disk: Path, phantom: Phantom) -> None:
    """A workflow that the engine says has ended, and whose job waits all the same, is begun anew."""
    with segnode(small_disk.parent, RULE) as node:
        list(send_files(sorted(phantom.folder.iterdir()), parse_dimse_address(node.dimse, ""), "TEST"))
        (job,) = await_jobs(node_config(node))
        # As if the engine had ended its workflow without the job.
        with closing(sqlite3.connect(small_disk / "pipeline.sqlite", timeout=30)) as rows, rows:
            rows.execute("UPDATE job SET state = 'waiting'")
        jobs = open_jobs(node_config(node))
        until(lambda: jobs.job(job.id).state == "delivered")
        assert len(events(node, "workflows are lost, and begun anew")) == 1
