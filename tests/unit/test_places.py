"""Places for associations, counted over processes."""

import subprocess
import sys
from pathlib import Path

import pytest

from segnode.dimse.places import NoPlace, Places


def test_places_of_all_processes_are_counted(tmp_path: Path) -> None:
    """What one has taken another cannot take; what it leaves is free at once."""
    one, other = Places(tmp_path / "places", 2), Places(tmp_path / "places", 2)
    first = one.take("A", None)
    other.take("A", None)
    with pytest.raises(NoPlace) as full:
        one.take("B", None)
    assert not full.value.of_peer
    one.leave(first)
    one.leave(first)
    assert other.take("B", None) == first


def test_those_of_a_peer_are_counted_by_its_title(tmp_path: Path) -> None:
    """A peer has as many as it may, in whichever process, and others have theirs."""
    one, other = Places(tmp_path / "places", 9), Places(tmp_path / "places", 9)
    one.take("A", 2)
    place = other.take("A", 2)
    with pytest.raises(NoPlace) as full:
        one.take("A", 2)
    assert full.value.of_peer
    one.take("AB", 1)
    other.leave(place)
    one.take("A", 2)


def test_a_process_that_is_killed_leaves_its_places(tmp_path: Path) -> None:
    """Its places are free when it is gone, without a word of it."""
    program = "import sys; from pathlib import Path; from segnode.dimse.places import Places;"
    program += "p = Places(Path(sys.argv[1]), 3); p.take('A', None); p.take('A', None); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "places")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        places = Places(tmp_path / "places", 3)
        places.take("A", 3)
        with pytest.raises(NoPlace):
            places.take("A", 3)
        process.kill()
        process.wait()
        places.take("A", 3)
        places.take("A", 3)
