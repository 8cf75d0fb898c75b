"""A training part as a recipe asks for it: its first samples only, or with augmentation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from studies.drelu_paper.data import Part


@dataclass(frozen=True)
class Limited:
    """``Samples`` for the training loop. ``DataRecipe`` says what goes with what.

    Attributes:
        part: the whole training part.
        limit: only its first samples; None: all.
        augment: crop and flip, as the data set has it.
    """

    part: Part
    limit: int | None = None
    augment: bool = False

    def __len__(self) -> int:
        return len(self.part) if self.limit is None else min(self.limit, len(self.part))

    def batches(
        self, batch_size: int, generator: torch.Generator | None = None, shuffle: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        if self.limit is None:
            augment = self.augment and shuffle
            yield from self.part.batches(batch_size, generator, shuffle, augment=augment)
            return
        order = torch.randperm(len(self), generator=generator) if shuffle else torch.arange(len(self))
        for indices in order.split(batch_size):
            yield self.part.read(indices)
