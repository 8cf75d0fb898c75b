"""The modules that replace activations, and the functions that changed mask calls to reach them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dreluop.batch_norm import (
    BatchNormActivation,
    BatchNormDReLU1d,
    BatchNormDReLU2d,
    BatchNormDReLU3d,
    _BatchNormDReLU,
)
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


class BatchNormOfSum(_BatchNormDReLU):
    """A batch norm with caps whose residual may be what a sum takes; the sum is made first then."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if residual is None or isinstance(x, fx.Proxy) or _alike(x, residual):
            return super().forward(x, residual)
        return capped_relu(_BatchNorm.forward(self, x) + residual, self.cap)


class ResidualBatchNormDReLU1d(BatchNormOfSum, BatchNormDReLU1d):
    __doc__ = BatchNormOfSum.__doc__


class ResidualBatchNormDReLU2d(BatchNormOfSum, BatchNormDReLU2d):
    __doc__ = BatchNormOfSum.__doc__


class ResidualBatchNormDReLU3d(BatchNormOfSum, BatchNormDReLU3d):
    __doc__ = BatchNormOfSum.__doc__


# What a batch norm becomes by itself, and with a sum.
WITH_CAPS: dict[type, tuple[type[nn.Module], type[nn.Module]]] = {
    nn.BatchNorm1d: (BatchNormDReLU1d, ResidualBatchNormDReLU1d),
    nn.BatchNorm2d: (BatchNormDReLU2d, ResidualBatchNormDReLU2d),
    nn.BatchNorm3d: (BatchNormDReLU3d, ResidualBatchNormDReLU3d),
}
# The attribute in which such a batch norm keeps the name that the activation has without it, if code called that.
ACTIVATION = "_dreluop_activation"


class InBatchNorm(nn.Identity):
    """In the place of an activation in a Sequential that the batch norm before it computes."""


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


def call_norm(norm: Any, called: Any, x: Any, residual: Any = None) -> Any:
    """A batch norm with caps in place of ``called(norm(x) + residual)``; else, what the user has set there.

    Args:
        called: the activation; where the code names a function, its bound.
    """
    is_bound = called is None or isinstance(called, float)
    if isinstance(norm, BatchNormActivation) and (is_bound or is_relu(called)):
        return norm(x) if residual is None else norm(x, residual)
    y = _BatchNorm.forward(norm, x) if isinstance(norm, BatchNormActivation) else norm(x)
    y = y if residual is None else y + residual
    return y.clamp(0, called) if is_bound else called(y)
