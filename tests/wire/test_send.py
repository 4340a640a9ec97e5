"""`segnode send`: files to DCMTK, Orthanc, pynetdicom, a node and peers by the byte, by C-STORE and STOW-RS."""

import json
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
import trustme
from pydicom import Dataset, dcmread
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    MediaStorageDirectoryStorage,
    RLELossless,
)
from pynetdicom import AE, AllStoragePresentationContexts, evt

from segnode.config import DestinationConfig, destination_at
from segnode.dicom.header import read_file_meta
from segnode.dimse.switches import set_switches
from segnode.node import destination
from segnode.pipeline.send_files import FileSender, FileSent
from segnode.store.database import open_database
from segnode.store.index import Index
from segnode.testing.part10 import encode_part10
from segnode.testing.phantom import Phantom
from segnode.testing.processes import listens
from segnode.testing.raw_scp import RawAssociation, raw_scp
from segnode.testing.servers import Server, free_port, node_config, segnode, until
from tests.outbox import RESULT, require_truth, segmentation, truth
from tests.wire import test_storage
from tests.wire.test_delivery_matrix import storescp
from tests.wire.test_serve import run

CT = str(CTImageStorage)


def data_set(part10: bytes) -> bytes:
    """The data set of a Part 10 file."""
    return part10[read_file_meta(BytesIO(part10)).dataset_offset :]


def small(uid: str, sop_class: str = CT, syntax: str = ExplicitVRLittleEndian, **attributes: object) -> bytes:
    """A Part 10 file without pixels."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID = (
        sop_class,
        uid,
        "1.2",
        "1.3",
    )
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return encode_part10(dataset, syntax)


def files_in(folder: Path, *part10s: bytes) -> dict[Path, bool]:
    """Files of a folder, written there."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number:03}.dcm" for number in range(len(part10s))]
    for path, part10 in zip(paths, part10s, strict=True):
        path.write_bytes(part10)
    return dict.fromkeys(paths, False)


def sent_to(address: str, files: dict[Path, bool], form: str | None = None, **keys: object) -> list[FileSent]:
    """What came of each file."""
    config = DestinationConfig(name="archive", to=address, **keys) if keys else destination_at(address)  # type: ignore[arg-type]
    return [*FileSender(destination(config, "TEST", Path()), form, time.time).send(files)]  # type: ignore[arg-type]


def outcomes(sent: Sequence[FileSent]) -> list[str]:
    """In turn."""
    return [each.outcome for each in sent]


def take(association: RawAssociation, statuses: Iterator[int] | None = None) -> None:
    """Answer whatever comes, with success in the end."""
    while True:
        context_id, *_ = association.message()
        association.answer(context_id, next(statuses, 0) if statuses else 0)


@pytest.mark.parametrize("options", [(), ("+xa",), ("-pdu", "4096"), ("-pdu", "131072", "+B"), ("-pm",)])
def test_dcmtk_gets_the_same_data_sets(tmp_path: Path, dcmtk, ct: Path, options: Sequence[str]) -> None:
    """Whatever its options: as many objects, each with the bytes that its file has."""
    with storescp(dcmtk("storescp"), tmp_path / "kept", *options) as address:
        ended = run("send", str(ct), "--to", address)
    assert ended.returncode == 0, ended.stderr
    kept = [data_set(file.read_bytes()) for file in (tmp_path / "kept").iterdir()]
    assert sorted(kept) == sorted(data_set(file.read_bytes()) for file in ct.iterdir())
    assert "8 " in ended.stdout
    assert "CT Image Storage (1.2.840.10008.5.1.4.1.1.2), as it is (Explicit VR Little Endian" in ended.stdout


def test_what_is_not_taken_as_it_is_goes_natively(tmp_path: Path, dcmtk, phantom: Phantom) -> None:
    """DCMTK that takes implicit only gets a JPEG-LS image so, with the same pixels; one that takes it gets it as it is."""
    image = dcmread(phantom.folder / "0001.dcm")
    pixels = image.pixel_array
    image.compress(JPEGLSLossless, generate_instance_uid=False)
    (tmp_path / "ct").mkdir()
    image.save_as(tmp_path / "ct" / "image.dcm")
    for options, form, syntax in (((), "native", ExplicitVRLittleEndian), (("+xi",), "implicit", ImplicitVRLittleEndian)):
        folder = tmp_path / form
        with storescp(dcmtk("storescp"), folder, *options) as address:
            ended = run("send", str(tmp_path / "ct" / "image.dcm"), "--to", address, "--json")
        (sent,) = json.loads(ended.stdout)["files"]
        assert (ended.returncode, sent["outcome"], sent["form"]) == (0, "sent", form), ended.stderr
        (kept,) = folder.iterdir()
        held = dcmread(kept)
        assert (held.file_meta.TransferSyntaxUID, np.array_equal(held.pixel_array, pixels)) == (syntax, True)
    with storescp(dcmtk("storescp"), tmp_path / "same", "+xt") as address:
        ended = run("send", str(tmp_path / "ct"), "--to", address)
    (kept,) = (tmp_path / "same").iterdir()
    assert dcmread(kept).file_meta.TransferSyntaxUID == JPEGLSLossless


def test_what_no_one_takes_is_named_with_its_reason(tmp_path: Path, dcmtk) -> None:
    """A LABELMAP is nothing to DCMTK by default: the file and what was refused are said, and the others go."""
    files_in(tmp_path / "mixed", segmentation(truth()), small("1.2.5"))
    with storescp(dcmtk("storescp"), tmp_path / "kept") as address:
        ended = run("send", str(tmp_path / "mixed"), "--to", address)
    assert ended.returncode == 1
    assert "000.dcm STORESCP does not take this object of Label Map Segmentation Storage" in ended.stderr
    assert "not accepted at negotiation" in ended.stderr
    assert "1 sent, 1 failed; to STORESCP" in ended.stdout


@pytest.mark.parametrize("door", ["dimse", "dicomweb"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_file_that_is_cut_off_is_not_mended(tmp_path: Path, node: Server, door: str, syntax: str) -> None:
    """One that is refused as it is, since it ends inside its pixels, does not go in native encoding with what is left."""
    uid = f"1.2.77.{len(door)}.{len(syntax)}"
    whole = small(uid, CT, syntax, Rows=64, Columns=64, BitsAllocated=8, SamplesPerPixel=1, PixelData=bytes(4096))
    [sent] = sent_to(getattr(node, door), files_in(tmp_path, whole[:-1000]))
    assert (sent.outcome, "ends inside PixelData" in sent.detail, test_storage.held(node, uid)) == ("failed", True, None)
    [sent] = sent_to(getattr(node, door), files_in(tmp_path, whole))
    assert sent.outcome == "sent"


def test_segmentations_go_in_the_form_that_is_asked_for(tmp_path: Path, dcmtk) -> None:
    """--as makes a JPEG-LS of an RLE, and a BINARY for who knows no LABELMAP, with the same labels; images go as they are."""
    files_in(tmp_path / "mixed", segmentation(truth()), small("1.2.5"))
    for options, form in ((("-pm", "+xt"), "labelmap:jpeg-ls"), ((), "binary:native")):
        folder = tmp_path / form.replace(":", "-")
        with storescp(dcmtk("storescp"), folder, *options) as address:
            ended = run("send", str(tmp_path / "mixed"), "--to", address, "--as", form, "--json")
        sent = json.loads(ended.stdout)["files"]
        assert [each["form"] for each in sent] == [form, ""], ended.stderr
        held = [dcmread(file) for file in folder.iterdir()]
        (result,) = [each for each in held if each.SOPClassUID != CT]
        require_truth(result)
        assert len(held) == 2
        assert (result.SOPInstanceUID == RESULT) == form.startswith("labelmap")


def test_form_that_is_not_taken_is_refused(tmp_path: Path, dcmtk) -> None:
    """It goes in that form or not at all."""
    files = files_in(tmp_path / "seg", segmentation(truth()))
    with storescp(dcmtk("storescp"), tmp_path / "kept", "-pm") as address:
        (sent,) = sent_to(address, files, "labelmap:jpeg-2000")
    assert (sent.outcome, "does not accept Label Map Segmentation Storage" in sent.detail) == ("failed", True), sent
    assert not [*(tmp_path / "kept").iterdir()]


def test_segmentation_that_cannot_be_had_in_a_form_fails_alone(tmp_path: Path) -> None:
    """A FRACTIONAL and one that is broken are named; the other goes in its form."""
    fractional = dcmread(BytesIO(segmentation(truth())))
    fractional.SegmentationType, fractional.SOPInstanceUID = "FRACTIONAL", "1.2.99"
    fractional.file_meta.MediaStorageSOPInstanceUID = "1.2.99"
    file = BytesIO()
    fractional.save_as(file)
    files = files_in(tmp_path / "seg", file.getvalue(), segmentation(truth())[:900], segmentation(truth()))
    with raw_scp(take) as (address, _):
        sent = sent_to(address, files, "labelmap:native")
    assert outcomes(sent) == ["failed", "failed", "sent"], sent


def test_more_kinds_than_an_association_has_contexts(tmp_path: Path) -> None:
    """A hundred and fifty kinds in one call: several associations, none of more than 128 contexts, and everything is stored."""
    files = files_in(tmp_path / "many", *(small(f"1.2.7.{number}", f"1.2.3.{number}") for number in range(150)))
    with raw_scp(take) as (address, associations):
        sent = sent_to(address, files)
    assert outcomes(sent) == ["sent"] * 150
    assert len(associations) == 4
    assert max(len(association.proposed) for association in associations) <= 128


def test_status_is_said_of_its_file(tmp_path: Path) -> None:
    """A warning is stored, a duplicate is there already, and what fails keeps the others from nothing, in one association."""
    files = files_in(tmp_path / "six", *(small(f"1.2.7.{number}") for number in range(5)))
    statuses = iter((0xB000, 0x0111, 0xA700, 0x0124, 0))
    with raw_scp(lambda association: take(association, statuses)) as (address, associations):
        sent = sent_to(address, files)
    assert outcomes(sent) == ["sent", "there", "failed", "failed", "sent"]
    assert [each.detail for each in sent[:3]] == ["status 0xB000", "status 0x0111", "status 0xA700"]
    assert len(associations) == 1


def test_association_that_breaks_off_is_made_anew(tmp_path: Path) -> None:
    """Once: what broke off goes once more in the next. A file that breaks every one is a failure, and the others go."""
    seen: list[bytes] = []

    def breaks(association: RawAssociation) -> None:
        while True:
            context_id, command, _ = association.message()
            seen.append(command)
            if len(seen) == 2 or b"1.2.7.4" in command:
                return
            association.answer(context_id, 0)

    files = files_in(tmp_path / "six", *(small(f"1.2.7.{number}") for number in range(6)))
    with raw_scp(breaks) as (address, associations):
        sent = sent_to(address, files)
    assert outcomes(sent) == ["sent"] * 4 + ["failed", "sent"]
    assert "also when it was sent once more" in sent[4].detail
    assert len(associations) == 4


def test_peer_that_breaks_every_association_is_left(tmp_path: Path) -> None:
    """After three files in a row nothing more is tried; what was not is said with the reason."""
    files = files_in(tmp_path / "six", *(small(f"1.2.7.{number}") for number in range(6)))
    with raw_scp(lambda association: association.message()) as (address, associations):
        sent = sent_to(address, files)
    assert outcomes(sent) == ["failed"] * 3 + ["not sent"] * 3
    assert "3 files in a row were not taken" in sent[-1].detail
    assert len(associations) == 6


def test_peer_that_is_not_there(tmp_path: Path) -> None:
    """Exit code 1, and why, by DIMSE and by HTTP."""
    files_in(tmp_path / "one", small("1.2.7.1"))
    for to in (f"PEER@127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"):
        ended = run("send", str(tmp_path / "one"), "--to", to)
        assert ended.returncode == 1
        assert "cannot be reached" in ended.stderr
        assert "Connection refused" in ended.stderr


def test_what_is_no_dicom_is_named(tmp_path: Path) -> None:
    """In a folder it is skipped, as a DICOMDIR is; given by name it is a failure; and so is nothing to send."""
    files_in(tmp_path / "disc", small("1.2.7.1"), small("1.2.7.2", MediaStorageDirectoryStorage))
    note = tmp_path / "disc" / "note.txt"
    note.write_text("no DICOM")
    with raw_scp(take) as (address, _):
        ended = run("send", str(tmp_path / "disc"), "--to", address)
        assert ended.returncode == 0, ended.stderr
        assert "note.txt cannot be sent: not a DICOM file" in ended.stderr
        assert "is a DICOMDIR" in ended.stderr
        assert "1 sent, 2 skipped" in ended.stdout
        ended = run("send", str(tmp_path / "disc" / "000.dcm"), str(note), "--to", address)
        assert (ended.returncode, "1 sent, 1 failed" in ended.stdout) == (1, True), ended.stdout
        (tmp_path / "disc" / "000.dcm").unlink()
        assert run("send", str(tmp_path / "disc"), "--to", address).returncode == 1
    assert run("send", str(note), "--to", address, "--as", "labelmap:png").returncode == 2


def test_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """What is in there is not left out without a word."""
    files_in(tmp_path / "disc", small("1.2.7.3"))
    (tmp_path / "disc" / "closed").mkdir(mode=0)
    without_rights = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
    command = [*without_rights, sys.executable, "-m", "segnode", "send", str(tmp_path / "disc"), "--to", "NOBODY@127.0.0.1:1"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (ended.returncode, "closed cannot be read: Permission denied" in ended.stderr) == (1, True), ended.stderr


@pytest.mark.parametrize("door", ["dimse", "dicomweb"])
def test_orthanc_holds_what_was_sent(tmp_path: Path, archive: Server, ct: Path, door: str) -> None:
    """By C-STORE and in one POST for all; sent again it is no failure."""
    root = f"http://127.0.0.1:{archive.http_port}"
    for study in httpx.get(f"{root}/studies").json():
        httpx.delete(f"{root}/studies/{study}")
    for _ in range(2):
        ended = run("send", str(ct), "--to", getattr(archive, door), "--json")
        assert ended.returncode == 0, ended.stdout + ended.stderr
    instances = httpx.get(f"{root}/instances").json()
    held = [data_set(httpx.get(f"{root}/instances/{each}/file").content) for each in instances]
    assert sorted(held) == sorted(data_set(file.read_bytes()) for file in ct.iterdir())


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A node that stores, and does nothing else."""
    with segnode(tmp_path_factory.mktemp("node"), "models = []\nrules = []", roles=("dimse", "web")) as server:
        yield server


@pytest.mark.parametrize("door", ["dimse", "dicomweb"])
def test_node_holds_what_was_sent(tmp_path: Path, node: Server, door: str) -> None:
    """Objects of several classes and syntaxes, one of them refused: the others are held, in one association or request."""
    number = 1 if door == "dimse" else 2
    bad = dcmread(BytesIO(small(f"1.2.{number}.9")))
    del bad.StudyInstanceUID
    good = [small(f"1.2.{number}.{place}", CT, syntax) for place, syntax in enumerate((ExplicitVRLittleEndian, RLELossless))]
    files = files_in(
        tmp_path / "some", *good, encode_part10(bad, ExplicitVRLittleEndian), segmentation(truth(), f"1.2.{number}.7")
    )
    sent = sent_to(getattr(node, door), files)
    assert outcomes(sent) == ["sent", "sent", "failed", "sent"], sent
    index = Index(open_database(node_config(node).data / "index.sqlite"))
    for place, file in enumerate(files):
        held = index.find(sent[place].sop_instance_uid)
        assert (held is None) == (place == 2)
        if held is not None:
            path = node_config(node).data / "objects"
            assert any(data_set(file.read_bytes()) == data_set(kept.read_bytes()) for kept in path.rglob("*") if kept.is_file())


@pytest.mark.parametrize("kind", ["pynetdicom", "TLS"])
def test_pynetdicom_gets_large_objects_whole(tmp_path: Path, kind: str) -> None:
    """Some megabytes, in the clear and by TLS with a certificate on both sides."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "node.pem"))
    tls = None
    if kind == "TLS":
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(tmp_path / "node.pem")
        tls.verify_mode = ssl.CERT_REQUIRED
        authority.configure_trust(tls)
    got: list[bytes] = []
    ae = AE("SINK")
    ae.maximum_pdu_size = 0
    ae.add_supported_context(CT, ExplicitVRLittleEndian)

    def keep(event: evt.Event) -> int:
        got.append(event.request.DataSet.getvalue())
        return 0

    set_switches()
    server = ae.start_server(("127.0.0.1", 0), block=False, ssl_context=tls, evt_handlers=[(evt.EVT_C_STORE, keep)])
    pixels = b"\xe0\x7f\x10\0OW\0\0" + struct.pack("<L", 5_000_001) + bytes(range(251)) * 19920 + b"\0" * 81
    files = files_in(tmp_path / "large", *(small(f"1.2.7.{number}") + pixels for number in range(3)))
    keys: dict[str, object] = {"tls": True, "ca": str(tmp_path / "ca.pem")} if tls else {}
    if tls:
        from segnode.config import CertificateConfig

        keys["certificate"] = CertificateConfig(str(tmp_path / "node.pem"))
    try:
        sent = sent_to(f"SINK@127.0.0.1:{server.server_address[1]}", files, **keys)
    finally:
        server.shutdown()
    assert outcomes(sent) == ["sent"] * 3, sent
    assert got == [data_set(file.read_bytes()) for file in files]


def test_apps_storescp_of_pynetdicom_gets_it(tmp_path: Path, ct: Path) -> None:
    """Its application, as it is installed."""
    port = free_port()
    command = [sys.executable, "-m", "pynetdicom", "storescp", str(port), "-od", str(tmp_path / "kept")]
    (tmp_path / "kept").mkdir()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: process.poll() is None and listens(port))
        assert outcomes(sent_to(f"STORESCP@127.0.0.1:{port}", dict.fromkeys(sorted(ct.iterdir()), False))) == ["sent"] * 8
    finally:
        process.terminate()
        process.wait()
    assert len([*(tmp_path / "kept").iterdir()]) == 8


@pytest.mark.parametrize("door", ["dimse", "dicomweb"])
def test_large_file_is_never_in_memory(tmp_path: Path, node: Server, door: str) -> None:
    """Of 300 MiB a process of `segnode send` holds a block at a time."""
    size = 300 << 20
    path = tmp_path / "large.dcm"
    with path.open("wb") as file:
        file.write(small(f"1.2.55.{len(door)}") + b"\xe0\x7f\x10\x00OW\0\0" + struct.pack("<L", size))
        file.truncate(file.tell() + size)
    script = (
        "import resource, subprocess, sys\n"
        "code = subprocess.run(sys.argv[1:], check=False).returncode\n"
        "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10)"
    )
    command = [sys.executable, "-c", script, sys.executable, "-m", "segnode", "send", str(path), "--to", getattr(node, door)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    code, peak = map(int, ended.stdout.splitlines()[-1].split())
    assert code == 0, ended.stdout + ended.stderr
    assert peak < 200


def test_named_destination_is_sent_to_as_it_is_configured(tmp_path: Path) -> None:
    """Its address, and the AE title that the node has there."""
    called: list[str] = []
    ae = AE("SINK")
    ae.supported_contexts = AllStoragePresentationContexts[:100]
    handlers = [(evt.EVT_C_STORE, lambda event: called.append(event.assoc.requestor.ae_title) or 0)]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    files_in(tmp_path / "one", small("1.2.7.1"))
    to = f"SINK@127.0.0.1:{server.server_address[1]}"
    (tmp_path / "segnode.toml").write_text(f'[[destinations]]\nname = "pacs"\nto = "{to}"\ncalling_ae = "GATE"\n')
    try:
        ended = run("send", str(tmp_path / "one"), "--to", "pacs", "--config", str(tmp_path / "segnode.toml"))
        assert (ended.returncode, called) == (0, ["GATE"]), ended.stderr
        assert run("send", str(tmp_path / "one"), "--to", "nobody").returncode == 2
    finally:
        server.shutdown()
