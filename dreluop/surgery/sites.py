"""The modules that take an activation's place."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dreluop.functional import capped_relu
from dreluop.modules import DReLU


class ResidualDReLU(DReLU):
    """``DReLU`` of ``x + residual``, in one pass where both have one shape and dtype; else the sum is made first.

    Args:
        sum_inplace: the sum may be written over x (it was ``x += residual``, and nobody else holds x).
        others: as in ``DReLU``; ``inplace`` writes y over x.
    """

    def __init__(self, *args: Any, sum_inplace: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sum_inplace = sum_inplace

    def forward(self, x: Tensor, residual: Tensor | None = None, *, bias: Tensor | None = None) -> Tensor:
        inplace = self.inplace
        if residual is not None and not _alike(x, residual):
            x, residual = x.add_(residual) if self.sum_inplace else x + residual, None
        elif residual is not None and not self.sum_inplace:
            # x + residual left x alone, so the fused pass must too.
            inplace = False
        return capped_relu(x, self.cap, dim=self.dim, inplace=inplace, save=self.save, bias=bias, residual=residual)


def _alike(x: Any, residual: Any) -> bool:
    # A sum may be one with a number that an argument holds.
    tensors = isinstance(x, Tensor) and isinstance(residual, Tensor)
    return tensors and residual.shape == x.shape and residual.dtype == x.dtype


class PendingSite(nn.Module):
    """Stands where a D-ReLU will be, and notes the shapes of what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    @property
    def shape(self) -> tuple[int, ...] | None:
        return self.shapes[0] if self.shapes else None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        total = x if residual is None else x + residual
        if tuple(total.shape) not in self.shapes:
            self.shapes.append(tuple(total.shape))
        return total.relu()
