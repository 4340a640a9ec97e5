"""Replay: every rule that selects a held series is asked about it now, however long ago its images came."""

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from segnode.dicom.uids import is_uid
from segnode.errors import NotFound
from segnode.pipeline.job_document import model_name, rule_name
from segnode.pipeline.route import route
from segnode.pipeline.rules import AnyRule, ForwardRule, documents, series_values
from segnode.pipeline.sweep import ImageValues, content_digest, decision_of
from segnode.store.index import Index
from segnode.store.jobs import Jobs, State

_URGENCY: Final = frozenset(("RequestedProcedurePriority",))


class Replayed(msgspec.Struct, frozen=True):
    """What a replay came to for one rule."""

    rule: Annotated[str, Meta(description="Names the rule as it is resolved now.")]
    model: Annotated[str, Meta(description="Name and version of the model; empty where the rule only forwards.")]
    id: Annotated[str, Meta(description="The job, by its whole id.")]
    state: Annotated[State | None, Meta(description="null when there is no such job, which a dry run leaves so.")]
    made: Annotated[bool, Meta(description="Whether the job is new; content already processed makes nothing new.")]


def replay(
    index: Index,
    jobs: Jobs,
    rules: Sequence[AnyRule],
    image_values: ImageValues,
    series_instance_uid: str,
    now: float,
    *,
    dry_run: bool,
) -> list[Replayed]:
    """Commit a decision on a series for each rule that selects it; a dry run writes nothing.

    Raises NotFound when no images of that series are held.
    """
    # What is no UID is held by nobody, and may hold characters that a database does not take.
    images = index.images(series_instance_uid) if is_uid(series_instance_uid) else []
    if not images:
        raise NotFound(f"no images of series {series_instance_uid!r} are held")
    senders = index.senders(series_instance_uid)
    values = series_values(index.series(series_instance_uid), senders)
    possible = [rule for rule in rules if not rule.unsatisfied(values)]
    asked = frozenset().union(*(rule.image_keywords for rule in possible))
    of_images = image_values(series_instance_uid, asked, now) if asked else {}
    selecting = [rule for rule in possible if not rule.unsatisfied(of_images)]
    if not dry_run:
        jobs.load_rules(documents(selecting), now)
    content = content_digest(image.content for image in images)
    replayed = []
    for rule in selecting:
        decision = decision_of(series_instance_uid, content, rule)
        if dry_run:
            made = False
        elif isinstance(rule, ForwardRule):
            made = route(jobs, decision, rule, images, senders, now)
        else:
            is_stat = "STAT" in image_values(series_instance_uid, _URGENCY, now)["RequestedProcedurePriority"]
            made = jobs.decide(decision, now, rule.config.priority, stat=is_stat)
        model = model_name(decision.model, decision.model_version)
        replayed.append(Replayed(rule_name(decision.rule_digest), model, decision.id, jobs.state(decision.id), made))
    return replayed
