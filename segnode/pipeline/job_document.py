"""Jobs as programs read them: the document of `segnode jobs --json`."""

from datetime import UTC, datetime
from typing import Any

from segnode.store.jobs import Delivery, Job


def job_document(job: Job) -> dict[str, Any]:
    """A job with its deliveries; times are ISO 8601 in UTC, `rule` names the rule as it was resolved."""
    return {
        "id": job.id,
        "state": job.state,
        "rule": job.rule_digest[:12],
        "model": f"{job.model} {job.model_version}",
        "series": job.series_instance_uid,
        "created": _time(job.created_at),
        "updated": _time(job.updated_at),
        "attempt": job.attempt,
        "note": job.note,
        "error": job.error,
        "segmentation": job.sop_instance_uid,
        "stages": [{"state": state, "at": _time(at)} for state, at in job.transitions],
        "deliveries": [_delivery_document(delivery) for delivery in job.deliveries],
    }


def _delivery_document(delivery: Delivery) -> dict[str, Any]:
    return {
        "destination": delivery.destination,
        "state": delivery.state,
        "form": delivery.form,
        "attempts": delivery.attempts,
        "next_attempt": _time(delivery.next_attempt_at) if delivery.state == "waiting" else None,
        "last_answer": delivery.last_answer,
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
