"""Searching by QIDO-RS: a node over its socket, with what OHIF and the public client ask (PS3.18 10.6, PS3.4 C.2.2.2)."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, SegmentationStorage

from segnode.dicom.uids import LABEL_MAP_SEGMENTATION_STORAGE
from segnode.testing.part10 import encode_part10
from segnode.testing.processes import descendants, peak, post_of
from segnode.testing.servers import Server, segnode

PATIENTS = {"1": "Müller^Jörg", "2": "Yamada^Tarou=山田^太郎", "3": "Moore^Ann Mary"}
REQUIRED = {
    "studies": "00080020 00080030 00080050 00080061 00080090 00081190 00100010 00100020 00100030 00100040 0020000D 00200010 "
    "00201206 00201208",
    "series": "00080060 00081190 0020000E 00200011 00201209",
    "instances": "00080016 00080018 00081190 00200013",
}


def data_set(uid: str, sop_class: str = CTImageStorage, **attributes) -> Dataset:
    """An object whose UID says its study, series and number; without pixels."""
    study, series, number = uid.split(".")
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, f"1.9.{uid}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"1.9.{study}", f"1.9.{study}.{series}"
    dataset.PatientID, dataset.PatientName, dataset.StudyDate = f"ID{study}", PATIENTS[study], f"2026010{study}"
    dataset.StudyTime, dataset.AccessionNumber, dataset.PatientAge = "101500", f"A[{study}]", "040Y"
    dataset.Modality, dataset.InstanceNumber, dataset.SeriesNumber = "CT", number, series
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def segment(number: int, label: str, code: str, tracking: str) -> Dataset:
    """An item of SegmentSequence."""
    kind, item = Dataset(), Dataset()
    kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning = code, "SCT", label
    item.SegmentNumber, item.SegmentLabel, item.TrackingUID = number, label, tracking
    item.SegmentAlgorithmType, item.SegmentAlgorithmName = "AUTOMATIC", f"net {number}"
    item.SegmentedPropertyTypeCodeSequence = [kind]
    return item


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A node that holds three studies: images of two series each, and two SEGs."""
    asked_for = Dataset()
    asked_for.ScheduledProcedureStepID, asked_for.RequestedProcedureID = "SPS1", "RP1"
    liver, spleen = segment(1, "Liver", "10200004", "1.7.1"), segment(2, "Spleen", "78961009", "1.7.2")
    held = [data_set(f"{study}.1.{number}") for study in PATIENTS for number in (1, 2, 10)]
    held += [data_set("1.2.1", Modality="MR", SeriesDate="20260105", RequestAttributesSequence=[asked_for])]
    held += [
        data_set("1.3.1", SegmentationStorage, Modality="SEG", SegmentSequence=[liver, spleen]),
        data_set("2.3.1", LABEL_MAP_SEGMENTATION_STORAGE, Modality="SEG", SegmentSequence=[spleen]),
    ]
    with segnode(tmp_path_factory.mktemp("node"), "models = []\nrules = []") as server:
        files = [encode_part10(each, ExplicitVRLittleEndian) for each in held]
        parts = b"".join(b"--x\r\nContent-Type: application/dicom\r\n\r\n" + file + b"\r\n" for file in files)
        headers = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=x'}
        httpx.post(f"{server.dicomweb}/studies", content=parts + b"--x--\r\n", headers=headers, timeout=60).raise_for_status()
        yield server


def search(node: Server, query: str) -> list[dict]:
    """What a search answers, as it would be typed."""
    response = httpx.get(f"{node.dicomweb}/{query}", timeout=60)
    assert response.status_code in (200, 204), response.text
    return response.json() if response.status_code == 200 else []


def uids(node: Server, query: str) -> list[str]:
    """The UIDs of the matches of a search, without what they all begin with."""
    tag = {"studies": "0020000D", "series": "0020000E", "instances": "00080018"}[query.partition("?")[0].rpartition("/")[2]]
    return [match[tag]["Value"][0].removeprefix("1.9.") for match in search(node, query)]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("studies", "1 2 3"),
        ("studies?PatientID=ID2", "2"),
        ("studies?00100020=ID2&PatientName=", "2"),
        ("studies?PatientID=id2", ""),
        ("studies?PatientID=ID?", "1 2 3"),
        ("studies?PatientID=*2*", "2"),
        ("studies?AccessionNumber=A[1]", "1"),
        ("studies?AccessionNumber=*[1-3]", ""),
        ("studies?AccessionNumber=*%5B3%5D", "3"),
        ("studies?StudyInstanceUID=1.9.1,1.9.3", "1 3"),
        ("studies?StudyInstanceUID=1.9.1%5C1.9.3", "1 3"),
        ("studies?StudyDate=20260102-", "2 3"),
        ("studies?StudyDate=-20260102", "1 2"),
        ("studies?StudyDate=20260102-20260102", "2"),
        ("studies?StudyDate=20260102", "2"),
        ("studies?StudyTime=10", "1 2 3"),
        ("studies?StudyTime=1016-", ""),
        ("studies?StudyDate=20260101-20260103&StudyTime=11-12", "2 3"),
        ("studies?PatientName=MULLER^JORG", "1"),
        ("studies?PatientName=m%C3%BCller*", "1"),
        ("studies?PatientName=%E5%B1%B1%E7%94%B0*", "2"),
        ("studies?PatientName=Moore^Ann", ""),
        ("studies?PatientName=mary%20moo&fuzzymatching=true", "3"),
        ("studies?ModalitiesInStudy=SEG", "1 2"),
        ("studies?ModalitiesInStudy=MR,SEG", "1 2"),
        ("studies?limit=2", "1 2"),
        ("studies?limit=2&offset=2", "3"),
        ("studies?offset=3", ""),
        ("studies?limit=0", ""),
        ("studies?PatientID=%27%20OR%201=1--", ""),
        ("studies?PatientID=%22;DROP%20TABLE%20study;--", ""),
        ("series?Modality=SEG", "1.3 2.3"),
        ("series?PatientID=ID1&SeriesNumber=02", "1.2"),
        ("series?RequestAttributesSequence.RequestedProcedureID=RP1", "1.2"),
        ("series?00400275.00400009=SPS*", "1.2"),
        ("series?PerformedProcedureStepStartDate=20260101-", ""),
        ("studies/1.9.3/series", "3.1"),
        ("studies/1.9.3/series?Modality=MR", ""),
        ("studies/1.9.8/series", ""),
        ("instances?SOPClassUID=1.2.840.10008.5.1.4.1.1.66.4,1.2.840.10008.5.1.4.1.1.66.7", "1.3.1 2.3.1"),
        ("instances?StudyInstanceUID=1.9.2&InstanceNumber=10", "2.1.10"),
        ("studies/1.9.3/instances", "3.1.1 3.1.10 3.1.2"),
        ("studies/1.9.1/series/1.9.1.2/instances", "1.2.1"),
        ("studies/1.9.2/series/1.9.1.2/instances", ""),
        ("instances?SegmentSequence.SegmentLabel=Liver", "1.3.1"),
        ("instances?00620002.00620005=S*", "1.3.1 2.3.1"),
        ("instances?SegmentSequence.SegmentedPropertyTypeCodeSequence.CodeValue=78961009", "1.3.1 2.3.1"),
        ("instances?SegmentSequence.TrackingUID=1.7.1", "1.3.1"),
        ("instances?SegmentSequence.SegmentAlgorithmName=net%202&SegmentSequence.SegmentLabel=Liver", ""),
    ],
)
def test_matches(node: Server, query: str, found: str) -> None:
    """Every type of matching over every resource: these and no others, in the order of their UIDs."""
    assert uids(node, query) == found.split()


@pytest.mark.parametrize(
    ("query", "level", "more"),
    [
        ("studies", "studies", ""),
        ("series", "series", REQUIRED["studies"][:26]),
        ("studies/1.9.1/series", "series", "0020000D"),
        ("instances", "instances", "00080060 00100020 0020000D 0020000E"),
        ("studies/1.9.1/instances", "instances", "00080060 0020000D 0020000E"),
        ("studies/1.9.1/series/1.9.1.1/instances", "instances", "0020000D 0020000E"),
    ],
)
def test_required_attributes(node: Server, query: str, level: str, more: str) -> None:
    """Each match has what Tables 10.6.3-3 to -5 require of its level, and of the levels that the URL leaves open."""
    for match in search(node, query):
        assert set(f"{REQUIRED[level]} {more}".split()) <= set(match)


def test_counts_and_requests(node: Server) -> None:
    """A study says its modalities and how much is in it, a series that and what it was made for."""
    (study,) = search(node, "studies?PatientID=ID1")
    assert [study[tag]["Value"] for tag in ("00080061", "00201206", "00201208")] == [["CT", "MR", "SEG"], [3], [5]]
    (series,) = search(node, "studies/1.9.1/series?SeriesNumber=2")
    assert series["00201209"]["Value"] == [1]
    (item,) = series["00400275"]["Value"]
    assert [item[tag]["Value"] for tag in ("00400009", "00401001")] == [["SPS1"], ["RP1"]]


def test_fields_that_the_index_does_not_keep(node: Server) -> None:
    """They are read from the object: those of the level only, however they are named, and with `all` every one."""
    (study,) = search(node, "studies?PatientID=ID3&includefield=PatientAge,00081030,00080060&includefield=00080018")
    assert study["00101010"]["Value"] == ["040Y"]
    assert "00080060" not in study
    assert "00080018" not in study
    (study,) = search(node, "studies?PatientID=ID3&includefield=all")
    assert study["00101010"]["Value"] == ["040Y"]
    assert "00080060" not in study
    (seg,) = search(node, "instances?SOPClassUID=1.2.840.10008.5.1.4.1.1.66.7&includefield=SegmentSequence")
    assert seg["00620002"]["Value"][0]["00620005"]["Value"] == ["Spleen"]
    (series,) = search(node, "studies/1.9.3/series?includefield=00100020")
    assert series["00100020"]["Value"] == ["ID3"]


def test_more_than_asked_for_is_said(node: Server) -> None:
    """The Warning of PS3.18 8.3.4.4 tells how many are left; without a rest there is none."""
    response = httpx.get(f"{node.dicomweb}/instances?limit=5&offset=1")
    assert response.headers["warning"] == f"299 {node.dicomweb}: There are 6 additional results that can be requested"
    assert "warning" not in httpx.get(f"{node.dicomweb}/instances?limit=12").headers


def test_what_is_not_done_is_said(node: Server) -> None:
    """Each thing in a Warning of its own."""
    response = httpx.get(f"{node.dicomweb}/studies?PatientAge=040Y&limit=1")
    assert [warning.partition(": ")[2] for warning in response.headers.get_list("warning")] == [
        "These attributes are not known at this level and have been ignored: PatientAge",
        "There are 2 additional results that can be requested",
    ]


@pytest.mark.parametrize(
    "query",
    ["StudyDate=2026", "StudyInstanceUID=1.2%00", "limit=-1", "fuzzymatching=perhaps", "%0d%0aX:=1", "PatientID=A&00100020=B"],
)
def test_nonsense(node: Server, query: str) -> None:
    """It is the client's error, with a reason."""
    response = httpx.get(f"{node.dicomweb}/studies?{query}")
    assert response.status_code == 400
    assert response.text.strip()


def test_public_client_gets_every_page(node: Server) -> None:
    """dicomweb-client, told to get what remains, has every instance once; fuzzy search and fields as it writes them."""
    client = DICOMwebClient(node.dicomweb)
    found = client.search_for_instances(limit=5, get_remaining=True)
    assert sorted(match["00080018"]["Value"][0] for match in found) == sorted(f"1.9.{uid}" for uid in uids(node, "instances"))
    (study,) = client.search_for_studies(fuzzymatching=True, search_filters={"PatientName": "taro"}, fields=["PatientAge"])
    assert study["00100010"]["Value"] == [{"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎"}]
    assert study["00101010"]["Value"] == ["040Y"]


def test_a_viewer_lists_studies(node: Server) -> None:
    """OHIF's own requests: the list with its filters, the priors of a patient, the series of a study."""
    fields = "includefield=00081030,00080060,00080090,00100030"
    page = f"limit=101&offset=0&fuzzymatching=false&{fields}"
    assert uids(node, f"studies?{page}") == ["1", "2", "3"]
    assert uids(node, f"studies?PatientName=*MOO*&00100020=*D3*&{page}") == ["3"]
    assert uids(node, f"studies?{page}&StudyInstanceUID=1.9.2") == ["2"]
    (first, *_) = search(node, "studies/1.9.1/series?includefield=00080021,00080031,0008103E,00200011")
    assert {"0020000D", "0020000E", "00080060", "00080021", "00080031", "0008103E", "00200011"} <= set(first)


def test_small_object_that_inflates_to_much_is_not_inflated_here(node: Server) -> None:
    """What the index does not keep is read where reading is bounded (last here: it leaves its object with the node)."""
    bomb = data_set("3.9.1")
    bomb.add_new("PixelData", "OB", bytes(300 << 20))
    body = encode_part10(bomb, DeflatedExplicitVRLittleEndian)
    kind = {"Content-Type": "application/dicom"}
    httpx.post(f"{node.dicomweb}/studies", content=body, headers=kind, timeout=60).raise_for_status()
    (web,) = (process for process in descendants(node.process.pid) if post_of(process) == "web-1")
    Path(f"/proc/{web}/clear_refs").write_text("5")  # the peak is counted from now on (proc(5))
    before = peak(web)
    (found,) = search(node, "instances?SeriesInstanceUID=1.9.3.9&includefield=PatientAge")
    assert found["00101010"]["Value"] == ["040Y"]
    assert peak(web) - before < 50 << 20


def found_by(node: Server, path: str) -> set[str]:
    """The UIDs of the level that is searched."""
    level = path.partition("?")[0].rpartition("/")[2]
    uid = {"studies": "0020000D", "series": "0020000E", "instances": "00080018"}[level]
    return {item[uid]["Value"][0] for item in search(node, path)}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ('studies?AccessionNumber=""', {"1.8"}),
        ('studies?PatientName=""', {"1.8"}),
        ('series?PatientName=""', {"1.8.1"}),
        ('instances?PatientName=""&Modality=""', {"1.8.1.1"}),
        ('studies?ModalitiesInStudy=""', {"1.8"}),
        ('instances?InstanceNumber=""', {"1.8.1.1"}),
        ('studies?StudyDate=""', {"1.8"}),
        ('instances?SegmentSequence.TrackingID=""&Modality=SEG', {"1.9.1.3.1", "1.9.2.3.1"}),
    ],
)
def test_empty_values(nameless: Server, path: str, found: set[str]) -> None:
    """Two quotation marks ask for what has no value, where that is said (PS3.4 C.2.2.2.7); else for these very characters."""
    encoded = path.replace('"', "%22")
    assert found_by(nameless, f"{encoded}&emptyvaluematching=true") == found
    if "StudyDate" not in path and "InstanceNumber" not in path:
        assert found_by(nameless, encoded) == set()


@pytest.fixture(scope="module")
def nameless(node: Server) -> Server:
    """The node, with an object that says no more than it must, until the module's end."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, "1.8.1.1"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.8", "1.8.1"
    held = encode_part10(dataset, ExplicitVRLittleEndian)
    headers = {"Content-Type": "application/dicom"}
    httpx.post(f"{node.dicomweb}/studies", content=held, headers=headers, timeout=60).raise_for_status()
    return node


@pytest.mark.parametrize(
    ("modalities", "either", "both"),
    [
        ("CT,MR", {"1.9.1", "1.9.2", "1.9.3"}, {"1.9.1"}),
        ("CT%5CMR%5CSEG", {"1.9.1", "1.9.2", "1.9.3"}, {"1.9.1"}),
        ("MR,US", {"1.9.1"}, set()),
        ("MR", {"1.9.1"}, {"1.9.1"}),
    ],
)
def test_multiple_values(node: Server, modalities: str, either: set[str], both: set[str]) -> None:
    """A list asks for one of its values; with multiplevaluematching for all of them (PS3.4 C.2.2.2.8), without wildcards."""
    key = f"studies?ModalitiesInStudy={modalities}"
    assert found_by(node, key) == either
    assert found_by(node, f"{key}&multiplevaluematching=true") == both
    assert httpx.get(f"{node.dicomweb}/{key},C*&multiplevaluematching=true").status_code == 400


@pytest.mark.parametrize(
    ("path", "is_there"),
    [
        ("series?Modality=MR", True),
        ("instances?SOPInstanceUID=1.9.1.2.1", True),
        ("studies/1.9.1/series?includefield=ModalitiesInStudy", True),
        ("studies/1.9.1/instances?includefield=00080061", True),
        ("studies/1.9.1/series", False),
    ],
)
def test_modalities_of_the_study_at_every_level(node: Server, path: str, is_there: bool) -> None:
    """What is said of a study is said of its series and objects, unless the URL names the study and nobody asks for it."""
    for match in search(node, path):
        assert match.get("00080061", {}).get("Value") == (["CT", "MR", "SEG"] if is_there else None)


def test_matches_as_xml(node: Server) -> None:
    """Each match is a part with a model of its own, for who asks so in the header or in the URL."""
    kind = 'multipart/related; type="application/dicom+xml"'
    answer = httpx.get(f"{node.dicomweb}/studies", headers={"Accept": kind})
    assert answer.headers["content-type"].startswith(kind)
    assert answer.text.count("<NativeDicomModel") == len(search(node, "studies"))
    assert f"Content-Location: {node.dicomweb}/studies/1.9.1\r\n" in answer.text
    by_url = httpx.get(f"{node.dicomweb}/studies", params={"accept": kind})
    assert by_url.text.count("Yamada^Tarou") == answer.text.count("Yamada^Tarou") == 0  # it is in components
    assert by_url.text.count("Yamada") == answer.text.count("Yamada") == 1


@pytest.mark.parametrize(
    ("accept", "status"),
    [("application/dicom+json", 200), ("application/json", 200), ("text/html", 406), ("application/dicom+xml", 406)],
)
def test_matches_as_they_are_accepted(node: Server, accept: str, status: int) -> None:
    """JSON is one answer, XML is in parts, and nothing else is had."""
    assert httpx.get(f"{node.dicomweb}/studies", headers={"Accept": accept}).status_code == status
