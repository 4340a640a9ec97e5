"""Killed or stopped at every stage: what was acknowledged is there, work goes on, and the archive holds one SEG."""

import os
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from pathlib import Path
from zlib import crc32

import httpx
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom import dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from segnode.config import Config, DimseAddress, RetentionConfig, parse_dimse_address
from segnode.dimse.peer import DimsePeer
from segnode.dimse.scu import associate, send_files
from segnode.errors import DeliveryFailed
from segnode.node import Store, open_index, open_jobs, open_store
from segnode.pipeline.labelmaps import Labelmaps
from segnode.pipeline.tidy import ABANDONED_S, Tidier
from segnode.roles import Role
from segnode.store.jobs import Job
from segnode.store.leases import LEASE_S, new_lease
from segnode.store.objects import SHELVES
from segnode.testing.part10 import encode_part10
from segnode.testing.phantom import write_ct
from segnode.testing.processes import descendants, is_alive, post_of
from segnode.testing.servers import Server, await_jobs, node_config, restarted_segnode, segnode, until
from tests.conftest import installed
from tests.rows import index_of, jobs_of
from tests.wire.test_durability import by_c_store, by_stow
from tests.wire.test_first_path import all_label_maps
from tests.wire.test_serve import SLOW_MODEL, await_gone, events
from tests.wire.test_storage import small, stow

BUSY_MODEL = """
import os, pathlib, subprocess, sys, time

def segment(volume):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    beside = pathlib.Path(os.environ["MODEL_MARKER"] + ".part")
    beside.write_text(f"{os.getpid()} {child.pid}")
    beside.rename(os.environ["MODEL_MARKER"])
    time.sleep(600)
"""
MODEL = '[[models]]\nname = "{name}"\nrun = "python:{name}_model"\nlabels = "threshold"\nversion = "1"\n'
RULE = '[[rules]]\nwhen = {{}}\nmodel = "{name}"\nsend_to = {names}\nquiet = 1.0\n'
FOR_EVER_US = 600_000_000
BROKEN = (DeliveryFailed, httpx.TransportError)


def role_of(node: Server, role: str) -> list[int]:
    """The processes of a role."""
    return [process for process in descendants(node.process.pid) if post_of(process).startswith(role)]


def kill_role(node: Server, role: str) -> int:
    """Kill the processes of a role; how many starts of roles the log will hold when each has been started again."""
    starts, processes = len(events(node, "a role is started again")), role_of(node, role)
    for process in processes:
        os.kill(process, signal.SIGKILL)
    return starts + len(processes)


def await_starts(node: Server, number: int) -> None:
    """Wait until the supervisor has started roles again so many times."""
    until(lambda: len(events(node, "a role is started again")) == number)


def stopped_at(node: Server, role: str, where: str, trace: Path) -> AbstractContextManager[Callable[[], str]]:
    """Have every thread of a role stop at a rename, as `where` says, until the end; what has been traced so far."""
    return traced(node, role, trace, "trace=fsync,/^rename", f"inject=/^rename:{where}")


@contextmanager
def traced(node: Server, role: str, trace: Path, *expressions: str) -> Iterator[Callable[[], str]]:
    """Trace every thread of a role by expressions of strace, until the end; what has been traced so far."""
    processes = role_of(node, role)
    command = [installed("strace", "strace"), "-ff", "-y", *(word for each in expressions for word in ("-e", each))]
    command += ["-o", str(trace), *(word for process in processes for word in ("-p", str(process)))]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        for _ in processes:
            if "attached" not in (said := tracer.stderr.readline()):
                pytest.fail(f"strace cannot attach: {said}")
        try:
            yield lambda: "".join(path.read_text() for path in trace.parent.glob(f"{trace.name}.*"))
        finally:
            tracer.kill()  # told to stop it would see the delay through; killed, it lets go of the dead and the living


@contextmanager
def relay(port: int, onward: Callable[[bytes], object] = len, back: Callable[[bytes], object] = len) -> Iterator[int]:
    """A port whose connections go on to another; `onward` and `back` are called with each block before it is passed on."""
    listening = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with suppress(OSError):
            while True:
                near = listening.accept()[0]
                threading.Thread(target=connect, args=(near,), daemon=True).start()

    def connect(near: socket.socket) -> None:
        with near, socket.create_connection(("127.0.0.1", port)) as far:
            there = threading.Thread(target=pump, args=(near, far, onward), daemon=True)
            there.start()
            pump(far, near, back)
            there.join()

    def pump(source: socket.socket, target: socket.socket, tell: Callable[[bytes], object]) -> None:
        with suppress(OSError):
            while block := source.recv(1 << 16):
                tell(block)
                target.sendall(block)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        accepting.join()
        listening.close()


def on_shelves(node: Server) -> dict[str, Path]:
    """The files that are objects, or would be if they had a row."""
    return {path.name: path for path in (node_config(node).data / "objects").glob("??/??/*")}


def orphans(node: Server) -> set[str]:
    """Files that have a key but no row."""
    return index_of(node).rowless(on_shelves(node))


def half_written(node: Server, role: str) -> list[Path]:
    """Files that a role has not written to the end."""
    return list((node_config(node).data / "objects" / "incoming").glob(f"{role}-*/*"))


def tidy(store: Store, now: float) -> None:
    """Delete what was never acknowledged, as the worker would at that time."""
    tidier = Tidier(
        store.objects,
        store.index,
        store.documents,
        store.jobs,
        store.leases,
        Labelmaps(Path("none")),
        RetentionConfig(),
        lambda: now,
    )
    for shelf in range(SHELVES):
        tidier.delete_unacknowledged(shelf)


def require_tidied(node: Server, left: set[str]) -> None:
    """What a kill has left stays for its hour; after it that is deleted, and every object stays."""
    store = open_store(node_config(node), new_lease("test"))
    assert orphans(node) == left
    tidy(store, time.time())
    assert orphans(node) == left
    held = on_shelves(node).keys() - left
    tidy(store, time.time() + ABANDONED_S + 1)
    assert on_shelves(node).keys() == held


def written(path: Path, sop: str, size: int = 0) -> Path:
    """A small object in a file, with that many bytes of pixels."""
    data = encode_part10(small(sop), ExplicitVRLittleEndian)
    path.write_bytes(data + (b"\xe0\x7f\x10\x00OW\0\0" + size.to_bytes(4, "little") + bytes(size) if size else b""))
    return path


def insist(send: Callable[[Server, Path], None], node: Server, path: Path) -> None:
    """Send a file until it is acknowledged."""

    def is_taken() -> bool:
        try:
            send(node, path)
        except BROKEN:
            return False
        return True

    until(is_taken)


@pytest.mark.parametrize("where", ["delay_enter", "delay_exit"])
@pytest.mark.parametrize(("role", "send"), [("dimse", by_c_store), ("web", by_stow)])
def test_door_killed_before_and_after_the_rename(tmp_path: Path, role: Role, send: Callable, where: str) -> None:
    """Killed with the file written or renamed, and no row: no success was said, it can be sent again, and is held once."""
    first, second = written(tmp_path / "1.dcm", "1.2.18.1"), written(tmp_path / "2.dcm", "1.2.18.2")
    with segnode(tmp_path / "node", "models = []\nrules = []", roles=(role,)) as node, ThreadPoolExecutor(1) as pool:
        send(node, first)
        with stopped_at(node, role, f"{where}={FOR_EVER_US}", tmp_path / "trace") as trace:
            sent = pool.submit(send, node, second)
            if where == "delay_exit":
                until(lambda: len(orphans(node)) == 1)
            else:
                until(lambda: f"/incoming/{role}-" in trace() and half_written(node, role) != [])
                assert orphans(node) == set()
            left = orphans(node)
            starts = kill_role(node, role)
        await_starts(node, starts)
        with pytest.raises(BROKEN):
            sent.result(60)
        assert index_of(node).find("1.2.18.2") is None
        insist(send, node, second)
        held = index_of(node).instances("1.2.3")
        assert [instance.sop_instance_uid for instance in held] == ["1.2.18.1", "1.2.18.2"]
        assert on_shelves(node).keys() == {instance.object_key for instance in held} | left
        assert half_written(node, role) == []
        require_tidied(node, left)


def test_file_without_a_row_waits_for_its_lease(tmp_path: Path) -> None:
    """However old it is, a file without a row stays while the process that wrote it may be about to commit one."""
    began, lease = time.time(), new_lease("dimse-1")
    store = open_store(Config(folder=tmp_path), lease)
    store.leases.take(lease, began)
    with store.objects.spool() as spool:
        spool.complete()
        key = store.objects.keep(spool)
    later = began + 10 * ABANDONED_S
    store.leases.beat(lease, 0, later)
    tidy(store, later + LEASE_S - 1)
    assert store.objects.path(key).exists()
    tidy(store, later + LEASE_S + 1)
    assert not store.objects.path(key).exists()


def series(tmp_path: Path) -> list[Path]:
    """A small CT series that no other test has: nobody else's SEG is in its study."""
    return sorted(write_ct(tmp_path / "ct", slices=6, size=32, seed=crc32(str(tmp_path).encode())).folder.iterdir())


def send_series(node: Server, tmp_path: Path) -> None:
    """Send it by C-STORE."""
    list(send_files(series(tmp_path), parse_dimse_address(node.dimse, ""), "TEST"))


def tables(to: str, name: str = "threshold") -> str:
    """TOML of a destination, and of a rule that has a model's results sent there."""
    model = MODEL.format(name=name)
    if name == "threshold":
        model = model.replace("threshold_model", "segnode.models.threshold")
    return f'{model}[[destinations]]\nname = "archive"\nto = "{to}"\n{RULE.format(name=name, names=["archive"])}'


def require_one_seg(job: Job, archive: Server, tmp_path: Path) -> None:
    """The job is delivered, and the archive holds one LABELMAP SEG of its study."""
    assert (job.state, job.error) == ("delivered", "")
    study = dcmread(tmp_path / "ct" / "0001.dcm", stop_before_pixels=True).StudyInstanceUID
    client = DICOMwebClient(archive.dicomweb)
    assert all_label_maps(client, study) == {job.sop_instance_uid}
    assert len(client.search_for_instances(search_filters={"SOPInstanceUID": job.sop_instance_uid})) == 1


@pytest.fixture
def slow_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that hangs the first time it runs; the file that then holds its process."""
    (tmp_path / "slow_model.py").write_text(SLOW_MODEL)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("SLOW_MODEL_MARKER", str(tmp_path / "marker"))
    return tmp_path / "marker"


def test_worker_killed_while_the_model_runs(tmp_path: Path, archive: Server, slow_model: Path) -> None:
    """The model ends with its worker; the next worker does the same job, and makes one SEG."""
    with segnode(tmp_path / "node", tables(archive.dicomweb, "slow")) as node:
        send_series(node, tmp_path)
        until(lambda: slow_model.exists() and slow_model.read_text() != "")
        (before,) = jobs_of(node).all()
        assert before.state == "inferring"
        await_starts(node, kill_role(node, "worker"))
        until(lambda: not is_alive(int(slow_model.read_text())))
        (job,) = await_jobs(node_config(node))
        assert job.id == before.id
        require_one_seg(job, archive, tmp_path)
        assert [path.name for path in (node_config(node).data / "work").rglob("*.npy")] == []


@pytest.mark.parametrize("there", ["file", "row"])
def test_worker_killed_while_it_encodes(tmp_path: Path, archive: Server, there: str) -> None:
    """Killed with the SEG's file renamed but no row, or with its row but nothing owed yet: one SEG is held and delivered."""
    with segnode(tmp_path / "node", tables(archive.dicomweb)) as node:
        config = node_config(node)
        jobs = open_jobs(config)
        with ExitStack() as stack:
            # The first two renames of the thread that does the job are of what the model returned and of the labelmap.
            with stopped_at(node, "worker", f"delay_exit={FOR_EVER_US}:when=3", tmp_path / "trace"):
                send_series(node, tmp_path)
                until(lambda: len(orphans(node)) == 1)
                if there == "file":
                    starts, left = kill_role(node, "worker"), orphans(node)
                else:
                    writer = stack.enter_context(closing(sqlite3.connect(config.data / "pipeline.sqlite")))
                    writer.execute("BEGIN IMMEDIATE")  # what is owed waits for this lock
            if there == "row":
                until(lambda: orphans(node) == set())
                (before,) = jobs.all()
                assert (before.state, before.deliveries) == ("encoding", ())
                starts, left = kill_role(node, "worker"), set()
        await_starts(node, starts)
        (job,) = await_jobs(config)
        require_one_seg(job, archive, tmp_path)
        made = [i for i in open_index(config).instances(study_of(tmp_path)) if i.origin == "made"]
        assert [instance.sop_instance_uid for instance in made] == [job.sop_instance_uid]
        assert len(on_shelves(node)) == len(series(tmp_path)) + 1 + len(left)
        require_tidied(node, left)


def study_of(tmp_path: Path) -> str:
    """The study of the series that was sent."""
    return str(dcmread(tmp_path / "ct" / "0001.dcm", stop_before_pixels=True).StudyInstanceUID)


@pytest.mark.parametrize("by", ["STOW", "C-STORE"])
def test_worker_killed_when_the_archive_has_it(tmp_path: Path, archive_of_any_class: Server, by: str) -> None:
    """Killed before the answer arrives: the archive has the SEG and the node does not know; sent again, it is one."""
    archive = archive_of_any_class
    answered, killed = threading.Event(), threading.Event()
    answer = {"STOW": b"HTTP/1.1 200", "C-STORE": b"\x04"}[by]  # PDU type 04H is P-DATA-TF (PS3.8 9.3.5)

    def back(block: bytes) -> None:
        if block.startswith(answer):
            answered.set()
            killed.wait()

    with relay({"STOW": archive.http_port, "C-STORE": archive.dicom_port}[by], back=back) as port:
        to = {"STOW": f"http://127.0.0.1:{port}/dicom-web", "C-STORE": f"{archive.ae_title}@127.0.0.1:{port}"}[by]
        with segnode(tmp_path / "node", tables(to)) as node:
            send_series(node, tmp_path)
            assert answered.wait(60)
            await_starts(node, kill_role(node, "worker"))
            (before,) = jobs_of(node).all()
            assert (before.state, [d.attempts for d in before.deliveries]) == ("delivering", [0])
            assert all_label_maps(DICOMwebClient(archive.dicomweb), study_of(tmp_path)) == {before.sop_instance_uid}
            killed.set()
            (job,) = await_jobs(node_config(node))
            assert [delivery.attempts for delivery in job.deliveries] == [1]
            require_one_seg(job, archive, tmp_path)


def test_nothing_outlives_a_busy_node_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor killed, with a model at work and associations open: no process is left, the model's own among them."""
    (tmp_path / "busy_model.py").write_text(BUSY_MODEL)
    marker = tmp_path / "marker"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("MODEL_MARKER", str(marker))
    tables = MODEL.format(name="busy") + RULE.format(name="busy", names=[])
    with segnode(tmp_path / "node", tables) as node, ExitStack() as stack:
        send_series(node, tmp_path)
        until(marker.exists)
        address = parse_dimse_address(node.dimse, "")
        for _ in range(3):
            stack.enter_context(associate(DimsePeer(address, "TEST"), {(CTImageStorage, ExplicitVRLittleEndian)}))
        processes = descendants(node.process.pid)
        assert set(map(int, marker.read_text().split())) < processes
        node.process.kill()
        node.process.wait()
        await_gone(processes, (node.dicom_port, node.http_port))


def require_stops(node: Server) -> None:
    """Told to stop, a node ends by itself within ten seconds, whatever it is at, and leaves nothing."""
    processes = descendants(node.process.pid)
    node.process.terminate()
    assert node.process.wait(10) == 0
    await_gone(processes, (node.dicom_port, node.http_port))
    assert events(node, "a role did not stop and is killed") == []


class Dam:
    """Lets so many bytes through, and no more until it is opened."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._opened = threading.Event()

    def __call__(self, block: bytes) -> None:
        """Wait here with a block that is too much."""
        self._left -= len(block)
        if self._left < 0:
            self._opened.wait()

    def open(self) -> None:
        """Let everything through."""
        self._opened.set()


def test_stops_while_it_receives(tmp_path: Path) -> None:
    """Told to stop in the middle of a C-STORE and of a STOW: it ends, keeps no half, and both can be sent again."""
    files = [written(tmp_path / f"{number}.dcm", f"1.2.19.{number}", 4 << 20) for number in (1, 2)]
    dams = [Dam(3 << 20), Dam(3 << 20)]
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        with segnode(tmp_path / "node", "models = []\nrules = []", roles=("dimse", "web")) as node:
            dicom = stack.enter_context(relay(node.dicom_port, onward=dams[0]))
            http = stack.enter_context(relay(node.http_port, onward=dams[1]))
            address = DimseAddress(node.ae_title, "127.0.0.1", dicom)
            behind = Server(node.process, node.log, node.ae_title, dicom, http, node.serves)
            sent = [
                pool.submit(lambda: list(send_files(files[:1], address, "TEST"))),
                pool.submit(stow, behind, files[1].read_bytes()),
            ]
            until(lambda: half_written(node, "dimse") != [] and half_written(node, "web") != [])
            require_stops(node)
            for dam, sending in zip(dams, sent, strict=True):
                dam.open()
                assert isinstance(sending.exception(60), BROKEN)
    with restarted_segnode(tmp_path / "node") as node:
        assert index_of(node).instances("1.2.3") == []
        by_c_store(node, files[0])
        by_stow(node, files[1])
        assert half_written(node, "*") == []
        assert orphans(node) == set()


def test_stops_while_the_model_runs(tmp_path: Path, archive: Server, slow_model: Path) -> None:
    """Told to stop while a model runs: it ends, and the next start goes on with the same job."""
    with segnode(tmp_path / "node", tables(archive.dicomweb, "slow")) as node:
        send_series(node, tmp_path)
        until(slow_model.exists)
        require_stops(node)
    with restarted_segnode(tmp_path / "node") as node:
        (job,) = await_jobs(node_config(node))
        require_one_seg(job, archive, tmp_path)


@pytest.mark.parametrize("by", ["STOW", "C-STORE"])
def test_stops_while_the_archive_hangs(tmp_path: Path, archive_of_any_class: Server, by: str) -> None:
    """Told to stop while an archive does not answer: it ends, and the next start delivers."""
    archive, reached, dam = archive_of_any_class, threading.Event(), Dam(0)

    def back(block: bytes) -> None:
        reached.set()
        dam(block)

    with relay({"STOW": archive.http_port, "C-STORE": archive.dicom_port}[by], back=back) as port:
        to = {"STOW": f"http://127.0.0.1:{port}/dicom-web", "C-STORE": f"{archive.ae_title}@127.0.0.1:{port}"}[by]
        with segnode(tmp_path / "node", tables(to)) as node:
            send_series(node, tmp_path)
            assert reached.wait(60)
            require_stops(node)
        dam.open()
        with restarted_segnode(tmp_path / "node") as node:
            (job,) = await_jobs(node_config(node))
            require_one_seg(job, archive, tmp_path)
