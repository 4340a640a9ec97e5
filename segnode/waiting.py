"""Waiting on descriptors by poll(2): select(2) knows none above 1023, and a process with many connections has such."""

import select


def readable(seconds: float, *descriptors: int) -> set[int]:
    """Those of some descriptors that can be read, or are at their end; waits that long for one at most."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(max(0.0, seconds) * 1000)}
