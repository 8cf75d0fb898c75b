"""Fixed random splits in which every class has its share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

SPLIT_SEED = 123

Indices = npt.NDArray[np.int64]


def stratified_split(labels: npt.NDArray[np.integer], sizes: Sequence[int], seed: int) -> tuple[Indices, ...]:
    """Disjoint random index sets, each with the same number of every class.

    Args:
        labels: class of every item; shape (N,).
        sizes: number of items of each set; each must be a multiple of the number of classes.
        seed: the split is a function of labels, sizes and seed only.

    Returns:
        One int64 index array per size, in random order.

    Raises:
        ValueError: labels is not one-dimensional, a size does not divide evenly, or a class has too few items.
    """
    classes = _classes(labels)
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
    return _split(labels, classes, lambda _: shares, seed)


def stratified_share(labels: npt.NDArray[np.integer], share: float, seed: int) -> tuple[Indices, Indices]:
    """All items in two disjoint random sets; the second has this share of every class, rounded to whole items.

    Args:
        labels: class of every item; shape (N,). Classes may differ in size.
        share: of the second set, above 0 and below 1.
        seed: the split is a function of labels, share and seed only.

    Returns:
        Two int64 index arrays, each in random order.

    Raises:
        ValueError: labels is not one-dimensional, share is out of range, or a class is so small that one of the sets
            would have none of it.
    """
    classes = _classes(labels)
    if not 0 < share < 1:
        raise ValueError(f"share: got {share}; expected a number above 0 and below 1")

    def counts(members: int) -> list[int]:
        second = round(share * members)
        return [members - second, second]

    for label in classes:
        count = int((labels == label).sum())
        if 0 in counts(count):
            raise ValueError(f"labels: got {count} items of class {label}; too few for a share of {share}")
    first, second = _split(labels, classes, counts, seed)
    return first, second


def _classes(labels: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
    if labels.ndim != 1:
        raise ValueError(f"labels: got {labels.ndim} dimensions; expected 1")
    return np.unique(labels)


def _split(
    labels: npt.NDArray[np.integer],
    classes: npt.NDArray[np.integer],
    counts: Callable[[int], Sequence[int]],
    seed: int,
) -> tuple[Indices, ...]:
    # RandomState, not default_rng: numpy promises that its numbers never change between releases.
    random = np.random.RandomState(seed)
    chosen: list[list[Indices]] = []
    for label in classes:
        members = random.permutation(np.flatnonzero(labels == label))
        ends = np.cumsum(counts(len(members)))
        chosen.append(np.split(members[: ends[-1]], ends[:-1]))
    return tuple(random.permutation(np.concatenate(part)).astype(np.int64) for part in zip(*chosen, strict=True))
