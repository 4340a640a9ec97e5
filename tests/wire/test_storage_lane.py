"""The storage lane and pynetdicom's own path side by side: what comes by one is as what comes by the other."""

import itertools
import json
import os
import signal
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from segnode.testing.light_sender import (
    IMPLICIT,
    VERIFICATION,
    LightAssociation,
    Sendable,
    data_pdu,
    data_pdus,
    sendable,
    store_command,
)
from segnode.testing.part10 import encode_part10
from segnode.testing.processes import descendants, post_of
from segnode.testing.servers import Server, free_port, segnode, until
from tests.wire.test_dimse_tls import Authority, address, tables, tls_port
from tests.wire.test_storage import files, held, kept_bytes, small

CONTEXTS = [(VERIFICATION, [IMPLICIT]), (CTImageStorage, [ExplicitVRLittleEndian])]
NUMBERS = itertools.count(100)
COMMENT = 0x0902


Join = Callable[[], LightAssociation]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority with a certificate for the node."""
    made = Authority(tmp_path_factory.mktemp("authority"))
    made.issue("node")
    return made


@pytest.fixture(scope="module")
def node(authority: Authority) -> Iterator[Server]:
    """A node without rules, with a port for TLS too."""
    with segnode(authority.folder / "node", tables(), dicom_tls=address(free_port())) as server:
        yield server


@pytest.fixture(params=["plain", "TLS"])
def join(node: Server, authority: Authority, request: pytest.FixtureRequest) -> Join:
    """Opens associations, with TLS or without."""
    if request.param == "plain":
        return lambda: associate(node)
    return lambda: LightAssociation(tls_port(node), node.ae_title, CONTEXTS, authority.client())


def associate(node: Server) -> LightAssociation:
    """An association in which CT images and echoes are sent."""
    return LightAssociation(node.dicom_port, node.ae_title, CONTEXTS)


def fresh() -> str:
    """A SOP instance UID that nothing has yet."""
    return f"1.2.20.{next(NUMBERS)}.9"


def an_object(sop: str, **attributes) -> Sendable:
    """A small object to be sent."""
    return sendable(encode_part10(small(sop, **attributes), ExplicitVRLittleEndian))


def by_lane(association: LightAssociation, item: Sendable) -> bytes:
    """A message whose command is whole in the first PDU."""
    return association.packed(item)


def by_pynetdicom(association: LightAssociation, item: Sendable) -> bytes:
    """A message whose command is in two fragments, which is not the lane's."""
    context, command = association.context_of(item.sop_class_uid, item.transfer_syntax_uid), store_command(item)
    parts = data_pdu(context, 1, command[:20]) + data_pdu(context, 3, command[20:])
    return parts + b"".join(data_pdus(context, item.data_set, association.maximum))


BOTH = pytest.mark.parametrize("pack", [by_lane, by_pynetdicom])


def answer(association: LightAssociation) -> dict[int, bytes]:
    """The elements of the next answer, by number."""
    _, body = association.receive()
    found, offset = {}, 6
    while offset < len(body):
        _, number, length = struct.unpack_from("<HHI", body, offset)
        found[number] = body[offset + 8 : offset + 8 + length]
        offset += 8 + length
    return found


@BOTH
def test_data_set_is_kept_as_it_came(node: Server, join: Join, pack) -> None:
    """The data set is kept byte for byte, behind file meta information that names class, instance and transfer syntax."""
    item = an_object(fresh(), SeriesDescription="x" * 5000)
    with join() as association:
        assert association.send(pack(association, item)) == 0
    assert sendable(kept_bytes(node, item.sop_instance_uid)) == item
    assert kept_bytes(node, item.sop_instance_uid)[:132] == bytes(128) + b"DICM"


def test_both_know_an_object_of_the_other_again(node: Server, join: Join) -> None:
    """What came by one way is not kept again when it comes by the other, and the index has the same of both."""
    one, other = an_object(fresh()), an_object(fresh())
    with join() as association:
        for item, pack in ((one, by_lane), (other, by_pynetdicom)):
            assert association.send(pack(association, item)) == 0
        before = files(node)
        for item, pack in ((one, by_pynetdicom), (other, by_lane)):
            assert association.send(pack(association, item)) == 0
    until(lambda: files(node) == before)
    rows = [held(node, item.sop_instance_uid) for item in (one, other)]
    assert all(row is not None and row.digest.startswith("blake3:") for row in rows)


def test_answers_are_the_same(node: Server, join: Join) -> None:
    """Refusals have the same status, comment, offending element and identity by both ways."""
    command_of_another = replace(an_object("1.2.20.4"), sop_instance_uid="1.2.20.5")
    without_series = replace(an_object("1.2.20.6", SeriesInstanceUID=""), sop_instance_uid="1.2.20.6")
    cut_off = an_object("1.2.20.7")
    cut_off = replace(cut_off, data_set=cut_off.data_set[:-3])
    for item, status in ((command_of_another, 0xA900), (without_series, 0xC000), (cut_off, 0xC000)):
        with join() as association:
            answers = []
            for pack in (by_lane, by_pynetdicom):
                association.socket.sendall(pack(association, item))
                answers.append(answer(association))
        assert answers[0] == answers[1]
        assert int.from_bytes(answers[0][0x0900], "little") == status
        assert answers[0][COMMENT]
        assert held(node, item.sop_instance_uid) is None


def test_an_association_mixes_everything(node: Server, join: Join) -> None:
    """Echoes, objects by the lane and objects by pynetdicom come in one association, in any order."""
    with join() as association:
        for pack in (by_lane, by_pynetdicom, by_lane, by_lane, by_pynetdicom):
            assert association.echo() == 0
            item = an_object(fresh())
            assert association.send(pack(association, item)) == 0
            assert held(node, item.sop_instance_uid) is not None


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(2, 900).map(lambda n: 2 * n), min_size=1, max_size=30), together=st.integers(1, 5))
def test_fragments_may_be_of_any_length(node: Server, join: Join, sizes: list[int], together: int) -> None:
    """A data set comes in fragments of any length, one or several in a PDU, the first of them behind the command."""
    item = an_object(fresh(), SeriesDescription="y" * 9000)
    with join() as association:
        context = association.context_of(item.sop_class_uid, item.transfer_syntax_uid)
        pieces, start = [(3, store_command(item))], 0
        for size in sizes:
            pieces.append((0, item.data_set[start : start + size]))
            start += size
        pieces.append((2, item.data_set[start:]))
        values = [struct.pack(">IBB", len(value) + 2, context, control) + value for control, value in pieces]
        groups = [b"".join(values[first : first + together]) for first in range(0, len(values), together)]
        assert association.send(b"".join(struct.pack(">BxI", 4, len(group)) + group for group in groups)) == 0
    assert sendable(kept_bytes(node, item.sop_instance_uid)) == item


@BOTH
def test_both_are_logged_and_counted_alike(tmp_path: Path, pack) -> None:
    """An object's line names its association, which is said to have opened and closed."""
    with segnode(tmp_path / "node", "models = []\nrules = []", roles=("dimse",)) as node:
        with associate(node) as association:
            assert association.send(pack(association, an_object("1.2.20.10"))) == 0
        until(lambda: '"association closed"' in node.log.read_text())
        lines = [json.loads(line) for line in node.log.read_text().splitlines() if line.startswith("{")]
    said = [line for line in lines if line["event"] in ("association opened", "received", "association closed")]
    assert [line["event"] for line in said] == ["association opened", "received", "association closed"]
    assert len({line["association"] for line in said}) == 1
    assert said[1]["sop_instance_uid"] == "1.2.20.10"


def test_what_breaks_off_leaves_nothing(node: Server, join: Join) -> None:
    """An association that ends inside an object leaves no file, by A-ABORT, release or a closed connection."""
    before = files(node)
    abort, release = struct.pack(">BxI4x", 7, 4), struct.pack(">BxI4x", 5, 4)
    for last in (abort, release, b"", struct.pack(">BxI", 4, 5000)):
        item = an_object("1.2.20.11", SeriesDescription="z" * 9000)
        association = join()
        context = association.context_of(item.sop_class_uid, item.transfer_syntax_uid)
        start = data_pdu(context, 3, store_command(item)) + data_pdu(context, 0, item.data_set[:4000])
        association.socket.sendall(start + last)
        association.socket.close()
    until(lambda: files(node) == before)
    assert held(node, "1.2.20.11") is None


def test_a_process_that_is_killed_has_promised_nothing_it_does_not_keep(tmp_path: Path) -> None:
    """Killed before its answer, whatever it had done of an object, the same is stored once when it is sent again."""
    item = an_object("1.2.20.12", SeriesDescription="w" * 200_000)
    with segnode(tmp_path / "node", "models = []\nrules = []", roles=("dimse",)) as node:

        def receiving() -> list[int]:
            return [pid for pid in descendants(node.process.pid) if post_of(pid).startswith("dimse")]

        for _ in range(5):
            (process,) = receiving()
            association = associate(node)
            association.socket.sendall(by_lane(association, item))
            os.kill(process, signal.SIGKILL)
            until(lambda process=process: receiving() not in ([], [process]))
            association.socket.close()
        with associate(node) as association:
            assert association.send(by_lane(association, item)) == 0
        assert sendable(kept_bytes(node, item.sop_instance_uid)) == item
