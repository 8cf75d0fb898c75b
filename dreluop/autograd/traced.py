"""A call that torch.compile or ``torch.jit.trace`` traces: operators, which carry the same derivatives.

Dynamo refuses an autograd.Function with a jvp, and ``torch.jit.trace`` cannot save one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from dreluop._internal import torch_private
from dreluop.backends import compile_policy
from dreluop.backends.selection import operators_for
from dreluop.ops.call import Call
from dreluop.ops.composite import accumulation_dtype, sum_dtype
from dreluop.ops.handles import FUSED, Operators


def run(call: Call) -> Tensor | tuple[Tensor, Tensor]:
    """What torch.compile sees."""
    fuses = compile_policy.fuses(call.x, call.cap, call.mask, call.zeroed)
    operators = FUSED if fuses else operators_for(call.x)
    y, _, _ = operators.activate(call._replace(balancer=None))
    return y if call.balancer is None else (y, penalty(operators, [call.cap], call.balancer))


def penalty(operators: Operators, caps: list[Tensor], balancer: float) -> Tensor:
    """By an operator whose number is always 1: it is a constant there, and each would be compiled anew.

    In the dtype of sums, so that nothing overflows before the balancer makes it small.
    """
    wide = [cap.to(sum_dtype(cap.device)) for cap in caps]
    return (operators.cap_penalty(wide, 1.0) * balancer).to(accumulation_dtype(*caps))


def refuse_transforms_in_jit_trace() -> None:
    """``torch.jit.trace`` fails at the shape of a tensor inside torch.func."""
    if torch_private.transforms_active():
        raise RuntimeError(
            "capped_relu: not in torch.jit.trace of torch.vmap or another torch.func transform; use torch.compile, or "
            "trace a function without the transform"
        )


@contextmanager
def not_traced() -> Iterator[None]:
    """In a trace every size is a tensor, and torch warns of each comparison."""
    state = torch_private.get_tracing_state()
    torch_private.set_tracing_state(None)
    try:
        yield
    finally:
        torch_private.set_tracing_state(state)
