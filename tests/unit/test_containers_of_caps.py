"""Caps in torch's containers of parameters and in mappings: their tensors are the caps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dreluop import DReLU, cap_penalty, project_caps, project_caps_after_step
from dreluop._internal.caps_given import modules_of

CONTAINERS: dict[str, Callable[[list[nn.Parameter]], Any]] = {
    "ParameterList": nn.ParameterList,
    "ParameterDict": lambda caps: nn.ParameterDict({str(index): cap for index, cap in enumerate(caps)}),
    "dict": lambda caps: {str(index): cap for index, cap in enumerate(caps)},
    "list": list,
    "generator": iter,
}
by_container = pytest.mark.parametrize("name", CONTAINERS)


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.tensor([[3.0]]))]


@by_container
def test_penalty(name: str) -> None:
    caps = parameters()
    penalty = cap_penalty(CONTAINERS[name](caps), 0.5)
    penalty.backward()
    assert penalty.item() == 7.0
    assert [cap.grad.tolist() for cap in caps if cap.grad is not None] == [[1.0, -2.0], [[3.0]]]


def test_modules_are_those_of_torch_in_its_order() -> None:
    shared = nn.Sequential(DReLU(), nn.Sequential(DReLU(2), nn.ReLU()))
    model = nn.ModuleDict({"a": nn.Linear(1, 1), "b": shared, "c": nn.ModuleList([DReLU(), shared[1]])})
    model["c"].register_module("none", None)
    assert list(modules_of(model)) == list(model.modules())


@by_container
def test_projection(name: str) -> None:
    caps = parameters()
    project_caps(CONTAINERS[name](caps), 0.25)
    assert [cap.tolist() for cap in caps] == [[1.0, 0.25], [[3.0]]]


@by_container
def test_projection_after_a_step(name: str) -> None:
    caps = parameters()
    optimizer = torch.optim.SGD(caps, 1.0)
    project_caps_after_step(optimizer, CONTAINERS[name](caps), 0.25)
    for cap in caps:
        cap.grad = torch.full_like(cap, 2.0)
    optimizer.step()
    assert [cap.tolist() for cap in caps] == [[0.25, 0.25], [[1.0]]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ParameterList", "ParameterDict"])
def test_compiled(name: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.caps = CONTAINERS[name](parameters())

        def forward(self) -> Tensor:
            return cap_penalty(self.caps, 0.5)

    model = Model()
    penalty = torch.compile(model, backend="aot_eager", fullgraph=True)()
    penalty.backward()
    assert penalty.item() == 7.0
    assert [cap.grad.tolist() for cap in model.parameters() if cap.grad is not None] == [[1.0, -2.0], [[3.0]]]


@pytest.mark.parametrize("name", ["ParameterList", "ParameterDict", "dict", "list"])
def test_an_empty_container_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="caps: got no tensor; expected at least one"):
        cap_penalty(CONTAINERS[name]([]), 0.5)


def test_what_is_no_cap_is_named() -> None:
    with pytest.raises(TypeError, match=r"caps\[1\]: got int; expected a torch.Tensor"):
        cap_penalty(nn.ParameterList([nn.Parameter(torch.ones(1)), 3]), 0.5)
    with pytest.raises(TypeError, match=r"caps\[0\]: got DReLU; expected a torch.Tensor"):
        cap_penalty([DReLU()], 0.5)


def test_a_module_that_holds_a_container_gives_its_layers_only() -> None:
    model = nn.ModuleDict({"weights": nn.ParameterList(parameters()), "activation": DReLU(2, init=1.0)})
    assert cap_penalty(model, 0.5).item() == 1.0
    with pytest.raises(ValueError, match="got a ModuleDict without any DReLU"):
        cap_penalty(nn.ModuleDict({"weights": nn.ParameterList(parameters())}), 0.5)
