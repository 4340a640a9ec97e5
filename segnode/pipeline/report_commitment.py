"""Storage commitment for peers: what this node stands by, and telling those who asked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from segnode.dicom.status import CLASS_INSTANCE_CONFLICT, DUPLICATE_TRANSACTION, NO_SUCH_INSTANCE
from segnode.errors import DeliveryDeferred, DeliveryFailed
from segnode.pipeline.back_off import wait_after
from segnode.pipeline.ports import Committer
from segnode.store.commitments import Commitments, Reference, Report, Request
from segnode.store.index import Index
from segnode.store.objects import ObjectStore

_log = structlog.get_logger()

_GIVEN_UP_AFTER_S: Final = 86400.0


def judge(request: Request, index: Index, objects: ObjectStore) -> Report:
    """What this node stands by of a request: its row is committed and its file is there."""
    committed: list[Reference] = []
    failed: dict[Reference, int] = {}
    for reference in request.referenced:
        held = index.find(reference.sop_instance_uid)
        if request.is_duplicate:
            failed[reference] = DUPLICATE_TRANSACTION
        elif held is None or not objects.path(held.object_key).is_file():
            failed[reference] = NO_SUCH_INSTANCE
        elif held.sop_class_uid != reference.sop_class_uid:
            failed[reference] = CLASS_INSTANCE_CONFLICT
        else:
            committed.append(reference)
    return Report(request.transaction_uid, committed, failed)


@dataclass(frozen=True)
class Reporter:
    """Sends the reports that could not be sent where they were asked for; `committers` are the known peers by AE title."""

    commitments: Commitments
    index: Index
    objects: ObjectStore
    committers: Mapping[str, Committer]
    clock: Callable[[], float]

    def report_all(self) -> None:
        """Send every report whose time has come: again with back-off, for a day.

        Of a peer that cannot be reached the others wait as well, so that nobody else waits for it.
        """
        silent_until: dict[str, float] = {}
        for request in self.commitments.unreported(self.clock()):
            if request.peer in silent_until:
                self._put_off(request, silent_until[request.peer], request.attempts)
                continue
            try:
                self._report(request)
            except DeliveryFailed as reason:
                _log.warning("a report of storage commitment cannot be sent", peer=request.peer, reason=str(reason))
                until = self.clock() + wait_after(request.attempts)
                self._put_off(request, until, request.attempts + 1)
                if isinstance(reason, DeliveryDeferred):
                    silent_until[request.peer] = until
            else:
                self.commitments.settle_request(request.id)

    def _report(self, request: Request) -> None:
        peer = self.committers.get(request.peer)
        if peer is None:
            raise DeliveryDeferred("no destination has its AE title: add it to [[destinations]]")
        peer.report(judge(request, self.index, self.objects))

    def _put_off(self, request: Request, until: float, attempts: int) -> None:
        if self.clock() - request.requested_at > _GIVEN_UP_AFTER_S:
            self.commitments.settle_request(request.id)
        else:
            self.commitments.defer_report(request.id, until, attempts)
