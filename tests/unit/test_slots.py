"""Slots: how many volumes a model works on at once."""

from segnode.config import ModelConfig
from segnode.pipeline.slots import Slots


def test_slot_of_who_is_not_there_any_more_is_another_s() -> None:
    """What was never begun, and is not asked for again, holds up nobody."""
    slots, model = Slots([ModelConfig(name="m", run="python:m", labels="threshold", version="1")]), ("m", "1")
    assert slots.take("first", model)
    slots.keep({"first", "second"})
    assert not slots.take("second", model)
    slots.keep({"second"})
    assert slots.take("second", model)
