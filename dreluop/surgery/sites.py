"""The modules that replace activations, and the functions that changed mask calls to reach them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dreluop.functional import capped_relu
from dreluop.modules import DReLU
from dreluop.surgery import kinds


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
        return capped_relu(
            x, self.cap, dim=self.dim, inplace=inplace, save=self.save, bias=bias, residual=residual,
            above=self.above, nan=self.nan,
        )  # fmt: skip


def _alike(x: Any, residual: Any) -> bool:
    # A sum may be one with a number that an argument holds.
    tensors = isinstance(x, Tensor) and isinstance(residual, Tensor)
    return tensors and residual.shape == x.shape and residual.dtype == x.dtype


class PendingSite(nn.Module):
    """A placeholder for a D-ReLU while a run records the inputs of the sites."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return (x if residual is None else x + residual).relu()


SITE_CLASSES = (DReLU, PendingSite)
# The attribute in which a D-ReLU keeps the class of the activation that it replaced.
WAS = "_dreluop_was"


def type_before(value: Any) -> type:
    """``type(value)`` as it was before surgery."""
    return getattr(value, WAS, nn.ReLU) if isinstance(value, SITE_CLASSES) else type(value)


def is_instance_before(value: Any, classes: Any) -> bool:
    """``isinstance`` as it was before surgery, which is true of a D-ReLU too."""
    return isinstance(value, classes) or issubclass(type_before(value), classes)


def is_relu(called: Any) -> bool:
    """Whether an object is an activation that surgery replaces, or the replacement of one."""
    return isinstance(called, SITE_CLASSES) or kinds.of_callable(called) is not None


def call_site(site: Any, called: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a D-ReLU in place of the activation ``called``; if the user has set another module there, call that."""
    if is_relu(called) or not isinstance(site, SITE_CLASSES):
        return site(args[0] if args else kwargs["input"])
    return called(*args, **kwargs)


def call_site_of_sum(site: Any, called: Any, x: Any, residual: Any) -> Any:
    """``call_site`` of ``x + residual``."""
    if is_relu(called) and isinstance(site, ResidualDReLU | PendingSite):
        return site(x, residual)
    return call_site(site, called, x + residual)
