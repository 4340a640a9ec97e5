"""Attribute matching (PS3.4 C.2.2.2): what a query key or a rule's `when` asks of a value."""

import math
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated, Final

import msgspec

_AGE: Final = re.compile(r"(\d{3})([DWMY])")
_IN_A_YEAR: Final = {"D": 365.25, "W": 365.25 / 7, "M": 12, "Y": 1}
_Pattern = Annotated[str, msgspec.Meta(min_length=1)]


class Condition(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a rule may ask besides text: a number in a range, whether there is a value, or the opposite of something."""

    min: float | None = None
    max: float | None = None
    present: bool | None = None
    excluded: "When | None" = msgspec.field(default=None, name="not")

    @property
    def kinds(self) -> int:
        """Of how many kinds it is: one, if it is to mean anything."""
        is_range = self.min is not None or self.max is not None
        return is_range + (self.present is not None) + (self.excluded is not None)


# A pattern, several of which one is enough, or a condition.
When = _Pattern | tuple[_Pattern, ...] | Condition


def matches(pattern: str, value: str) -> bool:
    """Single value and wildcard matching: `*` stands for any characters, `?` for one; any of several values may match.

    An empty pattern matches everything (universal matching).
    """
    return not pattern or any(_expression(pattern).fullmatch(single) for single in value.split("\\"))


def satisfied(when: When, values: Iterable[str]) -> bool:
    """Whether any of the values satisfies what a rule asks; each is that of an image, empty where it has none."""
    return any(_satisfied(when, value) for value in values)


def _satisfied(when: When, value: str) -> bool:
    if isinstance(when, str):
        return matches(when, value)
    if isinstance(when, tuple):
        return any(matches(pattern, value) for pattern in when)
    if when.excluded is not None:
        return not _satisfied(when.excluded, value)
    if when.present is not None:
        return bool(value) == when.present
    least, most = (-math.inf if when.min is None else when.min), (math.inf if when.max is None else when.max)
    return any(least <= number <= most for number in map(_number, value.split("\\")))


def _number(text: str) -> float:
    """A number; an age (AS, PS3.5 6.2) in years, and not a number where there is neither."""
    age = _AGE.fullmatch(text)
    try:
        return int(age[1]) / _IN_A_YEAR[age[2]] if age else float(text)
    except ValueError:
        return math.nan


@lru_cache(maxsize=256)
def _expression(pattern: str) -> re.Pattern[str]:
    return re.compile("".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern), re.DOTALL)
