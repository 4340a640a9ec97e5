"""Descriptors: waiting for some by poll(2), as select(2) knows none above 1023, and letting go of inherited ones."""

import os
import select
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path


def readable(seconds: float, *descriptors: int) -> set[int]:
    """Those of some descriptors that can be read, or are at their end; waits that long for one at most."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(max(0.0, seconds) * 1000)}


def close_all_but(kept: Collection[int]) -> None:
    """Close the descriptors that a process has from the one that forked it, but for some."""
    for path in Path("/proc/self/fd").iterdir():  # not all that there might be: in containers a billion
        if int(path.name) not in kept:
            with suppress(OSError):  # that of the listing itself
                os.close(int(path.name))
