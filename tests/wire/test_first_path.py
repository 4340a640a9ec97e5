"""From a series to a LABELMAP SEG in an archive: with DCMTK, dicomweb-client, Orthanc and highdicom at the ends."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import highdicom
import numpy as np
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, RLELossless
from pynetdicom import AE, evt

from segnode.config import parse_dimse_address
from segnode.dicom.slices import order_slices, read_volume
from segnode.dicom.uids import LABEL_MAP_SEGMENTATION_STORAGE
from segnode.dimse.scu import send_files
from segnode.models.threshold import segment
from segnode.store.jobs import Job
from segnode.testing.phantom import Phantom
from segnode.testing.servers import Server, await_jobs, free_port, node_config, segnode, until

RULE = '[[rules]]\nwhen = {{ Modality = "CT" }}\nmodel = "threshold"\nsend_to = [{names}]\nquiet = 2.0\n'


def tables(**destinations: tuple[str, Sequence[str]]) -> str:
    """TOML of destinations and a rule that sends to all of them."""
    text = "".join(
        f'[[destinations]]\nname = "{name}"\nto = "{to}"\nseg = [{", ".join(f"{form!r}" for form in forms)}]\n'
        for name, (to, forms) in destinations.items()
    )
    return text + RULE.format(names=", ".join(f'"{name}"' for name in destinations))


def dcmsend(program: str, folder: Path, node: Server) -> None:
    """Send a folder with DCMTK."""
    command = [program, "-aec", node.ae_title, "127.0.0.1", str(node.dicom_port), *map(str, sorted(folder.iterdir()))]
    subprocess.run(command, check=True, env={**os.environ, "TCP_NODELAY": "1"}, capture_output=True)


def fetch(client: DICOMwebClient, sop_instance_uid: str) -> list[Dataset]:
    """Every object of that UID that an archive holds, in the transfer syntax it is held in."""
    found = client.search_for_instances(search_filters={"SOPInstanceUID": sop_instance_uid})
    uids = [[item[tag]["Value"][0] for tag in ("0020000D", "0020000E", "00080018")] for item in found]
    return [client.retrieve_instance(*u, media_types=(("application/dicom", "*"),)) for u in uids]


def all_label_maps(client: DICOMwebClient, study: str) -> set[str]:
    """The LABELMAP SEGs of a study in an archive."""
    found = client.search_for_instances(study, fields=["SOPClassUID"])
    return {i["00080018"]["Value"][0] for i in found if i["00080016"]["Value"][0] == LABEL_MAP_SEGMENTATION_STORAGE}


def require_placed(dataset: Dataset, images: Sequence[Dataset], labels: np.ndarray) -> None:
    """Hold a SEG to the labels of the images in slice order: by highdicom, by source image and by place in the patient."""
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    segmentation = highdicom.seg.segread(BytesIO(file.getvalue()))
    uids = [image.SOPInstanceUID for image in images]
    by_source = segmentation.get_pixels_by_source_instance(uids, combine_segments=True)
    np.testing.assert_array_equal(by_source, labels)
    referenced = {
        series.SeriesInstanceUID: {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}
        for series in dataset.ReferencedSeriesSequence
    }
    assert referenced.pop(images[0].SeriesInstanceUID) == set(uids)
    replaced = {item.ReferencedSOPInstanceUID for item in dataset.get("ReferencedImageSequence", ())}
    assert referenced == ({dataset.SeriesInstanceUID: replaced} if replaced else {})
    volume = segmentation.get_volume(combine_segments=True)
    source = highdicom.Volume(
        labels,
        order_slices(list(images)).affine,
        coordinate_system="PATIENT",
        frame_of_reference_uid=images[0].FrameOfReferenceUID,
    )
    np.testing.assert_array_equal(volume.match_geometry(source).array, labels)


def model_output(folder: Path) -> tuple[Sequence[Dataset], np.ndarray]:
    """The images of a folder in slice order, and what the built-in model makes of them."""
    slices = order_slices([dcmread(file) for file in folder.iterdir()])
    return slices.images, np.asarray(segment(read_volume(slices, slices.images)).labelmap)


def only(jobs: list[Job]) -> Job:
    """The one job there is."""
    (job,) = jobs
    return job


@pytest.fixture
def node(tmp_path: Path, archive: Server) -> Iterator[Server]:
    """A node that sends JPEG-LS to Orthanc by STOW."""
    with segnode(tmp_path / "node", tables(orthanc=(archive.dicomweb, ["labelmap:jpeg-ls"]))) as server:
        yield server


def test_phantom_arrives_where_it_belongs(node: Server, archive: Server, phantom: Phantom, dcmtk) -> None:
    """The labels in the archive equal the phantom's truth, voxel for voxel, in the patient's space."""
    dcmsend(dcmtk("dcmsend"), phantom.folder, node)
    job = only(await_jobs(node_config(node)))
    assert (job.state, job.error) == ("delivered", "")
    (returned,) = fetch(DICOMwebClient(archive.dicomweb), job.sop_instance_uid)
    assert returned.file_meta.TransferSyntaxUID == JPEGLSLossless
    require_placed(returned, order_slices([dcmread(f) for f in phantom.folder.iterdir()]).images, phantom.labelmap)


@pytest.mark.parametrize("door", ["dcmsend", "stow"])
def test_real_series_arrives_by_either_door(node: Server, archive: Server, sample_ct: Path, dcmtk, door: str) -> None:
    """The published 20-slice JPEG 2000 CT ends as one LABELMAP SEG in Orthanc, with the labels that the model produced."""
    if door == "dcmsend":
        dcmsend(dcmtk("dcmsend"), sample_ct, node)
    else:
        DICOMwebClient(node.dicomweb).store_instances([dcmread(file) for file in sorted(sample_ct.iterdir())])
    job = only(await_jobs(node_config(node)))
    assert (job.state, job.error) == ("delivered", "")
    images, labels = model_output(sample_ct)
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    client = DICOMwebClient(archive.dicomweb)
    (returned,) = fetch(client, job.sop_instance_uid)
    require_placed(returned, images, labels)
    assert job.sop_instance_uid in all_label_maps(client, images[0].StudyInstanceUID)


@contextmanager
def storage_scp(folder: Path, *contexts: tuple[str, str]) -> Iterator[str]:
    """A pynetdicom Storage SCP that accepts these (SOP class, transfer syntax); its address."""
    ae = AE("SINK")
    for sop_class, syntax in contexts:
        ae.add_supported_context(sop_class, syntax)

    def keep(event: evt.Event) -> int:
        (folder / str(event.request.AffectedSOPInstanceUID)).write_bytes(event.encoded_dataset())
        return 0x0000

    port = free_port()
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    yield f"SINK@127.0.0.1:{port}"
    server.shutdown()


@pytest.mark.parametrize(("accepts", "form"), [(RLELossless, "labelmap:rle"), (ExplicitVRLittleEndian, "labelmap:native")])
def test_scp_gets_the_best_form_it_accepts(tmp_path: Path, phantom: Phantom, accepts: str, form: str) -> None:
    """Over DIMSE every form is offered, and the best that the archive accepts is sent."""
    with storage_scp(tmp_path, (LABEL_MAP_SEGMENTATION_STORAGE, accepts)) as address:
        sink = (address, ["labelmap:jpeg-ls", "labelmap:rle", "labelmap:native"])
        with segnode(tmp_path / "node", tables(sink=sink)) as node:
            list(send_files(sorted(phantom.folder.iterdir()), parse_dimse_address(node.dimse, ""), "TEST"))
            job = only(await_jobs(node_config(node)))
    assert (job.state, job.deliveries[0].form) == ("delivered", form)
    received = dcmread(tmp_path / job.sop_instance_uid)
    assert received.file_meta.TransferSyntaxUID == accepts
    require_placed(received, order_slices([dcmread(f) for f in phantom.folder.iterdir()]).images, phantom.labelmap)


def test_second_segnode_gets_it_by_c_store_and_makes_nothing_of_it(tmp_path: Path, phantom: Phantom) -> None:
    """A second node keeps what the first sends, and its own rule, which would take any series, leaves the SEG alone."""
    greedy = '[[rules]]\nwhen = { Modality = "CT" }\nmodel = "threshold"\nquiet = 0.0\n'
    with segnode(tmp_path / "second", greedy, ae_title="SECOND") as second:
        sink = tables(second=(second.dimse, ["labelmap:jpeg-ls"]))
        with segnode(tmp_path / "node", sink) as node:
            list(send_files(sorted(phantom.folder.iterdir()), parse_dimse_address(node.dimse, ""), "TEST"))
            job = only(await_jobs(node_config(node)))
            assert (job.state, job.error) == ("delivered", "")
        (returned,) = fetch(DICOMwebClient(second.dicomweb), job.sop_instance_uid)
        require_placed(returned, order_slices([dcmread(f) for f in phantom.folder.iterdir()]).images, phantom.labelmap)
        assert await_jobs(node_config(second), 0) == []


def test_archive_that_refuses_the_class_is_named(tmp_path: Path, archive: Server, phantom: Phantom) -> None:
    """Orthanc over DIMSE refuses the SOP class: the job fails with a reason that names it, and the SEG is still held."""
    with segnode(tmp_path / "node", tables(orthanc=(archive.dimse, ["labelmap:rle", "labelmap:native"]))) as node:
        list(send_files(sorted(phantom.folder.iterdir()), parse_dimse_address(node.dimse, ""), "TEST"))
        job = only(await_jobs(node_config(node)))
        assert job.state == "failed"
        assert "Label Map Segmentation Storage (1.2.840.10008.5.1.4.1.1.66.7)" in job.error
        assert "labelmap:rle" in job.error
        assert "labelmap:native" in job.error
        assert len(fetch(DICOMwebClient(node.dicomweb), job.sop_instance_uid)) == 1
        (listed,) = json.loads(jobs_command(node, "--state", "failed", "--json").stdout)
        assert (listed["id"], listed["state"], listed["deliveries"][0]["attempts"]) == (job.id, "failed", 1)
        shown = jobs_command(node, "show", job.id[:8]).stdout
        assert "1.2.840.10008.5.1.4.1.1.66.7" in shown
        assert "inferring" in shown
        assert jobs_command(node, "retry", job.id[:8]).returncode == 0
        until(lambda: [d.attempts for j in await_jobs(node_config(node)) for d in j.deliveries] == [2])
        assert only(await_jobs(node_config(node))).state == "failed"


def jobs_command(node: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `segnode jobs` on a node's configuration."""
    config = str(node.log.parent / "segnode.toml")
    command = [sys.executable, "-m", "segnode", "jobs", "--config", config, *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def change(folder: Path, target: Path, edit: Callable[[int, Dataset], bool]) -> list[Path]:
    """Copies of a series, edited; those for which `edit` says False are left out."""
    target.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        image = dcmread(file)
        if edit(number, image):
            image.save_as(target / file.name, enforce_file_format=True)
    return sorted(target.iterdir())


def series(uid: str, edit: Callable[[int, Dataset], object] = lambda *_: None) -> Callable[[int, Dataset], bool]:
    """An edit that makes another series of it."""

    def apply(number: int, image: Dataset) -> bool:
        image.SeriesInstanceUID = f"1.2.77.{uid}"
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"1.2.77.{uid}.{number}"
        return edit(number, image) is not False

    return apply


def turned(number: int, image: Dataset) -> None:
    """One image lies across the others."""
    if number == 5:
        image.ImageOrientationPatient = ["0", "1", "0", "-1", "0", "0"]


def doubled(number: int, image: Dataset) -> None:
    """One image lies where its neighbour does."""
    if number == 5:
        image.ImagePositionPatient[2] += 2.5


def elsewhere(number: int, image: Dataset) -> None:
    """One image is of another frame of reference."""
    if number == 5:
        image.FrameOfReferenceUID = "1.2.3"


def scout(number: int, image: Dataset) -> None:
    """The last image is a localizer."""
    if number == 23:
        image.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def test_series_that_are_no_volume_fail_with_the_reason(tmp_path: Path, phantom: Phantom) -> None:
    """A gap, a duplicate position, mixed orientation or frame of reference fails; a localizer is left out and noted."""
    edits = {
        "1": (lambda number, _: number != 9, "gap of 5.00 mm"),
        "2": (doubled, "two slices lie in one place"),
        "3": (turned, "mixes orientations"),
        "4": (elsewhere, "mixes frames of reference"),
        "5": (scout, ""),
    }
    with segnode(tmp_path / "node", RULE.format(names="")) as node:
        for uid, (edit, _) in edits.items():
            files = change(phantom.folder, tmp_path / uid, series(uid, edit))
            list(send_files(files, parse_dimse_address(node.dimse, ""), "TEST"))
        jobs = {job.series_instance_uid: job for job in await_jobs(node_config(node), len(edits))}
    for uid, (_, reason) in edits.items():
        job = jobs[f"1.2.77.{uid}"]
        assert job.state == ("failed" if reason else "delivered"), job
        assert re.search(reason, job.error), job
    assert "1 localizer(s) left out: 1.2.77.5.23" in jobs["1.2.77.5"].note


def test_late_image_makes_another_job(tmp_path: Path, phantom: Phantom) -> None:
    """An image that comes after the series was decided makes a second job of all; sent again, it makes nothing."""
    files = sorted(phantom.folder.iterdir())
    with segnode(tmp_path / "node", RULE.format(names="")) as node:
        address = parse_dimse_address(node.dimse, "")
        list(send_files(files[1:], address, "TEST"))
        first = only(await_jobs(node_config(node)))
        list(send_files(files, address, "TEST"))
        (again, second) = await_jobs(node_config(node), 2)
        assert again.id == first.id
        assert {again.state, second.state} == {"delivered"}
        assert again.sop_instance_uid != second.sop_instance_uid
        (returned,) = fetch(DICOMwebClient(node.dicomweb), second.sop_instance_uid)
        require_placed(returned, order_slices([dcmread(f) for f in files]).images, phantom.labelmap)
        assert [item.ReferencedSOPInstanceUID for item in returned.ReferencedImageSequence] == [first.sop_instance_uid]


def test_no_patient_name_in_any_log(tmp_path: Path, archive: Server, phantom: Phantom) -> None:
    """What a node writes of a whole run, refusals among it, holds neither the patient's name nor its id."""

    def named(_: int, image: Dataset) -> None:
        image.PatientName, image.PatientID = "Marker^Zebedee", "ZEB4711"

    with segnode(tmp_path / "node", tables(orthanc=(archive.dimse, ["labelmap:rle"]))) as node:
        files = change(phantom.folder, tmp_path / "ct", series("9", named))
        list(send_files(files, parse_dimse_address(node.dimse, ""), "TEST"))
        DICOMwebClient(node.dicomweb).search_for_studies(search_filters={"PatientName": "Marker*"})
        await_jobs(node_config(node))
    log = node.log.read_text().lower()
    assert "received" in log
    assert not any(word in log for word in ("marker", "zebedee", "zeb4711"))
