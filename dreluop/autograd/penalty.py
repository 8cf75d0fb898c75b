"""The penalty on the caps, `balancer * sum(m^2)`, and its derivatives (equation (1) of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dreluop._internal import torch_private
from dreluop.autograd.base import (
    BelowAutograd,
    Function,
    backward_on_backend_of_forward,
    below_autograd,
    derivative_may_be_asked,
    jvp_on_backend_of_forward,
    save_for_backward,
)
from dreluop.backends import reference
from dreluop.backends.selection import operators, operators_for
from dreluop.ops.composite import accumulation_dtype


class CapPenaltyFunction(Function):
    """``balancer * sum over all caps of sum(m^2)``, equation (1) of the paper; ``apply(balancer, *caps)``."""

    @staticmethod
    def forward(balancer: float, *caps: Tensor) -> Tensor:
        with BelowAutograd():
            return operators_for(caps[0]).cap_penalty(caps, balancer)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.operators = operators()
        ctx.balancer, *caps = inputs
        save_for_backward(ctx, *caps)
        ctx.save_for_forward(*caps)

    @staticmethod
    @backward_on_backend_of_forward
    def backward(ctx: Any, saved_tensors: tuple[Tensor, ...], *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *penalty_gradient(grads[0], saved_tensors, ctx.balancer))

    @staticmethod
    @jvp_on_backend_of_forward
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return penalty_tangent(ctx.saved_for_forward, tangents[1:], ctx.balancer)


def penalty_of(caps: Sequence[Tensor], balancer: float) -> Tensor:
    """The penalty, differentiable in every way: one operator call, or plain torch inside torch.func transforms."""
    if torch_private.transforms_active():
        return reference.cap_penalty(caps, balancer)
    total: Tensor = CapPenaltyFunction.apply(balancer, *caps)
    return total


def penalty_gradient(grad: Tensor, caps: Sequence[Tensor], balancer: float) -> list[Tensor]:
    """``2 * balancer * grad * m`` for every cap: one operator call, or plain torch where a derivative may be asked."""
    # is_grads_batched of torch.autograd.grad has no fallback for an operator with a list.
    batched = not torch.compiler.is_dynamo_compiling() and any(
        map(torch_private.functorch.is_legacy_batchedtensor, (grad, *caps))
    )
    if batched or derivative_may_be_asked(grad, *caps):
        dtype = accumulation_dtype(grad, *caps)
        return [(2 * balancer * grad.to(dtype) * cap.to(dtype)).to(cap.dtype) for cap in caps]
    with below_autograd():
        result: list[Tensor] = operators().cap_penalty_backward(grad, list(caps), balancer)
    return result


def penalty_tangent(caps: Sequence[Tensor], tangents: Sequence[Tensor | None], balancer: float) -> Tensor:
    dtype = accumulation_dtype(*caps)
    total = torch.zeros((), dtype=dtype, device=caps[0].device)
    for cap, cap_tangent in zip(caps, tangents, strict=True):
        if cap_tangent is not None:
            total = total + (cap.to(dtype) * cap_tangent.to(dtype)).sum()
    return 2 * balancer * total
