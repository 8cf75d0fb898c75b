"""Few of many combinations of parameters, which still show every value, or every pair of values."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations

# A factor by its name, and one of its values.
Shown = tuple[str, Hashable]


def shown_by(combination: Mapping[str, Hashable], strength: int) -> frozenset[tuple[Shown, ...]]:
    """What a combination shows: its values (strength 1), or these and their pairs (strength 2)."""
    values = sorted(combination.items(), key=lambda value: value[0])
    return frozenset(group for size in range(1, strength + 1) for group in combinations(values, size))


def cover(shown: Sequence[frozenset[Hashable]]) -> list[int]:
    """Indices of few sets with the union of all, in order: always the next set with most that is new.

    Of equals it is the one that shows what was chosen least, so that the values of a parameter are seen equally often.
    """
    left = set().union(*shown)
    times: Counter[Hashable] = Counter()

    def rank(index: int) -> tuple[int, int, int]:
        return -len(shown[index] & left), sum(times[one] for one in shown[index]), index

    best_first = [rank(index) for index in range(len(shown))]
    heapq.heapify(best_first)
    chosen = []
    while left:
        known = heapq.heappop(best_first)
        now = rank(known[-1])
        # Ranks only fall: what still has the one that it was entered with is before all others.
        if now > known:
            heapq.heappush(best_first, now)
            continue
        index = now[-1]
        chosen.append(index)
        left -= shown[index]
        times.update(shown[index])
    return sorted(chosen)
