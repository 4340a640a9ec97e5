"""Rules without a model: what comes in is sent on, over real connections, and arrives once and as it was."""

import io
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.pixels import pixel_array
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
)

from segnode.config import Config, parse_config, parse_dimse_address
from segnode.dicom.native import in_native
from segnode.dicom.uids import LABEL_MAP_SEGMENTATION_STORAGE
from segnode.dimse.scu import send_files
from segnode.dimse.switches import set_switches
from segnode.errors import DeliveryRefused
from segnode.node import committers, destinations, open_jobs
from segnode.pipeline.assemble import image_values
from segnode.pipeline.confirm import Confirmer
from segnode.pipeline.deliver import Deliverer
from segnode.pipeline.dispatch import Dispatch
from segnode.pipeline.forwarder import Forwarder
from segnode.pipeline.read_back import require_same_content
from segnode.pipeline.receive import Receiver
from segnode.pipeline.rules import documents, resolve_rules
from segnode.pipeline.sweep import Sweep
from segnode.pipeline.workflows import Stages
from segnode.seg.codecs import CODECS
from segnode.seg.convert import Target, convert
from segnode.store.commitments import Commitments
from segnode.store.database import open_database
from segnode.store.index import Index, Sender
from segnode.store.jobs import Job, Jobs
from segnode.store.leases import Lease
from segnode.store.measures import Meter
from segnode.store.objects import ObjectStore
from segnode.store.standings import Standings
from segnode.testing.part10 import encode_part10
from segnode.testing.phantom import Phantom
from segnode.testing.servers import Server, await_jobs, free_port, node_config, segnode
from tests.outbox import RESULT, require_truth, segmentation, truth
from tests.wire.test_commitment import Witness
from tests.wire.test_delivery_matrix import (  # noqa: F401  two are fixtures
    Archive,
    Response,
    empty_archive,
    held_by,
    real_archive,
    storescp,
    stow,
)
from tests.wire.test_kills import await_starts, kill_role

LABELMAP = str(LABEL_MAP_SEGMENTATION_STORAGE)
NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
RULES = """
[[destinations]]
name = "archive"
to = "{to}"
{keys}
[[rules]]
when = {{}}
send_to = ["archive"]
quiet = 0
{more}
"""


@dataclass
class Router:
    """A node's rows and what works on them, with a clock in the hand."""

    folder: Path
    to: str
    keys: str = ""
    more: str = ""
    now: float = 1_800_000_000.0
    config: Config = field(init=False)
    index: Index = field(init=False)
    jobs: Jobs = field(init=False)
    confirmer: Confirmer = field(init=False)
    stages: Stages = field(init=False)

    def __post_init__(self) -> None:
        """Open the databases."""
        self.folder.mkdir(exist_ok=True)
        self.config = parse_config(RULES.format(to=self.to, keys=self.keys, more=self.more), self.folder)
        pipeline = open_database(self.folder / "pipeline.sqlite")
        self.index, self.jobs = Index(open_database(self.folder / "index.sqlite")), Jobs(pipeline)
        self.standings = Standings(pipeline)
        objects = ObjectStore(self.folder / "objects", Lease("a" * 12, "worker-1"))
        self.receiver = Receiver(objects, self.index, Meter("web"), "SEGNODE", 0, lambda: self.now)
        configs = {d.name: d for d in self.config.destinations}
        clock = lambda: self.now  # noqa: E731
        self.commitments = Commitments(pipeline)
        self.confirmer = Confirmer(self.commitments, committers(self.config), configs, clock)
        deliverer = Deliverer(
            objects,
            self.index,
            self.jobs,
            self.standings,
            destinations(self.config),
            configs,
            self.confirmer,
            Meter("worker"),
            clock,
        )
        forwarder = Forwarder(deliverer, "SEGNODE")
        self.stages = Stages(None, None, deliverer, forwarder, self.jobs, Meter("worker"), clock)  # type: ignore[arg-type]  # nothing is made
        self.dispatch = Dispatch(self.jobs, self.standings, configs)
        self.sweep()

    def receive(self, *part10s: bytes, sender: Sender | None = None) -> None:
        """Objects come in now."""
        for part10 in part10s:
            with self.receiver.objects.spool() as spool:
                spool.write(part10)
                spool.complete()
                self.receiver.receive(spool, sender=sender)

    def sweep(self) -> list[Job]:
        """All jobs, after the rules were asked."""
        rules = resolve_rules(self.config)
        first_loaded = self.jobs.load_rules(documents(rules), self.now)
        values = image_values(self.index, self.receiver.objects.path)
        Sweep(self.index, self.jobs, rules, first_loaded, values, lambda *_: None, lambda: self.now).decide()
        return self.jobs.all()

    def attempt(self) -> None:
        """Make the attempts that are due."""
        for attempt in self.dispatch.due(self.now):
            self.stages.deliver(attempt)

    def go(self, *part10s: bytes) -> Job:
        """Objects come in and are sent on; the one job of that."""
        self.receive(*part10s)
        self.sweep()
        self.attempt()
        (job,) = self.jobs.all()
        return job


@dataclass
class Sink:
    """A scripted archive: what it keeps and was sent, in how many associations, and what it answers or does instead."""

    port: int = field(default_factory=free_port)
    kept: dict[str, bytes] = field(default_factory=dict)
    received: list[str] = field(default_factory=list)
    associations: int = 0
    trouble: Callable[[evt.Event], int | None] = lambda _: None

    def on_store(self, event: evt.Event) -> int:
        """Keep an object, unless there is trouble."""
        uid = event.request.AffectedSOPInstanceUID
        self.received.append(uid)
        answer = self.trouble(event)
        if answer is None:
            self.kept[uid] = event.encoded_dataset()
        return answer or 0

    def on_accepted(self, _: evt.Event) -> None:
        """Count associations."""
        self.associations += 1

    def on_find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        """Answer a C-FIND."""
        uid = event.identifier.SOPInstanceUID
        if uid in self.kept:
            match = Dataset()
            match.QueryRetrieveLevel, match.SOPInstanceUID = "IMAGE", uid
            yield 0xFF00, match

    def on_get(self, event: evt.Event) -> Iterator[object]:
        """Answer a C-GET."""
        yield 1
        yield 0xFF00, dcmread(BytesIO(self.kept[event.identifier.SOPInstanceUID]))


@contextmanager
def serving(
    sink: Sink, syntaxes: Sequence[str] = NATIVE, *, asks: bool = True, commits: Callable[[evt.Event], object] | None = None
) -> Iterator[str]:
    """Its address, while it serves."""
    ae = AE("SINK")
    for sop_class in (CTImageStorage, SecondaryCaptureImageStorage, SegmentationStorage, LABELMAP):
        ae.add_supported_context(sop_class, list(syntaxes), scu_role=True, scp_role=True)
    if asks:
        ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
        ae.add_supported_context(StudyRootQueryRetrieveInformationModelGet)
    if commits:
        ae.add_supported_context(StorageCommitmentPushModel)
    set_switches()
    handlers = [
        *([(evt.EVT_N_ACTION, commits)] if commits else []),
        (evt.EVT_C_STORE, sink.on_store),
        (evt.EVT_ACCEPTED, sink.on_accepted),
        (evt.EVT_C_FIND, sink.on_find),
        (evt.EVT_C_GET, sink.on_get),
    ]
    server = ae.start_server(("127.0.0.1", sink.port), block=False, evt_handlers=handlers)
    try:
        yield f"SINK@127.0.0.1:{sink.port}"
    finally:
        server.shutdown()


def image(sop: str, *, series: str = "1.3.1", **attributes: object) -> Dataset:
    """A small CT image with a pattern of its own."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, sop
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.Modality = "1.3", series, "CT"
    dataset.Rows = dataset.Columns = 16
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    pattern = np.random.default_rng(int(sop.rpartition(".")[2])).integers(-1024, 3000, (16, 16))
    dataset.add_new("PixelData", "OW", pattern.astype("<i2").tobytes())
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def native(*sops: str) -> list[bytes]:
    """Files of small CT images."""
    return [encode_part10(image(sop), ExplicitVRLittleEndian) for sop in sops]


def many(count: int) -> list[str]:
    """SOP instance UIDs."""
    return [f"1.3.1.{number}" for number in range(1, count + 1)]


def compressed(phantom: Phantom, syntax: str) -> bytes:
    """An image of the phantom, losslessly compressed."""
    dataset = dcmread(phantom.folder / "0005.dcm")
    dataset.compress(syntax, generate_instance_uid=False)
    file = BytesIO()
    dataset.save_as(file)
    return file.getvalue()


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, RLELossless])
@pytest.mark.parametrize("options", [(), ("+xi",)])
def test_compressed_image_steps_down_to_native(
    tmp_path: Path, phantom: Phantom, dcmtk: Callable[[str], str], syntax: str, options: Sequence[str]
) -> None:
    """DCMTK's storescp takes native only, or implicit only: the object that arrives is the same, and so is every pixel."""
    with storescp(dcmtk("storescp"), tmp_path / "kept", *options) as address:
        job = Router(tmp_path / "node", address).go(compressed(phantom, syntax))
    assert (job.state, job.error) == ("delivered", "")
    (file,) = (tmp_path / "kept").iterdir()
    arrived, sent = dcmread(file), dcmread(phantom.folder / "0005.dcm")
    assert arrived.file_meta.TransferSyntaxUID == (ImplicitVRLittleEndian if options else ExplicitVRLittleEndian)
    assert arrived.SOPInstanceUID == sent.SOPInstanceUID
    np.testing.assert_array_equal(arrived.pixel_array, sent.pixel_array)
    assert {e.tag for e in sent} == {e.tag for e in arrived}


def test_what_the_archive_takes_arrives_as_it_came(tmp_path: Path, phantom: Phantom) -> None:
    """The data set is the same, byte for byte, where its transfer syntax is accepted, also where native is too."""
    part10 = compressed(phantom, JPEGLSLossless)
    with serving(sink := Sink(), (JPEGLSLossless, *NATIVE)) as address:
        assert Router(tmp_path, address).go(part10).state == "delivered"
    (arrived,) = sink.kept.values()
    header = dcmread(BytesIO(part10), stop_before_pixels=True)
    data_set = part10[part10.index(b"\x08\x00\x05\x00CS") if "SpecificCharacterSet" in header else part10.index(b"\x08\x00") :]
    assert arrived.endswith(data_set)


def lossy() -> bytes:
    """A colour photograph in JPEG Baseline, marked as what it is."""
    grid = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8) * 4
    file = io.BytesIO()
    Image.fromarray(np.stack([grid, grid.T[::-1], 255 - grid], -1)).save(file, "JPEG", quality=60, subsampling="4:2:2")
    dataset = image("1.3.1.7", Modality="OT", SOPClassUID=SecondaryCaptureImageStorage, Rows=32, Columns=32)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "YBR_FULL_422", 0
    dataset.LossyImageCompression, dataset.LossyImageCompressionRatio = "01", "12.5"
    dataset.LossyImageCompressionMethod = "ISO_10918_1"
    dataset.add_new("PixelData", "OB", encapsulate([file.getvalue()]))
    dataset["PixelData"].is_undefined_length = True
    return encode_part10(dataset, JPEGBaseline8Bit)


def test_lossy_image_stays_marked_lossy(tmp_path: Path, dcmtk: Callable[[str], str]) -> None:
    """Decoded for an archive that takes native only it says how it was compressed, and the same pixels come out."""
    with storescp(dcmtk("storescp"), tmp_path / "kept") as address:
        job = Router(tmp_path / "node", address).go(lossy())
    assert (job.state, job.error) == ("delivered", "")
    (file,) = (tmp_path / "kept").iterdir()
    arrived = dcmread(file)
    assert arrived.LossyImageCompression == "01"
    assert (arrived.LossyImageCompressionRatio, arrived.LossyImageCompressionMethod) == (12.5, "ISO_10918_1")
    assert arrived.PhotometricInterpretation == "YBR_FULL"
    decoded = pixel_array(dcmread(BytesIO(lossy())), raw=True)
    np.testing.assert_array_equal(pixel_array(arrived, raw=True), decoded)


def test_lossy_image_is_sent_as_it_is_where_that_is_taken(tmp_path: Path) -> None:
    """Nothing is decoded that need not be."""
    with serving(sink := Sink(), (JPEGBaseline8Bit, *NATIVE)) as address:
        assert Router(tmp_path, address).go(lossy()).state == "delivered"
    (arrived,) = sink.kept.values()
    assert dcmread(BytesIO(arrived)).PixelData == dcmread(BytesIO(lossy())).PixelData


def test_image_that_nobody_can_decode_fails_with_the_reason(tmp_path: Path) -> None:
    """A codestream that is none, for an archive that takes native only: refused, with both reasons; the others arrive."""
    broken = image("1.3.1.2")
    broken.add_new("PixelData", "OB", encapsulate([b"\xff\xd8 no codestream \xff\xd9"]))
    broken["PixelData"].is_undefined_length = True
    with serving(sink := Sink()) as address:
        job = Router(tmp_path, address).go(*native("1.3.1.1", "1.3.1.3"), encode_part10(broken, JPEGLSLossless))
    assert (job.state, sorted(sink.kept)) == ("failed", ["1.3.1.1", "1.3.1.3"])
    assert "JPEG-LS Lossless Image Compression (1.2.840.10008.1.2.4.80) not accepted at negotiation" in job.error
    assert "cannot be had in native encoding" in job.error
    assert [(d.sop_instance_uid, d.state) for d in job.deliveries] == [("1.3.1.2", "failed")]


def test_hundreds_of_images_need_one_association(tmp_path: Path) -> None:
    """Each arrives once; the job counts them, and does not list what went well."""
    with serving(sink := Sink()) as address:
        job = Router(tmp_path, address).go(*native(*many(300)))
    assert (job.state, dict(job.counts), job.deliveries) == ("delivered", {("archive", "delivered"): 300}, ())
    assert Counter(sink.received) == dict.fromkeys(many(300), 1)
    assert sink.associations == 1


def test_image_that_breaks_the_association_keeps_no_other_from_its_way(tmp_path: Path) -> None:
    """Aborted at two images each time, all others arrive, each once, in a few attempts; the two are owed for longer."""
    poison = ("1.3.1.2", "1.3.1.4")
    sink = Sink()

    def trouble(event: evt.Event) -> int | None:
        if event.request.AffectedSOPInstanceUID not in poison:
            return None
        event.assoc.abort()
        return 0xC000

    sink.trouble = trouble
    with serving(sink) as address:
        router = Router(tmp_path, address)
        router.go(*native(*many(9)))
        for _ in range(3):
            router.now += 3600
            router.attempt()
    (job,) = router.jobs.all()
    assert dict(job.counts) == {("archive", "delivered"): 7, ("archive", "waiting"): 2}
    assert {uid: count for uid, count in Counter(sink.received).items() if uid not in poison} == dict.fromkeys(
        set(many(9)) - {*poison}, 1
    )
    assert {d.sop_instance_uid for d in job.deliveries} == {*poison}


def test_what_is_not_delivered_in_time_is_given_up_whole(tmp_path: Path) -> None:
    """Nobody listens for a week: every image is given up, and the job says so in one sentence."""
    router = Router(tmp_path, f"SINK@127.0.0.1:{free_port()}")
    assert router.go(*native(*many(30))).state == "delivering"
    router.now += 8 * 86400
    router.attempt()
    (job,) = router.jobs.all()
    assert (job.state, dict(job.counts)) == ("failed", {("archive", "failed"): 30})
    assert job.error.count("given up after 7d") == 1
    assert "30 objects" in job.error


def test_each_image_is_given_up_in_its_own_time(tmp_path: Path) -> None:
    """After a week of no room for it one image is given up; another that was stored yesterday goes on to be proved."""
    sink = Sink(trouble=lambda event: 0xA700 if event.request.AffectedSOPInstanceUID == "1.3.1.1" else None)
    with serving(sink) as address:
        router = Router(tmp_path, address, 'confirm = "read-back"')
        router.go(*native("1.3.1.1", "1.3.1.2"))
        router.now += 6.5 * 86400
        router.attempt()
        (job,) = router.jobs.all()
        assert dict(job.counts) == {("archive", "waiting"): 1, ("archive", "confirming"): 1}
    router.now += 86400
    router.attempt()
    (job,) = router.jobs.all()
    assert dict(job.counts) == {("archive", "failed"): 1, ("archive", "confirming"): 1}
    assert (job.deliveries[0].sop_instance_uid, job.deliveries[0].state) == ("1.3.1.1", "failed")
    assert "given up after 7d" in job.deliveries[0].last_answer
    assert router.dispatch.due(router.now) == []


@pytest.mark.parametrize(("asks", "state"), [(True, "delivered"), (False, "failed")])
def test_image_that_is_there_already_is_read_back(tmp_path: Path, asks: bool, state: str) -> None:
    """0111 counts where the archive gives out an object of that UID and series, and fails where it cannot be asked."""
    with serving(sink := Sink(), asks=asks) as address:
        (sink.kept["1.3.1.1"],) = native("1.3.1.1")
        sink.trouble = lambda event: 0x0111 if event.request.AffectedSOPInstanceUID == "1.3.1.1" else None
        job = Router(tmp_path, address).go(*native("1.3.1.1", "1.3.1.2"))
    assert (job.state, sorted(sink.kept)) == (state, ["1.3.1.1", "1.3.1.2"])
    assert state == "delivered" or "accepts neither C-FIND nor C-GET" in job.error


def test_compressed_image_that_is_there_natively_is_what_was_sent(tmp_path: Path, phantom: Phantom) -> None:
    """0111, and what the archive gives out is not compressed: decoded, what came in has the same pixels."""
    part10 = compressed(phantom, JPEGLSLossless)
    uid = dcmread(BytesIO(part10)).SOPInstanceUID
    with serving(sink := Sink(), (JPEGLSLossless, *NATIVE)) as address:
        sink.kept[uid] = (phantom.folder / "0005.dcm").read_bytes()
        sink.trouble = lambda _: 0x0111
        router = Router(tmp_path, address, 'confirm = "read-back"')
        router.go(part10)
        router.attempt()
        (job,) = router.jobs.all()
    assert (job.state, job.error) == ("delivered", "")


@pytest.mark.parametrize(("is_lossy", "said"), [(False, "with other content"), (True, "cannot be compared")])
def test_decoded_pixels_that_differ(phantom: Phantom, is_lossy: bool, said: str) -> None:
    """One pixel of a native image differs from what was sent compressed: another object, if no decoder may round it."""
    sent = lossy() if is_lossy else compressed(phantom, JPEGLSLossless)
    held = dcmread(BytesIO(in_native(BytesIO(sent), ExplicitVRLittleEndian)))
    file = BytesIO()
    held.PixelData = bytes([held.PixelData[0] ^ 1]) + held.PixelData[1:]
    held.save_as(file)
    with pytest.raises(DeliveryRefused, match=said):
        require_same_content(held.SOPInstanceUID, sent, file.getvalue(), "ARCHIVE")


def test_image_with_the_uid_of_another_fails(tmp_path: Path) -> None:
    """0111 of an archive that holds something of another series under the UID."""
    with serving(sink := Sink()) as address:
        sink.kept["1.3.1.1"] = encode_part10(image("1.3.1.1", series="1.3.9"), ExplicitVRLittleEndian)
        sink.trouble = lambda _: 0x0111
        job = Router(tmp_path, address).go(*native("1.3.1.1"))
    assert (job.state, "holds another object" in job.error) == ("failed", True)


def test_unforeseen_error_ends_the_delivery_that_it_is_of(tmp_path: Path) -> None:
    """The file of the second of three is gone: that one fails, and not the first, which is there already, nor the third."""
    with serving(sink := Sink()) as address:
        (sink.kept["1.3.1.1"],) = native("1.3.1.1")
        sink.trouble = lambda event: 0x0111 if event.request.AffectedSOPInstanceUID == "1.3.1.1" else None
        router = Router(tmp_path, address)
        router.receive(*native(*many(3)))
        lost = router.index.find("1.3.1.2")
        assert lost is not None
        router.receiver.objects.path(lost.object_key).unlink()
        router.sweep()
        router.attempt()
    (job,) = router.jobs.all()
    assert dict(job.counts) == {("archive", "delivered"): 2, ("archive", "failed"): 1}
    assert (job.deliveries[0].sop_instance_uid, job.state) == ("1.3.1.2", "failed")
    assert "unforeseen FileNotFoundError" in job.error


@pytest.mark.parametrize("act", ["pause", "cancel", "retry"])
def test_person_stops_it_in_the_middle(tmp_path: Path, act: str) -> None:
    """Paused, cancelled, or cancelled and retried while it is sent: no more is by that attempt, and nothing is sent twice."""
    sink = Sink()
    with serving(sink) as address:
        router = Router(tmp_path, address)
        router.receive(*native(*many(9)))
        (job,) = router.sweep()

        def trouble(_: evt.Event) -> None:
            if len(sink.received) == 4:
                if act == "pause":
                    router.standings.pause("archive")
                else:
                    router.jobs.cancel(job.id, router.now)
                if act == "retry":
                    router.jobs.retry(job.id, router.now)

        sink.trouble = trouble
        router.now += 1
        router.attempt()
        assert len(sink.received) == 4
        left = "cancelled" if act == "cancel" else "waiting"
        assert dict(router.jobs.job(job.id).counts) == {("archive", "delivered"): 4, ("archive", left): 5}
        assert {delivery.next_attempt_at for delivery in router.jobs.due(router.now)} <= {router.now}
        router.standings.resume("archive")
        router.attempt()
    assert sorted(sink.received) == many(4 if act == "cancel" else 9)


def test_late_images_are_sent_and_no_other_again(tmp_path: Path) -> None:
    """What came later is a job of its own; also where the first is not done, or failed, each image is owed once."""
    with serving(sink := Sink()) as address:
        router = Router(tmp_path, address)
        router.go(*native("1.3.1.1", "1.3.1.2"))
        router.now += 10
        router.receive(*native("1.3.1.3"))
        router.sweep()
        router.now += 10
        router.receive(*native("1.3.1.4"))
        jobs = router.sweep()
        assert [job.state for job in jobs] == ["delivered", "delivering", "delivering"]
        router.attempt()
    assert sink.received == many(4)
    assert [job.state for job in router.jobs.all()] == ["delivered"] * 3


def test_series_is_not_sent_back_to_its_sender(tmp_path: Path) -> None:
    """What the destination itself has sent is not sent to it, which the job says."""
    with serving(sink := Sink()) as address:
        router = Router(tmp_path, address)
        router.receive(*native("1.3.1.1"), sender=Sender("SINK", "SEGNODE", "127.0.0.1"))
        (job,) = router.sweep()
        router.attempt()
    assert (job.state, job.note, sink.received) == ("delivered", "not sent to archive, where it came from", [])


def binary(*, overlapping: bool = False) -> bytes:
    """The SEG of the outbox as a BINARY that somebody else has made, with segments 1 and 2."""
    (made,) = convert(segmentation(truth()), Target("BINARY", CODECS["native"]), datetime(2026, 1, 1, tzinfo=UTC))
    dataset = dcmread(BytesIO(made.part10))
    del dataset.ContributingEquipmentSequence
    if overlapping:
        dataset.SegmentsOverlap = "YES"
        dataset.PixelData = b"\xff" * len(dataset.PixelData)
    file = BytesIO()
    dataset.save_as(file)
    return file.getvalue()


def reencoding(folder: Path, to: str, forms: Sequence[str]) -> Router:
    """A router that sends SEGs on in these forms."""
    return Router(folder, to, keys=f"seg = {[*forms]}", more="reencode = true")


def test_binary_becomes_a_labelmap_in_the_archive(tmp_path: Path, empty_archive: Server) -> None:  # noqa: F811
    """Orthanc holds a LABELMAP with the same labels, by highdicom, and what it was made of; sent back it starts nothing."""
    router = reencoding(tmp_path, empty_archive.dicomweb, ["labelmap:rle", "binary:native"])
    original = dcmread(BytesIO(binary()))
    job = router.go(binary())
    assert (job.state, job.error) == ("delivered", "")
    (held,) = held_by(empty_archive)
    require_truth(held)
    assert (held.SOPClassUID, held.file_meta.TransferSyntaxUID) == (LABELMAP, RLELossless)
    (delivery,) = job.deliveries
    assert delivery.sent_sop_instance_uid == held.SOPInstanceUID != original.SOPInstanceUID
    references = {i.ReferencedSOPInstanceUID for s in held.ReferencedSeriesSequence for i in s.ReferencedInstanceSequence}
    assert original.SOPInstanceUID in references
    back = BytesIO()
    held.save_as(back, enforce_file_format=True)
    router.now += 10
    router.receive(back.getvalue())
    assert len(router.sweep()) == 1


def test_archive_that_takes_no_labelmap_gets_the_binary_that_came(tmp_path: Path) -> None:
    """Down the ladder the form that it has is the object itself, under its own UID."""
    sink = Sink()
    sink.trouble = lambda event: 0x0122 if event.request.AffectedSOPClassUID == LABELMAP else None
    with serving(sink) as address:
        job = reencoding(tmp_path, address, ["labelmap:native", "binary:native"]).go(binary())
    original = dcmread(BytesIO(binary()))
    assert (job.state, [*sink.kept]) == ("delivered", [original.SOPInstanceUID])
    assert dcmread(BytesIO(sink.kept[original.SOPInstanceUID])).PixelData == original.PixelData


def test_labelmap_that_came_in_is_recoded(tmp_path: Path) -> None:
    """A LABELMAP of somebody else is the same object in the form that the archive likes best."""
    foreign = dcmread(BytesIO(segmentation(truth())))
    del foreign.ContributingEquipmentSequence
    file = BytesIO()
    foreign.save_as(file)
    with serving(sink := Sink()) as address:
        job = reencoding(tmp_path, address, ["labelmap:native"]).go(file.getvalue())
    assert (job.state, [*sink.kept]) == ("delivered", [RESULT])
    require_truth(dcmread(BytesIO(sink.kept[RESULT])))


@pytest.mark.parametrize("forms", [["labelmap:native", "binary:native"], ["labelmap:native"]])
def test_overlap_is_never_resolved_by_chance(tmp_path: Path, forms: list[str]) -> None:
    """Segments that overlap go as the BINARY that they are, or fail and are named; the archive gets no LABELMAP."""
    with serving(sink := Sink()) as address:
        router = reencoding(tmp_path, address, forms)
        job = router.go(binary(overlapping=True))
    if len(forms) > 1:
        assert (job.state, [*sink.kept]) == ("delivered", [dcmread(BytesIO(binary())).SOPInstanceUID])
        assert router.standings.of("archive").form == "", "what is made here is a LABELMAP as before"
    else:
        assert (job.state, sink.kept) == ("failed", {})
        assert "segments overlap: 1 (segment 2) and 2 (segment 7)" in job.error


def test_fractional_is_sent_as_it_came(tmp_path: Path) -> None:
    """Nobody has said where a fraction is inside: it is not converted, and the job notes it."""
    (made,) = convert(binary(), Target("FRACTIONAL", CODECS["native"]), datetime(2026, 1, 1, tzinfo=UTC))
    with serving(sink := Sink()) as address:
        job = reencoding(tmp_path, address, ["labelmap:native"]).go(made.part10)
    assert (job.state, [*sink.kept]) == ("delivered", [made.sop_instance_uid])
    assert job.note == f"SEG {made.sop_instance_uid} is FRACTIONAL: it is sent as it came"


def test_object_that_breaks_the_association_keeps_no_segmentation_from_its_way(tmp_path: Path) -> None:
    """A FRACTIONAL at which the archive aborts goes first, and once only before the BINARY of the same series."""
    (made,) = convert(binary(), Target("FRACTIONAL", CODECS["native"]), datetime(2026, 1, 1, tzinfo=UTC))
    fractional, file = dcmread(BytesIO(made.part10)), BytesIO()
    fractional.SeriesInstanceUID = dcmread(BytesIO(binary())).SeriesInstanceUID
    fractional.save_as(file)

    def trouble(event: evt.Event) -> int | None:
        if event.request.AffectedSOPInstanceUID != fractional.SOPInstanceUID:
            return None
        event.assoc.abort()
        return 0xC000

    with serving(sink := Sink(trouble=trouble)) as address:
        router = reencoding(tmp_path, address, ["labelmap:native"])
        router.go(file.getvalue(), binary())
        router.now += 3600
        router.attempt()
    (job,) = router.jobs.all()
    assert dict(job.counts) == {("archive", "delivered"): 1, ("archive", "waiting"): 1}
    assert len(sink.kept) == 1


def test_segmentation_goes_as_it_came_without_reencode(tmp_path: Path) -> None:
    """A rule that only forwards sends a BINARY as a BINARY, whatever the destination would like best."""
    with serving(sink := Sink()) as address:
        job = Router(tmp_path, address, keys='seg = ["labelmap:native"]').go(binary())
    assert (job.state, [*sink.kept]) == ("delivered", [dcmread(BytesIO(binary())).SOPInstanceUID])


def test_what_the_node_made_is_not_forwarded(tmp_path: Path) -> None:
    """A SEG of the node's own that an archive sends back starts nothing, also with reencode."""
    router = reencoding(tmp_path, "SINK@127.0.0.1:1", ["labelmap:native"])
    own = dcmread(BytesIO(segmentation(truth())))
    own.ContributingEquipmentSequence[0].StationName = "SEGNODE"
    file = BytesIO()
    own.save_as(file)
    router.receive(file.getvalue())
    assert router.sweep() == []


def node_tables(to: str) -> str:
    """TOML of a node with one rule, which forwards SEGs in other forms and all else as it came."""
    return RULES.format(to=to, keys='seg = ["labelmap:native"]', more="reencode = true").replace("quiet = 0", "quiet = 0.5")


def put(node: Server, folder: Path, *part10s: bytes) -> None:
    """Send objects to a node."""
    folder.mkdir(exist_ok=True)
    for number, part10 in enumerate(part10s):
        (folder / f"{number}.dcm").write_bytes(part10)
    list(send_files(sorted(folder.iterdir()), parse_dimse_address(node.dimse, ""), "TEST"))


def test_worker_killed_while_it_forwards(tmp_path: Path) -> None:
    """Killed when the archive has stored an image and not said so yet: all arrive, and none that was acknowledged again."""
    sink, stored, killed = Sink(), threading.Event(), threading.Event()

    def trouble(event: evt.Event) -> None:
        sink.kept[event.request.AffectedSOPInstanceUID] = event.encoded_dataset()
        if len(sink.received) == 20:
            stored.set()
            killed.wait(60)

    sink.trouble = trouble
    with serving(sink) as address, segnode(tmp_path / "node", node_tables(address)) as node:
        put(node, tmp_path / "ct", *native(*many(40)))
        assert stored.wait(60)
        in_doubt = sink.received[-1]
        await_starts(node, kill_role(node, "worker"))
        (before,) = open_jobs(node_config(node)).all()
        assert dict(before.counts) == {("archive", "delivered"): 19, ("archive", "waiting"): 21}
        killed.set()
        (job,) = await_jobs(node_config(node))
    assert (job.state, dict(job.counts)) == ("delivered", {("archive", "delivered"): 40})
    assert Counter(sink.received) == {**dict.fromkeys(many(40), 1), in_doubt: 2}
    assert sink.associations == 2


def test_two_rules_on_one_series_and_what_comes_back(tmp_path: Path, phantom: Phantom) -> None:
    """One rule has the model's SEG sent, one forwards the images; the SEG starts nothing when the archive sends it back."""
    model = '[[rules]]\nwhen = { Modality = "CT" }\nmodel = "threshold"\nsend_to = ["archive"]\nquiet = 0.5\n'
    with serving(sink := Sink()) as address, segnode(tmp_path / "node", node_tables(address) + model) as node:
        put(node, tmp_path / "ct", *(file.read_bytes() for file in sorted(phantom.folder.iterdir())))
        forwarded, made = sorted(await_jobs(node_config(node), 2), key=lambda job: job.model)
        assert (forwarded.only_forwards, forwarded.state, made.state) == (True, "delivered", "delivered")
        assert len(sink.kept) == len(list(phantom.folder.iterdir())) + 1
        assert sink.kept.keys() > {made.sop_instance_uid}
        whole = [sys.executable, "-m", "segnode", "jobs", "--config", str(node.log.parent / "segnode.toml"), "show"]
        said = subprocess.run([*whole, forwarded.id], check=True, capture_output=True, text=True).stdout
        assert f"to archive: {len(sink.kept) - 1} object(s): {len(sink.kept) - 1} delivered\n" in said
        (described,) = httpx.get(f"http://127.0.0.1:{node.http_port}/api/jobs/{forwarded.id}").json()["counts"]
        assert described == {
            "destination": "archive",
            "delivered": 24,
            **dict.fromkeys(("waiting", "confirming", "failed", "cancelled"), 0),
        }
        foreign = dcmread(BytesIO(sink.kept[made.sop_instance_uid]))
        foreign.SOPInstanceUID = foreign.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.5"
        foreign.SeriesInstanceUID = "1.2.3.4"
        file = BytesIO()
        foreign.save_as(file)
        # One that the node does not hold any more comes back, and then an image of another series as a mark of time.
        put(node, tmp_path / "back", sink.kept[made.sop_instance_uid], file.getvalue(), *native("1.3.1.9"))
        jobs = await_jobs(node_config(node), 4)
        series = {job.series_instance_uid for job in jobs} - {forwarded.series_instance_uid}
    assert (len(jobs), series) == (4, {"1.3.1"})


def test_orthanc_gets_images_by_stow(tmp_path: Path, phantom: Phantom, empty_archive: Server) -> None:  # noqa: F811
    """Every image is there once, in the transfer syntax that it came in."""
    router = Router(tmp_path, empty_archive.dicomweb)
    router.receive(*native("1.3.1.1", "1.3.1.2"), compressed(phantom, RLELossless))
    router.sweep()
    router.attempt()
    assert [job.state for job in router.jobs.all()] == ["delivered"] * 2
    syntaxes = [image.file_meta.TransferSyntaxUID for image in held_by(empty_archive)]
    assert sorted(syntaxes) == [ExplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless]


@pytest.mark.parametrize("refusal", [Response(415), Response(409, 0x0122), Response(200, 0xC122)])
def test_stow_server_that_refuses_a_syntax_gets_native(tmp_path: Path, phantom: Phantom, refusal: Response) -> None:
    """It says what it takes only when it is sent: then the same image goes natively."""
    archive = Archive()
    with stow(archive, [refusal]) as root:
        job = Router(tmp_path, root).go(compressed(phantom, JPEGLSLossless))
    assert job.state == "delivered"
    assert [syntax.split()[1] for syntax in archive.received] == [JPEGLSLossless, ExplicitVRLittleEndian]
    (arrived,) = (dcmread(BytesIO(part10)) for part10 in archive.kept.values())
    np.testing.assert_array_equal(arrived.pixel_array, dcmread(phantom.folder / "0005.dcm").pixel_array)


def test_images_go_by_one_connection(tmp_path: Path) -> None:
    """STOW-RS has a request for each, in a connection that stays open."""
    with stow(archive := Archive(), []) as root:
        job = Router(tmp_path, root).go(*native(*many(20)))
    assert (job.state, len(archive.kept), archive.connections) == ("delivered", 20, 1)


def test_stow_server_in_trouble_gets_the_rest_later(tmp_path: Path) -> None:
    """503 at the second of three: none is sent until it is time again, and none twice."""
    archive = Archive()
    with stow(archive, [Response(200, keeps=True), Response(503)]) as root:
        router = Router(tmp_path, root)
        assert router.go(*native(*many(3))).state == "delivering"
        assert len(archive.received) == 2
        router.attempt()
        assert len(archive.received) == 2
        router.now += 3600
        router.attempt()
    assert [job.state for job in router.jobs.all()] == ["delivered"]
    assert (len(archive.received), sorted(archive.kept)) == (4, many(3))


def test_forwarded_image_is_read_back(tmp_path: Path, phantom: Phantom) -> None:
    """Sent natively to an archive that takes no other encoding, it is compared with what was sent, and delivered then."""
    with serving(Sink()) as address:
        router = Router(tmp_path, address, 'confirm = "read-back"')
        assert router.go(compressed(phantom, JPEGLSLossless)).state == "delivering"
        router.now += 1
        router.attempt()
        (job,) = router.jobs.all()
    assert (job.state, job.error) == ("delivered", "")


def test_forwarded_images_are_committed_together_and_each_for_itself(tmp_path: Path) -> None:
    """Of five images, stored one after the other, the archive has lost two: one request names all, and one the two."""
    sink, lost = Sink(), ("1.3.1.2", "1.3.1.4")
    witness = Witness(sink)  # type: ignore[arg-type]  # what it asks of an archive, a sink has
    with serving(sink, commits=witness.on_request) as address:
        router = Router(tmp_path, address, 'confirm = "commitment"')

        def trouble(event: evt.Event) -> int | None:
            router.now += 0.1
            return 0 if event.request.AffectedSOPInstanceUID in lost and len(sink.received) <= 5 else None

        sink.trouble = trouble
        assert router.go(*native(*many(5))).counts == {("archive", "confirming"): 5}
        router.attempt()
        (job,) = router.jobs.all()
        assert job.counts == {("archive", "delivered"): 3, ("archive", "waiting"): 2}
        assert "no such object instance" in job.deliveries[0].last_answer
        router.attempt()
        router.attempt()
        (job,) = router.jobs.all()
    assert (job.state, Counter(sink.received)) == ("delivered", Counter(many(5)) + Counter(lost))
    named = [sorted(item.ReferencedSOPInstanceUID for item in asked.ReferencedSOPSequence) for asked in witness.asked]
    assert (named, sink.associations) == ([many(5), [*lost]], 4)


def test_archive_that_is_gone_when_it_is_to_commit_is_asked_later(tmp_path: Path) -> None:
    """All that it has stored waits, as one; nothing is sent again."""
    sink = Sink()
    with serving(sink, commits=Witness(sink).on_request) as address:  # type: ignore[arg-type]
        router = Router(tmp_path, address, 'confirm = "commitment"')
        router.go(*native(*many(3)))
    router.now += 1
    router.attempt()
    assert router.dispatch.due(router.now) == []
    with serving(sink, commits=Witness(sink).on_request):  # type: ignore[arg-type]
        router.now += 3600
        router.attempt()
        (job,) = router.jobs.all()
    assert (job.state, len(sink.received)) == ("delivered", 3)
