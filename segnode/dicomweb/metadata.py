"""Metadata (PS3.18 10.4.1.1.4): the documents of objects, made off the path of requests where there is time for it."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from segnode.dicomweb.decoding import Decoders
from segnode.errors import NotAcceptable, UnreadablePixels
from segnode.store.documents import FORMAT, Documents
from segnode.store.index import Index, Instance
from segnode.store.objects import ObjectStore

_log = structlog.get_logger()

# What stands for the DICOMweb root in a document that is kept: bytes that no UTF-8 text has (RFC 3629 3).
ROOT: Final = "\ud800"
_ROOT_BYTES: Final = ROOT.encode("utf-8", "surrogatepass")
_AT_ONCE: Final = 100


def location(instance: Instance, root: str = ROOT) -> str:
    """The URL of an instance under a DICOMweb root."""
    study, series, sop = instance.study_instance_uid, instance.series_instance_uid, instance.sop_instance_uid
    return f"{root}/studies/{study}/series/{series}/instances/{sop}"


@dataclass(frozen=True)
class Metadata:
    """The documents of what is held: those that are kept, and those that are made now, and kept."""

    objects: ObjectStore
    index: Index
    documents: Documents
    decoders: Decoders

    def of(self, instances: Sequence[Instance], root: str) -> Iterator[bytes]:
        """The DICOM JSON of each, with URLs under that root. Raises NotAcceptable."""
        for start in range(0, len(instances), _AT_ONCE):
            some = instances[start : start + _AT_ONCE]
            kept = self.documents.find(instance.object_key for instance in some)
            made = {instance.object_key: self._make(instance) for instance in some if instance.object_key not in kept}
            if made:
                self.documents.add(made)
            for instance in some:
                document = kept.get(instance.object_key) or made[instance.object_key]
                yield document.replace(_ROOT_BYTES, root.encode())

    def make_more(self) -> bool:
        """Make the next documents of what has come since the last time; whether there was anything to do."""
        held = self.index.held_after(self.documents.progress(), _AT_ONCE)
        if not held:
            return False
        kept = self.documents.find(instance.object_key for _, instance in held)
        made: dict[str, bytes] = {}
        for _, instance in held:
            if instance.object_key not in kept:
                try:
                    made[instance.object_key] = self._make(instance)
                except NotAcceptable as error:
                    _log.warning("no metadata", reason=str(error))
        self.documents.add(made, held[-1][0])
        return True

    def _make(self, instance: Instance) -> bytes:
        try:
            return self.decoders.document(self.objects.path(instance.object_key), location(instance))
        except UnreadablePixels as error:
            raise NotAcceptable(
                f"SOP instance {instance.sop_instance_uid} has no metadata ({error}): ask for the instance itself"
            ) from error


def entity_tag(instances: Sequence[Instance], root: str, kind: str) -> str:
    """The ETag of the metadata of some objects: another one when any of them, or how they are told, is another."""
    digest = hashlib.sha256(f"{FORMAT} {kind} {root}".encode())
    for instance in instances:
        digest.update(f" {instance.sop_instance_uid} {instance.digest}".encode())
    return f'"{digest.hexdigest()[:32]}"'


def matches(if_none_match: str, tag: str) -> bool:
    """Whether an If-None-Match header names an ETag (RFC 9110 13.1.2)."""
    names = (name.strip().removeprefix("W/") for name in if_none_match.split(","))
    return any(name in ("*", tag) for name in names)
