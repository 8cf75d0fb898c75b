"""What the tests of surrogate gradients share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import dreluop
from dreluop.adaptive import surrogate_backward
from tests.support import oracle
from tests.support.cases import FEW_CASES

MODES = pytest.mark.parametrize("mode", ["straight_through", "soft"])
STD = 0.7
TAU = 0.4
# Every granularity and both memory formats; a slice.
SOME_CASES = (FEW_CASES[0], FEW_CASES[4], FEW_CASES[5], FEW_CASES[8])


def entered(mode: str, tau: float = TAU, std: Any = STD) -> Any:
    return surrogate_backward(mode, tau, std=std if mode == "soft" else None)


def assert_gradient(got: Tensor, mode: str, grad: Tensor, t: Tensor, cap: Tensor, dim: int = 1) -> None:
    if mode == "straight_through":
        oracle.assert_same_bits(got, oracle.straight_through(grad, t, cap, dim))
    else:
        width = torch.full(cap.shape, TAU * STD, dtype=oracle.accumulator(t))
        oracle.assert_soft(got, grad, t, cap, width, dim)


def exact(function: Callable[[Tensor], Tensor]) -> bool:
    """Whether a new forward has the ordinary backward: 0 at the cap."""
    x = torch.tensor([2.0], requires_grad=True)
    return torch.autograd.grad(function(x), x)[0].item() == 0


def activation(x: Tensor) -> Tensor:
    return dreluop.capped_relu(x, 1.0)
