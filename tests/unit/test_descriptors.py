"""Waiting on descriptors, however many a process has."""

import fcntl
import os
import resource

import pytest

from segnode.descriptors import readable


@pytest.mark.parametrize("lowest", [0, 1100])
def test_what_can_be_read_is_told_from_the_rest(lowest: int) -> None:
    """Of two pipes the one that holds something is found, also where their numbers are more than select(2) knows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    pipes = [os.pipe() for _ in range(2)]
    full, empty = (fcntl.fcntl(ends[0], fcntl.F_DUPFD, lowest) for ends in pipes)
    try:
        assert readable(0, full, empty) == set()
        os.write(pipes[0][1], b"x")
        assert readable(60, full, empty) == {full}
    finally:
        for descriptor in (full, empty, *pipes[0], *pipes[1]):
            os.close(descriptor)


def test_the_end_is_something_to_read() -> None:
    """Who waits on a pipe whose other end is closed waits no longer."""
    out, into = os.pipe()
    os.close(into)
    assert readable(60, out) == {out}
    os.close(out)
