"""What stands on disk when success is said, as the kernel sees it."""

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom.uid import ExplicitVRLittleEndian

from segnode.config import parse_dimse_address
from segnode.dimse.scu import send_files
from segnode.roles import Role
from segnode.testing.part10 import encode_part10
from segnode.testing.processes import descendants, post_of
from segnode.testing.servers import Server, segnode, until
from tests.conftest import installed
from tests.wire.test_storage import held, small, stow

CALLS = "fsync,fdatasync,rename,sendto,sendmsg,write,writev"


@contextmanager
def traced(node: Server, role: str, trace: Path) -> Iterator[None]:
    """The system calls of a role, written to a file that is whole at the end."""
    processes = [p for p in descendants(node.process.pid) if post_of(p).startswith(role)]
    command = [
        installed("strace", "strace"),
        "-f",
        "-y",
        "-e",
        f"trace={CALLS}",
        "-s",
        "64",
        "-o",
        str(trace),
        *(word for process in processes for word in ("-p", str(process))),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        for _ in processes:
            if "attached" not in (said := tracer.stderr.readline()):
                pytest.fail(f"strace cannot attach: {said}")
        yield
        tracer.terminate()


def by_c_store(node: Server, path: Path) -> None:
    """Send a file by C-STORE."""
    assert [answer for _, answer in send_files([path], parse_dimse_address(node.dimse, ""), "TEST")] == ["status 0x0000"]


def by_stow(node: Server, path: Path) -> None:
    """Send a file by STOW."""
    assert stow(node, path.read_bytes()).status_code == 200


@pytest.mark.parametrize(
    ("role", "send", "success"),
    [("dimse", by_c_store, r'"\\4\\0\\0\\0\\0'), ("web", by_stow, r"HTTP/1.1 200")],
)
def test_success_is_said_after_everything_is_on_disk(tmp_path: Path, role: Role, send: Callable, success: str) -> None:
    """File renamed, synchronised, folder synchronised, row synchronised: in this order, and the answer behind them all."""
    path, trace = tmp_path / "one.dcm", tmp_path / "trace"
    path.write_bytes(encode_part10(small("1.2.16.1"), ExplicitVRLittleEndian))
    with segnode(tmp_path / "node", "models = []\nrules = []", roles=(role,)) as node:
        with traced(node, role, trace):
            send(node, path)
            until(lambda: re.search(success, trace.read_text()) is not None)
        instance = held(node, "1.2.16.1")
    assert instance is not None
    key = re.escape(instance.object_key)
    steps = [
        rf'rename\("[^"]*/incoming/{role}-\d/[^"]*", "[^"]*{key}"',
        rf"fsync\(\d+<[^>]*/objects/{key[:2]}/{key[2:4]}/{key}>",
        rf"fsync\(\d+<[^>]*/objects/{key[:2]}/{key[2:4]}>",
        r"(fsync|fdatasync)\(\d+<[^>]*index\.sqlite-wal>",
        success,
    ]
    calls = trace.read_text().splitlines()
    position = -1
    for step in steps:
        found = [number for number, call in enumerate(calls) if number > position and re.search(step, call)]
        assert found, (step, calls)
        position = found[0]
    assert not [call for call in calls[:position] if re.search(success, call)]
