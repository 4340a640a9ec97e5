"""Bytes that are sent in blocks, so that no more of them are in memory."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO, FileIO
from pathlib import Path
from typing import IO, Final
from uuid import uuid4

_BLOCK: Final = 1 << 20


@dataclass(frozen=True)
class Span:
    """So many bytes of a file from a place on; it is opened when the first of them are asked for."""

    path: Path
    begin: int
    size: int

    def __iter__(self) -> Iterator[bytes]:
        """These bytes in blocks."""
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.begin)
            while block := file.read(min(_BLOCK, self.begin + self.size - file.tell())):
                yield block


def cut(source: Iterable[bytes], begin: int, end: int) -> Iterable[bytes]:
    """Of the bytes of a source those from one place to another."""
    return Span(source.path, source.begin + begin, end - begin) if isinstance(source, Span) else _cut(source, begin, end)


def _cut(source: Iterable[bytes], begin: int, end: int) -> Iterator[bytes]:
    place = 0
    for block in source:
        yield block[max(begin - place, 0) : max(end - place, 0)]
        place += len(block)


def filled(sources: Iterable[Iterable[bytes]], room: bytearray) -> Iterator[int]:
    """Fill the same room over and over with the bytes of sources: how many it holds each time it is full, and at the end.

    Those of files are copied once. New memory for each block would cost more than the copy.
    """
    view, size = memoryview(room), 0
    for read_into in _readers(sources):
        while count := read_into(view[size:]):
            size += count
            if size == len(room):
                yield size
                size = 0
    if size:
        yield size


def _readers(sources: Iterable[Iterable[bytes]]) -> Iterator[Callable[[memoryview], int]]:
    """What reads the next bytes into a view, and says how many; 0 at its end."""
    for source in sources:
        if isinstance(source, Span):
            with source.path.open("rb", buffering=0) as file:
                file.seek(source.begin)
                yield partial(_read_until, source.begin + source.size, file)
        else:
            for block in source:
                yield BytesIO(block).readinto


def _read_until(end: int, file: FileIO, view: memoryview) -> int:
    return file.readinto(view[: end - file.tell()])


def of_file(file: IO[bytes]) -> Iterator[bytes]:
    """A file from where it stands to its end, which closes it."""
    with file:
        while block := file.read(_BLOCK):
            yield block


def of_written(folder: Path, write: Callable[[Path], None]) -> tuple[int, Iterator[bytes]]:
    """How many bytes are written to a new file in a folder, and these; it goes when nobody reads it any longer."""
    path = folder / uuid4().hex
    write(path)
    file = path.open("rb")
    path.unlink()
    return os.fstat(file.fileno()).st_size, of_file(file)
