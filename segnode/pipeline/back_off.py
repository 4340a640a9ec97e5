"""Back-off: how long who could not be reached is left alone before it is tried again."""

import random
from typing import Final

_FIRST_S: Final = 5.0
_LONGEST_S: Final = 900.0


def wait_after(attempts: int) -> float:
    """Seconds to wait after an attempt that so many went before: twice as long each time, up to 15 minutes, with jitter."""
    longest = min(_FIRST_S * 2.0 ** min(attempts, 16), _LONGEST_S)
    return random.uniform(0.5, 1.0) * longest  # noqa: S311  spreads retries, guards nothing
