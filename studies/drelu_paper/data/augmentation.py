"""The usual augmentation of small photographs: a random crop of the padded image, and a random flip."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class CropAndFlip:
    """A crop of the image's own size out of the image padded with zeros, mirrored left to right half of the time.

    Attributes:
        padding: on each side, in pixels; the crop's place is uniform over all that fit.
    """

    padding: int = 4

    def draw(self, samples: int, generator: torch.Generator | None) -> Tensor:
        """What is done to each sample: row and column of the crop, and whether it is mirrored; int64, (samples, 3)."""
        folders = torch.randint(2 * self.padding + 1, (samples, 2), generator=generator)
        return torch.cat([folders, torch.randint(2, (samples, 1), generator=generator)], dim=1)

    def apply(self, x: Tensor, changes: Tensor) -> Tensor:
        """The samples, shape (N, C, H, W), changed as drawn; contiguous."""
        height, width = x.shape[2:]
        padded = functional.pad(x, [self.padding] * 4)
        columns = torch.arange(width).expand(len(x), width)
        columns = torch.where(changes[:, 2:] == 1, columns.flip(1), columns) + changes[:, 1:2]
        rows = torch.arange(height) + changes[:, :1]
        sample, channel = torch.arange(len(x)), torch.arange(x.shape[1])
        return padded[
            sample[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None, :]
        ]
