"""Chooses how a call runs: by a surrogate, on a DTensor's parts, in a compiled graph, a jit trace or eager mode."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dreluop._internal import checks, dtensor, torch_private
from dreluop._internal.errors import raise_as_of_torch
from dreluop.autograd import eager, sharded, surrogate, traced
from dreluop.autograd.penalty import penalty_of
from dreluop.backends.selection import operators_for
from dreluop.ops.call import Call


def run(call: Call) -> Tensor | tuple[Tensor, Tensor]:
    """y, or y and the penalty."""
    compiling = torch.compiler.is_compiling()
    by_shards = call.mask and dtensor.is_distributed(call.x)
    if surrogate.active:
        run_surrogate = surrogate.run_outside_graphs if compiling else surrogate.run
        replaced = run_surrogate(call._replace(mask=False) if by_shards else call)
        if replaced is not None:
            return replaced
    if by_shards:
        return sharded.run(call, run)
    return traced.run(call) if compiling else eager.run(call)


def check_and_run(*arguments: Any) -> Tensor | tuple[Tensor, Tensor]:
    """Check the arguments, which are those of ``Call.checked``, and run the call."""
    if torch.compiler.is_compiling():
        # Dynamo cannot leave its graph within a try, and would never look at this function again.
        return run(Call.checked(*arguments))
    try:
        if torch_private.is_tracing() and not surrogate.active:
            return _run_in_jit_trace(*arguments)
        return run(Call.checked(*arguments))
    except RuntimeError as error:
        raise_as_of_torch(error)
        raise


def _run_in_jit_trace(*arguments: Any) -> Tensor | tuple[Tensor, Tensor]:
    traced.refuse_transforms_in_jit_trace()
    with traced.not_traced():
        call = Call.checked(*arguments)
        if call.inplace:
            checks.writable_in_place(call.x, cap=call.cap, bias=call.bias, residual=call.residual)
    return operators_for(call.x).values(call)


def penalty(caps: list[Tensor], balancer: float) -> Tensor:
    """The penalty on checked caps."""
    if dtensor.any_distributed(*caps) and len(groups := dtensor.by_mesh(caps)) > 1:
        return torch.stack([dtensor.full_tensor(_penalty(group, balancer)) for group in groups]).sum()
    return _penalty(caps, balancer)


def _penalty(caps: list[Tensor], balancer: float) -> Tensor:
    operators = operators_for(caps[0])
    if torch.compiler.is_compiling():
        return traced.penalty(operators, caps, balancer)
    return operators.cap_penalty(caps, balancer) if torch_private.is_tracing() else penalty_of(caps, balancer)
