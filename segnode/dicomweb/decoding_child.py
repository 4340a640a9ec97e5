"""What runs in a process of its own: it decodes pixels from outside, in bounded time and memory.

A request is a line of JSON; the answer is a line of JSON, and behind it as many bytes as that says.
"""

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
from pydicom import DataElement, Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.filereader import read_dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, ExplicitVRLittleEndian

from segnode.dicom.dataset_json import dataset_json, little_endian
from segnode.dicom.elements import PIXEL_DATA, Buffer, elements, read_meta
from segnode.dicom.frame_places import PIXELS, FramePlaces, places_in_data_set
from segnode.dicom.jpeg_lossless import use_jpeg_lossless
from segnode.dicom.native import in_native
from segnode.dicom.transfer_syntaxes import encoding_of
from segnode.dicom.uids import SEGMENTATION_CLASSES
from segnode.dicom.values import value_at, vr_of
from segnode.errors import NotFound, UnreadablePixels
from segnode.seg.codecs import CODECS, DECODERS, FrameShape, native
from segnode.seg.read import inflate, map_file
from segnode.seg.recode import recode

_MOST_MEMORY: Final = 3 << 30
_LONGEST_REASON: Final = 300


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests; when there are no more, whoever asked has ended, and so does this process, whatever it is at."""
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    waiting: SimpleQueue[bytes] = SimpleQueue()
    use_jpeg_lossless()
    threading.Thread(target=_listen, args=(requests, waiting), daemon=True).start()
    last = _LastFile()
    while True:
        request = json.loads(waiting.get())
        _allow(request["cpu_s"])
        try:
            body = _answer(request, last)
            answer: dict[str, Any] = {"size": len(body)}
        except NotFound as error:
            body, answer = b"", {"missing": str(error)}
        except (Exception, MemoryError) as error:  # noqa: BLE001  whatever a decoder raises is an answer
            body, answer = b"", {"error": _reason(error)}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.write(body)
        answers.flush()


def _listen(requests: BinaryIO, waiting: "SimpleQueue[bytes]") -> None:
    for line in requests:
        waiting.put(line)
    os._exit(0)


def _answer(request: dict[str, Any], last: "_LastFile") -> bytes:
    path = Path(request["path"])
    if "frame" in request:
        return last.frame(path, request["frame"])
    if "value" in request:
        return _value(path, request["value"])
    if "location" in request:
        return document_of(path, request["location"])
    _write(path, request["transfer_syntax"], Path(request["file"]))
    return b""


def _allow(seconds: int) -> None:
    """End this process when a request takes more computing than that."""
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    resource.setrlimit(resource.RLIMIT_CPU, (int(used) + seconds + 1, resource.RLIM_INFINITY))


def _reason(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return f"it takes more than {_MOST_MEMORY >> 30} GiB of memory"
    if isinstance(error, UnreadablePixels):
        return str(error)
    lines = str(error).splitlines()
    return f"{type(error).__name__} {lines[0] if lines else ''}"[:_LONGEST_REASON]


class _LastFile:
    """The file that was asked for last: several frames of one are asked for in a row."""

    def __init__(self) -> None:
        self._path = Path()
        self._data: Buffer = b""
        self._places: FramePlaces | None = None

    def frame(self, path: Path, index: int) -> bytes:
        """A frame of a file, native little endian. Raises NotFound, UnreadablePixels."""
        if path != self._path:
            self._path, self._places = Path(), None
            data, start, syntax = _data_set(path)
            self._data, self._places, self._path = data, places_in_data_set(data, start, syntax), path
        if self._places is None:
            raise NotFound("it has no pixel data, and so no frames")
        if index >= self._places.number_of_frames:
            raise NotFound(f"it has {self._places.number_of_frames} frames")
        if self._places.starts is None:
            return self._places.native(self._data, index)
        return decoded(self._places, self._places.codestream(self._data, index))


def decoded(places: FramePlaces, codestream: bytes) -> bytes:
    """A native frame of a codestream, little endian. Raises UnreadablePixels, and whatever pydicom's decoders do."""
    numbers, syntax = places.numbers, places.transfer_syntax_uid
    is_plain = numbers.get("SamplesPerPixel", 1) == 1 and not numbers.get("PixelRepresentation", 0)
    if is_plain and syntax in DECODERS and numbers["BitsAllocated"] in (1, 8, 16):
        shape = FrameShape(numbers["Rows"], numbers["Columns"], numbers["BitsAllocated"])
        frame = DECODERS[syntax](codestream, shape)
        return native.encode(frame.view(np.bool_) if shape.bits == 1 else frame)
    pixels: dict[str, Any] = {
        "rows": numbers["Rows"],
        "columns": numbers["Columns"],
        "samples_per_pixel": numbers.get("SamplesPerPixel", 1),
        "bits_allocated": numbers["BitsAllocated"],
        "bits_stored": numbers.get("BitsStored", numbers["BitsAllocated"]),
        "pixel_representation": numbers.get("PixelRepresentation", 0),
        "planar_configuration": numbers.get("PlanarConfiguration", 0),
        "photometric_interpretation": places.photometric_interpretation,
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
    }
    array, _ = get_decoder(UID(syntax)).as_array(encapsulate([codestream], has_bot=False), index=0, raw=True, **pixels)
    values: bytes = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return values


def _write(path: Path, transfer_syntax: str, file: Path) -> None:
    """Write a Part 10 file in another transfer syntax, native or lossless. Raises whatever pydicom and the codecs do."""
    if dcmread(path, specific_tags=["SOPClassUID"], stop_before_pixels=True).SOPClassUID in SEGMENTATION_CLASSES:
        codec = next(codec for codec in CODECS.values() if codec.transfer_syntax_uid == transfer_syntax)
        file.write_bytes(recode(map_file(path), codec))
        return
    native_object = in_native(path, ExplicitVRLittleEndian)
    if transfer_syntax == ExplicitVRLittleEndian:
        file.write_bytes(native_object)
        return
    dataset = dcmread(BytesIO(native_object))
    dataset.compress(UID(transfer_syntax), generate_instance_uid=False)
    dataset.save_as(file, implicit_vr=False, little_endian=True)


def document_of(path: Path, location: str) -> bytes:
    """The metadata of a Part 10 file as DICOM JSON."""
    dataset = _read(path)
    document = dataset_json(dataset, lambda place: f"{location}/bulkdata/{place}")
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _data_set(path: Path) -> tuple[Buffer, int, str]:
    """The bytes of a file, where its data set begins, and its transfer syntax; inflated no further than is bounded."""
    data = map_file(path)
    syntax, start = read_meta(data)
    return (inflate(data[start:]), 0, syntax) if encoding_of(syntax).deflated else (data, start, syntax)


def _read(path: Path) -> Dataset:
    """The data set of a file up to its pixel data, of which there is only that it is there."""
    data, start, syntax = _data_set(path)
    encoding = encoding_of(syntax)
    kept, pixels = BytesIO(), None
    for element in elements(data, start, len(data), encoding, open_at=PIXEL_DATA):
        if element.tag in PIXELS:
            pixels = element
            break
        kept.write(data[element.begin : element.next])
    kept.seek(0)
    dataset = read_dataset(kept, encoding.implicit_vr, encoding.little_endian)
    if pixels is not None and pixels.end > pixels.start:
        vr = vr_of(data, pixels, implicit_vr=encoding.implicit_vr)
        dataset[pixels.tag] = DataElement(pixels.tag, vr, b"\0\0")
    return dataset


def _value(path: Path, place: str) -> bytes:
    """The value at that place of a file, little endian. Raises NotFound."""
    data, start, syntax = _data_set(path)
    begin, end, word = value_at(data, start, syntax, place)
    return little_endian(bytes(data[begin:end]), word)


def main() -> None:
    """Serve on the standard streams; what a library prints goes nowhere, as it may tell of a patient."""
    os.nice(int(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
