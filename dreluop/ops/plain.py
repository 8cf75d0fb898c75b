"""The operators as functional aten operators, for graphs that must not hold operators of ours.

``ExportedProgram.run_decompositions`` and ``make_fx`` put these in an operator's place. Where sums are added in another
order, and strides of results that an operator promises, may differ; values do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from dreluop.backends import reference
from dreluop.backends.reference import (
    effective_cap,
    extras,
    fused_sum,
    gradients,
    regions_of_saved,
    tangent_of,
    value,
)
from dreluop.ops.schemas import NAMESPACE, overloads_of


def forward(x: Tensor, cap: Tensor, dim: int = 1, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    return value(fused_sum(x, dim, bias, residual), effective_cap(cap, x, dim))


def forward_extra(
    x: Tensor,
    cap: Tensor,
    dim: int,
    code: bool,
    balancer: float | None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    y = forward(x, cap, dim, bias, residual)
    return y, *extras(y, cap, dim, code, balancer)


def backward(
    grad: Tensor,
    saved: Tensor,
    cap: Tensor,
    dim: int,
    order: Sequence[int],
    need_x: bool,
    need_cap: bool,
    balancer: float | None,
    grad_penalty: Tensor | None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    regions = regions_of_saved(saved, cap, dim, order, grad.shape)
    return gradients(grad, regions, cap, dim, need_x, need_cap, balancer, grad_penalty, bias)


def tangent(u: Tensor, v: Tensor | None, saved: Tensor, cap: Tensor, dim: int, order: Sequence[int]) -> Tensor:
    return tangent_of(u, v, regions_of_saved(saved, cap, dim, order, u.shape), dim)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "forward": forward,
    "forward_extra": forward_extra,
    "backward": backward,
    "tangent": tangent,
    "surrogate": reference.surrogate_values,
    "saturation": reference.saturation,
    "penalty": reference.penalty,
    "penalty_backward": reference.penalty_backward,
}


def decompositions() -> dict[OpOverload, Callable[..., Any]]:
    """A new table of all operators of dreluop, of every backend, by functions of functional aten operators only.

    For ``torch.export.ExportedProgram.run_decompositions`` and ``make_fx``: what comes of it needs no dreluop to run.
    ``torch.export`` itself keeps the operators. The two that write over x are not in it:
    ``run_decompositions`` replaces them by the others first (``ops.functionalized``).
    """
    namespace = getattr(torch.ops, NAMESPACE)
    return {
        getattr(getattr(namespace, name), which or "default"): function
        for name, function in FUNCTIONS.items()
        for which in overloads_of(name)
    }
