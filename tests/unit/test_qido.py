"""What the parameters of a QIDO-RS search mean."""

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from segnode.dicom.header import Header
from segnode.dicom.query import Between, Exactly, Name, Number, Query, Wildcard, Words
from segnode.dicomweb.metadata import Metadata
from segnode.dicomweb.qido import MOST_RESULTS, parse_search, search, warnings
from segnode.errors import BadRequest
from segnode.store.database import open_database
from segnode.store.index import Arrival, Index


@pytest.mark.parametrize(
    ("parameter", "path", "what"),
    [
        (("00100020", "A"), "PatientID", Exactly(("A",))),
        (("PatientID", "A*"), "PatientID", Wildcard("A*")),
        (("PatientID", " A "), "PatientID", Exactly(("A",))),
        (("StudyInstanceUID", "1.2,1.3"), "StudyInstanceUID", Exactly(("1.2", "1.3"))),
        (("StudyInstanceUID", "1.2\\1.3"), "StudyInstanceUID", Exactly(("1.2", "1.3"))),
        (("ModalitiesInStudy", "CT,MR"), "ModalitiesInStudy", Exactly(("CT", "MR"))),
        (("ModalitiesInStudy", "C?"), "ModalitiesInStudy", Wildcard("C?")),
        (("StudyDate", "20260101"), "StudyDate", Between("20260101", "20260101")),
        (("StudyDate", "20260101-"), "StudyDate", Between("20260101", "")),
        (("StudyDate", "-20260101"), "StudyDate", Between("", "20260101")),
        (("StudyTime", "0830-12"), "StudyTime", Between("0830", "12")),
        (("StudyTime", "100000"), "StudyTime", Between("10", "100000")),
        (("StudyTime", "100000.000-"), "StudyTime", Between("10", "")),
        (("StudyTime", "100000.500-"), "StudyTime", Between("100000.5", "")),
        (("SeriesNumber", "+007"), "SeriesNumber", Number(7)),
        (("PatientName", "MÜLLER^Jörg^"), "PatientName", Name(["muller^jorg"])),
        (("PatientName", "Yamada^T*=山田^太郎"), "PatientName", Name(["yamada^t*", "山田^太郎"])),
        (("PatientName", "山田\u3000太郎"), "PatientName", Name(["山田 太郎"])),
        (("00620002.00620005", "Liver"), "SegmentSequence.SegmentLabel", Exactly(("Liver",))),
        (("SegmentSequence.00620004", "1"), "SegmentSequence.SegmentNumber", Number(1)),
    ],
)
def test_key(parameter: tuple[str, str], path: str, what: object) -> None:
    """A key is given by keyword or tag; what its value asks follows from the VR (PS3.4 C.2.2.2)."""
    assert parse_search("instances", {}, [parameter]).query.keys == {path: what}


@pytest.mark.parametrize("value", ["", "*", "**", " ", "^"])
def test_key_that_asks_nothing(value: str) -> None:
    """An empty value, or wildcards only, match all there is."""
    assert parse_search("studies", {}, [("PatientName", value)]).query.keys == {}


def test_moments_on_both_sides_of_midnight() -> None:
    """From ten in the evening of a day to six in the morning of another is a range that does not end before it begins."""
    asked = [("StudyDate", "20260101-20260102"), ("StudyTime", "2200-0600")]
    assert parse_search("studies", {}, asked).query.moments() == {"StudyDate": "StudyTime"}


def test_words_of_a_name() -> None:
    """With fuzzymatching a name is a number of beginnings of words."""
    wanted = parse_search("studies", {}, [("PatientName", "Jo DOE-s"), ("fuzzymatching", "true")])
    assert wanted.query.keys == {"PatientName": Words(["jo", "doe", "s"])}


def test_what_a_viewer_asks_for() -> None:
    """OHIF's list of studies: keywords and tags together, a page, and fields of which one is not of a study."""
    fields = "00081030,00080060,00080090,00100030"
    asked = [("limit", "101"), ("offset", "0"), ("fuzzymatching", "false"), ("includefield", fields)]
    wanted = parse_search("studies", {}, [*asked, ("PatientName", "*OHI*"), ("00100020", "*HIF*")])
    assert wanted.query == Query(
        "studies", {}, {"PatientName": Name(["*ohi*"]), "PatientID": Wildcard("*HIF*")}, combines_datetimes=True
    )
    named = {"StudyDescription", "ReferringPhysicianName", "PatientBirthDate", "PatientName", "PatientID"}
    assert (wanted.limit, wanted.offset, wanted.fields) == (101, 0, named)
    assert wanted.ignored == []


def test_what_is_not_known_is_said() -> None:
    """Keys that are not matched at the level, fields that PS3.6 does not have."""
    wanted = parse_search(
        "studies",
        {},
        [("PatientAge", "3"), ("Modality", "CT"), ("includefield", "Nonsense,all")],
    )
    assert wanted.ignored == ["PatientAge", "Modality", "Nonsense"]
    assert wanted.fields is None


def test_no_more_than_a_bound() -> None:
    """However many are asked for, there is a most of what is answered at once."""
    assert parse_search("studies", {}, [("limit", "999999999")]).limit == MOST_RESULTS
    assert parse_search("studies", {}, []).limit == MOST_RESULTS


@pytest.mark.parametrize(("offset", "said"), [(0, "more than 10000"), (1, "10000"), (10_000, "1")])
def test_what_remains_is_counted_up_to_a_bound(tmp_path: Path, offset: int, said: str) -> None:
    """Of 10,002 matches one is answered: how many follow is said, or that there are more than is counted."""
    index = Index(open_database(tmp_path / "index.sqlite"))
    header = Header(CTImageStorage, "1.2", "1.3", "1.4", ExplicitVRLittleEndian, 0, {})
    arrivals = [
        Arrival(replace(header, sop_instance_uid=f"1.2.{number}"), str(number), 1, "", "made", 0.0) for number in range(10_002)
    ]
    index.add_all(arrivals)
    wanted = parse_search("instances", {}, [("limit", "1"), ("offset", str(offset))])
    found, remaining = search(index, cast("Metadata", None), wanted, "http://")
    assert len(found) == 1
    assert warnings(wanted, remaining, "http://") == [f"299 http://: There are {said} additional results that can be requested"]


@pytest.mark.parametrize(
    "parameters",
    [
        [("limit", "-1")],
        [("limit", "x")],
        [("limit", "")],
        [("limit", "²")],
        [("offset", "1e9")],
        [("limit", "9999999999")],
        [("a b", "1")],
        [("PatientID.", "1")],
        [("Pätient", "1")],
        [("includefield", "a b")],
        [("fuzzymatching", "maybe")],
        [("PatientID", "A"), ("00100020", "B")],
        [("limit", "1"), ("limit", "2")],
        [("PatientID", "A\x00B")],
        [("PatientID", "A\nB")],
        [("PatientID", "A" * 2000)],
        [("StudyInstanceUID", "1.2.x")],
        [("StudyInstanceUID", "1.2.*")],
        [("ModalitiesInStudy", "C*,MR")],
        [("StudyDate", "2026")],
        [("StudyDate", "20261301")],
        [("StudyDate", "-")],
        [("StudyDate", "20260102-20260101")],
        [("StudyDate", "20260101-20260102-20260103")],
        [("StudyTime", "25")],
        [("StudyTime", "2200-0600")],
        [("StudyDate", "20260101"), ("StudyTime", "2200-0600")],
        [("SeriesDate", "20260101-20260102"), ("StudyTime", "2200-0600")],
        [("StudyTime", "1160")],
        [("SeriesNumber", "one")],
        [("SeriesNumber", "1,2")],
    ],
)
def test_nonsense_is_a_bad_request(parameters: list[tuple[str, str]]) -> None:
    """What is no number, no attribute, or no value of its VR is the client's error."""
    with pytest.raises(BadRequest):
        parse_search("series", {}, parameters)
