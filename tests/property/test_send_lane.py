"""What the sending lane packs, read by pynetdicom: the same bytes, whatever their number and the PDUs they go in."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, evt

from segnode.config import parse_dimse_address
from segnode.dimse.peer import DimsePeer
from segnode.dimse.scu import storing
from segnode.dimse.store_messages import read_store_response, store_request
from segnode.dimse.switches import set_switches
from segnode.errors import BrokeOff
from segnode.testing.part10 import encode_part10

KIND = (str(CTImageStorage), str(ExplicitVRLittleEndian))


@contextmanager
def reader(maximum_pdu: int, got: list[tuple[str, int, int]], bodies: list[bytes]) -> Iterator[DimsePeer]:
    """A Storage SCP of pynetdicom that keeps what it reads."""

    def keep(event: evt.Event) -> int:
        request = event.request
        bodies.append(request.DataSet.getvalue())
        got.append((str(request.AffectedSOPInstanceUID), request.MessageID, request.Priority))
        return 0

    set_switches()
    ae = AE("SINK")
    ae.maximum_pdu_size = maximum_pdu
    ae.add_supported_context(*KIND)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    try:
        yield DimsePeer(parse_dimse_address(f"SINK@127.0.0.1:{server.server_address[1]}", ""), "TEST", 30)
    finally:
        server.shutdown()


def part10(uid: str) -> bytes:
    """A Part 10 file of an empty data set but for its UIDs."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, uid
    return encode_part10(dataset, ExplicitVRLittleEndian)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_byte_arrives_once_and_in_order(tmp_path: Path, data: st.DataObject) -> None:
    """Files and bytes in memory of any length, odd ones too, in PDUs of any maximum length: what is read is what was sent."""
    maximum = data.draw(st.one_of(st.integers(8, 600), st.sampled_from((0, 4096, 16382, 131072, 1 << 22))))
    most = 1_500_000 if maximum in (0, 131072, 1 << 22) else maximum * 20
    sizes = data.draw(st.lists(st.integers(0, most), min_size=1, max_size=3))
    got: list[tuple[str, int, int]] = []
    bodies: list[bytes] = []
    sent = []
    with reader(maximum, got, bodies) as peer, storing(peer, {KIND}) as lane:
        for number, size in enumerate(sizes, 1):
            start = part10(f"1.2.{number}")
            whole = start + (bytes(range(251)) * (size // 251 + 1))[:size]
            file = tmp_path / f"{number}.dcm"
            file.write_bytes(whole)
            assert lane.store(file if data.draw(st.booleans()) else whole) == "status 0x0000"
            sent.append(whole[len(whole) - size - (len(start) - start.index(b"\x08\0\x16\0")) :])
    assert bodies == sent
    assert got == [(f"1.2.{number}", number, 0) for number in range(1, len(sizes) + 1)]


@given(st.binary(max_size=200))
def test_any_command_set_is_read_or_refused(command: bytes) -> None:
    """Whatever a peer sends as a response is one, is another message, or ends in an error of ours."""
    try:
        response = read_store_response(command)
    except BrokeOff:
        return
    assert response is None or 0 <= response.status <= 0xFFFF


@given(st.integers(1, 0xFFFF))
def test_request_is_no_response(message_id: int) -> None:
    """A C-STORE-RQ is none of a response."""
    assert read_store_response(store_request(*KIND, message_id)) is None


@pytest.mark.parametrize("length", [1, 2, 63, 64])
def test_length_of_a_command_is_even(length: int) -> None:
    """UIDs of any length are padded, and the group's length is that of what follows (PS3.7 6.3.1)."""
    command = store_request("1" * length, "2" * length, 1)
    assert len(command) % 2 == 0
    assert int.from_bytes(command[8:12], "little") == len(command) - 12
