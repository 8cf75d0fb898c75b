"""Images and labels in batches: one interface for all data sets, in an order that a generator decides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Split(NamedTuple):
    """Inputs and labels.

    Attributes:
        x: float32 in [0, 1]; shape (N, C, H, W), or (N, features).
        y: int64 class labels; shape (N,).
    """

    x: Tensor
    y: Tensor


Augmentation = Callable[[Tensor], Tensor]


class Part:
    """The training, validation or test part of a data set, in CPU memory.

    Args:
        images: uint8, or float32 in [0, 1]; shape (N, C, H, W).
        labels: int64, shape (N,).
        augmentation: what shuffled batches do to each image, drawn from torch's random state; None: nothing.
    """

    def __init__(self, images: Tensor, labels: Tensor, augmentation: Augmentation | None = None) -> None:
        if images.ndim != 4 or images.dtype not in (torch.uint8, torch.float32):
            raise ValueError(
                f"images: got shape {tuple(images.shape)}, {images.dtype}; expected (N, C, H, W), uint8 or float32"
            )
        if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
            raise ValueError(
                f"labels: got shape {tuple(labels.shape)}, {labels.dtype}; expected ({len(images)},), int64"
            )
        self.images, self.y, self.augmentation = images, labels, augmentation

    def __len__(self) -> int:
        return len(self.y)

    @property
    def x(self) -> Tensor:
        """All images, float32 in [0, 1]; made anew at each access where bytes are stored."""
        return as_float(self.images)

    def read(self, indices: Tensor) -> Split:
        """The samples of these indices, contiguous."""
        return Split(as_float(self.images[indices]), self.y[indices])

    def first(self, n: int) -> Split:
        """The first n samples as they are stored, 1 <= n <= N."""
        if not 1 <= n <= len(self.y):
            raise ValueError(f"n: got {n}; expected 1 to {len(self.y)}")
        return self.read(torch.arange(n))

    def limited(self, n: int) -> Part:
        """A part with the first n samples only, or with all if there are fewer."""
        return Part(self.images[:n], self.y[:n], self.augmentation)

    def batches(
        self, batch_size: int, generator: torch.Generator | None = None, shuffle: bool = False
    ) -> Iterator[Split]:
        """One epoch on the CPU, shuffled and augmented, or as stored; the last batch may be smaller."""
        if shuffle and generator is None:
            raise ValueError("generator: got None; a random order needs one")
        for indices in self._order(generator if shuffle else None).split(batch_size):
            x, y = self.read(indices)
            if shuffle and generator is not None and self.augmentation is not None:
                x = self._augmented(x, int(torch.randint(2**31, (), generator=generator)))
            yield Split(x, y)

    def _augmented(self, x: Tensor, seed: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return torch.stack([self.augmentation(image) for image in x])

    def _order(self, generator: torch.Generator | None) -> Tensor:
        """Indices of an epoch's samples; without a generator, in the order in which they are stored."""
        return torch.arange(len(self)) if generator is None else torch.randperm(len(self), generator=generator)


@dataclass(frozen=True)
class Dataset:
    """A data set in three parts, no sample in two of them; labels are 0 to classes - 1, images (C, H, W)."""

    name: str
    classes: int
    shape: tuple[int, int, int]
    train: Part
    validation: Part
    test: Part


def as_float(images: Tensor) -> Tensor:
    """uint8 or float32 images as float32 in [0, 1], contiguous."""
    if images.dtype == torch.float32:
        return images.contiguous()
    return images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def check_labels(where: str, labels: Tensor, classes: int) -> None:
    """Check that every label is one of 0 to classes - 1, and that there is one."""
    if len(labels) == 0:
        raise ValueError(f"{where}: got no samples; expected at least one")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(f"{where}: got labels from {low} to {high}; expected 0 to {classes - 1}")
