"""Attribute matching (PS3.4 C.2.2.2): what a query key or a rule's `when` asks of a value."""

import re
from functools import lru_cache


def matches(pattern: str, value: str) -> bool:
    """Single value and wildcard matching: `*` stands for any characters, `?` for one; any of several values may match.

    An empty pattern matches everything (universal matching).
    """
    return not pattern or any(_expression(pattern).fullmatch(single) for single in value.split("\\"))


@lru_cache(maxsize=256)
def _expression(pattern: str) -> re.Pattern[str]:
    return re.compile("".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern), re.DOTALL)
