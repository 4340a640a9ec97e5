"""Splits into train, validation and test, or into folds: by patient, and the same again for the same seed."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from segnode.errors import BadDataset

SPLITS: Final = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """How patients are shared out: `fractions` for train, validation and test, or so many `folds`; by a seed."""

    fractions: tuple[float, float, float] = (1.0, 0.0, 0.0)
    folds: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.fractions) < 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise BadDataset(f"the fractions of train, validation and test are {self.fractions}: they add up to 1")
        if self.folds < 0 or self.folds == 1:
            raise BadDataset(f"{self.folds} fold(s): two at least, or none")


def split_of_patients(patients: Iterable[str], split: Split) -> Mapping[str, tuple[str, int | None]]:
    """The split and the fold of each patient: a patient's images are never in two of them."""
    ranked = sorted(set(patients), key=lambda patient: hashlib.sha256(f"{split.seed}:{patient}".encode()).digest())
    train, validation, _ = split.fractions
    first = round(train * len(ranked))
    second = first + round((train + validation) * len(ranked)) - first
    if not split.fractions[2]:
        second = len(ranked)
    if not (split.fractions[1] or split.fractions[2]):
        first = len(ranked)

    def name(rank: int) -> str:
        return SPLITS[0] if rank < first else SPLITS[1] if rank < second else SPLITS[2]

    return {patient: (name(rank), rank % split.folds if split.folds else None) for rank, patient in enumerate(ranked)}
