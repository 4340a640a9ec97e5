"""Routing: which objects of a series a rule without a model owes to whom."""

from collections.abc import Sequence

from segnode.config import is_http, parse_dimse_address
from segnode.pipeline.rules import ForwardRule
from segnode.store.index import Instance, Sender
from segnode.store.jobs import Decision, Jobs


def route(
    jobs: Jobs, decision: Decision, rule: ForwardRule, images: Sequence[Instance], senders: Sequence[Sender], now: float
) -> bool:
    """Commit a decision to forward images of a series, and return True; one that was made before stays as it is.

    What the rule has owed already is not owed again, and nothing to the one who has sent all of the series.
    """
    names, addresses = rule.config.send_to, rule.addresses
    came_from = [name for name in names if senders and all(_is(sender, addresses[name]) for sender in senders)]
    others = [name for name in names if name not in came_from]
    note = "; ".join(f"not sent to {name}, where it came from" for name in came_from)
    return jobs.decide_forward(decision, [(image.sop_instance_uid, name) for name in others for image in images], note, now)


def _is(sender: Sender, to: str) -> bool:
    """Whether a sender is the archive at an address; of one that is reached by DICOMweb it is not known."""
    if is_http(to):
        return False
    address = parse_dimse_address(to, "")
    return (sender.calling_ae, sender.host) == (address.ae_title.strip(), address.host)
