"""Digests that are made while an object comes in: those of its data set in the file, however it comes."""

from itertools import pairwise
from pathlib import Path
from struct import pack
from tempfile import TemporaryDirectory

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRLittleEndian

from segnode.pipeline.receive import examine
from segnode.store.leases import Lease
from segnode.store.objects import ObjectStore
from segnode.testing.part10 import encode_part10
from tests.wire.test_storage import small

_WITHOUT_LENGTH = encode_part10(small("1.2.3.4", SeriesDescription="x" * 3000), ExplicitVRLittleEndian)
_META_SIZE = _WITHOUT_LENGTH.index(b"\x08\0\x16\0UI") - 132  # SOPClassUID, the first of the data set
_FILE = _WITHOUT_LENGTH[:132] + pack("<HH2sHI", 2, 0, b"UL", 4, _META_SIZE) + _WITHOUT_LENGTH[132:]
_DATA_SET = 144 + _META_SIZE
_DIGEST = f"blake3:{blake3(_FILE[_DATA_SET:]).hexdigest()}"


def _digest(blocks: list[bytes]) -> tuple[str, bytes]:
    with TemporaryDirectory() as folder:
        objects = ObjectStore(Path(folder), Lease("a" * 12, "web-1"))
        with objects.spool() as spool:
            for block in blocks:
                spool.write(block)
            spool.complete()
            digest = examine(spool).digest
            return digest, spool.path.read_bytes()


@given(st.lists(st.integers(0, len(_FILE)), max_size=6))
def test_digest_is_that_of_the_data_set_however_a_file_is_cut(cuts: list[int]) -> None:
    """Also where the file meta information comes byte by byte."""
    ends = sorted((0, *cuts, len(_FILE)))
    assert _digest([_FILE[begin:end] for begin, end in pairwise(ends)]) == (_DIGEST, _FILE)


def test_file_that_comes_byte_by_byte_has_the_same_digest() -> None:
    """No length of a block is too short."""
    assert _digest([_FILE[place : place + 1] for place in range(len(_FILE))]) == (_DIGEST, _FILE)


@pytest.mark.parametrize("said", [0, 10, _META_SIZE - 8, 4000, 0xFFFFFFFF])
def test_wrong_group_length_does_not_change_the_digest(said: int) -> None:
    """Where the data set begins is what the elements say."""
    wrong = _FILE[:140] + said.to_bytes(4, "little") + _FILE[144:]
    assert _digest([wrong]) == (_DIGEST, wrong)


def test_digest_does_not_need_the_group_length() -> None:
    """Some writers leave it out."""
    assert _digest([_WITHOUT_LENGTH]) == (_DIGEST, _WITHOUT_LENGTH)


def test_preamble_is_dropped_and_the_digest_stays() -> None:
    """Nothing in the preamble is of the object."""
    assert _digest([b"MZ" * 64, _FILE[128:]]) == (_DIGEST, _FILE)
