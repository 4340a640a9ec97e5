"""Notifying: webhooks are told of jobs that have come to an end, again and again until they take it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Protocol

import msgspec
import structlog
from msgspec import UNSET, Meta, UnsetType

from segnode.config import WebhookConfig
from segnode.errors import DeliveryDeferred, DeliveryRefused
from segnode.pipeline.back_off import wait_after
from segnode.pipeline.job_document import JobDocument, iso_time, job_document
from segnode.store.index import Index
from segnode.store.jobs import Jobs
from segnode.store.notices import Notice, Notices

_log = structlog.get_logger()

_GIVE_UP_AFTER_S: Final = 7 * 86400.0
_WHO: Final = ("PatientID", "PatientBirthDate", "AccessionNumber")
_SHORTEST_WORD: Final = 2


class PatientDocument(msgspec.Struct, frozen=True):
    """Whose images they are; only for a webhook that asks for it."""

    PatientID: str
    PatientName: str
    AccessionNumber: str


class EventData(msgspec.Struct, frozen=True):
    """What a notice is about."""

    job: JobDocument
    patient: PatientDocument | UnsetType = UNSET


class EventDocument(msgspec.Struct, frozen=True):
    """The body of a notice."""

    type: Annotated[str, Meta(description="job.delivered, job.failed, or job.held: it waits for a person.")]
    timestamp: Annotated[str, Meta(description="When it happened: ISO 8601, in UTC.")]
    data: EventData


class Webhook(Protocol):
    """Somebody who wants to be told."""

    def tell(self, notice_id: str, body: bytes, now: float) -> str:
        """Tell it; what it answered. Raises DeliveryDeferred to be called again, DeliveryRefused when it wants no more."""
        ...


@dataclass(frozen=True)
class Notifier:
    """Tells one webhook what it is owed."""

    config: WebhookConfig
    webhook: Webhook
    jobs: Jobs
    index: Index
    notices: Notices
    clock: Callable[[], float]

    def tell_all(self) -> None:
        """Try once to tell all that is owed now; when the webhook takes one of them not, the rest waits for the next turn."""
        self.notices.owe(self.config.name, self.config.on, self.clock())
        for notice in self.notices.due(self.config.name, self.clock()):
            if not self._tell(notice):
                return

    def _tell(self, notice: Notice) -> bool:
        try:
            answer = self.webhook.tell(notice.id, self._body(notice), self.clock())
        except DeliveryRefused as refusal:
            self._give_up(notice, str(refusal))
            return True
        except DeliveryDeferred as deferral:
            self._defer(notice, str(deferral))
            return False
        self.notices.told(notice, answer)
        _log.info("webhook told", webhook=notice.webhook, job=notice.job_id, state=notice.state)
        return True

    def _body(self, notice: Notice) -> bytes:
        job = job_document(self.jobs.job(notice.job_id), self.index)
        patient: Any = UNSET
        attributes = self.index.series(job.series)
        if self.config.patient:
            patient = PatientDocument(*(attributes.get(keyword, "") for keyword in PatientDocument.__struct_fields__))
        else:
            job = _without_patient(job, attributes)
        return msgspec.json.encode(EventDocument(f"job.{notice.state}", iso_time(notice.at), EventData(job, patient)))

    def _defer(self, notice: Notice, answer: str) -> None:
        now = self.clock()
        if now - notice.created_at > _GIVE_UP_AFTER_S:
            self._give_up(notice, f"given up after a week; last answer: {answer}")
            return
        self.notices.deferred(notice, answer, now + wait_after(notice.attempts))
        _log.warning("webhook did not take it", webhook=notice.webhook, job=notice.job_id, reason=answer)

    def _give_up(self, notice: Notice, answer: str) -> None:
        self.notices.given_up(notice, answer)
        _log.error("webhook is not told", webhook=notice.webhook, job=notice.job_id, reason=answer)


def _without_patient(job: JobDocument, attributes: Mapping[str, str]) -> JobDocument:
    """The job without what names the patient of a series: archives and models may say that in what they answer."""
    words = re.split(r"[\^= ,]+", attributes.get("PatientName", "")) + [attributes.get(keyword, "") for keyword in _WHO]
    either = "|".join(re.escape(word) for word in words if len(word) >= _SHORTEST_WORD)
    if not either:
        return job
    # As a word by itself, and not as a component of a UID.
    named = re.compile(rf"(?<!\w)(?<!\d\.)(?:{either})(?!\w|\.\d)", re.IGNORECASE)

    def covered(text: str) -> str:
        return named.sub("***", text)

    return msgspec.structs.replace(
        job,
        note=covered(job.note),
        error=covered(job.error),
        progress_text=covered(job.progress_text),
        deliveries=tuple(msgspec.structs.replace(each, last_answer=covered(each.last_answer)) for each in job.deliveries),
    )
