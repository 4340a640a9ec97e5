"""Jobs as programs read them: the document of `segnode jobs --json` and of the HTTP API."""

from datetime import UTC, datetime
from typing import Annotated, get_args

import msgspec
from msgspec import Meta

from segnode.store.index import Index
from segnode.store.jobs import OWED, Delivery, DeliveryState, Job, State

Time = Annotated[str, Meta(description="ISO 8601, in UTC.", extra_json_schema={"format": "date-time"})]


class StageDocument(msgspec.Struct, frozen=True):
    """When a job came into a state."""

    state: State
    at: Time


class DeliveryDocument(msgspec.Struct, frozen=True):
    """An object that is owed to a destination, or was, and how that went."""

    destination: str
    object: Annotated[str, Meta(description="SOPInstanceUID of the object that is owed.")]
    state: Annotated[
        DeliveryState,
        Meta(description="Confirming: the destination has the object, as it says; last_answer says what is awaited."),
    ]
    form: Annotated[str, Meta(description="The form in which it was taken; empty until then.")]
    attempts: int
    next_attempt: Time | None
    last_answer: str
    segmentation: Annotated[str, Meta(description="SOPInstanceUID of the object that was taken; empty until then.")]
    segment_numbers: Annotated[
        dict[str, int],
        Meta(description="Where that is another object than the result, converted: its number for each of the result's."),
    ]


class CountDocument(msgspec.Struct, frozen=True):
    """How many objects a job owes to a destination, or did, and how that went."""

    destination: str
    waiting: int
    confirming: int
    delivered: int
    failed: int
    cancelled: int


class JobDocument(msgspec.Struct, frozen=True):
    """What was decided of a series, how far that is, and to whom its result is owed."""

    id: str
    state: State
    rule: Annotated[str, Meta(description="Names the rule as it was resolved.")]
    model: Annotated[str, Meta(description="Name and version of the model; empty where the rule only forwards.")]
    series: Annotated[str, Meta(description="SeriesInstanceUID of the images.")]
    created: Time
    updated: Time
    attempt: Annotated[int, Meta(description="How often it was retried.")]
    priority: Annotated[int, Meta(description="That of its rule; what has the greater one is made first.")]
    stat: Annotated[bool, Meta(description="Whether its images were asked for as STAT: it is made before all others.")]
    progress: Annotated[float | None, Meta(description="How far its model is, as that says, from 0 to 1; null until then.")]
    progress_text: Annotated[str, Meta(description="What the model says that it is at.")]
    note: str
    error: Annotated[str, Meta(description="Why it failed; empty when it has not.")]
    segmentation: Annotated[str, Meta(description="SOPInstanceUID of the result; empty until there is one.")]
    segmentation_series: Annotated[str, Meta(description="SeriesInstanceUID of the result; empty while it is not held.")]
    study: Annotated[str, Meta(description="StudyInstanceUID of the result; empty while it is not held.")]
    stages: tuple[StageDocument, ...]
    counts: tuple[CountDocument, ...]
    deliveries: Annotated[
        tuple[DeliveryDocument, ...],
        Meta(
            description="Of a job that only forwards at most 20: those that failed or wait, and SEGs that were taken as another"
            " object."
        ),
    ]


def job_document(job: Job, index: Index) -> JobDocument:
    """A job with its stages and deliveries, and where its result is held."""
    made = index.find(job.sop_instance_uid) if job.sop_instance_uid else None
    return JobDocument(
        id=job.id,
        state=job.state,
        rule=rule_name(job.rule_digest),
        model=model_name(job.model, job.model_version),
        series=job.series_instance_uid,
        created=iso_time(job.created_at),
        updated=iso_time(job.updated_at),
        attempt=job.attempt,
        priority=job.priority,
        stat=job.stat,
        progress=job.progress,
        progress_text=job.progress_text,
        note=job.note,
        error=job.error,
        segmentation=job.sop_instance_uid,
        segmentation_series=made.series_instance_uid if made else "",
        study=made.study_instance_uid if made else "",
        stages=tuple(StageDocument(state, iso_time(at)) for state, at in job.transitions),
        counts=tuple(_count_document(job, name) for name in sorted({destination for destination, _ in job.counts})),
        deliveries=tuple(map(_delivery_document, job.deliveries)),
    )


def progress_line(job: JobDocument) -> str:
    """How far the model of a job is, as a person reads it; empty where it has not said so."""
    return "" if job.progress is None else f"{job.progress:.0%} {job.progress_text}".strip()


def model_name(name: str, version: str) -> str:
    """A model as documents name it; empty where there is none."""
    return f"{name} {version}".strip()


def rule_name(digest: str) -> str:
    """A rule as documents name it: the beginning of its digest."""
    return digest[:12]


def _count_document(job: Job, destination: str) -> CountDocument:
    of_state = {state: job.counts.get((destination, state), 0) for state in get_args(DeliveryState)}
    return CountDocument(destination, **of_state)


def _delivery_document(delivery: Delivery) -> DeliveryDocument:
    return DeliveryDocument(
        destination=delivery.destination,
        object=delivery.sop_instance_uid,
        state=delivery.state,
        form=delivery.form,
        attempts=delivery.attempts,
        next_attempt=iso_time(delivery.next_attempt_at) if delivery.state in OWED else None,
        last_answer=delivery.last_answer,
        segmentation=delivery.sent_sop_instance_uid,
        segment_numbers={str(number): new for number, new in delivery.segment_numbers.items()},
    )


def iso_time(seconds: float) -> str:
    """A time in seconds since 1970 as documents have it: ISO 8601, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
