"""Shapes, dtypes and strides of every operator's results, for torch.compile, export and the meta device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dreluop._internal import operator_checks
from dreluop._internal.operator_checks import ELEMENTS_PER_BYTE
from dreluop.ops.call import BackwardCall, Call
from dreluop.ops.composite import accumulation_dtype, empty_as_saved
from dreluop.ops.schemas import NAMESPACE, library, overload, overloads_of


def _forward(
    x: Tensor,
    cap: Tensor,
    dim: int = 1,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    zeroed: int = 0,
) -> Tensor:
    operator_checks.inputs(x, cap, dim, bias, residual, zeroed)
    return torch.empty_like(x)


def _forward_(
    x: Tensor,
    cap: Tensor,
    dim: int = 1,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    zeroed: int = 0,
) -> None:
    operator_checks.inputs(x, cap, dim, bias, residual, zeroed)
    # No kernel of ours looks at what is fused.
    operator_checks.writable(x)


def _with_aux(*arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor, Tensor]:
    call = Call(*arguments, **keywords)
    return torch.empty_like(call.x), *_with_aux_(*call.of_operator)


def _with_aux_(*arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
    call = Call(*arguments, **keywords)
    x, cap = call.x, call.cap
    operator_checks.inputs(x, cap, call.dim, call.bias, call.residual, call.zeroed)
    size = (x.numel() + ELEMENTS_PER_BYTE - 1) // ELEMENTS_PER_BYTE if call.mask else 0
    shape = () if call.balancer is not None else (0,)
    return x.new_empty((size,), dtype=torch.uint8), cap.new_empty(shape, dtype=accumulation_dtype(cap))


def _backward(*arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor, Tensor]:
    call = BackwardCall(*arguments, **keywords)
    operator_checks.backward(call)
    grad, cap, bias = call.grad, call.cap, call.bias
    dx = empty_as_saved(grad, call.saved, call.order) if call.need_x else grad.new_empty((0,))
    dbias = grad.new_empty((0,)) if bias is None else bias.new_empty(bias.shape)
    return dx, cap.new_empty(cap.shape if call.need_cap else (0,)), dbias


def _tangent(
    u: Tensor, v: Tensor | None, saved: Tensor, cap: Tensor, dim: int, order: Sequence[int], zeroed: int = 0
) -> Tensor:
    operator_checks.saved("u", u, saved, cap, dim, order, zeroed)
    return empty_as_saved(u, saved, order)


def _surrogate(
    grad: Tensor, saved: Tensor, cap: Tensor, dim: int, order: Sequence[int], width: Tensor | None = None
) -> Tensor:
    operator_checks.saved("grad", grad, saved, cap, dim, order)
    if width is not None:
        operator_checks.width(width, saved, cap)
    return empty_as_saved(grad, saved, order)


def _saturation(x: Tensor, cap: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
    operator_checks.inputs(x, cap, dim)
    return x.new_empty((3, *cap.shape), dtype=torch.int64), x.new_empty((x.shape[0],), dtype=torch.bool)


def _penalty(caps: Sequence[Tensor], balancer: float) -> Tensor:
    return caps[0].new_empty((), dtype=accumulation_dtype(*caps))


def _penalty_backward(grad: Tensor, caps: Sequence[Tensor], balancer: float) -> list[Tensor]:
    return [cap.new_empty(cap.shape) for cap in caps]


FAKES: dict[str, Callable[..., Any]] = {
    "capped_relu": _forward,
    "capped_relu_": _forward_,
    "capped_relu_with_aux": _with_aux,
    "capped_relu_with_aux_": _with_aux_,
    "capped_relu_backward": _backward,
    "capped_relu_jvp": _tangent,
    "capped_relu_surrogate_backward": _surrogate,
    "cap_saturation": _saturation,
    "cap_penalty": _penalty,
    "cap_penalty_backward": _penalty_backward,
}


def register() -> None:
    for name, fake in FAKES.items():
        for which in overloads_of(name):
            torch.library.register_fake(f"{NAMESPACE}::{overload(name, which)}", fake, lib=library)
