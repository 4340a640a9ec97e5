"""C-FIND: a node over its socket, with what DCMTK and pynetdicom ask; held against QIDO-RS (PS3.4 C.4.1)."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_context
from pynetdicom.association import Association
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import (
    PatientRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
)

from segnode.config import parse_dimse_address
from segnode.dicom.uids import LABEL_MAP_SEGMENTATION_STORAGE
from segnode.dimse import messages
from segnode.dimse.switches import set_switches
from segnode.testing.light_scu import light_association
from segnode.testing.part10 import encode_part10
from segnode.testing.servers import Server, segnode
from tests.wire.test_qido import data_set, segment

PATIENT, STUDY = PatientRootQueryRetrieveInformationModelFind, StudyRootQueryRetrieveInformationModelFind
GET = StudyRootQueryRetrieveInformationModelGet
LEVELS = {"studies": "STUDY", "series": "SERIES", "instances": "IMAGE"}
UNIQUE = {"studies": "StudyInstanceUID", "series": "SeriesInstanceUID", "instances": "SOPInstanceUID"}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A node that holds three studies of three patients, and a second study of the first."""
    asked_for = Dataset()
    asked_for.ScheduledProcedureStepID, asked_for.RequestedProcedureID = "SPS1", "RP1"
    held = [data_set(f"{study}.1.{number}", SliceLocation=str(number)) for study in "123" for number in (1, 2, 10)]
    held += [data_set("1.2.1", Modality="MR", SeriesDate="20260105", RequestAttributesSequence=[asked_for])]
    spleen = segment(2, "Spleen", "78961009", "1.7.2")
    held += [data_set("2.3.1", LABEL_MAP_SEGMENTATION_STORAGE, Modality="SEG", SegmentSequence=[spleen])]
    second = data_set("3.7.1", PatientID="ID1", PatientName="Müller^Jörg", StudyDate="20260201")
    second.StudyInstanceUID, second.SeriesInstanceUID, second.SOPInstanceUID = "1.9.4", "1.9.4.1", "1.9.4.1.1"
    with segnode(tmp_path_factory.mktemp("node"), "models = []\nrules = []") as server:
        stow(server, *(encode_part10(each, ExplicitVRLittleEndian) for each in [*held, second]))
        yield server


def stow(node: Server, *files: bytes) -> None:
    """Have the node hold objects."""
    parts = b"".join(b"--x\r\nContent-Type: application/dicom\r\n\r\n" + file + b"\r\n" for file in files)
    headers = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=x'}
    httpx.post(f"{node.dicomweb}/studies", content=parts + b"--x--\r\n", headers=headers, timeout=60).raise_for_status()


def identifier(level: str | None, **keys: object) -> Dataset:
    """An identifier; keywords of what is asked for, with None or text."""
    dataset = Dataset()
    if level is not None:
        dataset.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(dataset, keyword, value)
    return dataset


def associate(node: Server, syntax: str = ExplicitVRLittleEndian) -> Association:
    """An association in which both models are asked."""
    set_switches()
    contexts = [build_context(model, syntax) for model in (PATIENT, STUDY)]
    association = AE("TEST").associate("127.0.0.1", node.dicom_port, contexts=contexts, ae_title=node.ae_title)
    assert association.is_established
    return association


def find(
    node: Server, asked: Dataset, model: str = STUDY, syntax: str = ExplicitVRLittleEndian
) -> list[tuple[Dataset, Dataset]]:
    """Every response: its command set's elements, and its identifier."""
    association = associate(node, syntax)
    answers = [(status, match or Dataset()) for status, match in association.send_c_find(asked, model)]
    association.release()
    return answers


def matches(node: Server, asked: Dataset, model: str = STUDY, syntax: str = ExplicitVRLittleEndian) -> list[Dataset]:
    """The identifiers of a query that succeeds."""
    *pending, (last, _) = find(node, asked, model, syntax)
    assert last.Status == 0x0000, last
    assert {status.Status for status, _ in pending} <= {0xFF00}
    return [match for _, match in pending]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_study(node: Server, syntax: str) -> None:
    """What is asked for comes back, with where it can be retrieved from, its text in a character set that has it."""
    keys = ("PatientID", "ModalitiesInStudy", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances", "StudyDate")
    (match,) = matches(
        node, identifier("STUDY", PatientName="m*^j*", StudyDate="-20260131", **dict.fromkeys(keys[:-1])), syntax=syntax
    )
    assert (match.QueryRetrieveLevel, match.RetrieveAETitle, match.InstanceAvailability) == ("STUDY", "SEGNODE", "ONLINE")
    assert (match.StudyInstanceUID, match.PatientID, match.PatientName) == ("1.9.1", "ID1", "Müller^Jörg")
    assert (match.SpecificCharacterSet, list(match.ModalitiesInStudy)) == ("ISO_IR 192", ["CT", "MR"])
    assert (match.NumberOfStudyRelatedSeries, match.NumberOfStudyRelatedInstances) == (2, 4)
    assert [e.tag for e in match] == sorted(e.tag for e in match)


def test_character_set_of_who_asks(node: Server) -> None:
    """Text is in the character set that a peer names, where that has it; what is ASCII names none."""
    (match,) = matches(node, identifier("STUDY", SpecificCharacterSet="ISO_IR 100", StudyInstanceUID="1.9.1", PatientName=""))
    assert (match.SpecificCharacterSet, match.PatientName) == ("ISO_IR 100", "Müller^Jörg")
    (match,) = matches(node, identifier("STUDY", SpecificCharacterSet="ISO_IR 100", StudyInstanceUID="1.9.2", PatientName=""))
    assert (match.SpecificCharacterSet, str(match.PatientName)) == ("ISO_IR 192", "Yamada^Tarou=山田^太郎")
    (match,) = matches(node, identifier("STUDY", StudyInstanceUID="1.9.3", PatientName=""))
    assert ("SpecificCharacterSet" in match, str(match.PatientName)) == (False, "Moore^Ann Mary")


def test_patients(node: Server) -> None:
    """Studies of one PatientID are one patient, with what is held of it; below, it is the unique key of a patient."""
    counts = ("NumberOfPatientRelatedStudies", "NumberOfPatientRelatedSeries", "NumberOfPatientRelatedInstances")
    found = matches(node, identifier("PATIENT", PatientID="", PatientName="", **dict.fromkeys(counts)), PATIENT)
    assert [(m.PatientID, *(m[c].value for c in counts)) for m in found] == [
        ("ID1", 2, 3, 5),
        ("ID2", 1, 2, 4),
        ("ID3", 1, 1, 3),
    ]
    assert [m.PatientID for m in matches(node, identifier("PATIENT", PatientID="*3"), PATIENT)] == ["ID3"]
    studies = matches(node, identifier("STUDY", PatientID="ID1", StudyInstanceUID=""), PATIENT)
    assert [m.StudyInstanceUID for m in studies] == ["1.9.1", "1.9.4"]
    assert matches(node, identifier("SERIES", PatientID="ID2", StudyInstanceUID="1.9.1"), PATIENT) == []


def test_lists_ranges_and_sequences(node: Server) -> None:
    """A list of UIDs, ranges, wildcards, and keys in the item of a sequence."""
    asked = identifier("STUDY", StudyInstanceUID=["1.9.1", "1.9.3", "1.9.77"])
    assert [m.StudyInstanceUID for m in matches(node, asked)] == ["1.9.1", "1.9.3"]
    asked = identifier("STUDY", StudyInstanceUID="", StudyDate="20260102-20260103", StudyTime="10-11")
    assert [m.StudyInstanceUID for m in matches(node, asked)] == ["1.9.2", "1.9.3"]
    step = identifier(None, ScheduledProcedureStepID="SPS?", RequestedProcedureID="")
    (match,) = matches(node, identifier("SERIES", StudyInstanceUID="1.9.1", RequestAttributesSequence=[step]))
    assert match.SeriesInstanceUID == "1.9.1.2"
    assert [(i.ScheduledProcedureStepID, i.RequestedProcedureID) for i in match.RequestAttributesSequence] == [("SPS1", "RP1")]
    item = identifier(None, SegmentLabel="Spl*")
    asked = identifier("IMAGE", StudyInstanceUID="1.9.2", SeriesInstanceUID="1.9.2.3", SegmentSequence=[item])
    (match,) = matches(node, asked)
    assert [(i.SegmentLabel, len(i)) for i in match.SegmentSequence] == [("Spleen", 1)]


def test_what_the_index_does_not_keep(node: Server) -> None:
    """An attribute that only objects have is answered; as a key that narrows it is not matched, which the status says."""
    within = {"StudyInstanceUID": "1.9.1", "SeriesInstanceUID": "1.9.1.1"}
    found = matches(node, identifier("IMAGE", **within, InstanceNumber="2", SliceLocation=None, SOPInstanceUID=""))
    assert [(m.SOPInstanceUID, m.InstanceNumber, m.SliceLocation) for m in found] == [("1.9.1.1.2", 2, 2.0)]
    *pending, (last, _) = find(node, identifier("IMAGE", **within, SliceLocation="2"))
    assert ({s.Status for s, _ in pending}, len(pending), last.Status) == ({0xFF01}, 3, 0x0000)
    *pending, (last, _) = find(node, identifier("STUDY", StudyInstanceUID="1.9.1", SliceLocation=None))
    assert [(s.Status, "SliceLocation" in m) for s, m in pending] == [(0xFF01, False)]


NO_STUDY = identifier("SERIES", SeriesInstanceUID="1.9.1.1")


@pytest.mark.parametrize(
    ("asked", "model", "status", "element"),
    [
        (identifier(None, StudyInstanceUID=""), STUDY, 0xA900, 0x00080052),
        (identifier("PATIENT", PatientID=""), STUDY, 0xA900, 0x00080052),
        (identifier("FRAME", StudyInstanceUID=""), STUDY, 0xA900, 0x00080052),
        (NO_STUDY, STUDY, 0xA900, 0x0020000D),
        (identifier("STUDY", StudyInstanceUID=""), PATIENT, 0xA900, 0x00100020),
        (identifier("STUDY", StudyInstanceUID="", PatientID="ID*"), PATIENT, 0xA900, 0x00100020),
        (identifier("SERIES", StudyInstanceUID=["1.9.1", "1.9.2"]), STUDY, 0xA900, 0x0020000D),
        (identifier("SERIES", StudyInstanceUID="../../etc"), STUDY, 0xA900, 0x0020000D),
        (identifier("STUDY", StudyInstanceUID="../../etc/passwd"), STUDY, 0xC000, None),
        (identifier("STUDY", StudyDate="yesterday"), STUDY, 0xC000, None),
        (identifier("STUDY", RequestAttributesSequence=[Dataset(), Dataset()]), STUDY, 0xA900, 0x00400275),
    ],
)
def test_what_is_no_query_is_refused(node: Server, asked: Dataset, model: str, status: int, element: int | None) -> None:
    """With the status that says why, the element where there is one, and a comment; the association goes on."""
    association = associate(node)
    ((answer, match),) = association.send_c_find(asked, model)
    assert (answer.Status, answer.get("OffendingElement"), match) == (status, element, None)
    assert 0 < len(answer.ErrorComment) <= 64
    assert [s.Status for s, _ in association.send_c_find(identifier("STUDY", StudyInstanceUID="1.9.1"), STUDY)] == [
        0xFF00,
        0x0000,
    ]
    association.release()


@given(st.binary(max_size=300))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_garbage_is_answered(node: Server, garbage: bytes) -> None:
    """Whatever an identifier holds, there is a status, and the association goes on."""
    good = encode(identifier("STUDY", StudyInstanceUID="1.9.1"), True, True)
    assert good is not None
    with light_association(parse_dimse_address(node.dimse, ""), STUDY) as scu:
        assert scu.ask(messages.C_FIND_RQ, garbage or b"\0").status & 0xF000 in (0xA000, 0xC000, 0x0000)
        assert scu.ask(messages.C_FIND_RQ, good + garbage).status & 0xF000 in (0xA000, 0xC000, 0x0000)
        assert scu.ask(messages.C_FIND_RQ, good).pending == 1


TEXTS = st.sampled_from(["", "*", "ID1", "ID?", "*2", "X"])
NAMES = st.sampled_from(["", "müller^*", "MULLER^Jorg", "*moore*", "Yamada^Tarou=山田^太郎", "山田*", "Nobody", "*^Ann*"])
KEYS = {
    "studies": {
        "PatientID": TEXTS,
        "PatientName": NAMES,
        "StudyDate": st.sampled_from(["", "20260101", "20260102-", "-20260102", "20260101-20260201"]),
        "ModalitiesInStudy": st.sampled_from(["", "CT", "MR", "C*", "SEG"]),
        "AccessionNumber": st.sampled_from(["", "A[1]", "A[?]", "A*"]),
        "StudyInstanceUID": st.sampled_from(["", "1.9.1", "1.9.2\\1.9.4", "1.2"]),
    },
    "series": {
        "Modality": st.sampled_from(["", "CT", "MR", "?R", "SEG"]),
        "SeriesNumber": st.sampled_from(["", "1", "02", "7"]),
    },
    "instances": {
        "InstanceNumber": st.sampled_from(["", "1", "010", "9"]),
        "SOPInstanceUID": st.sampled_from(["", "1.9.1.1.1", "1.9.1.1.2\\1.9.1.1.10"]),
        "SegmentSequence.SegmentLabel": st.sampled_from(["", "Spleen", "L*"]),
    },
}


@st.composite
def queries(draw: st.DrawFn) -> tuple[str, dict[str, str], dict[str, str]]:
    """A level, the UIDs of what is above, and keys."""
    level = draw(st.sampled_from(list(KEYS)))
    study, series = draw(st.sampled_from([("1.9.1", "1.9.1.1"), ("1.9.2", "1.9.2.3"), ("1.9.4", "1.9.4.1")]))
    within = {"StudyInstanceUID": study, "SeriesInstanceUID": series}
    chosen = draw(st.sets(st.sampled_from(list(KEYS[level])), max_size=3))
    return level, dict(list(within.items())[: list(KEYS).index(level)]), {key: draw(KEYS[level][key]) for key in sorted(chosen)}


@given(queries(), st.booleans())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_same_matches_as_by_qido(node: Server, query: tuple[str, dict[str, str], dict[str, str]], implicit: bool) -> None:
    """Whatever is asked, both doors have the same matches."""
    level, within, keys = query
    path = "".join(f"/{each}/{uid}" for each, uid in zip(KEYS, within.values(), strict=False)) + f"/{level}"
    response = httpx.get(f"{node.dicomweb}{path}", params=keys, timeout=60)
    assert response.status_code in (200, 204), response.text
    tag = {"studies": "0020000D", "series": "0020000E", "instances": "00080018"}[level]
    by_qido = [match[tag]["Value"][0] for match in (response.json() if response.status_code == 200 else [])]
    asked = identifier(LEVELS[level], SpecificCharacterSet="ISO_IR 192", **within, **{UNIQUE[level]: ""})
    for path, value in keys.items():
        sequence, _, keyword = path.rpartition(".")
        if sequence:
            setattr(asked, sequence, [identifier(None, SpecificCharacterSet="ISO_IR 192", **{keyword: value})])
        else:
            setattr(asked, keyword, value.split("\\") if "\\" in value else value)
    found = matches(node, asked, syntax=ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian)
    assert [match[UNIQUE[level]].value for match in found] == by_qido


def test_findscu(node: Server, dcmtk: Callable[[str], str]) -> None:
    """DCMTK's and pynetdicom's findscu are answered."""
    for program in ([dcmtk("findscu")], [sys.executable, "-m", "pynetdicom", "findscu"]):
        command = [*program, "-v", "-S", "-aec", "SEGNODE", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID"]
        command += ["-k", "PatientID=ID2", "127.0.0.1", str(node.dicom_port)]
        ended = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, "TCP_NODELAY": "1"})
        assert ended.returncode == 0, ended.stderr
        assert "1.9.2" in ended.stdout + ended.stderr


LONG_UIDS = [f"1.9.{'7' * 55}.{number}" for number in range(1001, 2201)]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A node with a series of many instances, with UIDs as long as they may be."""
    held = [data_set(f"1.1.{number}") for number in range(1, 1201)]
    for each, uid in zip(held, LONG_UIDS, strict=True):
        each.SOPInstanceUID = uid
    with segnode(tmp_path_factory.mktemp("full"), "models = []\nrules = []") as server:
        stow(server, *(encode_part10(each, ExplicitVRLittleEndian) for each in held))
        yield server


MANY = identifier("IMAGE", StudyInstanceUID="1.9.1", SeriesInstanceUID="1.9.1.1", SOPInstanceUID="", PatientName="")


def test_cancel_is_heard(full: Server) -> None:
    """C-CANCEL ends a query with FE00; what comes after on the association is served, also under the same number."""
    association = associate(full)
    statuses = []
    for number, (status, _) in enumerate(association.send_c_find(MANY, STUDY, msg_id=7)):
        statuses.append(status.Status)
        if number == 0:
            association.send_c_cancel(7, query_model=STUDY)
    assert statuses[-1] in (0xFE00, 0x0000)
    again = [status.Status for status, _ in association.send_c_find(MANY, STUDY, msg_id=7)]
    assert (again.count(0xFF00), again[-1]) == (1200, 0x0000)
    association.release()


def test_cancel_that_comes_with_the_request(full: Server) -> None:
    """One that is there before the first answer ends the query before all of it is sent."""
    encoded = encode(MANY, True, True)
    assert encoded is not None
    with light_association(parse_dimse_address(full.dimse, ""), STUDY) as scu:
        assert scu.ask(messages.C_FIND_RQ, encoded, cancel=True).status == 0xFE00
        assert scu.ask(messages.C_FIND_RQ, encoded).pending == 1200


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_long_list_of_what_failed_is_whole(full: Server, syntax: str) -> None:
    """Of 1200 objects that cannot be sent every UID is listed, though together they are longer than an explicit UI may be."""
    set_switches()
    association = AE("TEST").associate(
        "127.0.0.1", full.dicom_port, contexts=[build_context(GET, syntax)], ae_title=full.ae_title
    )
    asked = identifier("SERIES", StudyInstanceUID="1.9.1", SeriesInstanceUID="1.9.1.1")
    *_, (status, failed) = association.send_c_get(asked, GET)  # others tell how far it is
    association.release()
    assert (status.Status, status.NumberOfFailedSuboperations) == (0xA702, 1200)
    value = failed.FailedSOPInstanceUIDList
    listed = value.decode().rstrip("\0").split("\\") if isinstance(value, bytes) else value  # as UN it is bytes
    assert sorted(listed) == LONG_UIDS


def test_two_at_once(full: Server) -> None:
    """Associations do not wait for each other."""
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: len(matches(full, MANY)), range(4)))
    assert found == [1200] * 4


def test_peer_that_is_gone_harms_nobody(full: Server) -> None:
    """One that closes its connection in the middle of an answer is forgotten, and the process serves on."""
    encoded = encode(MANY, True, True)
    assert encoded is not None
    with light_association(parse_dimse_address(full.dimse, ""), STUDY) as scu:
        scu.send(messages.C_FIND_RQ, encoded)
        scu.cut()
    assert len(matches(full, MANY)) == 1200
    assert b"Traceback" not in full.log.read_bytes()
