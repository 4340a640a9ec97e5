"""The file of an object that comes in by C-STORE."""

from pathlib import Path
from typing import Final

from segnode.dicom.digest import Digest
from segnode.errors import OutOfResources
from segnode.store.objects import ObjectStore, Spool

# Of a file, to the end of the length of its file meta information (PS3.10 7.1).
_HEAD: Final = 144


class Incoming:
    """A file that an object is written to, also by pynetdicom; what the disk does not take is said at its end."""

    def __init__(self, objects: ObjectStore) -> None:
        self.file = self  # of which pynetdicom flushes the inner one
        self.name = ""
        self.digest = ""
        self._head = b""
        self._digesting: Digest | None = None
        self._problem: OutOfResources | None = None
        self._spool: Spool | None = None
        try:
            self._spool = objects.spool()
            self.name = str(self._spool.path)
        except OutOfResources as problem:
            self._problem = problem

    def write(self, block: bytes | memoryview) -> int:
        """Append bytes, unless some before them were not taken."""
        if len(self._head) < _HEAD:
            self._head += bytes(block[: _HEAD - len(self._head)])
        if self._spool is not None and self._problem is None:
            try:
                self._spool.write(block)
            except OutOfResources as problem:
                self._problem = problem
                self.close()  # what was taken of it is room for others
        return len(block)

    @property
    def data_set_offset(self) -> int:
        """Where its data set begins: what stands before was written here."""
        return _HEAD + int.from_bytes(self._head[-4:], "little")

    def write_data_set(self, fragment: memoryview) -> None:
        """Append bytes of the data set; of one that is written so the digest is known at its end."""
        if self._digesting is None:
            self._digesting = Digest()
        self._digesting.update(fragment)
        self.write(fragment)

    def flush(self) -> None:
        """Nothing waits for this: the file is read when it is complete."""

    def complete(self) -> Path:
        """Complete the file, and say where it is. Raises OutOfResources when the disk has not taken all of it."""
        if self._spool is not None and self._problem is None:
            self._spool.complete()
        if self._problem is not None:
            raise self._problem
        if self._digesting is not None:
            self.digest = self._digesting.text()
        return Path(self.name)

    def close(self) -> None:
        """Delete the file, unless it was kept."""
        if self._spool is not None:
            self._spool.discard()
