"""The arguments of one call, as one value: ``Call`` of the activation, ``BackwardCall`` of its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Call(NamedTuple):
    """Checked arguments of ``dreluop.capped_relu``, with the shapes and dtypes given there."""

    x: Tensor
    cap: Tensor
    dim: int = 1
    inplace: bool = False
    save: str = "output"
    balancer: float | None = None
    bias: Tensor | None = None
    residual: Tensor | None = None


class BackwardCall(NamedTuple):
    """Arguments of the operator ``capped_relu_backward`` (``ops.schemas``).

    Attributes:
        grad: the gradient of y.
        saved, order: what forward saved, y or the packed mask, and the order of the mask's dimensions.
        need_x, need_cap: which gradients are wanted; that of the bias where ``bias`` is given.
        balancer, grad_penalty: of the penalty that forward returned, and its gradient.
    """

    grad: Tensor
    saved: Tensor
    cap: Tensor
    dim: int
    order: Sequence[int]
    need_x: bool
    need_cap: bool
    balancer: float | None = None
    grad_penalty: Tensor | None = None
    bias: Tensor | None = None


def bias_and_residual(call: Call) -> tuple[Tensor | None, ...]:
    """Both, or nothing where there is neither: torch handles fewer arguments faster."""
    return () if call.bias is None and call.residual is None else (call.bias, call.residual)
