"""Many descriptors: a process that has more open than select(2) knows, and one that is allowed few by default."""

import resource
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from segnode.testing.processes import descendants
from segnode.testing.servers import segnode

# Every descriptor that is opened from here on has a number above 1023.
_ASKS = """
import os
import resource
import sys
from pathlib import Path

from segnode.config import parse_dimse_address
from segnode.dicom.header import read_header
from segnode.dimse.peer import DimsePeer
from segnode.dimse.scu import DimseDestination, echo, send_files

_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
while os.dup(0) < 1100:
    pass
peer = DimsePeer(parse_dimse_address(sys.argv[1], ""), "TEST", 30)
image = Path(sys.argv[2])
print(echo(peer)[1])
print([answer for _, answer in send_files([image], peer.address, peer.calling_ae)])
with image.open("rb") as file:
    print(DimseDestination(peer).held(read_header(file)) is not None)
"""


def test_it_echoes_stores_finds_and_gets(tmp_path: Path, ct: Path) -> None:
    """C-ECHO, C-STORE, C-FIND and C-GET on connections whose descriptors are above 1,100."""
    with segnode(tmp_path / "node", "models = []\nrules = []", roles=("dimse",)) as node:
        image = min(ct.iterdir())
        asked = subprocess.run(
            [sys.executable, "-c", _ASKS, node.dimse, str(image)],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
    version, stored, found = asked.stdout.splitlines() or [asked.stderr] * 3
    assert version.startswith("SEGNODE")
    assert (stored, found) == ("['status 0x0000']", "True"), asked.stderr


def test_node_has_as_many_descriptors_as_it_may(tmp_path: Path) -> None:
    """Also where shells and systemd allow few by default: a hundred uploads and associations need a few thousand."""
    usual, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, most))
        try:
            node = stack.enter_context(segnode(tmp_path / "node", "models = []\nrules = []"))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (usual, most))
        allowed = {resource.prlimit(process, resource.RLIMIT_NOFILE) for process in descendants(node.process.pid)}
    assert allowed == {(min(most, 1 << 16), most)}
