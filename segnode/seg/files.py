"""SEG files in folders."""

from collections.abc import Iterable
from pathlib import Path

from segnode.dicom.header import read_header
from segnode.errors import NotASegmentation, Refusal
from segnode.seg.check import SEGMENTATION_CLASSES


def segmentation_files(paths: Iterable[Path]) -> list[Path]:
    """The files as they are given, and of each folder those that are SEGs. Raises NotASegmentation for one without."""
    found: list[Path] = []
    for path in paths:
        if path.is_file():
            found.append(path)
            continue
        inside = [file for file in sorted(path.rglob("*")) if file.is_file() and _is_segmentation(file)]
        if not inside:
            raise NotASegmentation(f"there is no SEG in {path}")
        found.extend(inside)
    return found


def _is_segmentation(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return read_header(file).sop_class_uid in SEGMENTATION_CLASSES
    except (OSError, Refusal):
        return False
