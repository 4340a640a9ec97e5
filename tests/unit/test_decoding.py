"""Decoding in processes of its own: what is too much, or ends one, is an error; the next frame is decoded."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless

from segnode.dicomweb import decoding
from segnode.dicomweb.decoding import Decoders
from segnode.errors import NotFound, UnreadablePixels
from segnode.seg.codecs import jpeg_2000
from segnode.testing.part10 import encode_part10
from segnode.testing.processes import descendants, is_alive
from segnode.testing.servers import until


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    """One process, gone at the end."""
    made = Decoders(1)
    yield made
    made.close()


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
