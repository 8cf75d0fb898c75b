"""Images and labels in batches: one interface for all data sets, in an order that a seed decides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from studies.drelu_paper.data.augmentation import CropAndFlip
from studies.drelu_paper.data.splitting import stratified_split


class Split(NamedTuple):
    """Inputs and labels.

    Attributes:
        x: float32 in [0, 1]; shape (N, C, H, W), or (N, features).
        y: int64 class labels; shape (N,).
    """

    x: Tensor
    y: Tensor


class Part(ABC):
    """The training, validation or test part of a data set, in CPU memory.

    Attributes:
        augmentation: what ``batches(augment=True)`` does to images; None where it would change their class.
        seed: with an epoch's number it decides the order of that epoch.
    """

    augmentation: CropAndFlip | None
    seed: int

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples in an epoch."""

    @property
    @abstractmethod
    def x(self) -> Tensor:
        """All images, float32 in [0, 1], shape (N, C, H, W). Made anew at each access where bytes are stored."""

    @property
    @abstractmethod
    def y(self) -> Tensor:
        """All labels, int64, shape (N,)."""

    @abstractmethod
    def _order(self, generator: torch.Generator | None) -> Tensor:
        """Indices of an epoch's samples; without a generator, in the order in which they are stored."""

    @abstractmethod
    def read(self, indices: Tensor) -> Split:
        """The samples of these indices, contiguous."""

    def batches(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        shuffle: bool = False,
        drop_last: bool = False,
        *,
        epoch: int | None = None,
        augment: bool = False,
    ) -> Iterator[Split]:
        """One epoch.

        Args:
            batch_size: samples per batch. The last batch is smaller where the number does not divide.
            generator: of the order and of the augmentation, on the CPU; it advances when this is called, not later.
            shuffle: random order. Needs a generator or an epoch.
            drop_last: leave out a last batch that has fewer samples.
            epoch: number of the epoch. Order and augmentation are then a function of it and of ``seed``, so that a run
                that is resumed goes on with the same batches. Instead of a generator.
            augment: change the images by ``augmentation``. Needs a generator or an epoch.

        Returns:
            An iterator over batches: x float32 in [0, 1] and contiguous, y int64, both on the CPU.

        Raises:
            ValueError: an argument is not as above; ``augment`` where there is no augmentation; or ``drop_last``
                would drop every sample.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}; expected at least 1")
        if augment and self.augmentation is None:
            raise ValueError("augment: got True; these images have no augmentation that keeps their class")
        generator = self._generator(generator, epoch, shuffle or augment)
        order = self._order(generator if shuffle else None)
        changes = self.augmentation.draw(len(order), generator) if augment and self.augmentation else None
        return self._batches(order, _slices(len(order), batch_size, drop_last), changes)

    def first(self, n: int, balanced: bool = False, seed: int | None = None) -> Split:
        """n samples, for attacks.

        Args:
            n: how many, 1 <= n <= N.
            balanced: the same number of every class, which n must be a multiple of.
            seed: of a random choice without repetition; None takes the first ones as they are stored.

        Raises:
            ValueError: an argument is not as above, or a class has too few samples.
        """
        if not 1 <= n <= len(self.y):
            raise ValueError(f"n: got {n}; expected 1 to {len(self.y)}")
        labels = self.y.numpy()
        if balanced:
            chosen = _balanced(labels, n, seed)
        elif seed is not None:
            chosen = np.random.RandomState(seed).permutation(len(labels))[:n]
        else:
            chosen = np.arange(n)
        return self.read(torch.from_numpy(chosen))

    def _generator(self, generator: torch.Generator | None, epoch: int | None, needed: bool) -> torch.Generator | None:
        if generator is not None and epoch is not None:
            raise ValueError("epoch: got one beside a generator; expected one of the two")
        if epoch is not None:
            if epoch < 0:
                raise ValueError(f"epoch: got {epoch}; expected at least 0")
            # Sums such as seed + epoch would give the runs of two seeds the same epochs.
            state = np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)
            return torch.Generator().manual_seed(int(state[0]))
        if needed and generator is None:
            raise ValueError("generator: got None; a random order or augmentation needs a generator or an epoch")
        return generator

    def _batches(self, order: Tensor, slices: list[Tensor], changes: Tensor | None) -> Iterator[Split]:
        for positions in slices:
            x, y = self.read(order[positions])
            if changes is not None and self.augmentation is not None:
                x = self.augmentation.apply(x, changes[positions])
            yield Split(x, y)


class StoredPart(Part):
    """Samples that are in memory, or mapped into it.

    Args:
        images: uint8, or float32 in [0, 1]; shape (N, C, H, W).
        labels: int64, shape (N,).
        augmentation, seed: as in ``Part``.
    """

    def __init__(self, images: Tensor, labels: Tensor, augmentation: CropAndFlip | None = None, seed: int = 0) -> None:
        if images.ndim != 4 or images.dtype not in (torch.uint8, torch.float32):
            raise ValueError(
                f"images: got shape {tuple(images.shape)}, {images.dtype}; expected (N, C, H, W), uint8 or float32"
            )
        if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
            raise ValueError(
                f"labels: got shape {tuple(labels.shape)}, {labels.dtype}; expected ({len(images)},), int64"
            )
        self.images, self.labels, self.augmentation, self.seed = images, labels, augmentation, seed

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def x(self) -> Tensor:
        return as_float(self.images)

    @property
    def y(self) -> Tensor:
        return self.labels

    def _order(self, generator: torch.Generator | None) -> Tensor:
        return torch.arange(len(self)) if generator is None else torch.randperm(len(self), generator=generator)

    def read(self, indices: Tensor) -> Split:
        return Split(as_float(self.images[indices]), self.labels[indices])


@dataclass(frozen=True)
class Dataset:
    """A data set in three parts; no sample is in two of them.

    Attributes:
        name: as ``load`` takes it.
        classes: their number; labels are 0 to classes - 1.
        shape: of an image, (C, H, W).
    """

    name: str
    classes: int
    shape: tuple[int, int, int]
    train: Part
    validation: Part
    test: Part


def as_float(images: Tensor) -> Tensor:
    """Images of either dtype that ``StoredPart`` takes, as float32 in [0, 1], contiguous."""
    if images.dtype == torch.float32:
        return images.contiguous()
    return images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def _slices(samples: int, batch_size: int, drop_last: bool) -> list[Tensor]:
    """Positions in the epoch's order of each batch."""
    batches = list(torch.arange(samples).split(batch_size))
    if drop_last and samples % batch_size:
        batches.pop()
        if not batches:
            raise ValueError(f"drop_last: got True; {samples} samples are fewer than one batch's {batch_size}")
    return batches


def _balanced(labels: npt.NDArray[np.int64], n: int, seed: int | None) -> npt.NDArray[np.int64]:
    classes, counts = np.unique(labels, return_counts=True)
    share, rest = divmod(n, len(classes))
    if rest:
        raise ValueError(f"n: got {n}; expected a multiple of the number of classes, {len(classes)}")
    if counts.min() < share:
        raise ValueError(f"n: got {n}; class {classes[counts.argmin()]} has only {counts.min()} samples")
    if seed is not None:
        return stratified_split(labels, (n,), seed)[0]
    # In the order in which they are stored: the first few should not be of one class.
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:share] for label in classes]))
