"""What a node and its archive hold after chaos, found out with pydicom and DICOMweb, compared with what was acknowledged."""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from signal import SIGKILL
from typing import Any, Final

import httpx
import numpy as np
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset, dcmread

from segnode.roles import NO_ROOM
from segnode.store.database import open_database
from segnode.store.jobs import Job
from segnode.store.leases import Leases, lease_ids
from segnode.store.objects import object_path
from segnode.store.snapshot import held_objects
from segnode.testing.phantom import BONE
from segnode.testing.senders import Ledger, Series, data_set_digest
from segnode.testing.servers import Server

_ALIKE: Final = 0.9
_LEASE_LENGTH: Final = 12
_CRLF: Final = b"\r\n"


@dataclass(frozen=True)
class Findings:
    """Counts for a person to read, and what is wrong."""

    counts: Mapping[str, int]
    problems: Sequence[str]


def examine(node: Server, data: Path, archive: Server, ledger: Ledger, jobs: Sequence[Job], quiet: float) -> Findings:
    """Compare what a node, its data folder and its archive hold with what was acknowledged."""
    counts: Counter[str] = Counter()
    problems = [
        *_images(node, ledger),
        *_segmentations(archive, ledger, quiet, counts),
        *_jobs(jobs, counts),
        *_files(data, counts),
        *_log(node.log, counts),
    ]
    return Findings(counts, problems)


def _images(node: Server, ledger: Ledger) -> Iterator[str]:
    """Every acknowledged image is held once, with its bytes; nothing else of its series is."""
    client = DICOMwebClient(node.dicomweb)
    for series in ledger.series:
        study, uid = series.study_instance_uid, series.series_instance_uid
        listed = Counter(str(item["00080018"]["Value"][0]) for item in client.search_for_instances(study, uid))
        acknowledged = {i.sop_instance_uid: i.digest for i in series.images if i.sop_instance_uid in ledger.acknowledged}
        if len(acknowledged) < len(series.images):
            yield f"series {uid}: {len(series.images) - len(acknowledged)} image(s) could not be sent"
        for sop_instance_uid in acknowledged.keys() - listed.keys():
            yield f"image {sop_instance_uid} was acknowledged and is not held"
        for sop_instance_uid, times in listed.items():
            if times > 1:
                yield f"image {sop_instance_uid} is held {times} times"
        held = {uid_of(part10): data_set_digest(part10) for part10 in _retrieved(node, study, uid)}
        for sop_instance_uid, digest in acknowledged.items():
            if sop_instance_uid in held and held[sop_instance_uid] != digest:
                yield f"image {sop_instance_uid} is held with other bytes"
        if held.keys() != listed.keys():
            yield f"series {uid}: {len(held)} images are retrieved and {len(listed)} are listed"


def _retrieved(node: Server, study: str, series: str) -> Iterator[bytes]:
    """The instances of a series as they are held."""
    accept = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
    response = httpx.get(f"{node.dicomweb}/studies/{study}/series/{series}", headers=accept, timeout=60)
    if not response.is_success:
        return
    boundary = response.headers["Content-Type"].partition("boundary=")[2].split(";")[0].strip('"').encode()
    for part in response.content.split(b"--" + boundary)[1:-1]:
        yield part.partition(_CRLF * 2)[2].removesuffix(_CRLF)


def uid_of(part10: bytes) -> str:
    """The SOP instance UID of a Part 10 file."""
    return str(dcmread(BytesIO(part10), specific_tags=["SOPInstanceUID"]).SOPInstanceUID)


def _segmentations(archive: Server, ledger: Ledger, quiet: float, counts: Counter[str]) -> Iterator[str]:
    """Every series has exactly one SEG in the archive, of all its images; a second is right only when images came late."""
    of_series: dict[str, list[Dataset]] = {}
    with httpx.Client(base_url=f"http://127.0.0.1:{archive.http_port}", timeout=60) as orthanc:
        for key in orthanc.get("/instances").json():
            seg: Dataset = dcmread(BytesIO(orthanc.get(f"/instances/{key}/file").content))
            of_series.setdefault(str(seg.ReferencedSeriesSequence[0].SeriesInstanceUID), []).append(seg)
    counts["SEGs in the archive"] = sum(map(len, of_series.values()))
    for series in ledger.series:
        segs = of_series.pop(series.series_instance_uid, [])
        whole = [seg for seg in segs if _referenced(seg) == {image.sop_instance_uid for image in series.images}]
        late = series.longest_gap_s >= quiet
        counts["series with an image that may have come too late"] += late
        if len(whole) != 1 or (len(segs) > 1 and not late):
            yield f"series {series.series_instance_uid}: {len(segs)} SEG(s), {len(whole)} of all images"
        for seg in whole:
            if problem := _implausible(seg, series):
                yield f"series {series.series_instance_uid}: {problem}"
    for uid, segs in of_series.items():
        yield f"{len(segs)} SEG(s) of series {uid}, which nobody has sent"


def _referenced(seg: Dataset) -> set[str]:
    items = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    return {str(item.ReferencedSOPInstanceUID) for item in items}


def _implausible(seg: Dataset, series: Series) -> str:
    """What is wrong with the labels of a SEG; nothing where they are those of the phantom, as far as a threshold can tell."""
    truth = series.phantom.labelmap
    order = np.argsort(
        [float(item.PlanePositionSequence[0].ImagePositionPatient[2]) for item in seg.PerFrameFunctionalGroupsSequence]
    )
    labels: Any = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)[order]
    if labels.shape != truth.shape:
        return f"the labels have shape {labels.shape}, the images {truth.shape}"
    if labels.max() > BONE or (alike := np.mean(labels == truth)) < _ALIKE:
        return f"only {alike:.0%} of the labels are those of the phantom"
    return ""


def _jobs(jobs: Sequence[Job], counts: Counter[str]) -> Iterator[str]:
    """Every job has come to a good end."""
    for job in jobs:
        counts[f"jobs {job.state}"] += 1
        if not job.has_ended:
            yield f"job {job.id} is stuck: {job.state}, {[d.last_answer for d in job.deliveries]}"
        if job.state == "failed":
            yield f"job {job.id} has failed: {job.error}"


def _files(data: Path, counts: Counter[str]) -> Iterator[str]:
    """Every row has its file; a file without a row is one that a killed process left."""
    objects = data / "objects"
    held = {held.object_key: held for held in held_objects(data / "index.sqlite")}
    for key, row in held.items():
        path = object_path(objects, key)
        if not path.exists() or path.stat().st_size != row.size:
            yield f"object {key} of {row.sop_instance_uid} has no file of {row.size} bytes"
    counts["objects held"] = len(held)
    leases = Leases(open_database(data / "index.sqlite"))
    living = leases.alive(time.time())
    for path in (objects / "incoming").glob("*/*"):
        counts["files half received"] += 1
        if path.parent.name not in {lease.owner for lease in living}:
            yield f"{path.parent.name} is gone, and has left {path.name} in incoming"
    for path in objects.glob("??/??/*"):
        if path.name not in held:
            counts["files without a row"] += 1
            if path.name[-_LEASE_LENGTH:] in lease_ids(living):
                yield f"object {path.name} has no row, and the process that wrote it lives"


def _log(log: Path, counts: Counter[str]) -> Iterator[str]:
    """What the node has said is wrong; a role that was not killed has not died."""
    lines = [json.loads(line) for line in log.read_text(errors="replace").splitlines() if line.startswith("{")]
    for event in lines:
        if event["level"] in ("error", "critical") or "lost" in event["event"]:
            counts[f"logged: {event['event']}"] += 1
        if event["event"] == "a role has died" and event["exit_code"] not in (-SIGKILL, NO_ROOM):
            yield f"{event['died']} has died by itself (exit code {event['exit_code']})"
