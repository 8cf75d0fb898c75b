"""The operators as functional aten operators, for graphs that must not hold operators of ours.

``ExportedProgram.run_decompositions`` and ``make_fx`` put these in an operator's place. Where sums are added in another
order, and strides of results that an operator promises, may differ; values do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dreluop._internal import torch_private
from dreluop._internal.shapes import broadcast_shape
from dreluop._internal.zeroed import ABOVE
from dreluop.ops import composite
from dreluop.ops.call import BackwardCall, Call
from dreluop.ops.composite import (
    effective_cap,
    fused_sum,
    gradients,
    mask_and_penalty,
    off_of,
    regions_of_saved,
    sum_dtype,
    tangent_of,
)
from dreluop.ops.schemas import NAMESPACE, overloads_of


def capped_relu(
    x: Tensor,
    cap: Tensor,
    dim: int = 1,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    zeroed: int = 0,
) -> Tensor:
    m = effective_cap(cap, x, dim)
    return differentiable_value(fused_sum(x, dim, bias, residual), m, m, zeroed)


def differentiable_value(t: Tensor, m: Tensor, per_element: Tensor, zeroed: int = 0) -> Tensor:
    """``value(t, m)`` with all derivatives of the rule, at ties and NaN too; those of the cap go to ``per_element``.

    ``torch.minimum`` would divide the gradient at a tie between t and m.
    """
    y = torch.minimum(t, m).detach()
    off = off_of(y, t, m, zeroed)
    # Adding NaN passes the gradient on to t. Both comparisons are false for NaN.
    t = t + torch.where(m.isnan(), m, 0).detach()
    return torch.where(off, 0, t if zeroed & ABOVE else torch.where(y >= m, per_element, t))


def cap_per_element(cap: Tensor, x: Tensor, dim: int) -> Tensor:
    """The cap in x's shape and dtype, expanded in the dtype in which its gradient is then summed."""
    wide = cap.to(sum_dtype(x.device)).reshape(broadcast_shape(x.shape, cap.shape, dim))
    return wide.expand(x.shape).to(x.dtype)


def capped_relu_with_aux(*arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor, Tensor]:
    call = Call(*arguments, **keywords)
    y = capped_relu(call.x, call.cap, call.dim, call.bias, call.residual, call.zeroed)
    return y, *mask_and_penalty(y, call)


def capped_relu_backward(*arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor, Tensor]:
    call = BackwardCall(*arguments, **keywords)
    return gradients(call, regions_of_saved(call.saved, call.cap, call.dim, call.order, call.grad.shape, call.zeroed))


def capped_relu_jvp(
    u: Tensor, v: Tensor | None, saved: Tensor, cap: Tensor, dim: int, order: Sequence[int], zeroed: int = 0
) -> Tensor:
    return tangent_of(u, v, regions_of_saved(saved, cap, dim, order, u.shape, zeroed), dim)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "capped_relu": capped_relu,
    "capped_relu_with_aux": capped_relu_with_aux,
    "capped_relu_backward": capped_relu_backward,
    "capped_relu_jvp": capped_relu_jvp,
    "capped_relu_surrogate_backward": composite.surrogate_values,
    "cap_saturation": composite.cap_saturation,
    "cap_penalty": composite.cap_penalty,
    "cap_penalty_backward": composite.cap_penalty_backward,
}


def decompositions() -> dict[torch_private.OpOverload, Callable[..., Any]]:
    """A new table of all operators of dreluop, of every backend, by functions of functional aten operators only.

    For ``torch.export.ExportedProgram.run_decompositions`` and ``make_fx``: what comes of it needs no dreluop to run.
    ``torch.export`` itself keeps the operators. The two that write over x are not in it:
    ``run_decompositions`` replaces them by the others first (``autograd.functionalize``).
    """
    namespace = getattr(torch.ops, NAMESPACE)
    return {
        getattr(getattr(namespace, name), which or "default"): function
        for name, function in FUNCTIONS.items()
        for which in overloads_of(name)
    }
