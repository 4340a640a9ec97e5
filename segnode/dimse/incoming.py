"""The file of an object that comes in by C-STORE."""

from segnode.errors import OutOfResources
from segnode.store.objects import ObjectStore, Spool


class Incoming:
    """A file that an object is written to, also by pynetdicom; what the disk does not take is said at its end."""

    def __init__(self, objects: ObjectStore) -> None:
        self.file = self  # of which pynetdicom flushes the inner one
        self.name = ""
        self._problem: OutOfResources | None = None
        self._spool: Spool | None = None
        try:
            self._spool = objects.spool()
            self.name = str(self._spool.path)
        except OutOfResources as problem:
            self._problem = problem

    def write(self, block: bytes | memoryview) -> int:
        """Append bytes, unless some before them were not taken."""
        if self._spool is not None and self._problem is None:
            try:
                self._spool.write(block)
            except OutOfResources as problem:
                self._problem = problem
                self.close()  # what was taken of it is room for others
        return len(block)

    def flush(self) -> None:
        """Nothing waits for this: the file is read when it is complete."""

    def complete(self) -> Spool:
        """Complete the file. Raises OutOfResources when the disk has not taken all of it."""
        if self._spool is None or self._problem is not None:
            raise self._problem or OutOfResources("an object has no file")
        self._spool.complete()
        return self._spool

    def close(self) -> None:
        """Delete the file, unless it was kept."""
        if self._spool is not None:
            self._spool.discard()
