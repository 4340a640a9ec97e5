"""One job of the SEG benchmark in a process of its own, by segnode or as highdicom's documentation does it.

    python -m segnode.testing.seg_jobs segnode|highdicom convert|write|binary|read CASE FILE [CODEC]

Prints the seconds of the job itself, without what it imports and without the headers of the CT.
"""

import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from segnode.testing.seg_case import Case


def main(by: str, job: str, folder: str, file: str, codec: str = "jpeg-ls") -> float:
    """Do a job; the seconds it took."""
    jobs: dict[tuple[str, str], Callable[[Case, Path, str], float]] = {
        ("segnode", "write"): _write,
        ("segnode", "binary"): _binary,
        ("segnode", "read"): _read,
        ("highdicom", "convert"): _highdicom_convert,
        ("highdicom", "write"): _highdicom_write,
        ("highdicom", "binary"): _highdicom_binary,
        ("highdicom", "read"): _highdicom_read,
    }
    return jobs[by, job](Case(Path(folder)), Path(file), codec)


def _write(case: Case, out: Path, codec: str) -> float:
    return _write_segmentation(case, out, "LABELMAP", codec)


def _binary(case: Case, out: Path, _: str) -> float:
    return _write_segmentation(case, out, "BINARY", "native")


def _write_segmentation(case: Case, out: Path, kind: Any, codec: Any) -> float:
    from segnode.seg.segmentation import DescribedSegment
    from segnode.seg.write import Identity, StoredAs, write_segmentation
    from segnode.seg.write.placement import on_images

    images, labelmap = case.images, case.labelmap
    segments = [DescribedSegment(**described) for described in _descriptions(int(labelmap.max()))]
    identity = Identity("1.2.3.1", "1.2.3.2", "Benchmark", datetime.now(UTC), "1", "1")
    start = time.perf_counter()
    stored_as = StoredAs(kind, codec, omit_empty_frames=kind == "BINARY")
    out.write_bytes(write_segmentation(labelmap, on_images(images), segments, stored_as, identity))
    return time.perf_counter() - start


def _read(_: Case, file: Path, __: str) -> float:
    from segnode.seg.arrays import volume
    from segnode.seg.read import open_segmentation

    start = time.perf_counter()
    volume(open_segmentation(file))
    return time.perf_counter() - start


def _descriptions(count: int) -> Sequence[dict[str, Any]]:
    from segnode.dicom.codes import Code

    return [
        {
            "number": number,
            "label": f"structure {number}",
            "category": Code("SCT", "123037004", "Anatomical Structure"),
            "type": Code("SCT", "10200004", "Liver"),
            "algorithm_type": "AUTOMATIC",
            "algorithm_name": "Benchmark",
            "algorithm_version": "1",
            "algorithm_family": Code("DCM", "123110", "Artificial Intelligence"),
            "tracking_id": f"t{number}",
            "tracking_uid": f"1.2.826.0.1.3680043.10.511.9.{number}",
        }
        for number in range(1, count + 1)
    ]


def _highdicom_convert(case: Case, out: Path, _: str) -> float:
    import highdicom
    from pydicom.uid import JPEGLSLossless

    images = case.images
    start = time.perf_counter()
    source = highdicom.seg.segread(case.binary)
    described = [source.get_segment_description(number) for number in source.segment_numbers]
    volume = source.get_volume(combine_segments=True)
    array = volume.array
    if volume.affine[2, 0] < 0:
        array = array[::-1]
    _highdicom(images, array, "LABELMAP", JPEGLSLossless, described).save_as(out)
    return time.perf_counter() - start


def _highdicom_write(case: Case, out: Path, codec: str) -> float:
    from segnode.seg.codecs import CODECS

    syntax = next(known.transfer_syntax_uid for name, known in CODECS.items() if name == codec)
    return _highdicom_segmentation(case, out, "LABELMAP", syntax)


def _highdicom_binary(case: Case, out: Path, _: str) -> float:
    from pydicom.uid import ExplicitVRLittleEndian

    return _highdicom_segmentation(case, out, "BINARY", ExplicitVRLittleEndian)


def _highdicom_segmentation(case: Case, out: Path, kind: str, syntax: str) -> float:
    import highdicom
    from pydicom.sr.codedict import codes

    images, labelmap = case.images, case.labelmap
    algorithm = highdicom.AlgorithmIdentificationSequence("Benchmark", codes.cid7162.ArtificialIntelligence, "1")
    described = [
        highdicom.seg.SegmentDescription(
            one["number"],
            one["label"],
            codes.SCT.AnatomicalStructure,
            codes.SCT.Liver,
            "AUTOMATIC",
            algorithm,
            tracking_uid=one["tracking_uid"],
            tracking_id=one["tracking_id"],
        )
        for one in _descriptions(int(labelmap.max()))
    ]
    start = time.perf_counter()
    _highdicom(images, labelmap, kind, syntax, described).save_as(out)
    return time.perf_counter() - start


def _highdicom(images: Any, array: Any, kind: str, syntax: str, described: Any) -> Any:
    import highdicom
    from pydicom.uid import generate_uid

    return highdicom.seg.Segmentation(
        images,
        array,
        kind,
        described,
        series_instance_uid=generate_uid(),
        series_number=2,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="segnode",
        manufacturer_model_name="benchmark",
        software_versions="1",
        device_serial_number="1",
        transfer_syntax_uid=syntax,
    )


def _highdicom_read(_: Case, file: Path, __: str) -> float:
    import highdicom

    start = time.perf_counter()
    highdicom.seg.segread(file).get_volume(combine_segments=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    print(f"{main(*sys.argv[1:]):.3f}")  # noqa: T201  what it is for
