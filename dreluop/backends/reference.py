"""Every operator in pure PyTorch: works on any device, and is what all other backends are tested against.

The arithmetic is in ``ops.composite``; here are the checks, and the strides that the operators promise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dreluop._internal import operator_checks
from dreluop.ops.call import BackwardCall, Call
from dreluop.ops.composite import (
    cap_penalty,
    cap_penalty_backward,
    cap_saturation,
    effective_cap,
    empty_as_saved,
    fused_sum,
    gradients,
    mask_and_penalty,
    regions_of_saved,
    surrogate_values,
    tangent_of,
    value,
)
from dreluop.ops.schemas import DEFAULT, SCHEMAS, library, overload

__all__ = [
    "cap_penalty",
    "cap_penalty_backward",
    "cap_saturation",
    "capped_relu",
    "capped_relu_",
    "capped_relu_backward",
    "capped_relu_jvp",
    "capped_relu_surrogate_backward",
    "capped_relu_with_aux",
    "capped_relu_with_aux_",
]


def capped_relu(
    x: Tensor,
    cap: Tensor,
    dim: int = 1,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    zeroed: int = 0,
) -> Tensor:
    operator_checks.inputs(x, cap, dim, bias, residual, zeroed)
    return value(fused_sum(x, dim, bias, residual), effective_cap(cap, x, dim), torch.empty_like(x), zeroed)


def capped_relu_(
    x: Tensor,
    cap: Tensor,
    dim: int = 1,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    zeroed: int = 0,
) -> None:
    operator_checks.writable(x)
    x.copy_(capped_relu(x, cap, dim, bias, residual, zeroed))


def capped_relu_with_aux(*arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor, Tensor]:
    call = Call(*arguments, **keywords)
    y = capped_relu(call.x, call.cap, call.dim, call.bias, call.residual, call.zeroed)
    return y, *mask_and_penalty(y, call)


def capped_relu_with_aux_(*arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
    call = Call(*arguments, **keywords)
    capped_relu_(call.x, call.cap, call.dim, call.bias, call.residual, call.zeroed)
    return mask_and_penalty(call.x, call)


def capped_relu_backward(*arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor, Tensor]:
    call = BackwardCall(*arguments, **keywords)
    operator_checks.backward(call)
    regions = regions_of_saved(call.saved, call.cap, call.dim, call.order, call.grad.shape, call.zeroed)
    out = empty_as_saved(call.grad, call.saved, call.order) if call.need_x else None
    return gradients(call, regions, out)


def capped_relu_jvp(
    u: Tensor, v: Tensor | None, saved: Tensor, cap: Tensor, dim: int, order: Sequence[int], zeroed: int = 0
) -> Tensor:
    operator_checks.saved("u", u, saved, cap, dim, order, zeroed)
    if v is not None and v.shape != cap.shape:
        raise ValueError(f"v: got shape {tuple(v.shape)}; expected the cap's, {tuple(cap.shape)}")
    regions = regions_of_saved(saved, cap, dim, order, u.shape, zeroed)
    return tangent_of(u, v, regions, dim, empty_as_saved(u, saved, order))


def capped_relu_surrogate_backward(
    grad: Tensor, saved: Tensor, cap: Tensor, dim: int, order: Sequence[int], width: Tensor | None = None
) -> Tensor:
    value = surrogate_values(grad, saved, cap, dim, order, width)
    return empty_as_saved(grad, saved, order).copy_(value)


def register() -> None:
    """Serve every device that no other backend has registered a kernel for."""
    for name in SCHEMAS:
        for which in (DEFAULT, "reference"):
            library.impl(overload(name, which), globals()[name], "CompositeExplicitAutograd")
