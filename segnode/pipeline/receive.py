"""Receiving: the one room behind both doors. Success means that the bytes are synchronised and the row is committed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import structlog

from segnode.config import OnConflict
from segnode.dicom.digest import data_set_digest, is_earlier
from segnode.dicom.header import PREAMBLE, Contributor, Header, read_header
from segnode.dicom.uids import MANUFACTURER
from segnode.errors import Duplicate, Mismatch, OutOfResources, Refusal
from segnode.store.index import Arrival, Index, Instance, OpenAssociation, Origin, Sender
from segnode.store.measures import Meter
from segnode.store.objects import ObjectStore, Spool

_log = structlog.get_logger()


@dataclass(frozen=True)
class Receiver:
    """Takes complete Part 10 files of the object store's incoming folder.

    Below `low_watermark` bytes of free disk nothing more is received: what is left is for the work that goes on.
    `on_conflict` says what becomes of an object whose UID another one has that is held.
    """

    objects: ObjectStore
    index: Index
    meter: Meter
    ae_title: str
    low_watermark: int
    clock: Callable[[], float]
    on_conflict: OnConflict = "keep"

    def receive(
        self,
        spool: Spool,
        study: str | None = None,
        association: OpenAssociation | None = None,
        sender: Sender | None = None,
    ) -> Instance:
        """Keep the object in a complete file, or find that it is held already, which changes nothing.

        `study` is the study it must be of, where the sender said so. When this returns, the object is durable. Raises
        Refusal (NotDicom, BadIdentifier, Mismatch, Duplicate, OutOfResources); then nothing is kept.
        """
        return self.receive_examined(examine(spool), study, association, sender)

    def receive_examined(
        self,
        examined: "Examined",
        study: str | None = None,
        association: OpenAssociation | None = None,
        sender: Sender | None = None,
    ) -> Instance:
        """Keep an object that has been examined; as `receive`. The order is that in which objects come to be held."""
        (outcome,) = self.receive_all([examined], study, association, sender)
        if isinstance(outcome, Refusal):
            raise outcome
        return outcome

    def receive_all(
        self,
        examined: Sequence["Examined"],
        study: str | None = None,
        association: OpenAssociation | None = None,
        sender: Sender | None = None,
    ) -> list[Instance | Refusal]:
        """Keep objects that have been examined, in this order and at once; of each what is held, or why it is not kept.

        They share what takes long: one commit, and one synchronisation of each folder.
        """
        bringing = _Bringing(study, association, sender)
        outcomes = self._hold(examined, [self._origin(one.header) for one in examined], bringing)
        for one, outcome in zip(examined, outcomes, strict=True):
            if isinstance(outcome, Refusal):
                outcome.identity = (one.header.sop_class_uid, one.header.sop_instance_uid)
            else:
                self.meter.received(outcome.size)
        return outcomes

    def hold_made(self, spool: Spool) -> Instance:
        """Keep an object that the node has made, unless it is held; the one that is. Raises OutOfResources."""
        (outcome,) = replace(self, on_conflict="keep")._hold([examine(spool)], ["made"], _Bringing())
        if isinstance(outcome, Refusal):
            raise outcome
        return outcome

    def _origin(self, header: Header) -> Origin:
        """What the node has made starts no work, also when an archive sends it back and its row is gone."""
        return "made" if Contributor(MANUFACTURER, self.ae_title) in header.contributors else "received"

    def _hold(
        self, examined: Sequence["Examined"], origins: Sequence[Origin], bringing: "_Bringing"
    ) -> list[Instance | Refusal]:
        found = [self._look(one, origin, bringing) for one, origin in zip(examined, origins, strict=True)]
        new = [(one, origin) for one, origin, known in zip(examined, origins, found, strict=True) if known is None]
        kept: Iterator[Instance | Refusal] = iter(self._keep(new, bringing))
        outcomes = [next(kept) if known is None else known for known in found]
        return [self._judge(one, outcome) for one, outcome in zip(examined, outcomes, strict=True)]

    def _look(self, examined: "Examined", origin: Origin, bringing: "_Bringing") -> Instance | Refusal | None:
        """What is held already of an object, or why it is not to be kept; None where it is to be."""
        header = examined.header
        if bringing.study is not None and header.study_instance_uid != bringing.study:
            return Mismatch("StudyInstanceUID of the data set is not the study of the request", "StudyInstanceUID")
        held = self.index.find(header.sop_instance_uid)
        if held is not None and not (self._replaces(held) and examined.differs(held)):
            if bringing.association is not None:
                self.index.add_sending(bringing.association, held.series_instance_uid)
            return held
        if origin == "received" and self.objects.free_bytes() - examined.spool.size < self.low_watermark:
            return OutOfResources(
                "the disk is almost full (storage.low_watermark): nothing more is received until there is room"
            )
        return None

    def _replaces(self, held: Instance) -> bool:
        """What the node has made is not replaced: it is what was proven, and what is sent."""
        return self.on_conflict == "replace" and held.origin == "received"

    def _keep(self, new: Sequence[tuple["Examined", Origin]], bringing: "_Bringing") -> Sequence[Instance] | Sequence[Refusal]:
        """Make files objects, and commit their rows; where there is no room, none of them."""
        if not new:
            return []
        try:
            keys = self.objects.keep_all([one.spool for one, _ in new])
        except OutOfResources as full:
            return [OutOfResources(str(full)) for _ in new]
        held: Sequence[Instance] = ()
        now = self.clock()
        try:
            rows = [
                Arrival(one.header, key, one.spool.size, one.digest, origin, now, bringing.association, bringing.sender)
                for (one, origin), key in zip(new, keys, strict=True)
            ]
            held = self.index.add_all(rows, replace=self.on_conflict == "replace")
        except OutOfResources as full:
            return [OutOfResources(str(full)) for _ in new]
        finally:
            for key in set(keys) - {instance.object_key for instance in held}:
                self.objects.delete(key)
        for instance in held:
            _log.info("received", sop_instance_uid=instance.sop_instance_uid, series_instance_uid=instance.series_instance_uid)
        return held

    def _judge(self, examined: "Examined", outcome: Instance | Refusal) -> Instance | Refusal:
        """Refuse an object where another of its UID is held that is to stay."""
        if isinstance(outcome, Refusal) or not examined.differs(outcome):
            return outcome
        if self.on_conflict != "keep":
            return Duplicate("another object of that UID is held, and stays (storage.on_conflict)", "SOPInstanceUID")
        _log.warning("same UID, other bytes: the first is kept", sop_instance_uid=outcome.sop_instance_uid)
        return outcome


@dataclass(frozen=True)
class _Bringing:
    """What brings objects, and the study that they must be of, where that was said."""

    study: str | None = None
    association: OpenAssociation | None = None
    sender: Sender | None = None


@dataclass(frozen=True)
class Examined:
    """A complete Part 10 file, and what is to be known of it before it is kept."""

    spool: Spool
    header: Header
    digest: str

    def differs(self, held: Instance) -> bool:
        """Whether the object that is held of its UID is another one."""
        earlier = is_earlier(held.digest)
        digest = data_set_digest(self.spool.file, self.header, like=held.digest) if earlier else self.digest
        return held.differs(self.header.transfer_syntax_uid, digest)


def examine(spool: Spool) -> Examined:
    """Read what is to be known of a complete file. Raises NotDicom, BadIdentifier, Mismatch, OutOfResources.

    What its preamble holds is dropped: nothing there is DICOM's, and a program may take it for something else's.
    """
    spool.file.seek(0)
    header = read_header(spool.file)
    spool.file.seek(0)
    if any(spool.file.read(PREAMBLE)):
        spool.overwrite(bytes(PREAMBLE))
    is_as_it_says = spool.digest.offset == header.dataset_offset
    return Examined(spool, header, spool.digest.text() if is_as_it_says else data_set_digest(spool.file, header))
