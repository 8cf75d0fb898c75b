"""A checked call in eager mode."""

from __future__ import annotations

from torch import Tensor

from dreluop._internal import checks
from dreluop.autograd.base import BelowAutograd, derivative_may_be_asked
from dreluop.autograd.function import CappedReLUFunction, SavedMask
from dreluop.autograd.penalty import penalty_of
from dreluop.backends.selection import operators_for
from dreluop.ops.call import Call, bias_and_residual


def run(call: Call) -> Tensor | tuple[Tensor, Tensor]:
    """y, or y and the penalty."""
    x, cap, dim, inplace, save, balancer, bias, residual = call
    operators = operators_for(x)
    added = bias_and_residual(call)
    if inplace:
        checks.writable_in_place(x, cap=cap, bias=bias, residual=residual)
    if not derivative_may_be_asked(x, cap, *added):
        with BelowAutograd():
            return operators.values(call)
    # autograd refuses a second result of a function that writes over a view.
    fused = None if inplace and x._is_view() else balancer
    saved = SavedMask() if inplace and save == "mask" else save
    result = CappedReLUFunction.apply(x, cap, dim, inplace, saved, fused, *added)
    outputs: tuple[Tensor, ...] = result if isinstance(result, tuple) else (result,)
    if balancer is None:
        return outputs[0]
    return outputs[0], penalty_of([cap], balancer) if fused is None else outputs[-1]
