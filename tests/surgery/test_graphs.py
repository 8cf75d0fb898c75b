"""Tracing one module by torch.fx."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dreluop.surgery import graphs


class Restless(nn.Module):
    """Its forward changes all that a forward can."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.count, self.log, self.cache = 0, [1], {"seen": [2]}
        self.shift = torch.ones(2)
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros(2))

    def forward(self, x: Tensor, flag: bool = False, mode: str = "a") -> Any:
        self.count += 1
        self.log.append(x)
        self.cache["seen"].append(x)
        self.shift += 1
        self.steps.add_(1)
        self.new = nn.Linear(2, 2)
        noise = torch.rand(2)
        return self.linear(x) + noise if self.training or flag or mode != "a" else (x + self.shift + self.steps)


@pytest.mark.parametrize("training", [True, False])
def test_the_module_and_the_random_state_stay(training: bool) -> None:
    module = Restless()
    before = dict(vars(module))
    names = list(module._modules)
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    graph = graphs.trace(module, training)
    assert torch.equal(torch.rand(3), want)
    assert all(vars(module)[name] is value for name, value in before.items()) and len(vars(module)) == len(before)
    assert (module.log, module.cache, module.count, list(module._modules)) == ([1], {"seen": [2]}, 0, names)
    assert module.shift.tolist() == [1, 1] and module.steps.tolist() == [0, 0]
    called = [node.target for node in graph.nodes if node.op == "call_module"]
    assert called == (["linear"] if training else [])
    assert [node.target for node in graph.find_nodes(op="placeholder")] == ["x", "flag", "mode"]


def test_arguments_without_their_default() -> None:
    with pytest.raises(ValueError, match="symbolically traced variables cannot be used as inputs to control flow"):
        graphs.trace(Restless(), False, defaults=False)
    assert graphs.optional_arguments(Restless()) == {"flag": False, "mode": "a"}
