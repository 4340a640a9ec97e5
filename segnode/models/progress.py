"""Progress: how far a model is with its volume, as it says itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Final

from segnode.pipeline.ports import Heard

_lock: Final = Lock()
_hearing: list[Heard] = []


def report_progress(fraction: float, text: str = "") -> None:
    """Say how much of the volume is done, from 0 to 1, and in a few words what is being done; seen in `segnode jobs`.

    May be called as often as it suits the model, from any of its threads; where nobody listens it does nothing.
    """
    with _lock:
        for heard in _hearing:
            heard(float(fraction), str(text))


@contextmanager
def hearing(heard: Heard) -> Iterator[None]:
    """Hear what is reported in this process; `heard` is called by one thread at a time, and not after the end."""
    with _lock:
        _hearing.append(heard)
    try:
        yield
    finally:
        with _lock:
            _hearing.remove(heard)
