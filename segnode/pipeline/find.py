"""Finding: peers are asked how much of a series they have, beside the sweep; what they answer is a row."""

import threading
from collections.abc import Callable, Mapping

import structlog

from segnode.errors import FindFailed, OutOfResources
from segnode.pipeline.ports import Catalogue
from segnode.store.index import Answer, Index, QuietSeries

_log = structlog.get_logger()


class Finder:
    """Asks peers: each in a thread of its own and one thing at a time, so that one that hangs delays nobody."""

    def __init__(self, peers: Mapping[str, Catalogue], index: Index, clock: Callable[[], float]) -> None:
        self._peers = peers
        self._index = index
        self._clock = clock
        self._busy: set[str] = set()

    def ask(self, peer: str, series: QuietSeries) -> None:
        """Have a peer asked what it has of a series, unless it is being asked something; returns at once."""
        if peer not in self._busy:
            self._busy.add(peer)
            threading.Thread(target=self._ask, args=(peer, series), name=f"asking {peer}", daemon=True).start()

    def _ask(self, peer: str, series: QuietSeries) -> None:
        try:
            answer = Answer(asked_at=self._clock(), instances=self._count(peer, series))
            self._index.set_answer(series.series_instance_uid, peer, answer)
        except OutOfResources as error:
            _log.error("an answer is not kept", peer=peer, reason=str(error))
        finally:
            self._busy.discard(peer)

    def _count(self, peer: str, series: QuietSeries) -> int:
        uid = series.series_instance_uid
        try:
            instances = self._peers[peer].count_instances(series.study_instance_uid, uid)
        except FindFailed as failure:
            _log.warning("a peer does not say what it has", peer=peer, series_instance_uid=uid, reason=str(failure))
            return 0
        except Exception:  # noqa: BLE001  the border of a thread: the series waits until it is quiet
            _log.exception("asking broke", peer=peer, series_instance_uid=uid)
            return 0
        _log.info("a peer says what it has", peer=peer, series_instance_uid=uid, instances=instances)
        return instances
