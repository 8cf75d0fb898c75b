"""One call of each operator of ``dreluop.ops.schemas``: without autograd, and without dreluop's Python side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.suite import Case, Data
from dreluop.backends.reference import code_order
from dreluop.ops.calls import Operators

BALANCER = 0.5
Call = Callable[[], Any]


def every_call(case: Case, data: Data, calls: Operators) -> dict[str, Call]:
    """What can be timed, by name; in-place calls write over a tensor of their own.

    Args:
        case: says what a bias looks like.
        data: x, cap and gradient of y.
        calls: the operators of a backend.
    """
    x, cap, grad = data.x, data.cap, data.grad
    y, code, penalty = calls.forward_extra(x, cap, 1, True, BALANCER)
    order = code_order(y, cap)
    weight = torch.ones_like(penalty)
    bias = torch.ones_like(cap) if case.granularity == "neuron" else x.new_ones(case.shape[1])
    scratch = x.clone()
    caps: list[Tensor] = [cap] * 8
    return {
        "forward": lambda: calls.forward(x, cap, 1),
        "forward with bias and residual": lambda: calls.forward(x, cap, 1, bias, grad),
        "forward_": lambda: calls.forward_(scratch, cap, 1),
        "forward_extra": lambda: calls.forward_extra(x, cap, 1, True, BALANCER),
        "forward_extra_": lambda: calls.forward_extra_(scratch, cap, 1, True, BALANCER),
        "backward": lambda: calls.backward(grad, y, cap, 1, (), True, True, BALANCER, weight),
        "backward with bias": lambda: calls.backward(grad, y, cap, 1, (), True, True, None, None, bias),
        "backward from code": lambda: calls.backward(grad, code, cap, 1, order, True, True, None, None),
        "tangent": lambda: calls.tangent(grad, cap, y, cap, 1, ()),
        "surrogate": lambda: calls.surrogate(grad, y, cap, 1, (), None),
        "surrogate, soft": lambda: calls.surrogate(grad, x, cap, 1, (), cap),
        "saturation": lambda: calls.saturation(x, cap, 1),
        "penalty": lambda: calls.penalty(caps, BALANCER),
        "penalty_backward": lambda: calls.penalty_backward(weight, caps, BALANCER),
    }
