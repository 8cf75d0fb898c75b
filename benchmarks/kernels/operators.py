"""One call of each operator of ``dreluop.ops.schemas``: without autograd, and without dreluop's Python side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.suite import Case, Data
from dreluop.ops.composite import mask_order
from dreluop.ops.handles import Operators

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
    y, mask, penalty = calls.capped_relu_with_aux(x, cap, 1, True, BALANCER)
    order = mask_order(y, cap)
    weight = torch.ones_like(penalty)
    bias = torch.ones_like(cap) if case.granularity == "neuron" else x.new_ones(case.shape[1])
    scratch = x.clone()
    caps: list[Tensor] = [cap] * 8
    return {
        "capped_relu": lambda: calls.capped_relu(x, cap, 1),
        "capped_relu with bias and residual": lambda: calls.capped_relu(x, cap, 1, bias, grad),
        "capped_relu_": lambda: calls.capped_relu_(scratch, cap, 1),
        "capped_relu_with_aux": lambda: calls.capped_relu_with_aux(x, cap, 1, True, BALANCER),
        "capped_relu_with_aux_": lambda: calls.capped_relu_with_aux_(scratch, cap, 1, True, BALANCER),
        "capped_relu_backward": lambda: calls.capped_relu_backward(grad, y, cap, 1, (), True, True, BALANCER, weight),
        "capped_relu_backward with bias": lambda: calls.capped_relu_backward(
            grad, y, cap, 1, (), True, True, None, None, bias
        ),
        "capped_relu_backward from mask": lambda: calls.capped_relu_backward(
            grad, mask, cap, 1, order, True, True, None, None
        ),
        "capped_relu_jvp": lambda: calls.capped_relu_jvp(grad, cap, y, cap, 1, ()),
        "capped_relu_surrogate_backward": lambda: calls.capped_relu_surrogate_backward(grad, y, cap, 1, (), None),
        "capped_relu_surrogate_backward, soft": lambda: calls.capped_relu_surrogate_backward(grad, x, cap, 1, (), cap),
        "cap_saturation": lambda: calls.cap_saturation(x, cap, 1),
        "cap_penalty": lambda: calls.cap_penalty(caps, BALANCER),
        "cap_penalty_backward": lambda: calls.cap_penalty_backward(weight, caps, BALANCER),
    }
