"""Fixed random splits in which every class has its share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

SPLIT_SEED = 123

Labels = npt.NDArray[np.integer]
Indices = npt.NDArray[np.int64]


def stratified_split(labels: Labels, sizes: Sequence[int], seed: int) -> tuple[Indices, ...]:
    """Disjoint random index sets of these sizes, each with the same number of every class, in random order.

    Raises:
        ValueError: a size is no multiple of the number of classes, or a class has too few items.
    """
    classes = np.unique(labels)
    for size in sizes:
        if size <= 0 or size % len(classes):
            raise ValueError(
                f"sizes: got {size}; expected a positive multiple of the number of classes, {len(classes)}"
            )
    shares = [size // len(classes) for size in sizes]
    for label in classes:
        count = int((labels == label).sum())
        if count < sum(shares):
            raise ValueError(f"labels: got {count} items of class {label}; sizes need {sum(shares)}")
    return _split(labels, lambda _: shares, seed)


def stratified_share(labels: Labels, share: float, seed: int) -> tuple[Indices, Indices]:
    """All items in two disjoint random sets; the second has this share of every class, rounded to whole items.

    Raises:
        ValueError: share is not above 0 and below 1, or a class is so small that a set would have none of it.
    """
    if not 0 < share < 1:
        raise ValueError(f"share: got {share}; expected a number above 0 and below 1")

    def counts(members: int) -> list[int]:
        second = round(share * members)
        return [members - second, second]

    for label in np.unique(labels):
        count = int((labels == label).sum())
        if 0 in counts(count):
            raise ValueError(f"labels: got {count} items of class {label}; too few for a share of {share}")
    first, second = _split(labels, counts, seed)
    return first, second


def _split(labels: Labels, counts: Callable[[int], Sequence[int]], seed: int) -> tuple[Indices, ...]:
    # RandomState, not default_rng: numpy promises that its numbers never change between releases.
    random = np.random.RandomState(seed)
    chosen: list[list[Indices]] = []
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        ends = np.cumsum(counts(len(members)))
        chosen.append(np.split(members[: ends[-1]], ends[:-1]))
    return tuple(random.permutation(np.concatenate(part)).astype(np.int64) for part in zip(*chosen, strict=True))
