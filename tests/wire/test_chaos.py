"""Chaos for a minute: `scripts/chaos` runs it for longer, and again with the seed that a failure prints."""

import secrets

import pytest

from segnode.testing.chaos import run_chaos
from segnode.testing.servers import orthanc_program
from tests.conftest import absent


# Its own limits add up to four minutes and what it takes to look at what is left: what is stuck then is named.
@pytest.mark.timeout(480)
def test_chaos_loses_and_doubles_nothing() -> None:
    """Every acknowledged image is held once, every series has one SEG in the archive, and no job is stuck."""
    if orthanc_program() is None:
        absent("Orthanc with its DICOMweb plug-in", "install orthanc and orthanc-dicomweb (scripts/peers does)")
    outcome = run_chaos(secrets.randbelow(1_000_000), 60, print)
    assert outcome.found.problems == []
    if outcome.left_out:
        absent("; ".join(outcome.left_out), "the rest of the chaos was right")
