"""Slots: how many volumes each model works on at once, and that a device works on one at a time, whichever model it is of."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition
from typing import Final

from segnode.config import ModelConfig


@dataclass(frozen=True)
class Slot:
    """A place for one volume: which of the model's processes works on it, and the device of that; none without a name."""

    model: tuple[str, str]
    number: int
    device: str = ""


class Slots:
    """Who has which slot, of the models of a configuration, by name and version. For any thread."""

    def __init__(self, models: Iterable[ModelConfig]) -> None:
        self._changed: Final = Condition()
        self._slots = _slots(models)
        self._taken: dict[str, Slot] = {}

    def become(self, models: Iterable[ModelConfig]) -> None:
        """Have the slots of another configuration; what is taken stays so until it is given back."""
        with self._changed:
            self._slots = _slots(models)
            self._changed.notify_all()

    def take(self, holder: str, model: tuple[str, str]) -> bool:
        """Take a slot of a model, unless the holder has one; whether it has one then."""
        with self._changed:
            return self._take(holder, model)

    @contextmanager
    def taken(self, holder: str, model: tuple[str, str]) -> Iterator[Slot]:
        """The slot of a holder, which is waited for where it has none yet, and given back at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._take(holder, model))
            slot = self._taken[holder]
        try:
            yield slot
        finally:
            self.give_back(holder)

    def give_back(self, holder: str) -> None:
        """Let another have the slot of a holder; it is no error when that has none."""
        with self._changed:
            self._taken.pop(holder, None)
            self._changed.notify_all()

    def keep(self, holders: Collection[str]) -> None:
        """Let others have the slots of all but these holders: what could not be begun, on a full disk, gives none back."""
        with self._changed:
            self._taken = {holder: slot for holder, slot in self._taken.items() if holder in holders}
            self._changed.notify_all()

    def _take(self, holder: str, model: tuple[str, str]) -> bool:
        if holder in self._taken:
            return True
        taken = self._taken.values()
        devices = {slot.device for slot in taken if slot.device}
        # A model that is not configured any more works on nothing: whoever has its slot is told so there.
        for slot in self._slots.get(model, [Slot(model, 0)]):
            if (slot not in taken or model not in self._slots) and slot.device not in devices:
                self._taken[holder] = slot
                return True
        return False


def _slots(models: Iterable[ModelConfig]) -> dict[tuple[str, str], list[Slot]]:
    found = {}
    for config in models:
        model = config.name, config.version
        found[model] = [Slot(model, number, device) for number, device in enumerate(config.places)]
    return found
