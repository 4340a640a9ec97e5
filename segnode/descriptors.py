"""Descriptors: having enough, waiting by poll(2), as select(2) knows none above 1023, and letting go of inherited ones."""

import os
import resource
import select
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Final

# More than that only makes tables long, in programs that make one of all that there might be.
_ENOUGH: Final = 1 << 16


def allow_many() -> None:
    """Let this process and those it starts have as many descriptors as they may: by default often 1,024 (systemd, a shell)."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = _ENOUGH if most == resource.RLIM_INFINITY else min(most, _ENOUGH)
    if now != resource.RLIM_INFINITY and now < enough:
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, most))


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
