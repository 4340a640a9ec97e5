"""Destinations as programs read them: the document of `segnode destinations --json`."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from segnode.config import DestinationConfig
from segnode.pipeline.job_document import Time, iso_time
from segnode.store.jobs import DeliveryState
from segnode.store.standings import Standing


class DestinationDocument(msgspec.Struct, frozen=True):
    """How a destination stands."""

    name: str
    to: str
    state: Annotated[
        Literal["ok", "paused", "down"],
        Meta(description="Down: so many attempts failed in a row that one is made a minute, until it answers."),
    ]
    offered: Annotated[tuple[str, ...], Meta(description="The forms it is offered, best first.")]
    form: Annotated[str, Meta(description="The form it took last; empty until it took one.")]
    learned: Annotated[Time | None, Meta(description="When it was seen to take that form; a day later it is seen anew.")]
    last_answer: str
    last_answered: Time | None
    failures: Annotated[int, Meta(description="Attempts in a row that were deferred.")]
    waiting: Annotated[int, Meta(description="Deliveries that are owed.")]
    confirming: Annotated[int, Meta(description="Deliveries of which it has the object, as it says: that is to be proved yet.")]
    failed: Annotated[int, Meta(description="Deliveries that failed.")]


def destination_documents(
    configs: Sequence[DestinationConfig],
    standings: Mapping[str, Standing],
    counts: Mapping[tuple[str, DeliveryState], int],
) -> list[DestinationDocument]:
    """The destinations of a configuration, in its order."""
    return [_document(config, standings.get(config.name, Standing(config.name)), counts) for config in configs]


def _document(
    config: DestinationConfig, standing: Standing, counts: Mapping[tuple[str, DeliveryState], int]
) -> DestinationDocument:
    return DestinationDocument(
        name=config.name,
        to=config.to,
        state="paused" if standing.is_paused else "down" if standing.is_down else "ok",
        offered=config.seg,
        form=standing.form,
        learned=iso_time(standing.learned_at) if standing.form else None,
        last_answer=standing.last_answer,
        last_answered=iso_time(standing.answered_at) if standing.last_answer else None,
        failures=standing.failures,
        waiting=counts.get((config.name, "waiting"), 0),
        confirming=counts.get((config.name, "confirming"), 0),
        failed=counts.get((config.name, "failed"), 0),
    )
