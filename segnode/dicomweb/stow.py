"""STOW-RS (PS3.18 10.5): a stream of multipart/related goes to disk part by part, and each part is received as it ends."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import structlog
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from segnode.dicom.json import Json, attributes_json, sequence_json
from segnode.dicom.status import OUT_OF_RESOURCES, STATUS_OF
from segnode.errors import BadRequest, Refusal
from segnode.pipeline.associations import Associations
from segnode.pipeline.receive import Receiver
from segnode.store.index import Instance, Sender
from segnode.store.objects import Spool

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_log = structlog.get_logger()

_LONGEST_REASON: Final = 64


@dataclass(frozen=True)
class Stored:
    """What became of the parts of a request."""

    instances: Sequence[Instance]
    refusals: Sequence[Refusal]

    @property
    def http_status(self) -> int:
        """200 all stored, 202 some, 409 none, 503 none for want of room (PS3.18 table 10.5.3-1)."""
        if not self.refusals:
            return 200
        if self.instances:
            return 202
        full = all(STATUS_OF[type(refusal)] == OUT_OF_RESOURCES for refusal in self.refusals)
        return 503 if full else 409

    def document(self, root: str) -> Json:
        """The Store Instances Response (PS3.18 I.2) as DICOM JSON; `root` is the URL that studies are under."""
        document: Json = {}
        if self.instances:
            study = self.instances[0].study_instance_uid
            document |= attributes_json({"RetrieveURL": f"{root}/studies/{study}"})
            document |= sequence_json("ReferencedSOPSequence", [_referenced(i, root) for i in self.instances])
        named = [refusal for refusal in self.refusals if refusal.identity]
        nameless = [refusal for refusal in self.refusals if not refusal.identity]
        if named:
            document |= sequence_json("FailedSOPSequence", [_failed(refusal) for refusal in named])
        if nameless:
            document |= sequence_json("OtherFailuresSequence", [_failed(refusal) for refusal in nameless])
        return document


def _referenced(instance: Instance, root: str) -> Json:
    study, series, sop = instance.study_instance_uid, instance.series_instance_uid, instance.sop_instance_uid
    return attributes_json(
        {
            "ReferencedSOPClassUID": instance.sop_class_uid,
            "ReferencedSOPInstanceUID": sop,
            "RetrieveURL": f"{root}/studies/{study}/series/{series}/instances/{sop}",
        }
    )


def _failed(refusal: Refusal) -> Json:
    attributes: dict[str, str] = {}
    if refusal.identity:
        attributes["ReferencedSOPClassUID"], attributes["ReferencedSOPInstanceUID"] = refusal.identity
    attributes["FailureReason"] = str(STATUS_OF[type(refusal)])
    attributes["ErrorComment"] = str(refusal)[:_LONGEST_REASON]
    return attributes_json(attributes)


def boundary_of(content_type: str) -> str | None:
    """The boundary of multipart/related with application/dicom; None for another media type. Raises BadRequest without one."""
    media_type, parameters = parse_options_header(content_type)
    if media_type != b"multipart/related" or parameters.get(b"type", b"application/dicom").lower() != b"application/dicom":
        return None
    if not parameters.get(b"boundary"):
        raise BadRequest("Content-Type has no boundary: multipart/related needs one (RFC 2387)")
    return parameters[b"boundary"].decode("latin-1")


class StoreRequest:
    """The body of one request, fed in blocks; what was received by then stays received when the body breaks off.

    Its series are not complete before it is closed.
    """

    def __init__(
        self, receiver: Receiver, associations: Associations, boundary: str, study: str | None, sender: Sender
    ) -> None:
        self._receiver = receiver
        self._associations = associations
        self._association = associations.begin()
        self._study = study
        self._sender = sender
        self._spool: Spool | None = None
        self._refusal: Refusal | None = None
        self._ended = False
        self._went_well = False
        self._instances: list[Instance] = []
        self._refusals: list[Refusal] = []
        try:
            self._parser = MultipartParser(boundary, self._callbacks())
        except FormParserError as error:
            raise BadRequest(f"the boundary is not usable: {error}") from error

    def feed(self, block: bytes) -> None:
        """Take the next bytes of the body; blocks while they are written. Raises BadRequest."""
        try:
            self._parser.write(block)
        except FormParserError as error:
            raise BadRequest(f"the body is not multipart/related: {error}") from error

    def finish(self) -> Stored:
        """The outcome, at the end of the body. Raises BadRequest when that is not the end of the message."""
        if not self._ended:
            raise BadRequest("the body ends before its last boundary")
        if not self._instances and not self._refusals:
            raise BadRequest("the message has no parts")
        self._went_well = not self._refusals
        return Stored(self._instances, self._refusals)

    def close(self) -> None:
        """Drop a part that is not complete; nothing more comes."""
        self._drop()
        self._associations.end(self._association, well=self._went_well)

    def _drop(self) -> None:
        if self._spool is not None:
            self._spool.discard()

    def _callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin_part,
            "on_part_data": self._write_part,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin_part(self) -> None:
        self._spool = self._refusal = None
        self._attempt(self._open_spool)

    def _write_part(self, data: bytes, start: int, end: int) -> None:
        if self._spool is not None and self._refusal is None:
            self._attempt(self._spool.write, data[start:end])

    def _end_part(self) -> None:
        if self._spool is not None and self._refusal is None:
            self._attempt(self._receive, self._spool)
        if self._refusal is not None:
            _log.warning("refused", reason=str(self._refusal))
            self._receiver.meter.refused(STATUS_OF[type(self._refusal)])
            self._refusals.append(self._refusal)
        self._drop()

    def _end(self) -> None:
        self._ended = True

    def _open_spool(self) -> None:
        self._spool = self._receiver.objects.spool()

    def _receive(self, spool: Spool) -> None:
        spool.complete()
        self._instances.append(self._receiver.receive(spool.path, self._study, self._association, self._sender))

    def _attempt(self, step: Callable[..., None], *arguments: Any) -> None:
        """A part that is refused ends with a failure item; the parts behind it go on."""
        try:
            step(*arguments)
        except Refusal as refusal:
            self._refusal = refusal
