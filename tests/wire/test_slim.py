"""Slimming real archives: each BINARY gets one LABELMAP with its labels, whatever happens on the way, and nothing goes."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import highdicom
import httpx
import numpy as np
import pytest
from click.testing import CliRunner, Result
from pydicom import Dataset, dcmread
from pydicom.uid import SegmentationStorage

from segnode.cli import main
from segnode.config import parse_dimse_address
from segnode.dicom.uids import LABEL_MAP_SEGMENTATION_STORAGE
from segnode.dimse.scu import send_files
from segnode.errors import Misplaced
from segnode.pipeline.ports import Encoded
from segnode.pipeline.slim import require_same_labels
from segnode.seg.codecs import CODECS
from segnode.seg.convert import labelmap_uids
from segnode.seg.read import read_segmentation
from segnode.seg.recode import recode
from segnode.seg.write import StoredAs, write_segmentation
from segnode.seg.write.placement import on_images
from segnode.testing.answering import answering
from segnode.testing.part10 import encode_part10
from segnode.testing.processes import listens
from segnode.testing.servers import Server, free_port, orthanc, orthanc_program, until
from tests.conftest import absent
from tests.unit.test_construct import IDENTITY, manual, series

STUDY, OTHER_STUDY = "1.2.3", "1.2.99"
PLAIN, OVERLAPPING, LABELMAP, CT = "1.2.3.1", "1.2.3.2", "1.2.3.3", "1.2.3.4"
SEGMENTS = (manual(1), manual(2, "bone"))
Row = dict[str, object]


def stacked(*, overlap: bool = False) -> np.ndarray:
    """Two segments beside each other, or one over the other (slices, rows, columns, segments)."""
    inside = np.zeros((6, 200, 200, 2), np.uint8)
    inside[:, 20:120, 30:90, 0], inside[1:, 10:150, 80 if overlap else 90 : 180, 1] = 1, 1
    return inside


def seg(sop: str, study: str = STUDY, kind: str = "BINARY", *, overlap: bool = False) -> bytes:
    """A SEG of the stacked segments; its series is of the same number as itself."""
    images = series(6, 200, 200)
    for image in images:
        image.StudyInstanceUID = study
        image.PatientID = study
    identity = replace(IDENTITY, sop_instance_uid=sop, series_instance_uid=f"{sop}.7")
    return write_segmentation(stacked(overlap=overlap), on_images(images), SEGMENTS, StoredAs(kind), identity)


def ct() -> bytes:
    """An image of the same study."""
    image = series(1, 4, 4)[0]
    image.SOPInstanceUID, image.SeriesInstanceUID, image.Modality = CT, f"{CT}.7", "CT"
    image.StudyID = image.AccessionNumber = ""
    return encode_part10(image, "1.2.840.10008.1.2.1")


ALL = (seg(PLAIN), seg(OVERLAPPING, overlap=True), seg(LABELMAP, kind="LABELMAP"), ct())


@contextmanager
def asked_by_everybody(folder: Path, **settings: object) -> Iterator[Server]:
    """An Orthanc that lets everybody ask."""
    if orthanc_program() is None:
        absent("Orthanc with its DICOMweb plug-in", "install orthanc and orthanc-dicomweb (scripts/peers does)")
    with orthanc(folder, DicomAlwaysAllowFind=True, DicomAlwaysAllowGet=True, **settings) as server:
        yield server


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An Orthanc as Debian ships it: LABELMAP is unknown to it over DIMSE."""
    with asked_by_everybody(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


def fill(archive: Server, *objects: bytes) -> None:
    """Have an Orthanc hold these and nothing else."""
    root = f"http://127.0.0.1:{archive.http_port}"
    for study in httpx.get(f"{root}/studies").json():
        httpx.delete(f"{root}/studies/{study}").raise_for_status()
    for part10 in objects:
        httpx.post(f"{root}/instances", content=part10).raise_for_status()


def held(archive: Server) -> dict[str, Dataset]:
    """Every object that an Orthanc holds, by UID."""
    root = f"http://127.0.0.1:{archive.http_port}"
    files = [httpx.get(f"{root}/instances/{i}/file").content for i in httpx.get(f"{root}/instances").json()]
    return {str(found.SOPInstanceUID): found for found in map(dcmread, map(BytesIO, files))}


def config_of(folder: Path, to: str, forms: Sequence[str] = ("labelmap:rle", "labelmap:native", "binary:native")) -> Path:
    """A configuration with one destination."""
    path = folder / "segnode.toml"
    path.write_text(f'[[destinations]]\nname = "pacs"\nto = "{to}"\nseg = {json.dumps(forms)}\n')
    return path


def run(config: Path, *words: str) -> Result:
    """Run `segnode slim` on the archive."""
    return CliRunner().invoke(main, ["slim", "--config", str(config), "--from", "pacs", *words])


def slim(config: Path, *words: str) -> dict[str, Row]:
    """What became of each object, by its UID."""
    return {str(row["object"]): row for row in json.loads(run(config, "--json", *words).stdout)}


def outcomes(config: Path, *words: str) -> dict[str, object]:
    """The outcome for each object, by its UID."""
    return {uid: row["outcome"] for uid, row in slim(config, *words).items()}


def labels_of(dataset: Dataset) -> np.ndarray:
    """The stacked segments of an object, as highdicom reads them."""
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    read = highdicom.seg.segread(BytesIO(file.getvalue()))
    images = [image.SOPInstanceUID for image in series(6)]
    found = read.get_pixels_by_source_instance(images, ignore_spatial_locations=True, assert_missing_frames_are_empty=True)
    labels = np.zeros_like(stacked())
    labels[..., [number - 1 for number in read.segment_numbers]] = found
    return labels


def labelmaps(archive: Server) -> list[str]:
    """The UIDs of the LABELMAPs that an Orthanc holds."""
    return sorted(uid for uid, found in held(archive).items() if found.SOPClassUID == LABEL_MAP_SEGMENTATION_STORAGE)


def start(config: Path) -> subprocess.Popen[str]:
    """Start `segnode slim` on the archive."""
    command = [sys.executable, "-m", "segnode", "slim", "--config", str(config), "--from", "pacs"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


@pytest.mark.parametrize("door", ["dicomweb", "dimse"])
def test_only_the_plain_binary_is_slimmed_and_only_once(tmp_path: Path, door: str) -> None:
    """The LABELMAP has its labels and lies in its study; what overlaps is named; the same again sends nothing."""
    with asked_by_everybody(tmp_path / "orthanc", UnknownSopClassAccepted=True) as archive:
        fill(archive, *ALL)
        config = config_of(tmp_path, getattr(archive, door))
        first = slim(config)
        after = held(archive)
        again = slim(config)
        assert held(archive).keys() == after.keys()
    made = labelmap_uids(PLAIN)[0]
    assert {uid: row["outcome"] for uid, row in first.items()} == {PLAIN: "slimmed", OVERLAPPING: "left"}
    assert "1 (liver) and 2 (bone)" in str(first[OVERLAPPING]["detail"])
    assert after.keys() == {PLAIN, OVERLAPPING, LABELMAP, CT, made}
    assert (after[made].SOPClassUID, after[made].StudyInstanceUID) == (LABEL_MAP_SEGMENTATION_STORAGE, STUDY)
    np.testing.assert_array_equal(labels_of(after[made]), stacked())
    assert (again[PLAIN]["outcome"], again[PLAIN]["sent"]) == ("slim", [made])


def test_bytes_before_and_after_are_those_of_the_objects(tmp_path: Path, archive: Server) -> None:
    """Of each, and summed up at the end, in lines for a person."""
    fill(archive, *ALL)
    result = run(config_of(tmp_path, archive.dicomweb))
    made = held(archive)[labelmap_uids(PLAIN)[0]]
    file = BytesIO()
    made.save_as(file, enforce_file_format=True)
    before, after = len(seg(PLAIN)), len(file.getvalue())
    (row,) = [line.split() for line in result.stdout.splitlines() if PLAIN in line.split()]
    told = [int(word.replace(",", "")) for word in row[:2]]
    assert told == pytest.approx([before, after], abs=200)  # Orthanc writes a file meta of its own
    assert row[2:] == [f"{told[0] / told[1]:.1f}x", "slimmed", PLAIN, "labelmap:rle"]
    *sums, ratio = result.stdout.splitlines()[-1].split()[:3]
    assert ([int(word.replace(",", "")) for word in sums], ratio) == (told, row[2])


def test_study_and_query_narrow_and_a_dry_run_sends_nothing(tmp_path: Path, archive: Server) -> None:
    """What is not meant is not even fetched."""
    other, drawn = "1.2.99.1", "1.2.99.2"
    fill(archive, *ALL, seg(other, OTHER_STUDY), seg(drawn, OTHER_STUDY))
    config = config_of(tmp_path, archive.dicomweb)
    for words, expected in (
        ((), {PLAIN, OVERLAPPING, other, drawn}),
        (("--study", OTHER_STUDY), {other, drawn}),
        (("--query", f"PatientID={STUDY[:3]}*3"), {PLAIN, OVERLAPPING}),
        (("--query", f"PatientID={OTHER_STUDY}", "--query", f"SeriesInstanceUID={drawn}.7"), {drawn}),
        (("--query", f"SOPInstanceUID={other}"), {other}),
        (("--study", "1.2.4"), set()),
    ):
        found = slim(config, "--dry-run", *words)
        assert found.keys() == expected, words
    assert labelmaps(archive) == [LABELMAP]
    assert slim(config, "--dry-run", "--study", OTHER_STUDY)[other]["outcome"] == "would be slimmed"
    sizes = slim(config, "--dry-run")[drawn]["bytes_after"], slim(config)[drawn]["bytes_after"]
    assert sizes[0] == pytest.approx(sizes[1], abs=100)  # the date of its making is in it


def test_run_that_is_killed_is_repeated_to_go_on(tmp_path: Path, archive: Server) -> None:
    """Killed when the first is there: the repeat leaves one LABELMAP for each."""
    sources = [f"1.2.3.10{number}" for number in range(6)]
    fill(archive, *(seg(uid) for uid in sources))
    config = config_of(tmp_path, archive.dicomweb)
    process = start(config)
    assert process.stdout is not None
    assert any(" slimmed " in line for line in process.stdout)
    process.kill()
    process.communicate()
    assert 1 <= len(labelmaps(archive)) < len(sources)
    again = outcomes(config)
    assert set(again.values()) == {"slim", "slimmed"}
    assert labelmaps(archive) == sorted(labelmap_uids(uid)[0] for uid in sources)


def test_two_at_once_do_no_harm(tmp_path: Path, archive: Server) -> None:
    """Both succeed, and there is one LABELMAP for each."""
    sources = [f"1.2.3.10{number}" for number in range(3)]
    fill(archive, *(seg(uid) for uid in sources))
    config = config_of(tmp_path, archive.dicomweb)
    running = [start(config), start(config)]
    for process in running:
        process.communicate()
    assert [process.returncode for process in running] == [0, 0]
    assert labelmaps(archive) == sorted(labelmap_uids(uid)[0] for uid in sources)


def test_split_that_broke_off_is_made_whole(tmp_path: Path, archive: Server) -> None:
    """Overlapping segments become two LABELMAPs; one that is missing is sent again, and then all is there."""
    fill(archive, seg(OVERLAPPING, overlap=True))
    config = config_of(tmp_path, archive.dicomweb)
    assert outcomes(config, "--overlap", "split") == {OVERLAPPING: "slimmed"}
    parts = sorted(labelmap_uids(OVERLAPPING, place, 2)[0] for place in (1, 2))
    assert labelmaps(archive) == parts
    joined = sum(labels_of(held(archive)[uid]) for uid in parts)
    np.testing.assert_array_equal(joined, stacked(overlap=True))
    root = f"http://127.0.0.1:{archive.http_port}"
    (ids,) = [httpx.post(f"{root}/tools/lookup", content=parts[0]).json()]
    httpx.delete(f"{root}{ids[0]['Path']}").raise_for_status()
    assert outcomes(config, "--overlap", "split") == {OVERLAPPING: "slimmed"}
    assert labelmaps(archive) == parts
    assert outcomes(config) == {OVERLAPPING: "slim"}


def test_archive_that_takes_no_labelmap_is_told_for_each(tmp_path: Path, archive: Server) -> None:
    """Debian's Orthanc refuses the class over DIMSE: the row says so, with what it would have replaced; exit code 1."""
    fill(archive, *ALL)
    config = config_of(tmp_path, archive.dimse)
    assert run(config).exit_code == 1
    row = slim(config)[PLAIN]
    assert labelmaps(archive) == [LABELMAP]
    assert row["outcome"] == "failed"
    assert row["bytes_before"] == pytest.approx(len(seg(PLAIN)), abs=200)
    assert "labelmap:rle not accepted at negotiation; labelmap:native not accepted" in str(row["detail"])


@contextmanager
def dcmqrscp(folder: Path, program: str) -> Iterator[str]:
    """DCMTK's archive, empty; its address."""
    port = free_port()
    (folder / "kept").mkdir()
    (folder / "dcmqrscp.cfg").write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 16\nHostTable BEGIN\nHostTable END\n"
        f"AETable BEGIN\nQRSCP {folder / 'kept'} RW (200, 1024mb) ANY\nAETable END\n"
    )
    log = (folder / "dcmqrscp.log").open("wb")
    process = subprocess.Popen([program, "-c", str(folder / "dcmqrscp.cfg")], stdout=log, stderr=log)
    try:
        until(lambda: listens(port))
        yield f"QRSCP@127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()
        log.close()


def test_dcmqrscp_is_searched_and_gives_out(tmp_path: Path, dcmtk: Callable[[str], str]) -> None:
    """DCMTK's archive, which knows no LABELMAP: a dry run says the bytes, a run why nothing was sent."""
    files = [tmp_path / f"{number}.dcm" for number in range(3)]
    for file, part10 in zip(files, (ALL[0], ALL[1], ALL[3]), strict=True):
        file.write_bytes(part10)
    with dcmqrscp(tmp_path, dcmtk("dcmqrscp")) as address:
        list(send_files(files, parse_dimse_address(address, ""), "TEST"))
        config = config_of(tmp_path, address)
        dry = slim(config, "--dry-run", "--query", f"PatientID={STUDY}")
        assert outcomes(config) == {PLAIN: "failed", OVERLAPPING: "left"}
    assert {uid: row["outcome"] for uid, row in dry.items()} == {PLAIN: "would be slimmed", OVERLAPPING: "left"}
    assert 0 < int(str(dry[PLAIN]["bytes_after"])) < int(str(dry[PLAIN]["bytes_before"]))


@pytest.mark.parametrize("to", ["http://127.0.0.1:{port}/dicom-web", "NOBODY@127.0.0.1:{port}"])
def test_archive_that_is_down_is_named(tmp_path: Path, to: str) -> None:
    """Exit code 1, and who cannot be reached."""
    address = to.format(port=free_port())
    result = run(config_of(tmp_path, address))
    assert result.exit_code == 1
    assert f"{address} cannot be reached" in result.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--query", "PatientNam=X"), "'PatientNam' cannot be asked for; allowed: PatientName"),
        (("--query", "Modality=CT"), "'Modality' cannot be asked for"),
        (("--query", "PatientID"), "PatientID: a value is missing"),
        (("--query", "PatientID=1", "--query", "PatientID=2"), "PatientID: is given twice"),
        (("--study", "../1"), "StudyInstanceUID: '../1' is no UID"),
        (("--from", "nobody"), "there is no destination 'nobody'; allowed: pacs"),
    ],
)
def test_what_cannot_be_asked_for_is_named(tmp_path: Path, words: Sequence[str], told: str) -> None:
    """Exit code 2, before anybody is asked."""
    result = run(config_of(tmp_path, "http://127.0.0.1:1/dicom-web"), *words)
    assert (result.exit_code, told in result.stderr) == (2, True), result.stderr


def test_destination_that_is_offered_no_labelmap_is_named(tmp_path: Path) -> None:
    """A BINARY would be the same object again."""
    result = run(config_of(tmp_path, "http://127.0.0.1:1/dicom-web", ["binary:native"]))
    assert (result.exit_code, "seg has no form of LABELMAP" in result.stderr) == (2, True)


@dataclass
class Scripted:
    """A DICOMweb server that answers what it is told to, by path; nothing is found elsewhere."""

    answers: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def lists(self, path: str, *items: dict[str, object]) -> None:
        """Have a search find these attributes, by tag."""
        document = [{tag: {"vr": "UI", "Value": [value]} for tag, value in item.items()} for item in items]
        self.answers[path] = 200, json.dumps(document).encode()


@contextmanager
def scripted(script: Scripted) -> Iterator[str]:
    """Serve a script; its root."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            script.asked.append(self.path)
            status, body = script.answers.get(path, (404, b""))
            if status == 200 and "offset=" in query and "offset=0" not in query:
                body = b"[]"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with answering(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as address:
        yield f"http://{address}"


def listing(*objects: str) -> Scripted:
    """An archive that lists a study of a series of these, and gives out none."""
    script = Scripted()
    script.lists("/studies", {"0020000D": STUDY})
    script.lists(f"/studies/{STUDY}/series", {"0020000E": "1.2.8"})
    sop_class = str(SegmentationStorage)
    script.lists(f"/studies/{STUDY}/series/1.2.8/instances", *({"00080018": o, "00080016": sop_class} for o in objects))
    return script


def test_what_is_listed_and_not_given_out_is_named(tmp_path: Path) -> None:
    """So is what is no DICOM, another object, or in a half of an answer; the one that is sound is slimmed all the same."""
    script = listing("1.2.1", "1.2.2", "1.2.3.8", PLAIN)
    where = f"/studies/{STUDY}/series/1.2.8/instances"
    script.answers |= {
        f"{where}/1.2.2": (200, b"no DICOM"),
        f"{where}/1.2.3.8": (200, seg(PLAIN)),
        f"{where}/{PLAIN}": (200, seg(PLAIN)),
    }
    with scripted(script) as root:
        found = slim(config_of(tmp_path, root), "--dry-run")
    assert [row["outcome"] for row in found.values()] == ["failed", "failed", "failed", "would be slimmed"]
    told = [str(row["detail"]) for row in found.values()]
    assert "lists it, and answers WADO-RS with HTTP 404" in told[0]
    assert "not a DICOM file" in told[1]
    assert f"another object in its place: {PLAIN}" in told[2]


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/studies", 200, b"<html>"),
        ("/studies", 500, b""),
        ("/studies", 404, b""),
        ("/studies", 200, b'[{"0020000D": {"vr": "UI", "Value": ["../../x"]}}]'),
        ("/studies", 200, b'[{"0020000D": "1.2"}]'),
        ("/studies", 200, b'[{"00100010": {"vr": "PN"}}]'),
    ],
)
def test_answer_that_makes_no_sense_is_an_error(tmp_path: Path, path: str, status: int, body: bytes) -> None:
    """It is named, exit code 1; nothing follows from it."""
    script = Scripted({path: (status, body)})
    with scripted(script) as root:
        result = run(config_of(tmp_path, root))
    assert (result.exit_code, root in result.stderr) == (1, True), result.output
    assert all(asked.startswith("/studies?") for asked in script.asked)


def test_study_that_cannot_be_searched_keeps_no_other_from_it(tmp_path: Path) -> None:
    """Its row says why."""
    script = listing(PLAIN)
    script.lists("/studies", {"0020000D": OTHER_STUDY}, {"0020000D": STUDY})
    script.answers |= {
        f"/studies/{OTHER_STUDY}/series": (500, b""),
        f"/studies/{STUDY}/series/1.2.8/instances/{PLAIN}": (200, seg(PLAIN)),
    }
    with scripted(script) as root:
        rows = json.loads(run(config_of(tmp_path, root), "--dry-run", "--json").stdout)
    assert [(row["study"], row["outcome"]) for row in rows] == [(OTHER_STUDY, "failed"), (STUDY, "would be slimmed")]
    assert "HTTP 500" in rows[0]["detail"]


def test_key_that_the_archive_does_not_match_is_an_error(tmp_path: Path) -> None:
    """Otherwise more would be slimmed than was asked for."""
    with scripted(listing(PLAIN)) as root:
        result = run(config_of(tmp_path, root), "--query", "StudyDescription=Liver*")
    assert (result.exit_code, "does not match StudyDescription" in result.stderr) == (1, True)


def test_what_would_not_be_smaller_is_left(tmp_path: Path) -> None:
    """A BINARY that is well compressed already."""
    deflated = recode(seg(PLAIN), CODECS["deflate"])
    script = listing(PLAIN)
    script.answers[f"/studies/{STUDY}/series/1.2.8/instances/{PLAIN}"] = 200, deflated
    with scripted(script) as root:
        row = slim(config_of(tmp_path, root, ["labelmap:native"]))[PLAIN]
    assert (row["outcome"], row["detail"]) == ("left", "as a LABELMAP it would not be smaller")


def test_labels_that_differ_are_not_sent() -> None:
    """A LABELMAP of other labels, or of some segments only, is no proof."""
    source = read_segmentation(seg(PLAIN))
    for changed, numbers in ((stacked(overlap=False)[::-1], (1, 2)), (stacked(), (1,))):
        identity = replace(IDENTITY, sop_instance_uid="1.2.3.9", series_instance_uid="1.2.3.9.7")
        images = series(6, 200, 200)
        chosen = [segment for segment in SEGMENTS if segment.number in numbers]
        labelmap = write_segmentation(changed[..., : len(chosen)], on_images(images), chosen, StoredAs("LABELMAP"), identity)
        encoded = Encoded("labelmap:native", "", "1.2.3.9", "", "", labelmap, {number: number for number in numbers})
        with pytest.raises(Misplaced, match="segment"):
            require_same_labels(source, [encoded])
