"""Receiving: the one room behind both doors. Success means that the bytes are synchronised and the row is committed."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from segnode.dicom.header import Header, read_header
from segnode.errors import Mismatch, Refusal
from segnode.store.index import Index, Instance, Origin
from segnode.store.objects import ObjectStore

_log = structlog.get_logger()


@dataclass(frozen=True)
class Receiver:
    """Takes complete Part 10 files of the object store's incoming folder."""

    objects: ObjectStore
    index: Index
    clock: Callable[[], float]

    def receive(self, path: Path, study: str | None = None, origin: Origin = "received") -> Instance:
        """Keep the object in a file, or find that it is held already, which changes nothing.

        `study` is the study it must be of, where the sender said so. When this returns, the object is durable. Raises
        Refusal (NotDicom, BadIdentifier, Mismatch, OutOfResources); then nothing is kept.
        """
        with path.open("rb") as file:
            header = read_header(file)
        try:
            return self._hold(path, header, study, origin)
        except Refusal as refusal:
            refusal.identity = (header.sop_class_uid, header.sop_instance_uid)
            raise

    def _hold(self, path: Path, header: Header, study: str | None, origin: Origin) -> Instance:
        if study is not None and header.study_instance_uid != study:
            raise Mismatch("StudyInstanceUID of the data set is not the study of the request", "StudyInstanceUID")
        digest = data_set_digest(path, header)
        held = self.index.find(header.sop_instance_uid) or self._keep(path, header, digest, origin)
        if held.digest != digest and held.transfer_syntax_uid == header.transfer_syntax_uid:
            _log.warning("same UID, other bytes: the first is kept", sop_instance_uid=held.sop_instance_uid)
        return held

    def _keep(self, path: Path, header: Header, digest: str, origin: Origin) -> Instance:
        size = path.stat().st_size
        key = self.objects.keep(path)
        held = None
        try:
            held = self.index.add(header, key, size, digest, origin, self.clock())
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
