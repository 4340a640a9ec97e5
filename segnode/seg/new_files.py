"""Files that are there whole or not at all: written beside, synchronised, and only then given their name."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from segnode.errors import CannotWrite


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
        _synchronise(path.parent)
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


def _synchronise(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
