"""How long a result takes: from the last image's acknowledgement to the SEG in an Orthanc, less `quiet` and the model's time.

The SEG is fetched from the archive and compared with the truth in the same run.
"""

import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import Final

import click
import highdicom
import httpx
import numpy as np
from dicomweb_client.api import DICOMwebClient
from pydicom import dcmread
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGLSLossless, RLELossless

from segnode.config import parse_dimse_address
from segnode.dimse.scu import send_files
from segnode.store.jobs import Job
from segnode.testing.phantom import Phantom, write_ct
from segnode.testing.servers import Server, await_jobs, node_config, orthanc, segnode, until

_GOAL_S: Final = 2.0
_QUIET_S: Final = 1.0
_TABLES: Final = """
[[destinations]]
name = "archive"
to = "{archive}"
[[rules]]
when = {{ Modality = "CT" }}
model = "threshold"
send_to = ["archive"]
quiet = {quiet}
"""
_SYNTAXES: Final = {"native": ExplicitVRLittleEndian, "JPEG-LS": JPEGLSLossless, "RLE": RLELossless}


@click.command()
@click.option("--slices", default=300, show_default=True, help="CT images of the series, 512 x 512.")
@click.option("--runs", default=3, show_default=True, help="How often each is done; the median counts.")
def latency(slices: int, runs: int) -> None:
    """From the last image's acknowledgement to the SEG in the archive."""
    with tempfile.TemporaryDirectory(prefix="segnode-bench-") as scratch:
        folder = Path(scratch)
        with orthanc(folder / "archive") as archive:
            tables = _TABLES.format(archive=archive.dicomweb, quiet=_QUIET_S)
            with segnode(folder / "node", tables, dimse_processes=2) as node:
                _measure(write_ct(folder / "warm", 20, 64, seed=99), node, archive)
                click.echo(
                    f"{slices} CT images of 512 x 512; seconds after the last acknowledgement, without `quiet` and the model"
                )
                click.echo(f"{'source':<10} {'to the archive':>14}  goal  assemble  encode  deliver")
                seed = 1
                for name, syntax in _SYNTAXES.items():
                    found = []
                    for _ in range(runs):
                        seed += 1
                        phantom = write_ct(folder / f"ct {seed}", slices, 512, seed=seed)
                        _compress(phantom, syntax)
                        found.append(_measure(phantom, node, archive))
                    _report(name, np.median(found, axis=0), is_goal=name == "native")


def _compress(phantom: Phantom, syntax: UID) -> None:
    if syntax != ExplicitVRLittleEndian:
        for file in phantom.folder.iterdir():
            image = dcmread(file)
            image.compress(syntax, generate_instance_uid=False)
            image.save_as(file)


def _measure(phantom: Phantom, node: Server, archive: Server) -> tuple[float, float, float, float]:
    """Seconds in all, and of assembling, encoding and delivering. Raises ClickException for a result that is not right."""
    config = node_config(node)
    before = len(await_jobs(config, 0))
    # One connection: a client that is made for each look takes a core of the two for itself, and what is measured waits.
    with httpx.Client(base_url=f"http://127.0.0.1:{archive.http_port}") as client:
        count = _instances(client)
        for _ in send_files(sorted(phantom.folder.iterdir()), parse_dimse_address(node.dimse, ""), "BENCH"):
            acknowledged = time.time()
        until(lambda: _instances(client) > count)
        arrived = time.time()
    job = await_jobs(config, before + 1)[-1]
    _require_equal(job, archive, phantom)
    at = dict(job.transitions)
    waited = _QUIET_S + at["encoding"] - at["inferring"]
    parts = at["inferring"] - at["assembling"], at["delivering"] - at["encoding"], at["delivered"] - at["delivering"]
    return arrived - acknowledged - waited, *parts


def _instances(archive: httpx.Client) -> int:
    return int(archive.get("/statistics").json()["CountInstances"])


def _require_equal(job: Job, archive: Server, phantom: Phantom) -> None:
    client = DICOMwebClient(archive.dicomweb)
    ((study, series),) = {
        (item["0020000D"]["Value"][0], item["0020000E"]["Value"][0])
        for item in client.search_for_instances(search_filters={"SOPInstanceUID": job.sop_instance_uid})
    }
    dataset = client.retrieve_instance(study, series, job.sop_instance_uid, media_types=(("application/dicom", "*"),))
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    file.seek(0)
    volume = highdicom.seg.segread(file).get_volume(combine_segments=True)
    array = volume.array if volume.affine[2, 0] > 0 else volume.array[::-1]
    if not np.array_equal(array, phantom.labelmap):
        raise click.ClickException("the labels in the archive are not those of the phantom")


def _report(name: str, parts: "np.typing.NDArray[np.float64]", *, is_goal: bool) -> None:
    total, *of = parts.tolist()
    goal = f"{_GOAL_S:.0f} s{'' if total <= _GOAL_S else ' !'}" if is_goal else "-"
    click.echo(f"{name:<10} {total:>14.2f}  {goal:<4}" + "".join(f"{part:>9.2f}" for part in of))
