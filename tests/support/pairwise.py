"""Few of many combinations of parameters, which still show every value, or every pair of values."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations

# A factor by its name, and one of its values.
Shown = tuple[str, Hashable]


def shown_by(combination: Mapping[str, Hashable], strength: int) -> frozenset[tuple[Shown, ...]]:
    """What a combination shows: its values (strength 1), or these and their pairs (strength 2)."""
    values = sorted(combination.items(), key=lambda value: value[0])
    return frozenset(group for size in range(1, strength + 1) for group in combinations(values, size))


def cover(shown: Sequence[frozenset[Hashable]]) -> list[int]:
    """Indices of few sets with the union of all, in order: always the next set with most that is new."""
    left = set().union(*shown)
    most_first = [(-len(one), index) for index, one in enumerate(shown)]
    heapq.heapify(most_first)
    chosen = []
    while left:
        _, index = heapq.heappop(most_first)
        new = len(shown[index] & left)
        # What is new in a set only shrinks: the set is chosen if no other had more before.
        if new and most_first and -new > most_first[0][0]:
            heapq.heappush(most_first, (-new, index))
        elif new:
            chosen.append(index)
            left -= shown[index]
    return sorted(chosen)
