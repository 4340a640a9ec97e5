"""Commands as models of a node have them: watched, ended with all that they started, and nothing of them left."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from segnode.config import ModelConfig
from segnode.dicom.volume import Volume
from segnode.errors import ModelFailed
from segnode.models.process import ModelProcess, clear_behind
from segnode.testing.processes import is_alive
from segnode.testing.servers import until
from tests.commands import model, program

# Writes the ids of its processes to the file of its third argument.
PROCESSES = """
def ids(*processes):
    marker = Path(sys.argv[3])
    marker.with_suffix(".new").write_text(" ".join(map(str, processes)))
    marker.with_suffix(".new").rename(marker)

def sleeper(head=""):
    return [sys.executable, "-c", head + "import time; time.sleep(600)"]
"""
HANGS = (
    PROCESSES
    + """
child = subprocess.Popen(sleeper())
ids(os.getpid(), child.pid)
time.sleep(600)
"""
)
# Neither it nor its children end when they are asked to; one is in a session of its own and has no parent any more.
STUBBORN = (
    PROCESSES
    + """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(sleeper("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "))
starter = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], start_new_session=True, stdout=2).pid)"
daemon = subprocess.run([sys.executable, "-c", starter, *sleeper()], stdout=subprocess.PIPE, check=True)
ids(os.getpid(), child.pid, int(daemon.stdout))
time.sleep(600)
"""
)
DAEMON = (
    PROCESSES
    + """
starter = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], start_new_session=True, stdout=2).pid)"
daemon = subprocess.run([sys.executable, "-c", starter, *sleeper()], stdout=subprocess.PIPE, check=True)
ids(int(daemon.stdout))
image = nibabel.load(sys.argv[1])
nibabel.save(nibabel.Nifti1Image(np.ones(image.shape, np.uint8), image.affine), sys.argv[2])
"""
)
SWELLS = (
    PROCESSES
    + """
child = subprocess.Popen([sys.executable, "-c", "held = []\\nwhile True: held.append(b'x' * (1 << 22))"])
ids(os.getpid(), child.pid)
child.wait()
"""
)


@pytest.fixture
def volume() -> Volume:
    """A small volume."""
    return Volume(np.zeros((2, 3, 4), np.float32), np.diag([2.0, 3.0, 4.0, 1.0]), {"Modality": "CT"}, ("1.1", "1.2"))


def config(folder: Path, body: str, **keys: Any) -> ModelConfig:
    """A program as a model, with a cleanup that writes down for which job it was run."""
    cleanup = program(folder / "cleanup", 'with open(sys.argv[1], "a") as report: report.write(sys.argv[2] + "\\n")')
    run = f"{program(folder / 'program', body)} {{input}} {{output}} {folder / 'marker'}"
    return model(run, cleanup=f"{cleanup} {folder / 'cleaned'} {{job}}", **keys)


@pytest.fixture
def process(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ModelProcess]:
    """The process of a model that is the command of the test."""
    body, keys = request.param
    process = ModelProcess(config(tmp_path, body, **keys), tmp_path / "work")
    process.check()
    yield process
    process.close()


def left(folder: Path) -> list[int]:
    """The ids of the processes that the command has told."""
    return [int(word) for word in (folder / "marker").read_text().split()]


def require_nothing_left(folder: Path) -> None:
    """No process of the command, and no file; the cleanup was run, once."""
    assert not any(map(is_alive, left(folder)))
    assert not [*(folder / "work").rglob("segnode-*")]
    assert len((folder / "cleaned").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("process", "reason"),
    [
        ((HANGS, {"timeout": 3.0}), r"did not answer within 3 s \(timeout\)"),
        ((STUBBORN, {"timeout": 3.0}), r"did not answer within 3 s \(timeout\)"),
        ((SWELLS, {"memory": 0.4}), r"took more than 0.4 GiB \(memory\)"),
        ((HANGS.replace("time.sleep(600)", "sys.exit(3)"), {}), "ended with exit code 3"),
    ],
    indirect=["process"],
)
def test_bad_command_is_a_failed_job_and_nothing_is_left(
    process: ModelProcess, volume: Volume, tmp_path: Path, reason: str
) -> None:
    """One that hangs, swells, does not end when it is asked, or leaves others behind: ended with all its processes."""
    with pytest.raises(ModelFailed, match=reason):
        process(volume)
    require_nothing_left(tmp_path)


@pytest.mark.parametrize("process", [(DAEMON, {})], indirect=True)
def test_daemon_of_a_command_that_went_well_is_ended(process: ModelProcess, volume: Volume, tmp_path: Path) -> None:
    """Its labels are taken, and what it has left running is not."""
    assert (process(volume).labelmap == 1).all()
    require_nothing_left(tmp_path)


def test_command_ends_when_the_worker_is_killed(tmp_path: Path) -> None:
    """Also then it is asked to end, cleaned up behind, and its scratch folder is gone."""
    (tmp_path / "model.json").write_bytes(msgspec.json.encode(config(tmp_path, HANGS)))
    worker = textwrap.dedent(
        """
        import msgspec, numpy as np
        from pathlib import Path
        from segnode.config import ModelConfig
        from segnode.dicom.volume import Volume
        from segnode.models.process import ModelProcess
        model = msgspec.json.decode(Path("model.json").read_bytes(), type=ModelConfig)
        ModelProcess(model, Path("work"))(Volume(np.zeros((1, 1, 1), np.float32), np.eye(4), {}, ("1",)))
        """
    )
    with subprocess.Popen([sys.executable, "-c", worker], cwd=tmp_path) as process:
        until((tmp_path / "marker").exists)
        running = left(tmp_path)
        assert all(map(is_alive, running))
        os.kill(process.pid, signal.SIGKILL)
    until(lambda: not any(map(is_alive, running)))
    until(lambda: not [*(tmp_path / "work").rglob("segnode-*")])
    assert len((tmp_path / "cleaned").read_text().splitlines()) == 1


@pytest.mark.parametrize("process", [(HANGS, {})], indirect=True)
def test_what_a_killed_process_left_is_cleaned_up_behind(process: ModelProcess, volume: Volume, tmp_path: Path) -> None:
    """Where the model's own process is killed, its command is ended, and cleaned up behind, by the worker."""
    failed: list[str] = []

    def segment() -> None:
        try:
            process(volume)
        except ModelFailed as error:
            failed.append(str(error))

    job = threading.Thread(target=segment)
    job.start()
    until((tmp_path / "marker").exists)
    os.kill(process._child.process.pid, signal.SIGKILL)
    job.join()
    assert "ended by SIGKILL" in failed[0]
    require_nothing_left(tmp_path)


def test_scratch_of_a_node_that_was_cut_off_is_cleaned_up_at_the_next_start(tmp_path: Path) -> None:
    """A folder that nobody was left to delete holds a patient's images: it is gone, of whichever process of the model."""
    abandoned = tmp_path / "work" / "1" / "scratch-1234" / "segnode-m-12345678"
    abandoned.mkdir(parents=True)
    (abandoned / "input.nii").write_bytes(b"1234")
    clear_behind(config(tmp_path, "pass"), tmp_path / "work")
    assert not abandoned.parent.exists()
    assert (tmp_path / "cleaned").read_text() == f"{abandoned.name}\n"


TELLS = """
print("somebody's name")
print("progress 0.25 first half", flush=True)
while not Path(sys.argv[3]).exists(): time.sleep(0.01)
print("  3%|", end="", file=sys.stderr, flush=True)
print("progress 2", "progress", "progress nan", "progress: 0.3", sep="\\n", flush=True)
print("progress .75", flush=True)
image = nibabel.load(sys.argv[1])
nibabel.save(nibabel.Nifti1Image(np.ones(image.shape, np.uint8), image.affine), sys.argv[2])
"""


@pytest.mark.parametrize("process", [(TELLS, {})], indirect=True)
def test_lines_of_progress_are_progress(process: ModelProcess, volume: Volume, tmp_path: Path) -> None:
    """One is heard while the command runs; whatever else it prints goes to the model's own file, as do lines that are none."""
    heard: list[tuple[float, str]] = []

    def hear(fraction: float, text: str) -> None:
        heard.append((fraction, text))
        (tmp_path / "marker").touch()

    process(volume, hear)
    assert heard[0] == (0.25, "first half")
    printed = process.prints.read_text()
    for line, is_progress in (("progress 2\n", False), ("progress nan\n", False), ("progress .75", True), ("0.25", True)):
        assert (line in printed) != is_progress
    assert "somebody's name" in printed


@pytest.mark.parametrize("process", [(TELLS, {})], indirect=True)
def test_another_process_of_the_model_disturbs_no_command(process: ModelProcess, volume: Volume, tmp_path: Path) -> None:
    """One of a configuration that was read again comes and goes while a command runs, whose folder stays and labels come."""

    def hear(_fraction: float, _text: str) -> None:
        another = ModelProcess(process.config, tmp_path / "work")
        another.check()
        another.close()
        (tmp_path / "marker").touch()

    assert (process(volume, hear).labelmap == 1).all()
