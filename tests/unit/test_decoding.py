"""Decoding in processes of its own: what is too much, or ends one, is an error; the next frame is decoded."""

import fcntl
import os
import resource
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless

from segnode.dicomweb import decoding
from segnode.dicomweb.decoding import Decoders
from segnode.errors import NotFound, OutOfResources, UnreadablePixels
from segnode.seg.codecs import jpeg_2000
from segnode.testing.part10 import encode_part10
from segnode.testing.processes import descendants, is_alive
from segnode.testing.servers import until


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    """One process, gone at the end."""
    made = Decoders(1)
    yield made
    while not made._idle.empty():
        decoding._end(made._idle.get_nowait())


def write_image(path: Path, size: int) -> np.ndarray:
    """A file with a frame of noise, which takes its time; the frame."""
    frame = np.random.default_rng(3).integers(0, 65536, (size, size), np.uint16)
    image = Dataset()
    image.Rows = image.Columns = size
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.PixelData = encapsulate([jpeg_2000.encode(frame)])
    image["PixelData"].is_undefined_length = True
    path.write_bytes(encode_part10(image, JPEG2000Lossless))
    return frame


def children() -> set[int]:
    """The decoding processes that are there."""
    return {p for p in descendants(os.getpid()) if b"decoding_child" in Path(f"/proc/{p}/cmdline").read_bytes()}


def test_too_much_computing_ends_it(decoders: Decoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that takes longer than it may is refused, and does not keep the next one waiting."""
    write_image(tmp_path / "large", 2048)
    frame = write_image(tmp_path / "small", 16)
    with monkeypatch.context() as patched:
        patched.setattr(decoding, "_FRAME_CPU_S", 0)
        patched.setattr(decoding, "_PATIENCE_S", 60)
        with pytest.raises(UnreadablePixels, match="too long"):
            decoders.frame(tmp_path / "large", 0)
    assert decoders.frame(tmp_path / "small", 0) == frame.tobytes()


def test_a_process_that_hangs_is_ended(decoders: Decoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that computes nothing, and answers nothing either, is not waited for."""
    frame = write_image(tmp_path / "small", 16)
    decoders.frame(tmp_path / "small", 0)
    (child,) = children()
    os.kill(child, signal.SIGSTOP)
    with monkeypatch.context() as patched:
        patched.setattr(decoding, "_PATIENCE_S", 0)
        patched.setattr(decoding, "_FRAME_CPU_S", 1)
        with pytest.raises(UnreadablePixels, match="too long"):
            decoders.frame(tmp_path / "small", 0)
    assert child not in children()
    assert decoders.frame(tmp_path / "small", 0) == frame.tobytes()


def test_a_frame_that_is_not_there(decoders: Decoders, tmp_path: Path) -> None:
    """Beyond the last it is not found."""
    write_image(tmp_path / "small", 16)
    with pytest.raises(NotFound, match="1 frames"):
        decoders.frame(tmp_path / "small", 1)


ASKS_AND_IS_GONE = """
import os, sys
from pathlib import Path
from segnode.dicomweb.decoding import Decoders
from segnode.testing.processes import descendants, is_alive
decoders = Decoders(1)
decoders.frame(Path(sys.argv[1]), 0)
print(*descendants(os.getpid()), flush=True)
os._exit(0)
"""


def test_no_process_outlives_what_asks_it(tmp_path: Path) -> None:
    """When what asked has ended, however, a decoding process ends by itself."""
    write_image(tmp_path / "small", 16)
    command = [sys.executable, "-c", ASKS_AND_IS_GONE, str(tmp_path / "small")]
    child = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    until(lambda: not is_alive(child))


def test_what_is_gone_and_what_has_no_room(decoders: Decoders, tmp_path: Path) -> None:
    """An object that was deleted is not found; where a file cannot be opened for want of room, it is to be asked for again."""
    with pytest.raises(NotFound, match="deleted"):
        decoders.frame(tmp_path / "none", 0)
    write_image(tmp_path / "small", 16)
    (child,) = children()
    resource.prlimit(child, resource.RLIMIT_NOFILE, (3, 3))  # no more than it has
    with pytest.raises(OutOfResources, match="room"):
        decoders.frame(tmp_path / "small", 0)


def test_only_a_file_that_it_has_made_is_deleted(decoders: Decoders, tmp_path: Path) -> None:
    """Where nothing can be written nothing is left; a file that was there before is neither written to nor deleted."""
    (tmp_path / "broken").write_bytes(b"no DICOM")
    (tmp_path / "there").write_bytes(b"of somebody else")
    with pytest.raises(UnreadablePixels):
        decoders.write(tmp_path / "broken", ExplicitVRLittleEndian, tmp_path / "new")
    with pytest.raises(OutOfResources, match="exists"):
        decoders.write(tmp_path / "broken", ExplicitVRLittleEndian, tmp_path / "there")
    assert {path.name for path in tmp_path.iterdir()} == {"broken", "there"}
    assert (tmp_path / "there").read_bytes() == b"of somebody else"


def test_no_answer_names_a_file(decoders: Decoders, tmp_path: Path) -> None:
    """A folder in the place of an object is no object: that is said without where it lies."""
    with pytest.raises(UnreadablePixels) as raised:
        decoders.document(tmp_path, "")
    assert str(tmp_path) not in str(raised.value)


def test_a_decoder_that_the_system_kills_is_no_fault_of_the_object(decoders: Decoders, tmp_path: Path) -> None:
    """As where there is no memory: to be asked for again."""
    write_image(tmp_path / "small", 16)
    decoders.frame(tmp_path / "small", 0)
    (child,) = children()
    os.kill(child, signal.SIGSTOP)
    os.waitpid(child, os.WUNTRACED)  # until then a thread of it may still read what it is asked
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(decoders.frame, tmp_path / "small", 0)
        with open(f"/proc/{child}/fd/0", "rb", opener=lambda path, _: os.open(path, os.O_RDONLY | os.O_NONBLOCK)) as requests:
            until(lambda: fcntl.ioctl(requests, termios.FIONREAD, bytes(4)) != bytes(4))
        os.kill(child, signal.SIGKILL)
        with pytest.raises(OutOfResources, match="killed"):
            asked.result(60)
