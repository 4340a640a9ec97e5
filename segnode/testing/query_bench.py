"""C-FIND and C-GET beside Orthanc, in turn, with the same series and the same light client in one run."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Final

import click
from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
)

from segnode.config import parse_dimse_address
from segnode.dimse import messages
from segnode.dimse.scu import send_files
from segnode.testing.light_scu import light_association
from segnode.testing.servers import Server
from segnode.testing.turns import await_documents

LET_IN: Final = {"DicomAlwaysAllowFind": True, "DicomAlwaysAllowGet": True}
# What a viewer lists of instances.
_ASKED: Final = (
    *("SOPInstanceUID", "SOPClassUID", "InstanceNumber", "Rows", "Columns", "NumberOfFrames", "ContentDate"),
    *("PatientID", "PatientName", "Modality"),
)
_FIND_GOAL, _GET_GOAL = 2.0, 1.5

# Asks a server for a series of so many instances, and says the seconds that it took.
Work = Callable[[Server, Dataset, int], float]


def c_find_and_c_get(node: Server, archive: Server, folder: Path, runs: int) -> Iterator[str]:
    """The rows of a bench: a node and an Orthanc are asked for the series of a folder."""
    servers = (node, archive)
    files = sorted(folder.iterdir())
    image = dcmread(files[0], stop_before_pixels=True)
    for server in servers:
        list(send_files(files, parse_dimse_address(server.dimse, ""), "TEST"))
    await_documents(node)  # what it does meanwhile would be in the times of both
    for name, work, goal in (("C-FIND", find, _FIND_GOAL), ("C-GET", get, _GET_GOAL)):
        took = [[work(server, image, len(files)) for server in servers] for _ in range(runs)]
        yield _row(f"{name} of {len(files)}", took, goal)


def find(server: Server, image: Dataset, count: int) -> float:
    """List the instances of an image's series."""
    identifier = _identifier("IMAGE", image, *_ASKED)
    with light_association(parse_dimse_address(server.dimse, ""), StudyRootQueryRetrieveInformationModelFind) as scu:
        start = time.perf_counter()
        counted = scu.ask(messages.C_FIND_RQ, identifier)
        took = time.perf_counter() - start
    if counted.status or counted.pending != count:
        raise click.ClickException(f"C-FIND ends with status 0x{counted.status:04X} after {counted.pending} matches")
    return took


def get(server: Server, image: Dataset, count: int) -> float:
    """Have the instances of an image's series."""
    kinds = [(str(CTImageStorage), str(ExplicitVRLittleEndian))]
    identifier = _identifier("SERIES", image)
    with light_association(parse_dimse_address(server.dimse, ""), StudyRootQueryRetrieveInformationModelGet, kinds) as scu:
        start = time.perf_counter()
        counted = scu.ask(messages.C_GET_RQ, identifier)
        took = time.perf_counter() - start
    if counted.status or counted.objects != count:
        raise click.ClickException(f"C-GET ends with status 0x{counted.status:04X} after {counted.objects} objects")
    return took


def _identifier(level: str, image: Dataset, *asked: str) -> bytes:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    for keyword in asked:
        setattr(identifier, keyword, None)
    identifier.StudyInstanceUID, identifier.SeriesInstanceUID = image.StudyInstanceUID, image.SeriesInstanceUID
    return encode(identifier, is_implicit_vr=True, is_little_endian=True) or b""


def _row(name: str, took: Sequence[Sequence[float]], goal: float) -> str:
    ours, theirs = (median(each) * 1e3 for each in zip(*took, strict=True))
    ahead = theirs / ours
    under = "" if ahead >= goal else " !"
    return f"{name:<38} {f'{ours:.0f} / {theirs:.0f} ms':>12}   Orthanc {ahead:.2f} x >= {goal:g}{under}"
