"""Metadata (PS3.18 10.4.1.1.4): the documents of objects, made off the path of requests where there is time for it."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import structlog

from segnode.dicom.json import Json
from segnode.dicomweb.decoding import Decoders
from segnode.dicomweb.left_out import LeftOut
from segnode.errors import NotAcceptable, NotFound, OutOfResources, UnreadablePixels
from segnode.store.documents import FORMAT, Documents
from segnode.store.index import Index, Instance, uid_of
from segnode.store.objects import ObjectStore

_log = structlog.get_logger()

# What stands for the DICOMweb root in a document that is made, and in one that is kept: bytes that no UTF-8 text has
# (RFC 3629 3). One byte is found several times faster than three.
ROOT: Final = "\ud800"
_ROOT_MADE: Final = ROOT.encode("utf-8", "surrogatepass")
_ROOT_KEPT: Final = b"\xff"
# How many documents are read and written at once, and how many bytes of them.
_AT_ONCE: Final = 100
_MOST_READ: Final = 512 << 10
_MOST_MADE: Final = 16 << 20


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

    def ready(self, instances: Sequence[Instance], left_out: LeftOut) -> list[Instance]:
        """Those of some objects that can be read, their documents made and kept where there is room."""
        lacking, keeper = self.documents.lacking(i.object_key for i in instances), _Keeper(self.documents)
        if not lacking:
            return [*instances]

        def make(instance: Instance) -> Instance:
            if instance.object_key in lacking:
                document = self._make(instance)
                with suppress(OutOfResources):  # it is given all the same, and made again
                    keeper.keep(instance.object_key, document)
            return instance

        readable = list(left_out.each(instances, make, uid_of))
        with suppress(OutOfResources):
            keeper.flush()
        return readable

    def of(self, instances: Sequence[Instance], root: str) -> Iterator[bytes]:
        """The DICOM JSON of each, with URLs under that root. Raises NotFound, NotAcceptable."""
        url = root.encode()
        start = 0
        while some := instances[start : start + _AT_ONCE]:
            kept = self.documents.first([instance.object_key for instance in some], _MOST_READ)
            for instance, document in zip(some, kept, strict=False):
                yield (document or self._made(instance)).replace(_ROOT_KEPT, url)
            start += len(kept)

    def document(self, object_key: str, root: str) -> Json:
        """The DICOM JSON of one object; empty when it is gone meanwhile, or cannot be read."""
        try:
            document: Json = json.loads(next(self.of(self.index.of_keys([object_key]), root), b"{}"))
        except (NotAcceptable, NotFound):
            return {}
        return document

    def make_more(self) -> bool:
        """Make the next documents of what has come since the last time; whether there was anything to do."""
        before = self.documents.progress()
        progress = min(before, self.index.newest())
        held = self.index.held_after(progress, _AT_ONCE)
        lacking, keeper = self.documents.lacking(i.object_key for _, i in held), _Keeper(self.documents)
        for progress, instance in held:
            try:
                if instance.object_key in lacking:
                    keeper.keep(instance.object_key, self._make(instance))
            except NotAcceptable as error:
                _log.warning("no metadata", reason=str(error))
            except NotFound:  # it has been deleted meanwhile
                pass
            keeper.progress = progress
        if progress != before:
            keeper.progress = progress
            keeper.flush()
        return bool(held)

    def _made(self, instance: Instance) -> bytes:
        document = self._make(instance)
        with suppress(OutOfResources):
            self.documents.add({instance.object_key: document})
        return document

    def _make(self, instance: Instance) -> bytes:
        try:
            made = self.decoders.document(self.objects.path(instance.object_key), location(instance))
        except UnreadablePixels as error:
            raise NotAcceptable(
                f"SOP instance {instance.sop_instance_uid} has no metadata ({error}): ask for the instance itself"
            ) from error
        return made.replace(_ROOT_MADE, _ROOT_KEPT)


class _Keeper:
    """Keeps documents, some at once: each time is a transaction, and all together may be more than there is memory."""

    def __init__(self, documents: Documents) -> None:
        self.progress: int | None = None
        self._documents = documents
        self._made: dict[str, bytes] = {}
        self._size = 0

    def keep(self, object_key: str, document: bytes) -> None:
        """Keep a document, now or with the next. Raises OutOfResources."""
        self._made[object_key] = document
        self._size += len(document)
        if self._size > _MOST_MADE or len(self._made) >= _AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Keep what is not kept yet, and how far their making has come. Raises OutOfResources."""
        made, self._made, self._size = self._made, {}, 0
        if made or self.progress is not None:
            self._documents.add(made, self.progress)


def entity_tag(instances: Sequence[Instance], root: str, kind: str) -> str:
    """The ETag of what is told of some objects: another one when any of them, or how they are told, is another."""
    told = " ".join([f"{FORMAT} {kind} {root}", *(f"{each.sop_instance_uid} {each.digest}" for each in instances)])
    return f'"{hashlib.sha256(told.encode()).hexdigest()[:32]}"'


def matches(if_none_match: str, tag: str) -> bool:
    """Whether an If-None-Match header names an ETag (RFC 9110 13.1.2)."""
    names = (name.strip().removeprefix("W/") for name in if_none_match.split(","))
    return any(name in ("*", tag) for name in names)
