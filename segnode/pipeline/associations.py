"""What brings objects: associations and STOW requests, whose series are not complete while they are open."""

import itertools
from contextlib import suppress
from typing import Final

from segnode.errors import OutOfResources
from segnode.store.index import Index, OpenAssociation
from segnode.store.leases import Lease


class Associations:
    """Numbers the associations and requests of a process, and commits that they have ended."""

    def __init__(self, index: Index, lease: Lease) -> None:
        self._index: Final = index
        self._lease: Final = lease
        self._numbers: Final = itertools.count(1)
        self._ended: Final[dict[OpenAssociation, bool]] = {}

    def begin(self) -> OpenAssociation:
        """A new one, which is open; it has a row from its first object on."""
        return OpenAssociation(self._lease.id, next(self._numbers))

    def end(self, association: OpenAssociation, *, well: bool) -> None:
        """It sends no more; `well` when it did not break off and all it brought was taken. Where there is no room, later."""
        self._ended[association] = well
        with suppress(OutOfResources):  # close_ended says it then
            self.close_ended()

    def close_ended(self) -> None:
        """Commit that those that have ended send no more, where that could not be said yet. Raises OutOfResources."""
        while self._ended:
            with suppress(KeyError):  # another thread was faster
                self._close(*self._ended.popitem())

    def _close(self, association: OpenAssociation, well: bool) -> None:  # noqa: FBT001  the value of an item
        try:
            self._index.close_association(association, well=well)
        except OutOfResources:
            self._ended.setdefault(association, well)
            raise
