"""Overlapping segments: the fewest groups without an overlap (colouring the overlap graph)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Final

from segnode.seg.combine import Pair

Neighbours = Mapping[int, frozenset[int]]

# Up to so many overlapping segments the fewest groups are searched for; beyond, the search may take too long.
_MOST_EXACT: Final = 32


@dataclass(frozen=True)
class Grouping:
    """Segments in groups without an overlap: `groups` of numbers, and how few groups are possible at the least."""

    groups: tuple[tuple[int, ...], ...]
    lower_bound: int

    @property
    def is_fewest(self) -> bool:
        """Whether it is proved that there cannot be fewer groups."""
        return len(self.groups) == self.lower_bound


def fewest_groups(numbers: Sequence[int], overlapping: Iterable[Pair]) -> Grouping:
    """The fewest groups of segments without an overlap, as far as that can be found (see Grouping.is_fewest).

    Exact for up to 32 segments that overlap another; for more by DSATUR. What overlaps nothing is in the first group.
    """
    neighbours = _neighbours(overlapping)
    clique = _clique(neighbours)
    colours = _by_saturation(neighbours)
    used = max(colours.values(), default=0) + 1
    lower_bound = max(len(clique), 1)
    if used > lower_bound and len(neighbours) <= _MOST_EXACT:
        while used > lower_bound and (better := _with_colours(neighbours, used - 1, clique)):
            colours, used = better, max(better.values()) + 1
        lower_bound = used
    groups = tuple(tuple(n for n in sorted(numbers) if colours.get(n, 0) == colour) for colour in range(used))
    return Grouping(groups, lower_bound)


def _neighbours(overlapping: Iterable[Pair]) -> Neighbours:
    found: dict[int, set[int]] = {}
    for a, b in overlapping:
        found.setdefault(a, set()).add(b)
        found.setdefault(b, set()).add(a)
    return {number: frozenset(found[number]) for number in sorted(found)}


def _clique(neighbours: Neighbours) -> list[int]:
    """Segments that all overlap each other: the largest of those that are found from each segment, greedily."""
    largest: list[int] = []
    for start in neighbours:
        if len(neighbours[start]) < len(largest):
            continue
        clique, candidates = [start], set(neighbours[start])
        while candidates:
            chosen = min(candidates, key=lambda n: (-len(neighbours[n] & candidates), n))
            clique.append(chosen)
            candidates &= neighbours[chosen]
        largest = max(largest, clique, key=len)
    return largest


def _by_saturation(neighbours: Neighbours) -> dict[int, int]:
    """DSATUR (Brélaz 1979): next is the segment whose neighbours have most colours, and it gets the first that is free."""
    colours: dict[int, int] = {}
    taken: dict[int, set[int]] = {number: set() for number in neighbours}
    # What has got another colour beside it is put in again: what is first is always up to date, or has a colour.
    waiting = [_rank(neighbours, number, 0) for number in neighbours]
    heapify(waiting)
    while waiting:
        *_, number = heappop(waiting)
        if number in colours:
            continue
        colour = colours[number] = next(colour for colour in count() if colour not in taken[number])
        for other in neighbours[number] - colours.keys():
            if colour not in taken[other]:
                taken[other].add(colour)
                heappush(waiting, _rank(neighbours, other, len(taken[other])))
    return colours


def _rank(neighbours: Neighbours, number: int, saturation: int) -> tuple[int, int, int]:
    return -saturation, -len(neighbours[number]), number


def _most_saturated(neighbours: Neighbours, colours: Mapping[int, int]) -> int:
    def rank(number: int) -> tuple[int, int, int]:
        seen = {colours[other] for other in neighbours[number] if other in colours}
        return _rank(neighbours, number, len(seen))

    return min((number for number in neighbours if number not in colours), key=rank)


def _with_colours(neighbours: Neighbours, most: int, clique: Sequence[int]) -> dict[int, int] | None:
    """A colouring with so many colours at most; None when there is none. The clique's colours are fixed, as any will do."""
    colours = {number: colour for colour, number in enumerate(clique)}

    def colour_rest(used: int) -> bool:
        if len(colours) == len(neighbours):
            return True
        number = _most_saturated(neighbours, colours)
        taken = {colours[other] for other in neighbours[number] if other in colours}
        # One new colour is tried and not all: they differ in name only.
        for colour in range(min(used + 1, most)):
            if colour not in taken:
                colours[number] = colour
                if colour_rest(max(used, colour + 1)):
                    return True
                del colours[number]
        return False

    return colours if len(clique) <= most and colour_rest(len(clique)) else None
