"""A full disk: what comes in is refused with the right status, what goes on waits, and both recover without a restart."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.uid import ExplicitVRLittleEndian

from segnode.config import parse_dimse_address
from segnode.dimse.scu import send_files
from segnode.testing.part10 import encode_part10
from segnode.testing.phantom import Phantom
from segnode.testing.servers import await_jobs, node_config, segnode, until
from tests.conftest import absent
from tests.wire.test_serve import events
from tests.wire.test_storage import FAILED, OTHER, held, items, small, stow

RULE = '[[rules]]\nwhen = { Modality = "CT" }\nmodel = "threshold"\nquiet = 1.0\n'
NO_WATERMARK = '[storage]\nlow_watermark = "0 B"\n'


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """The data folder of a node to be, on a disk of 32 MiB; not where pytest tidies up, which cannot remove a mount."""
    scratch = Path(tempfile.mkdtemp(prefix="segnode-small-disk-"))
    folder = scratch / "segnode-data"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)], check=False, capture_output=True)
    if mounted.returncode:
        absent("the right to mount a tmpfs", "run this test as root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    shutil.rmtree(scratch)


def fill(disk: Path) -> Path:
    """Fill a disk to its last page; the file that does it."""
    filler = disk / "filler"
    free = os.statvfs(disk)
    with filler.open("wb") as file:
        try:
            file.write(bytes(free.f_bavail * free.f_frsize + (1 << 20)))
        except OSError:
            pass
    return filler


def test_full_disk_refuses_and_recovers(small_disk: Path, tmp_path: Path) -> None:
    """With no room C-STORE answers A700 and STOW 503, nothing is kept, and with room again the same objects are taken."""
    data = encode_part10(small("1.2.15.1", SeriesDescription="x" * 60), ExplicitVRLittleEndian)
    large = tmp_path / "large.dcm"
    large.write_bytes(data + b"\xe0\x7f\x10\x00OW\0\0" + (1 << 20).to_bytes(4, "little") + bytes(1 << 20))
    with segnode(small_disk.parent, "rules = []\n" + NO_WATERMARK) as node:
        filler = fill(small_disk)
        response = stow(node, large.read_bytes())
        assert response.status_code == 503
        assert [reason for reason, _ in items(response, OTHER) + items(response, FAILED)] == [0xA700]
        assert held(node, "1.2.15.1") is None
        filler.unlink()
        assert stow(node, large.read_bytes()).status_code == 200
        address = parse_dimse_address(node.dimse, "")
        assert [answer for _, answer in send_files([large], address, "TEST")] == ["status 0x0000"]


def test_job_waits_for_room(small_disk: Path, phantom: Phantom) -> None:
    """A job that finds the disk full is not failed: it goes on when there is room."""
    with segnode(small_disk.parent, RULE + NO_WATERMARK) as node:
        list(send_files(sorted(phantom.folder.iterdir()), parse_dimse_address(node.dimse, ""), "TEST"))
        filler = fill(small_disk)
        until(lambda: "full" in node.log.read_text() or "No space left" in node.log.read_text())
        filler.unlink()
        (job,) = await_jobs(node_config(node))
        assert (job.state, job.error) == ("delivered", "")
        assert events(node, "a role has died") == []
