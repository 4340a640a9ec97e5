"""Models in processes of their own: warm while they are well, ended whole when they are not."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from segnode.config import ModelConfig
from segnode.dicom.volume import Volume
from segnode.errors import ConfigError, ModelFailed
from segnode.models import threshold
from segnode.models.child import _segment
from segnode.models.process import ModelProcess
from segnode.testing.processes import is_alive
from segnode.testing.servers import until

MODULE = """
import ctypes, os, subprocess, sys, time
import numpy as np
from segnode.models import Result

def good(volume):
    print("somebody's name")
    return Result((volume.array > 0).astype(np.uint8) * (os.getpid() % 251))

def echo(volume):
    volume.array[:] = 7  # its own copy
    assert volume.series == {"Modality": "CT"} and volume.sop_instance_uids == ("1.1", "1.2")
    assert volume.affine.tolist() == np.diag([2.0, 3.0, 4.0, 1.0]).tolist()
    return Result(volume.array.astype(np.int64))

def raises(volume): raise ValueError("somebody's name")
def exits(volume): os._exit(3)
def crashes(volume): ctypes.string_at(0)
def nothing(volume): return None
def objects(volume): return Result(np.array([object()]))

def hangs(volume):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(os.environ["MODEL_MARKER"], "w") as marker:
        marker.write(f"{os.getpid()} {child.pid}\\n")
    time.sleep(600)

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
    assert [path.name for path in (folder / "work").iterdir()] == ["prints.log"]
    assert "somebody's name" in (folder / "work" / "prints.log").read_text()


@pytest.mark.parametrize("process", [config("echo")], indirect=True)
def test_volume_arrives_whole_and_is_the_model_s_own(process: ModelProcess, volume: Volume) -> None:
    """Array, affine, attributes and UIDs are those of the volume; what the model does to its array stays with it."""
    before = volume.array.copy()
    assert (process(volume).labelmap == 7).all()
    np.testing.assert_array_equal(volume.array, before)


@pytest.mark.parametrize(
    ("process", "reason"),
    [
        (config("raises"), "raised ValueError; .*prints.log has what it printed"),
        (config("exits"), "ended with exit code 3"),
        (config("crashes"), "ended by SIGSEGV"),
        (config("nothing"), "raised AttributeError"),
        (config("objects"), "raised ValueError"),
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
    assert [path.name for path in (folder / "work").iterdir()] == ["prints.log"]
    if process.config.name == "hangs":
        left = [int(number) for number in (folder / "marker").read_text().split()]
        until(lambda: not any(map(is_alive, left)))


@pytest.mark.parametrize("process", [config("good")], indirect=True)
def test_model_that_dies_while_nobody_asks_is_started_again(process: ModelProcess, volume: Volume) -> None:
    """A process that is killed between two volumes is no failure of the second."""
    process(volume)
    os.killpg(process._child.process.pid, signal.SIGKILL)
    until(lambda: not is_alive(process._child.process.pid))
    assert process(volume).labelmap.max() > 0


@pytest.mark.parametrize("process", [config("good")], indirect=True)
def test_model_that_dies_before_it_reads_is_named(process: ModelProcess, volume: Volume) -> None:
    """A process that is killed with a request unread fails that volume, and the next gets another process."""
    process(volume)
    child = process._child.process
    os.kill(child.pid, signal.SIGSTOP)
    killer = threading.Timer(0.5, child.kill)
    killer.start()
    with pytest.raises(ModelFailed, match="ended by SIGKILL"):
        process(volume)
    assert process(volume).labelmap.max() > 0


def test_labelmap_without_room_is_not_the_model_s_failure(tmp_path: Path) -> None:
    """A full disk under the labelmap is said as no room."""
    np.save(tmp_path / "array.npy", np.zeros((1, 2, 2), np.float32))
    (tmp_path / "labelmap.npy").symlink_to("/dev/full")
    request = {"array": tmp_path / "array.npy", "labelmap": tmp_path / "labelmap.npy", "affine": np.eye(4).tolist()}
    answer = _segment(threshold.segment, {**request, "series": {}, "sop_instance_uids": ["1.1"]})
    assert list(answer) == ["no_room"]


@pytest.mark.parametrize("run", ["python:no_such_module", "python:models_of_a_test:no_such_function"])
def test_model_that_is_not_there_is_said_at_the_start(folder: Path, run: str) -> None:
    """A module or function that is missing is named before any volume comes."""
    model = ModelConfig(name="absent", run=run, labels="threshold", version="1")
    with pytest.raises(ConfigError, match="no_such"):
        ModelProcess(model, folder / "work").check()


def test_nothing_outlives_a_worker_that_is_killed(folder: Path) -> None:
    """When the worker is killed while a model runs, the model and what it has started end at once."""
    worker = textwrap.dedent(
        """
        import numpy as np
        from pathlib import Path
        from segnode.dicom.volume import Volume
        from segnode.models.process import ModelProcess
        from tests.wire.test_model_process import config
        ModelProcess(config("hangs"), Path("work"))(Volume(np.zeros((1, 1, 1), np.float32), np.eye(4), {}, ("1",)))
        """
    )
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{Path(__file__).parents[2]}"}
    with subprocess.Popen([sys.executable, "-c", worker], cwd=folder, env=environment) as process:
        marker = folder / "marker"
        until(lambda: marker.exists() and marker.read_text().endswith("\n"))
        running = [int(number) for number in marker.read_text().split()]
        assert all(map(is_alive, running))
        os.kill(process.pid, signal.SIGKILL)
    until(lambda: not any(map(is_alive, running)))
