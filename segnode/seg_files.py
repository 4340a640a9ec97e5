"""SEG files: those in folders, and new ones, which are there whole or not at all.

A new file is written beside, synchronised, and only then given its name.
"""

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from segnode.dicom.header import read_file_meta, read_header
from segnode.dicom.uids import SEGMENTATION_CLASSES
from segnode.errors import CannotWrite, NotASegmentation, Refusal
from segnode.store.filesystem import synchronise


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
    """Whether a file is a SEG, or was one before it was damaged; what cannot be opened may be one."""
    try:
        with path.open("rb") as file:
            return _class_of(file) in SEGMENTATION_CLASSES
    except Refusal:
        return False
    except OSError:
        return True


def _class_of(file: BinaryIO) -> str:
    """The SOP class of a Part 10 file; of one whose data set is broken, that which is before it. Raises Refusal."""
    try:
        return read_header(file).sop_class_uid
    except Refusal:
        file.seek(0)
        return read_file_meta(file).sop_class_uid


@contextmanager
def new_file(path: Path, suffix: str = "", *, overwrite: bool) -> Iterator[Path]:
    """A path to write to, which ends in `suffix` and becomes `path` when the block ends without an error.

    Raises CannotWrite, also when there is a file of that name that is not to be overwritten.
    """
    require_free(path, overwrite=overwrite)
    beside = path.parent / f".{path.name}.{secrets.token_hex(4)}.part{suffix}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        _name(beside, path, overwrite=overwrite)
        synchronise(path.parent)
    except OSError as error:
        raise CannotWrite(f"{path} cannot be written: {error.strerror or error}; nothing was changed") from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def require_free(path: Path, *, overwrite: bool) -> None:
    """Raise CannotWrite where a file of that name is not to be overwritten."""
    if path.exists() and (not overwrite or path.is_dir()):
        raise CannotWrite(f"{path} is there already: take another name, or --force to overwrite a file")


def _name(beside: Path, path: Path, *, overwrite: bool) -> None:
    if overwrite:
        beside.replace(path)
        return
    try:
        # Unlike a rename, a link does not take the name of a file that came in the meantime.
        path.hardlink_to(beside)
    except FileExistsError as error:
        raise CannotWrite(f"{path} was written by another program in the meantime") from error
    except OSError:  # a file system without hard links
        require_free(path, overwrite=False)
        beside.rename(path)
