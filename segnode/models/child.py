"""What runs in a model's own process: volumes in, labelmaps out, both by files that are mapped."""

import json
import os
import signal
import socket
import threading
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from segnode.config import ModelConfig
from segnode.dicom.volume import Volume
from segnode.errors import ConfigError
from segnode.models.python import load_model
from segnode.pipeline.ports import Model


class _NoRoom(Exception):
    """The disk does not take a labelmap."""


def serve_model(config: ModelConfig, requests: socket.socket, life: int) -> None:
    """Answer requests, one JSON object a line, until there are no more.

    When nothing holds the other end of `life` any longer, the worker is gone: this process and all that it has started
    end at once, whatever the model is doing.
    """
    threading.Thread(target=_end_with_the_worker, args=(life,), daemon=True).start()
    with requests.makefile("rw", encoding="utf-8") as stream:
        try:
            model = load_model(config)
        except ConfigError as error:
            _answer(stream, error=str(error))
            return
        _answer(stream)
        for line in stream:
            _answer(stream, **_segment(model, json.loads(line)))


def _segment(model: Model, request: dict[str, Any]) -> dict[str, str]:
    """Run the model on a request's volume; what it raises is printed here, and named in the answer."""
    # Copy on write: a model may change its array, and nobody else's.
    array = np.load(request["array"], mmap_mode="c")
    volume = Volume(array, np.array(request["affine"]), request["series"], tuple(request["sop_instance_uids"]))
    try:
        labelmap = model(volume).labelmap
        _save(Path(request["labelmap"]), labelmap)
    except _NoRoom as error:
        return {"no_room": str(error)}
    except Exception as error:  # noqa: BLE001  a model is somebody else's code: whatever it raises is an answer
        traceback.print_exc()
        return {"error": f"raised {type(error).__name__}"}
    return {}


def _save(path: Path, labelmap: Any) -> None:
    """Write a labelmap. Raises _NoRoom, which is not the model's failure."""
    try:
        np.save(path, labelmap, allow_pickle=False)
    except OSError as error:
        raise _NoRoom(error.strerror or error) from error


def _answer(stream: Any, **fields: str) -> None:
    stream.write(json.dumps(fields) + "\n")
    stream.flush()


def _end_with_the_worker(life: int) -> None:
    os.read(life, 1)
    os.killpg(0, signal.SIGKILL)
