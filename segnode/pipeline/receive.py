"""Receiving: the one room behind both doors. Success means that the bytes are synchronised and the row is committed."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from segnode.config import OnConflict
from segnode.dicom.header import Contributor, Header, read_header
from segnode.dicom.uids import MANUFACTURER
from segnode.errors import Duplicate, Mismatch, OutOfResources, Refusal
from segnode.store.index import Index, Instance, OpenAssociation, Origin, Sender
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
    ) -> Instance:
        """Keep the object in a file, or find that it is held already, which changes nothing.

        `study` is the study it must be of, where the sender said so. When this returns, the object is durable. Raises
        Refusal (NotDicom, BadIdentifier, Mismatch, Duplicate, OutOfResources); then nothing is kept.
        """
        with path.open("rb") as file:
            header = read_header(file)
        try:
            if study is not None and header.study_instance_uid != study:
                raise Mismatch("StudyInstanceUID of the data set is not the study of the request", "StudyInstanceUID")
            instance = self._hold(path, header, self._origin(header), association, sender)
        except Refusal as refusal:
            refusal.identity = (header.sop_class_uid, header.sop_instance_uid)
            raise
        self.meter.received(instance.size)
        return instance

    def hold_made(self, path: Path) -> Instance:
        """Keep an object that the node has made, unless it is held; the one that is. Raises OutOfResources."""
        with path.open("rb") as file:
            header = read_header(file)
        return replace(self, on_conflict="keep")._hold(path, header, "made")

    def _origin(self, header: Header) -> Origin:
        """What the node has made starts no work, also when an archive sends it back and its row is gone."""
        return "made" if Contributor(MANUFACTURER, self.ae_title) in header.contributors else "received"

    def _hold(
        self,
        path: Path,
        header: Header,
        origin: Origin,
        association: OpenAssociation | None = None,
        sender: Sender | None = None,
    ) -> Instance:
        digest = data_set_digest(path, header)
        held = self.index.find(header.sop_instance_uid)
        if held is None or (self._replaces(held) and held.differs(header.transfer_syntax_uid, digest)):
            held = self._keep(path, header, digest, origin, association, sender)
        elif association is not None:
            self.index.add_sending(association, held.series_instance_uid)
        if held.differs(header.transfer_syntax_uid, digest):
            if self.on_conflict != "keep":
                raise Duplicate("another object of that UID is held, and stays (storage.on_conflict)", "SOPInstanceUID")
            _log.warning("same UID, other bytes: the first is kept", sop_instance_uid=held.sop_instance_uid)
        return held

    def _replaces(self, held: Instance) -> bool:
        """What the node has made is not replaced: it is what was proven, and what is sent."""
        return self.on_conflict == "replace" and held.origin == "received"

    def _keep(
        self,
        path: Path,
        header: Header,
        digest: str,
        origin: Origin,
        association: OpenAssociation | None,
        sender: Sender | None,
    ) -> Instance:
        size = path.stat().st_size
        if origin == "received" and self.objects.free_bytes() - size < self.low_watermark:
            raise OutOfResources(
                "the disk is almost full (storage.low_watermark): nothing more is received until there is room"
            )
        key = self.objects.keep(path)
        held = None
        try:
            row = (header, key, size, digest, origin, self.clock(), association, sender)
            held = self.index.add(*row, replace=self.on_conflict == "replace")
        finally:
            if held is None or held.object_key != key:
                self.objects.delete(key)
        _log.info("received", sop_instance_uid=held.sop_instance_uid, series_instance_uid=held.series_instance_uid)
        return held


def data_set_digest(path: Path, header: Header) -> str:
    """SHA-256 over the data set: what the sender's file meta information says of itself does not count."""
    with path.open("rb") as file:
        file.seek(header.dataset_offset)
        return hashlib.file_digest(file, "sha256").hexdigest()
