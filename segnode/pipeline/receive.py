"""Receiving: the one room behind both doors. Success means that the bytes are synchronised and the row is committed."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from segnode.config import OnConflict
from segnode.dicom.digest import data_set_digest, is_earlier
from segnode.dicom.header import PREAMBLE, Contributor, Header, read_header
from segnode.dicom.uids import MANUFACTURER
from segnode.errors import Duplicate, Mismatch, OutOfResources, Refusal
from segnode.store.filesystem import room_for
from segnode.store.index import Arrival, Index, Instance, OpenAssociation, Origin, Sender
from segnode.store.measures import Meter
from segnode.store.objects import ObjectStore

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
        path: Path,
        study: str | None = None,
        association: OpenAssociation | None = None,
        sender: Sender | None = None,
        digest: str = "",
    ) -> Instance:
        """Keep the object in a file, or find that it is held already, which changes nothing.

        `study` is the study it must be of, where the sender said so; `digest` is that of its data set, where it is known.
        When this returns, the object is durable. Raises Refusal (NotDicom, BadIdentifier, Mismatch, Duplicate,
        OutOfResources); then nothing is kept.
        """
        return self.receive_examined(examine(path, digest), study, association, sender)

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

    def hold_made(self, path: Path) -> Instance:
        """Keep an object that the node has made, unless it is held; the one that is. Raises OutOfResources."""
        (outcome,) = replace(self, on_conflict="keep")._hold([examine(path)], ["made"], _Bringing())
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
        if origin == "received" and self.objects.free_bytes() - examined.size < self.low_watermark:
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
            keys = self.objects.keep_all([one.path for one, _ in new])
        except OutOfResources as full:
            return [OutOfResources(str(full)) for _ in new]
        held: Sequence[Instance] = ()
        try:
            rows = [
                Arrival(one.header, key, one.size, one.digest, origin, self.clock(), bringing.association, bringing.sender)
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
    """A complete Part 10 file of the incoming folder, and what is to be known of it before it is kept."""

    path: Path
    header: Header
    digest: str
    size: int

    def differs(self, held: Instance) -> bool:
        """Whether the object that is held of its UID is another one."""
        earlier = is_earlier(held.digest)
        digest = data_set_digest(self.path, self.header, like=held.digest) if earlier else self.digest
        return held.differs(self.header.transfer_syntax_uid, digest)


def examine(path: Path, digest: str = "") -> Examined:
    """Read what is to be known of a file; of several at once, if need be. Raises NotDicom, BadIdentifier, Mismatch.

    What its preamble holds is dropped: nothing there is DICOM's, and a program may take it for something else's.
    """
    with path.open("rb") as file:
        header = read_header(file)
        file.seek(0)
        preamble = file.read(PREAMBLE)
        size = file.seek(0, io.SEEK_END)
    if any(preamble):
        _blank(path)
    return Examined(path, header, digest or data_set_digest(path, header), size)


def _blank(path: Path) -> None:
    with room_for("an object"), path.open("r+b", buffering=0) as file:
        file.write(bytes(PREAMBLE))
