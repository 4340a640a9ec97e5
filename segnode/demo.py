"""`segnode demo`: the whole path with real processes, a real archive where there is one, and a comparison at the end."""

import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import numpy as np
import numpy.typing as npt
from pydicom import dcmread

from segnode.config import Config, ModelConfig
from segnode.contact_sheet import draw_contact_sheet
from segnode.dicom.header import read_header
from segnode.dicom.slices import Slices, order_slices, read_volume
from segnode.dicom.volume import Volume
from segnode.errors import Refusal, SegnodeError
from segnode.models.process import ModelProcess
from segnode.node import open_jobs
from segnode.pipeline.infer import run_model
from segnode.programs import with_versions
from segnode.store.jobs import Job
from segnode.testing.phantom import Phantom, write_ct
from segnode.testing.servers import Server, ServerFailed, launch_orthanc, launch_segnode, node_config, orthanc_program

_QUIET_S: Final = 1.0
_POLL_S: Final = 0.05
_BUILT_IN: Final = Config().model("threshold")
_NODE: Final = """
[[models]]
{keys}

[[destinations]]
name = "archive"
to = "{archive}"
seg = ["labelmap:jpeg-ls"]

[[rules]]
when = {{}}
model = {name}
send_to = ["archive"]
quiet = {quiet}
"""
_ARCHIVE: Final = "rules = []"
_STAGE_OF: Final = {
    "waiting": "start the job",
    "assembling": "assemble the volume",
    "inferring": "infer",
    "encoding": "encode as LABELMAP, JPEG-LS",
    "delivering": "deliver by STOW-RS",
}

Labels = npt.NDArray[np.integer[Any]]


class DemoFailed(SegnodeError):
    """The demonstration did not hold; the message says where."""


@dataclass(frozen=True, eq=False)
class Series:
    """What is sent."""

    files: Sequence[Path]
    slices: Slices
    volume: Volume


@dataclass(eq=False)
class Table:
    """What was done, how long it took and how many bytes there were."""

    rows: list[tuple[str, float | None, int | None]] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Say that a stage begins, and time it."""
        click.echo(f"  {name} …", err=True)
        start = time.perf_counter()
        yield
        self.rows.append((name, time.perf_counter() - start, None))

    def __str__(self) -> str:
        lines = [f"{'stage':<44}{'seconds':>9}{'bytes':>15}"]
        for name, seconds, size in self.rows:
            took = "" if seconds is None else f"{seconds:.2f}"
            lines.append(f"{name:<44}{took:>9}{'' if size is None else f'{size:,}':>15}")
        return "\n".join(lines)


def run_demo(folder: Path | None, config: Config, out: Path) -> int:
    """Run the demonstration with the model of the configuration's first rule and print what came of it; the exit code."""
    start = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    picture = out / "contact-sheet.png"
    table = Table()
    try:
        with tempfile.TemporaryDirectory(prefix="segnode-demo-") as scratch:
            outcome = _demonstrate(folder, config, Path(scratch), picture, table)
    except (SegnodeError, ServerFailed) as error:
        click.echo(f"segnode: the demonstration failed: {error}", err=True)
        return 1
    click.echo(f"\n{table}\n\n{outcome}\nContact sheet: {picture}")
    click.echo(f"Whole demonstration: {time.perf_counter() - start:.1f} s")
    return 0


def _demonstrate(folder: Path | None, config: Config, scratch: Path, picture: Path, table: Table) -> str:
    """Go the whole path; what the comparison found. Raises DemoFailed when it does not hold."""
    config = with_versions(config)
    model = next((config.model(rule.model) for rule in config.rules if rule.model), _BUILT_IN)
    with ExitStack() as servers:
        archive = servers.enter_context(_archive(scratch / "archive"))
        node = servers.enter_context(launch_segnode(scratch / "node", _tables(model, archive)))
        with table.stage("make a synthetic CT with known truth" if folder is None else "read the series"):
            phantom = write_ct(scratch / "ct") if folder is None else None
            series = _read_series(folder or scratch / "ct")
        expected, expected_from = _expect(series, model, phantom, table, scratch / "model")
        with table.stage(f"wait for the node and {archive.ae_title} to serve"):
            archive.await_ready()
            node.await_ready()
        with table.stage(f"send {len(series.files)} images by C-STORE"):
            _send(series.files, node)
        job = _await_end(node, table)
        with table.stage("fetch it from the archive by WADO-RS"):
            part10 = _fetch(archive, job.sop_instance_uid)
        for server in (node, archive):  # they stop while we compare
            server.process.terminate()
        with table.stage("read it with highdicom and compare"):
            returned = _read_on_grid(part10, series)
            differing = int(np.count_nonzero(returned != expected))
        with table.stage("write the same as BINARY with highdicom"):
            binary_size = _binary_size(part10, series, returned)
    draw_contact_sheet(picture, series.volume, returned, dcmread(BytesIO(part10), stop_before_pixels=True))
    table.rows += [
        ("source images", None, sum(file.stat().st_size for file in series.files)),
        ("BINARY equivalent", None, binary_size),
        ("LABELMAP as the archive returned it", None, len(part10)),
    ]
    if differing:
        raise DemoFailed(f"{differing:,} voxels differ from {expected_from}: see {picture}")
    return f"{archive.ae_title} returned what was expected: all {returned.size:,} voxels equal {expected_from}."


def _archive(folder: Path) -> AbstractContextManager[Server]:
    if orthanc_program():
        return launch_orthanc(folder)
    return launch_segnode(folder, _ARCHIVE, ae_title="ARCHIVE")


def _tables(model: ModelConfig, archive: Server) -> str:
    """TOML of that model, the archive, and a rule that takes any series."""
    keys = [f"{key} = {_toml(value)}" for key, value in msgspec.to_builtins(model).items() if value not in (None, {}, "")]
    return _NODE.format(keys="\n".join(keys), name=_toml(model.name), archive=archive.dicomweb, quiet=_QUIET_S)


def _toml(value: Any) -> str:
    """A value in TOML: JSON's texts, numbers and lists are TOML's."""
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_toml(each)}' for key, each in value.items() if each is not None)} }}"
    return json.dumps(value)


def _read_series(folder: Path) -> Series:
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and _is_image(file)]
    images = [dcmread(file) for file in files]
    if len({image.SeriesInstanceUID for image in images}) != 1:
        raise DemoFailed(f"{folder} must hold the images of one series, with their UIDs; {len(images)} images were found")
    slices = order_slices(images)
    return Series(files, slices, read_volume(slices, slices.images))


def _expect(series: Series, model: ModelConfig, phantom: Phantom | None, table: Table, scratch: Path) -> tuple[Labels, str]:
    """The labels that must come back, on the grid of the series, and where they are known from."""
    if phantom is not None and model.run == _BUILT_IN.run:
        return phantom.labelmap, "the phantom's truth"
    with table.stage("run the model here"):
        process = ModelProcess(model, scratch)
        result = run_model(process, series.volume, model.name)
        process.close()
    if result.affine is not None or len(result.layers) > 1:
        raise DemoFailed("the demo compares labels on the images, one a voxel: this model returned others, which is no fault")
    return result.layers[0], "what the model produced"


def _is_image(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return "Rows" in read_header(opened).attributes
    except Refusal as refusal:
        click.echo(f"  left out: {file}: {refusal}", err=True)
        return False


def _send(files: Sequence[Path], node: Server) -> None:
    command = [sys.executable, "-m", "segnode", "send", "--to", node.dimse, *map(str, files)]
    if subprocess.run(command, check=False).returncode:  # noqa: S603  our own program
        raise DemoFailed("the images could not be sent")


def _await_end(node: Server, table: Table) -> Job:
    """Follow the job to its end, saying what it does. Raises DemoFailed with its reason when it fails."""
    jobs = open_jobs(node_config(node))
    _load_readers()
    started = time.time()
    shown = 0
    while True:
        job = next(iter(jobs.all()), None)
        entered = job.transitions if job else ()
        for state, _ in entered[shown:]:
            click.echo(f"  {_STAGE_OF.get(state, state)} …", err=True)
        shown = len(entered)
        if job and job.state in ("failed", "cancelled", "held"):
            raise DemoFailed(f"the job is {job.state}: {job.error or job.note}")
        if job and job.state == "delivered":
            break
        if node.process.poll() is not None:
            raise DemoFailed(f"the node has ended: {node.log.read_text()[-2000:]}")
        time.sleep(_POLL_S)
    table.rows.append((f"wait until the series is quiet ({_QUIET_S:g} s)", entered[0][1] - started, None))
    for (state, since), (_, until) in pairwise(entered):
        table.rows.append((_STAGE_OF[state], until - since, None))
    return job


def _load_readers() -> None:
    """Load what is slow to load while the node is at work."""
    import dicomweb_client.api  # noqa: F401, PLC0415
    import highdicom  # noqa: F401, PLC0415


def _fetch(archive: Server, sop_instance_uid: str) -> bytes:
    from dicomweb_client.api import DICOMwebClient  # noqa: PLC0415  not needed before, and slow to load

    client = DICOMwebClient(archive.dicomweb)
    (found,) = client.search_for_instances(search_filters={"SOPInstanceUID": sop_instance_uid})
    study, series = (found[tag]["Value"][0] for tag in ("0020000D", "0020000E"))
    dataset = client.retrieve_instance(study, series, sop_instance_uid, media_types=(("application/dicom", "*"),))
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _read_on_grid(part10: bytes, series: Series) -> Labels:
    """The labels of a SEG by highdicom's reader, put on the series' grid in patient space by highdicom's geometry."""
    import highdicom  # noqa: PLC0415  slow to load

    returned = highdicom.seg.segread(BytesIO(part10)).get_volume(combine_segments=True)
    grid = highdicom.Volume(
        series.volume.array,
        affine=series.volume.affine,
        coordinate_system="PATIENT",
        frame_of_reference_uid=returned.frame_of_reference_uid,
    )
    labels: Labels = returned.match_geometry(grid).array
    return labels


def _binary_size(part10: bytes, series: Series, labels: Labels) -> int:
    """How large the same labels are as a BINARY SEG, written by highdicom."""
    import highdicom  # noqa: PLC0415  slow to load

    described = highdicom.seg.segread(BytesIO(part10))
    descriptions = [described.get_segment_description(number) for number in described.segment_numbers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        binary = highdicom.seg.Segmentation(
            list(series.slices.images),
            labels,
            "BINARY",
            descriptions,
            series_instance_uid=highdicom.UID(),
            series_number=1,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="segnode",
            manufacturer_model_name="segnode",
            software_versions="1",
            device_serial_number="1",
        )
    file = BytesIO()
    binary.save_as(file)
    return len(file.getvalue())
