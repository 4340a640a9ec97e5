"""Objects as the PDUs that they leave in: data sets are read from their files straight into these."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Final, Protocol

from segnode.dicom.header import FileMeta, read_file_meta
from segnode.dimse import messages
from segnode.errors import DeliveryRefused, FormRefused, Refusal

# The peer takes one while the next is read. Most objects are one: who sends less at once is woken more often.
_BLOCK: Final = 1 << 20
_MOST_AT_ONCE: Final = 1024  # IOV_MAX of Linux


class DataSet(Protocol):
    """A data set that is on its way."""

    size: int

    def fill(self, views: Sequence[memoryview], at: int) -> None:
        """Fill these with what lies from `at` on. Raises DeliveryRefused where that cannot be read."""
        ...


class _InFile:
    """The data set of an open file."""

    def __init__(self, descriptor: int, start: int) -> None:
        self.size = os.fstat(descriptor).st_size - start
        self._descriptor = descriptor
        self._start = start

    def fill(self, views: Sequence[memoryview], at: int) -> None:
        try:
            read = os.preadv(self._descriptor, views, self._start + at)
        except OSError as error:
            raise DeliveryRefused(f"the file cannot be read: {error.strerror}") from error
        if read != sum(map(len, views)):
            raise DeliveryRefused("the file was changed while it was sent: send it again when it is whole")


class _InMemory:
    """The data set of a Part 10 file in memory."""

    def __init__(self, part10: bytes, start: int) -> None:
        self._data = memoryview(part10)[start:]
        self.size = len(self._data)

    def fill(self, views: Sequence[memoryview], at: int) -> None:
        for view in views:
            view[:] = self._data[at : at + len(view)]
            at += len(view)


@contextmanager
def opened(part10: Path | bytes) -> Iterator[tuple[FileMeta, DataSet]]:
    """A Part 10 file that is to be sent. Raises FormRefused where it is none."""
    if isinstance(part10, bytes):
        meta = _meta(BytesIO(part10))
        yield meta, _InMemory(part10, meta.dataset_offset)
        return
    try:
        file = part10.open("rb")
    except OSError as error:
        raise FormRefused(f"cannot be read: {error.strerror}") from error
    with file:
        meta = _meta(file)
        yield meta, _InFile(file.fileno(), meta.dataset_offset)


def _meta(file: Any) -> FileMeta:
    try:
        return read_file_meta(file)
    except Refusal as refusal:
        raise FormRefused(f"cannot be sent as it is: {refusal}") from refusal


class Packer:
    """Packs the messages of one association, one after the other, in memory that is used again."""

    def __init__(self, fragment: int) -> None:
        self._fragment = fragment
        self._buffer = bytearray()

    def blocks(self, context_id: int, command: bytes, data_set: DataSet) -> Iterator[memoryview]:
        """A message in whole PDUs, a block of them at a time. Raises what the data set does."""
        request = messages.pdus(context_id, command, self._fragment, is_command=True)
        pdu = self._fragment + messages.HEADERS_LENGTH
        at_once = min(max(_BLOCK // pdu, 1), _MOST_AT_ONCE)
        if len(self._buffer) < len(request) + at_once * pdu:
            self._buffer = bytearray(len(request) + at_once * pdu)
        buffer = memoryview(self._buffer)
        buffer[: len(request)] = request
        end, sent = len(request), 0
        while True:
            views: list[memoryview] = []
            begun = sent
            while len(views) < at_once:
                length = min(self._fragment, data_set.size - sent)
                last = sent + length == data_set.size
                start = end + messages.HEADERS_LENGTH
                buffer[end:start] = messages.headers(context_id, length, is_command=False, is_last=last)
                end = start + length
                views.append(buffer[start:end])
                sent += length
                if last:
                    break
            data_set.fill(views, begun)
            yield buffer[:end]
            if last:
                return
            end = 0
