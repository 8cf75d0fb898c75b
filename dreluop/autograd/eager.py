"""A call in eager mode."""

from __future__ import annotations

import torch
from torch import Tensor

from dreluop._internal import checks, torch_private
from dreluop.autograd.base import BelowAutograd, in_transform_or_forward_mode
from dreluop.autograd.function import EXACT, KernelActivation, activated
from dreluop.backends.selection import operators_for
from dreluop.ops.call import Call


def run(call: Call) -> Tensor | tuple[Tensor, Tensor]:
    """y, or y and the penalty."""
    x, cap, _, _, _, bias, residual, _, inplace = call
    operators = operators_for(x)
    if inplace:
        checks.writable_in_place(x, cap=cap, bias=bias, residual=residual)
    if in_transform_or_forward_mode():
        y, _, penalty = KernelActivation.run(call)
    elif torch.is_grad_enabled() and torch_private.any_requires_grad(x, cap, bias, residual):
        y, _, penalty = activated(call, EXACT, forward_mode=False)
    else:
        with BelowAutograd():
            return operators.values(call)
    return y if penalty is None else (y, penalty)
