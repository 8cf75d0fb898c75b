"""Quantiles of a stream, per row, in bounded memory.

Up to a number of values they are kept, and the quantile is exact. Beyond, they go into a histogram whose bins grow by a
fixed factor (DDSketch: Masson, Rim and Lee, VLDB 2019), which gives every quantile within a relative error chosen in
advance. It is one pass, in any order and any cut into batches with the same result.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EXACT_VALUES = 1 << 20
DECADES = 9


class StreamingQuantiles:
    """Quantiles of the values above ``floor``, per row.

    Args:
        rows: how many streams.
        floor: values up to it count as equal to it in the histogram.
        relative_error: of a quantile between floor and ``floor * 10**DECADES``, once more than ``exact_values`` came;
            above that range the largest value is given.
        exact_values: how many values, of all rows together, are kept as they are.
    """

    def __init__(self, rows: int, floor: float, relative_error: float = 0.01, exact_values: int = EXACT_VALUES) -> None:
        self.rows, self.floor = rows, floor
        self._exact_values = exact_values
        self._kept: list[Tensor] = []
        self.count = 0  # values per row
        self._gamma = (1 + relative_error) / (1 - relative_error)
        self._bins = math.ceil(DECADES * math.log(10) / math.log(self._gamma)) + 2
        self._histogram: Tensor | None = None
        self._largest: Tensor | None = None

    @property
    def histogram_bytes(self) -> int:
        """Memory of the histogram, if it comes to that."""
        return 4 * self.rows * self._bins

    @property
    def is_exact(self) -> bool:
        return self._histogram is None

    def add(self, values: Tensor) -> None:
        """Take values of shape (rows, any number)."""
        self.count += values.shape[1]
        if self._histogram is None and self.count * self.rows <= self._exact_values:
            self._kept.append(values.clone())
            return
        for kept in self._kept:
            self._bin(kept)
        self._kept.clear()
        self._bin(values)

    def quantile(self, q: float) -> Tensor:
        """The q-quantile of each row; exact ones are interpolated as torch.quantile does."""
        if self._histogram is None:
            return torch.quantile(torch.cat(self._kept, 1), q, dim=1)
        assert self._largest is not None
        rank = math.floor(q * (self.count - 1)) + 1
        below = self._histogram.long().cumsum(1)
        index = (below < rank).sum(1)
        middle = self.floor * 2 * self._gamma ** index.double() / (self._gamma + 1)
        middle = torch.where(index == 0, self.floor, middle)
        return torch.where(index == self._bins - 1, self._largest.double(), middle).to(self._largest.dtype)

    def share_at_least(self, caps: Tensor) -> float:
        """Share of all values that are >= the cap of their row; from a histogram: above the bin that holds the cap."""
        total = max(self.count * self.rows, 1)
        if self._histogram is None:
            return (torch.cat(self._kept, 1) >= caps[:, None]).sum().item() / total
        inside = self._histogram.long().cumsum(1).gather(1, self._index(caps[:, None]))
        return 1 - inside.sum().item() / total

    def _index(self, values: Tensor) -> Tensor:
        scaled = (values.clamp(min=self.floor) / self.floor).log() / math.log(self._gamma)
        # Rounding: what lies on floor itself belongs to the first bin.
        return scaled.sub_(1e-4).ceil_().clamp_(0, self._bins - 1).long()

    def _bin(self, values: Tensor) -> None:
        if self._histogram is None:
            self._histogram = torch.zeros(self.rows, self._bins, dtype=torch.int32, device=values.device)
            self._largest = torch.full((self.rows,), -math.inf, dtype=values.dtype, device=values.device)
        assert self._largest is not None
        if self.count > torch.iinfo(torch.int32).max:
            self._histogram = self._histogram.long()
        if values.shape[1] == 0:
            return
        self._largest = torch.maximum(self._largest, values.amax(1))
        first = torch.arange(self.rows, device=values.device)[:, None] * self._bins
        places = (self._index(values) + first).flatten()
        self._histogram.view(-1).scatter_add_(0, places, self._histogram.new_ones(1).expand_as(places))
