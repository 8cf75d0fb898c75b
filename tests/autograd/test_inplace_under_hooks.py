"""In place where a hook or a wrapper made x: the message names what made it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dreluop import DReLU, SReLU, capped_relu

pytestmark = pytest.mark.usefixtures("both_nodes")


class Same(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def without_gradients(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x.detach().view(-1)


MADE: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "autograd.Function": (Same.apply, r"by an autograd\.Function, such as the one that full backward hooks put"),
    "split": (lambda x: x.split(2)[0], "by chunk, split or unbind"),
    "no_grad": (without_gradients, "without gradients"),
}


@pytest.mark.parametrize("make", MADE)
@pytest.mark.parametrize("options", [{}, {"save": "mask"}, {"balancer": 0.1}], ids=["", "mask", "balancer"])
def test_views_that_autograd_protects(make: str, options: dict[str, Any]) -> None:
    function, words = MADE[make]
    base = torch.randn(4, 5, requires_grad=True) * 1
    x, before = function(base), base.detach().clone()
    with pytest.raises(
        ValueError, match=f"inplace: x is a view that autograd does not let be written over, made {words}"
    ):
        capped_relu(x, torch.ones((), requires_grad=True), inplace=True, **options)
    assert torch.equal(base.detach(), before)


@pytest.mark.parametrize("hook", ["register_full_backward_hook", "register_full_backward_pre_hook"])
@pytest.mark.parametrize("layer", [DReLU, SReLU, nn.ReLU])
def test_module_hooks(layer: Any, hook: str) -> None:
    activation = layer(inplace=True) if layer is not SReLU else layer(1.0, inplace=True)
    getattr(activation, hook)(lambda *_: None)
    model = nn.Sequential(nn.Linear(5, 5), activation)
    error = RuntimeError if layer is nn.ReLU else ValueError
    with pytest.raises(error, match=r"BackwardHookFunction|full backward hooks put before a module"):
        model(torch.randn(2, 5))
