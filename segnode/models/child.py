"""What runs in a model's own process: volumes in, labelmaps out, both by files that are mapped."""

import json
import os
import signal
import socket
import traceback
from collections.abc import Iterator
from mmap import ACCESS_COPY, mmap
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from segnode.config import ModelConfig
from segnode.dicom.volume import Volume
from segnode.errors import ConfigError, Misplaced, ModelFailed, OutOfResources
from segnode.models.doors import load_model, patience
from segnode.models.progress import hearing
from segnode.pipeline.ports import Model
from segnode.process_family import adopt
from segnode.store.filesystem import room_for


def serve_model(config: ModelConfig, requests: socket.socket) -> None:
    """Answer requests, one JSON object a line, until there are no more."""
    adopt()
    if patience(config):
        signal.signal(signal.SIGTERM, _stop)
    try:
        model = load_model(config)
    except ConfigError as error:
        answer(requests, error=str(error))
        return
    answer(requests, number=0)
    for request, array, labelmap in _received(requests):
        with hearing(lambda fraction, text: answer(requests, progress=fraction, text=text)):
            said = _segment(model, config.name, request, array, labelmap)
        answer(requests, number=request["number"], **said)


def _received(requests: socket.socket) -> Iterator[tuple[dict[str, Any], IO[bytes], IO[bytes]]]:
    """Each request, with the file of the volume's array and that for the labelmap, which are open until the next."""
    received, descriptors = b"", []
    while True:
        block, handed_over, _, _ = socket.recv_fds(requests, 1 << 16, 2, socket.MSG_CMSG_CLOEXEC)
        if not block:
            return
        received += block
        descriptors += handed_over
        if received.endswith(b"\n"):
            with os.fdopen(descriptors[0], "rb") as array, os.fdopen(descriptors[1], "wb") as labelmap:
                yield json.loads(received), array, labelmap
            received, descriptors = b"", []


def _segment(model: Model, name: str, request: dict[str, Any], file: IO[bytes], returned: IO[bytes]) -> dict[str, Any]:
    """Run the model on a request's volume; what it raises is printed here, and named in the answer."""
    array = _mapped(file)
    volume = Volume(
        array,
        np.array(request["affine"]),
        request["series"],
        tuple(request["sop_instance_uids"]),
        tuple(map(Path, request["files"])),
        frame_numbers=tuple(request["frame_numbers"]),
    )
    try:
        result = model(volume)
        with room_for("a labelmap"):
            np.save(returned, np.asarray(result.labelmap), allow_pickle=False)
            returned.flush()
    except OutOfResources as error:
        return {"no_room": str(error)}
    except (ModelFailed, Misplaced) as error:
        return {"failed": str(error)}
    except Exception as error:  # noqa: BLE001  a model is somebody else's code: whatever it raises is an answer
        traceback.print_exc()
        return {"failed": f"model {name!r} raised {type(error).__name__}"}
    return {"affine": None if result.affine is None else result.affine.tolist(), "scores": list(result.scores.items())}


def _mapped(file: IO[bytes]) -> npt.NDArray[np.float32]:
    """The array of a .npy file, copied on write: a model may change its array, and nobody else's."""
    file.seek(0)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return np.frombuffer(mmap(file.fileno(), 0, access=ACCESS_COPY), dtype, offset=file.tell()).reshape(shape)


def answer(requests: socket.socket, **fields: Any) -> None:
    """Say something on a request, as a line of JSON; with `progress` it is not the last."""
    requests.sendall(json.dumps(fields).encode() + b"\n")


def _stop(*_: object) -> None:
    """Have whatever goes on in the main thread wind up."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit
