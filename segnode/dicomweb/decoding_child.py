"""What runs in a process of its own: it decodes and renders pixels from outside, in bounded time and memory.

A request is a line of JSON; the answer is a line of JSON, and behind it as many bytes as that says.
"""

import errno
import json
import os
import resource
import sys
import threading
from io import BytesIO
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO, Final

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.uid import UID, ExplicitVRLittleEndian

from segnode.dicom.dataset_json import dataset_json, little_endian
from segnode.dicom.jpeg_lossless import use_jpeg_lossless
from segnode.dicom.native import in_native
from segnode.dicom.uids import SEGMENTATION_CLASSES
from segnode.dicom.values import value_at
from segnode.dicomweb.encoded_frames import FRAME_ENCODERS, in_encoded_frames
from segnode.dicomweb.reading_child import LastFile, open_file
from segnode.dicomweb.rendering_child import Renderer
from segnode.errors import BadRequest, NotFound, UnreadablePixels
from segnode.seg.codecs import CODECS
from segnode.seg.read import map_file
from segnode.seg.recode import recode

_MOST_MEMORY: Final = 3 << 30
_LONGEST_REASON: Final = 300
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EAGAIN)


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests; when there are no more, whoever asked has ended, and so does this process, whatever it is at."""
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    waiting: SimpleQueue[bytes] = SimpleQueue()
    use_jpeg_lossless()
    threading.Thread(target=_listen, args=(requests, waiting), daemon=True).start()
    last = LastFile()
    renderer = Renderer(last)
    while True:
        request = json.loads(waiting.get())
        _allow(request["cpu_s"])
        try:
            body = _answer(request, last, renderer)
            answer: dict[str, Any] = {"size": len(body)}
        except (Exception, MemoryError) as error:  # noqa: BLE001  whatever a decoder raises is an answer
            kind, reason = _trouble(error)
            body, answer = b"", {kind: reason.replace(request["path"], "the file")}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.write(body)
        answers.flush()


def _listen(requests: BinaryIO, waiting: "SimpleQueue[bytes]") -> None:
    for line in requests:
        waiting.put(line)
    os._exit(0)


def _answer(request: dict[str, Any], last: LastFile, renderer: Renderer) -> bytes:
    path = Path(request["path"])
    if "render" in request:
        return renderer.render(path, **request["render"])
    if "sources_of" in request:
        return renderer.sources(path, request["sources_of"])
    if "frame" in request:
        file = last.open(path)
        frame = file.frame(request["frame"])
        return FRAME_ENCODERS[request["codec"]](frame, file.places) if "codec" in request else frame
    if "location" in request:
        return document_of(path, request["location"])
    if "value" in request:
        _write_value(path, request["value"], Path(request["file"]))
    else:
        _write(path, request["transfer_syntax"], Path(request["file"]))
    return b""


def _allow(seconds: int) -> None:
    """End this process when a request takes more computing than that."""
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    resource.setrlimit(resource.RLIMIT_CPU, (int(used) + seconds + 1, resource.RLIM_INFINITY))


def _trouble(error: BaseException) -> tuple[str, str]:
    """What an error is: an object that is gone, a wrong request, a machine without room, or a bad object; and why."""
    if isinstance(error, NotFound):
        return "missing", str(error)
    if isinstance(error, BadRequest):
        return "refused", str(error)
    if isinstance(error, FileNotFoundError):
        return "missing", "the object has been deleted"
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return "no_room", f"there is no room to decode it ({os.strerror(error.errno)}): ask again"
    return "error", _reason(error)


def _reason(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return f"it takes more than {_MOST_MEMORY >> 30} GiB of memory"
    if isinstance(error, OSError):
        return f"it cannot be read ({error.strerror})"
    if isinstance(error, UnreadablePixels):
        return str(error)
    lines = str(error).splitlines()
    return f"{type(error).__name__} {lines[0] if lines else ''}"[:_LONGEST_REASON]


def _write(path: Path, transfer_syntax: str, file: Path) -> None:
    """Write a Part 10 file in another transfer syntax, native or lossless. Raises whatever pydicom and the codecs do."""
    codec = next(codec for codec in CODECS.values() if codec.transfer_syntax_uid == transfer_syntax)
    if dcmread(path, specific_tags=["SOPClassUID"], stop_before_pixels=True).SOPClassUID in SEGMENTATION_CLASSES:
        file.write_bytes(recode(map_file(path), codec))
        return
    native_object = in_native(path, ExplicitVRLittleEndian)
    if transfer_syntax == ExplicitVRLittleEndian:
        file.write_bytes(native_object)
        return
    if codec.name in FRAME_ENCODERS:
        file.write_bytes(in_encoded_frames(native_object, codec))
        return
    dataset = dcmread(BytesIO(native_object))
    if dataset.get("PlanarConfiguration") == 1:
        _interleave(dataset)
    dataset.compress(UID(transfer_syntax), generate_instance_uid=False)
    dataset.save_as(file, implicit_vr=False, little_endian=True)


def _interleave(dataset: Dataset) -> None:
    """Put the samples of each pixel beside each other: pydicom takes them for that in RLE, whatever is said."""
    frames, samples = int(dataset.get("NumberOfFrames") or 1), dataset.SamplesPerPixel
    pixels = dataset.Rows * dataset.Columns
    values = np.frombuffer(dataset.PixelData, f"<u{dataset.BitsAllocated // 8}", frames * samples * pixels)
    interleaved = values.reshape(frames, samples, pixels).swapaxes(1, 2).tobytes()
    dataset.PixelData, dataset.PlanarConfiguration = interleaved + b"\0" * (len(interleaved) % 2), 0


def document_of(path: Path, location: str) -> bytes:
    """The metadata of a Part 10 file as DICOM JSON."""
    document = dataset_json(open_file(path).header, lambda place: f"{location}/bulkdata/{place}")
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _write_value(path: Path, place: str, file: Path) -> None:
    """Write the value at that place of a file, little endian. Raises NotFound, NotDicom, OSError."""
    source = open_file(path)
    begin, end, word = value_at(source.data, source.start, source.transfer_syntax_uid, place)
    file.write_bytes(little_endian(bytes(source.data[begin:end]), word))


def main() -> None:
    """Serve on the standard streams; what a library prints goes nowhere, as it may tell of a patient."""
    os.nice(int(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
