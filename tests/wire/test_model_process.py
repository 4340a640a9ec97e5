"""Models in processes of their own: warm while they are well, ended whole when they are not."""

import os
import pwd
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from pydicom import Dataset

from segnode.config import ModelConfig
from segnode.dicom.slices import Slices, map_array, mapped_volume
from segnode.dicom.volume import Volume
from segnode.errors import ConfigError, ModelCrashed, ModelFailed
from segnode.models import threshold
from segnode.models.child import _segment
from segnode.models.process import ModelProcess
from segnode.testing.processes import is_alive
from segnode.testing.servers import until

MODULE = """
import ctypes, os, re, socket, subprocess, sys, tempfile, time
import numpy as np
from segnode.models import Result, report_progress

def good(volume):
    print("somebody's name")
    return Result((volume.array > 0).astype(np.uint8) * (os.getpid() % 251 + 1))

def echo(volume):
    volume.array[:] = 7  # its own copy
    assert volume.series == {"Modality": "CT"} and volume.sop_instance_uids == ("1.1", "1.2")
    assert volume.affine.tolist() == np.diag([2.0, 3.0, 4.0, 1.0]).tolist()
    return Result(volume.array.astype(np.int64))

def overlapping(volume):
    masks = np.ones((2, *volume.array.shape), bool)
    return Result(masks=masks, affine=volume.affine + np.eye(4, k=3), scores={2: 0.5})

def endless(volume): return Result(np.broadcast_to(np.uint8(0), 3 * (1 << 14,)), affine=volume.affine)

def answers_more(volume):
    for descriptor in range(3, 64):
        if os.path.exists(f"/proc/self/fd/{descriptor}") and os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket"):
            os.write(descriptor, b'{"affine": null, "scores": [], "number": 0}\\n')
    return Result((volume.array > 0).astype(np.uint8))

def raises(volume): raise ValueError("somebody's name")
def exits(volume):
    tempfile.mkstemp()
    os._exit(3)

def crashes(volume): ctypes.string_at(0)
def nothing(volume): return None
def objects(volume): return Result(np.array([object()]))

def tells(volume):
    report_progress(float("nan"), "odd")
    report_progress(0.42, "fold\\x1b[2J two" + "." * 1000)
    while not os.path.exists(os.environ["MODEL_MARKER"]):
        time.sleep(0.01)
    return Result(np.zeros(volume.array.shape, np.uint8))

def chatters(volume):
    for i in range(100_000):
        report_progress(i / 10_000 - 5)
    return Result(np.zeros(volume.array.shape, np.uint8))

def looks_around(volume):
    print(os.environ.get("SECRET"), os.environ.get("CUDA_VISIBLE_DEVICES"))
    try:
        open(os.environ["MODEL_SECRET_FILE"])
    except PermissionError:
        print("may not")
    return Result(np.full(volume.array.shape, os.getuid(), np.uint32))

def connects(volume):
    own = socket.create_server(("127.0.0.1", 0))
    socket.create_connection(own.getsockname(), 10)
    try:
        socket.create_connection(("127.0.0.1", int(os.environ["PORT"])), 10)
    except ConnectionRefusedError:
        return Result(np.ones(volume.array.shape, np.uint8))
    return Result(np.zeros(volume.array.shape, np.uint8))

def floods(volume):
    for _ in range(64):
        os.write(1, b"x" * (1 << 20))
    os.write(2, b"the end")
    return Result(np.zeros(volume.array.shape, np.uint8))

def escapes(volume):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    with open(os.environ["MODEL_MARKER"], "w") as marker:
        marker.write(f"{child.pid} {child.pid}\\n")
    os._exit(1)

def hangs(volume):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(os.environ["MODEL_MARKER"], "w") as marker:
        marker.write(f"{os.getpid()} {child.pid}\\n")
    time.sleep(600)

def holds(volume):
    with open(os.environ["MODEL_MARKER"], "w") as marker:
        marker.write(f"{os.getpid()}\\n")
    re.match("(a+)+$", "a" * 60 + "b")  # for years, and without letting go of the interpreter's lock

def swells(volume):
    held = []
    while True:
        held.append(np.ones(1 << 22))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of models, good and bad, on the path of new processes."""
    (tmp_path / "models_of_a_test.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("MODEL_MARKER", str(tmp_path / "marker"))
    return tmp_path


@pytest.fixture
def readable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that everybody may read, with the same module."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        (Path(name) / "models_of_a_test.py").write_text(MODULE)
        monkeypatch.setenv("PYTHONPATH", name)
        yield Path(name)


def config(function: str, timeout: float = 60, memory: float = 1.0) -> ModelConfig:
    """The configuration of one of them."""
    run = f"python:models_of_a_test:{function}"
    return ModelConfig(name=function, run=run, labels="threshold", version="1", timeout=timeout, memory=memory)


@pytest.fixture
def volume() -> Volume:
    """A small volume."""
    array = np.arange(-12, 12, dtype=np.float32).reshape(2, 3, 4)
    return Volume(array, np.diag([2.0, 3.0, 4.0, 1.0]), {"Modality": "CT"}, ("1.1", "1.2"))


@pytest.fixture
def process(folder: Path, request: pytest.FixtureRequest) -> Iterator[ModelProcess]:
    """The process of the model that the test names."""
    model = ModelProcess(request.param, folder / "work")
    yield model
    model.close()


@pytest.mark.parametrize("process", [config("good")], indirect=True)
def test_process_stays_warm(process: ModelProcess, volume: Volume, folder: Path) -> None:
    """The same process answers again; what it prints goes to its file, and no array is left."""
    first, second = process(volume).labelmap, process(volume).labelmap
    assert first.max() > 0
    np.testing.assert_array_equal(first > 0, volume.array > 0)
    np.testing.assert_array_equal(first, second)
    assert [path.name for path in (folder / "work").iterdir() if path.is_file()] == ["prints.log"]
    assert "somebody's name" in (folder / "work" / "prints.log").read_text()


@pytest.mark.parametrize("process", [config("answers_more")], indirect=True)
def test_answer_to_another_volume_is_not_taken(process: ModelProcess, volume: Volume) -> None:
    """Where answers come that were not asked for, labels are those of the volume all the same."""
    for _ in range(2):
        np.testing.assert_array_equal(process(volume).labelmap, volume.array > 0)


@pytest.mark.parametrize("process", [config("echo")], indirect=True)
def test_volume_arrives_whole_and_is_the_model_s_own(process: ModelProcess, volume: Volume) -> None:
    """Array, affine, attributes and UIDs are those of the volume; what the model does to its array stays with it."""
    before = volume.array.copy()
    assert (process(volume).labelmap == 7).all()
    np.testing.assert_array_equal(volume.array, before)


@pytest.mark.parametrize("process", [config("echo")], indirect=True)
def test_mapped_volume_is_the_model_s_own_as_well(process: ModelProcess, volume: Volume, folder: Path) -> None:
    """It may be had twice, what the model does to it stays with the model, and no file of it is left."""
    images = tuple(Dataset() for _ in volume.array)
    for uid, image in zip(volume.sop_instance_uids, images, strict=True):
        image.SOPInstanceUID, image.Rows, image.Columns, image.Modality = uid, 3, 4, "CT"
    slices = Slices(images, volume.affine, ())
    stored = dict(zip(volume.sop_instance_uids, volume.array.astype(np.int16), strict=True))
    mapped = mapped_volume(slices, map_array(slices, lambda image: stored[image.SOPInstanceUID], folder / "work"))
    for _ in range(2):
        assert (process(mapped).labelmap == 7).all()
        np.testing.assert_array_equal(mapped.array, volume.array)
    assert not any(path.is_file() for path in (folder / "work").iterdir())


def test_layers_grid_and_scores_come_back(volume: Volume, folder: Path) -> None:
    """What is more than a labelmap comes from the process of a model too."""
    process = ModelProcess(msgspec.structs.replace(config("overlapping"), grid="own"), folder / "work")
    try:
        result = process(volume)
    finally:
        process.close()
    assert (result.labelmap.shape, result.scores) == ((2, *volume.array.shape), {2: 0.5})
    np.testing.assert_array_equal(result.affine, volume.affine + np.eye(4, k=3))


@pytest.mark.parametrize(
    ("process", "reason"),
    [
        (config("raises"), "raised ValueError; .*prints.log has what it printed"),
        (config("exits"), "ended with exit code 3"),
        (config("crashes"), "ended by SIGSEGV"),
        (config("nothing"), "model 'nothing' returned NoneType, not a Result; it printed nothing"),
        (config("objects"), "model 'objects' returned labelmap of object: integers are needed"),
        (replace(config("endless"), grid="own"), "returned labels of 4398046511104 bytes, where 67108864 are the most"),
        (config("hangs", timeout=0.5), r"did not answer within 0.5 s \(timeout\)"),
        (config("swells", memory=0.25), r"took more than 0.25 GiB \(memory\)"),
    ],
    indirect=["process"],
)
def test_bad_model_is_a_failed_job_that_says_which(process: ModelProcess, volume: Volume, folder: Path, reason: str) -> None:
    """A crash, a hang or too much memory is an error that names the model and how it ended; twice, and nothing is left."""
    for _ in range(2):
        with pytest.raises(ModelFailed, match=reason) as error:
            process(volume)
        assert "somebody" not in str(error.value)
    process.close()
    assert {path.name for path in (folder / "work").iterdir()} <= {"prints.log"}
    if process.config.name == "hangs":
        left = [int(number) for number in (folder / "marker").read_text().split()]
        until(lambda: not any(map(is_alive, left)))


@pytest.mark.parametrize("process", [config("tells")], indirect=True)
def test_progress_is_heard_while_the_model_runs(process: ModelProcess, volume: Volume, folder: Path) -> None:
    """What a model reports is heard before it answers, with a short printable text; what is no number is not."""
    heard = []

    def hear(fraction: float, text: str) -> None:
        heard.append((fraction, text))
        (folder / "marker").touch()

    process(volume, hear)
    assert heard == [(0.42, "fold [2J two" + "." * 108)]


@pytest.mark.parametrize("process", [config("chatters")], indirect=True)
def test_progress_is_told_once_a_second(process: ModelProcess, volume: Volume) -> None:
    """A model that reports without end is heard at most once a second, from 0 to 1, and its labelmap comes all the same."""
    times = []

    def hear(fraction: float, text: str) -> None:
        times.append(time.monotonic())
        assert 0 <= fraction <= 1

    process(volume, hear)
    assert times
    assert all(later - earlier >= 1 for earlier, later in pairwise(times))


@pytest.mark.parametrize("process", [config("floods")], indirect=True)
def test_of_what_is_printed_the_end_is_kept(process: ModelProcess, volume: Volume, folder: Path) -> None:
    """A model that prints a lot works all the same, and the last MiB is in the file of the run."""
    process(volume, prints=folder / "job" / "prints.log")
    printed = (folder / "job" / "prints.log").read_bytes()
    assert len(printed) == 1 << 20
    assert printed.endswith(b"xthe end")


@pytest.mark.parametrize("process", [config("escapes")], indirect=True)
def test_what_has_left_its_group_is_ended_as_well(process: ModelProcess, volume: Volume, folder: Path) -> None:
    """A process in a session of its own, whose parent is gone, does not outlive the model's process."""
    with pytest.raises(ModelCrashed, match="exit code 1; it printed nothing"):
        process(volume)
    left = int((folder / "marker").read_text().split()[0])
    until(lambda: not is_alive(left))


def test_model_sees_its_device_and_no_secret(folder: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its environment has the name of its device, and not the variables that are hidden."""
    monkeypatch.setenv("SECRET", "s3cret")
    monkeypatch.setenv("MODEL_SECRET_FILE", "/dev/null")
    process = ModelProcess(replace(config("looks_around"), devices=("3", "5")), folder / "work", frozenset(["SECRET"]), 1)
    process(volume, prints=folder / "prints.log")
    process.close()
    assert (folder / "prints.log").read_text() == "None 5\n"


@pytest.mark.skipif(os.getuid() != 0, reason="only root may run a model as another user")
def test_model_runs_as_another_user(readable: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the rights of that user, may not read a file of the node, and gets its volume and gives labels all the same."""
    nobody = pwd.getpwnam("nobody").pw_uid
    (readable / "node").mkdir(mode=0o700)
    monkeypatch.setenv("MODEL_SECRET_FILE", str(readable / "node" / "secret"))
    (readable / "node" / "secret").touch(mode=0o600)
    process = ModelProcess(replace(config("looks_around"), user="nobody"), readable / "node" / "work")
    labels = process(volume, prints=readable / "node" / "prints.log").labelmap
    process.close()
    assert (labels == nobody).all()
    assert (readable / "node" / "prints.log").read_text() == "None None\nmay not\n"


def test_model_without_network_reaches_nobody(folder: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot connect to this machine, and what it starts itself is reached by its own loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("PORT", str(server.getsockname()[1]))
        for network in (True, False):
            process = ModelProcess(replace(config("connects"), network=network), folder / "work")
            assert (process(volume).labelmap == (not network)).all()
            process.close()


AS_NOBODY = """
import ctypes, os, pwd, socket, threading
from segnode.confinement import become, leave_network
os.setuid(pwd.getpwnam("nobody").pw_uid)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: as if it had been nobody's from its start
"""


def as_nobody(code: str) -> str:
    """What code prints that runs as nobody, its errors as well."""
    command = [sys.executable, "-c", AS_NOBODY + code]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False).stdout


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
def test_network_is_left_without_root() -> None:
    """Who is not root leaves the network by a user namespace of its own, and stays who he is."""
    printed = as_nobody("leave_network(); print(os.getuid(), socket.if_nameindex())")
    assert printed == f"{pwd.getpwnam('nobody').pw_uid} [(1, 'lo')]\n"


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("become('root')", "user: only a node that runs as root can run a model as another user"),
        (
            "threading.Thread(target=threading.Event().wait, daemon=True).start(); leave_network()",
            "network = false: this machine does not let a process leave the network",
        ),
    ],
)
def test_confinement_that_is_not_allowed_is_said(code: str, reason: str) -> None:
    """What the machine does not let a node do for its models is said with what to do."""
    assert f"ConfigError: {reason}" in as_nobody(code)


def test_user_that_there_is_not_stops_the_start(folder: Path) -> None:
    """A user that the machine does not know is named when the model is checked."""
    with pytest.raises(ConfigError, match="model 'good': user: this machine has no user 'nemo'"):
        ModelProcess(replace(config("good"), user="nemo"), folder / "work").check()


@pytest.mark.parametrize("process", [config("good")], indirect=True)
def test_model_that_dies_while_nobody_asks_is_started_again(process: ModelProcess, volume: Volume) -> None:
    """A process that is killed between two volumes is no failure of the second."""
    process(volume)
    os.killpg(process._child.process.pid, signal.SIGKILL)
    until(lambda: not is_alive(process._child.process.pid))
    assert process(volume).labelmap.max() > 0


@pytest.mark.parametrize("process", [config("good")], indirect=True)
def test_model_that_dies_before_it_reads_is_asked_again(process: ModelProcess, volume: Volume) -> None:
    """A process that is killed with a request unread fails no volume: another process gets it."""
    process(volume)
    child = process._child.process
    os.kill(child.pid, signal.SIGSTOP)
    killer = threading.Timer(0.5, child.kill)
    killer.start()
    assert process(volume).labelmap.max() > 0
    assert child.returncode == -signal.SIGKILL


def test_labelmap_without_room_is_not_the_model_s_failure(tmp_path: Path) -> None:
    """A full disk under the labelmap is said as no room."""
    np.save(tmp_path / "array.npy", np.zeros((1, 2, 2), np.float32))
    request = {"affine": np.eye(4).tolist(), "series": {}, "sop_instance_uids": ["1.1"], "frame_numbers": [], "files": []}
    with (tmp_path / "array.npy").open("rb") as array, Path("/dev/full").open("wb", buffering=0) as full:
        answer = _segment(threshold.segment, "threshold", request, array, full)
    assert list(answer) == ["no_room"]


@pytest.mark.parametrize("run", ["python:no_such_module", "python:models_of_a_test:no_such_function"])
def test_model_that_is_not_there_is_said_at_the_start(folder: Path, run: str) -> None:
    """A module or function that is missing is named before any volume comes."""
    model = ModelConfig(name="absent", run=run, labels="threshold", version="1")
    with pytest.raises(ConfigError, match="no_such"):
        ModelProcess(model, folder / "work").check()


@pytest.mark.parametrize("function", ["hangs", "holds"])
def test_nothing_outlives_a_worker_that_is_killed(folder: Path, function: str) -> None:
    """When the worker is killed while a model runs, the model and what it has started end at once, whatever it is at."""
    worker = textwrap.dedent(
        """
        import numpy as np, sys
        from pathlib import Path
        from segnode.dicom.volume import Volume
        from segnode.models.process import ModelProcess
        from tests.wire.test_model_process import config
        ModelProcess(config(sys.argv[1]), Path("work"))(Volume(np.zeros((1, 1, 1), np.float32), np.eye(4), {}, ("1",)))
        """
    )
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{Path(__file__).parents[2]}"}
    with subprocess.Popen([sys.executable, "-c", worker, function], cwd=folder, env=environment) as process:
        marker = folder / "marker"
        until(lambda: marker.exists() and marker.read_text().endswith("\n"))
        running = [int(number) for number in marker.read_text().split()]
        assert all(map(is_alive, running))
        os.kill(process.pid, signal.SIGKILL)
    until(lambda: not any(map(is_alive, running)))
