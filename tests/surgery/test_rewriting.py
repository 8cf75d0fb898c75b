"""Forwards that are written anew, and those that cannot be."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dreluop.surgery import replace_activations, set_caps
from tests.surgery.helpers import d_relus, open_caps, weights_of
from tests.surgery.models import (
    DataDependent,
    Functional,
    Inner,
    OptionalArgument,
    ResidualBlock,
    SharedBlock,
)


def test_a_block_called_often_has_a_cap_per_call_and_still_one_weight() -> None:
    model = SharedBlock()
    report = replace_activations(model)
    assert [site.name for site in report.sites] == ["block.act", "act", "act_1"]
    assert len(weights_of(model)) == 2
    set_caps(model, {"block.act": 3.0, "act": 2.0, "act_1": 1e-3})
    assert model(torch.randn(20, 5)).max() <= 1e-3


def test_a_sequence_that_repeats_a_block_says_that_calls_share() -> None:
    block = Inner()
    report = replace_activations(nn.Sequential(block, block))
    (site,) = report.sites
    assert site.reason == "0 (Inner) is called 2 times in a forward pass, with the same caps"


def test_what_cannot_be_traced_is_replaced_by_module_and_told() -> None:
    model = DataDependent()
    report = replace_activations(model, granularity="layer")
    assert list(d_relus(model)) == ["inner.act", "act"]
    assert "symbolically traced variables cannot be used as inputs to control flow" in report.untraced[""]
    reasons = {site.name: site.reason for site in report.sites}
    assert reasons == {
        "act": "replaced as a module, all its calls share the caps: the model was not traced", "inner.act": "",
    }  # fmt: skip
    assert "not traced: (model): TraceError" in str(report)
    assert model(torch.randn(3, 5)).shape == (3, 5)


class FreshTensor(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x) + torch.ones(3)


def test_a_forward_that_a_trace_would_freeze_is_left() -> None:
    report = replace_activations(nn.Sequential(nn.Linear(3, 3), FreshTensor()))
    (site,) = report.sites
    assert site.action == "left"
    assert "makes a tensor that depends on no input" in site.reason
    assert "makes a tensor that depends on no input" in report.untraced["1"]


def test_torch_layers_that_hide_a_relu_are_told() -> None:
    report = replace_activations(nn.Sequential(nn.TransformerEncoderLayer(8, 2), nn.RNN(8, 8, nonlinearity="relu")))
    assert not report.sites
    assert report.untraced == {
        "0": "torch.nn.TransformerEncoderLayer computes its ReLU inside",
        "1": "torch.nn.RNN computes its ReLU inside",
    }


def test_graphs_and_scripts_are_told() -> None:
    graph = torch.fx.symbolic_trace(ResidualBlock(6, 3, False))
    scripted = torch.jit.trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.ones(2, 4))
    holder = nn.Sequential(graph, scripted, torch.fx.symbolic_trace(Functional()))
    report = replace_activations(holder, granularity="layer")
    assert report.untraced["0"] == "its forward is a torch.fx graph; apply surgery to the module before it is traced"
    assert report.untraced["1"] == "a TorchScript module cannot be looked into"
    actions = [(site.name, site.action) for site in report.sites]
    assert actions[:3] == [("0.relu", "replaced")] * 3
    assert {action for _, action in actions[3:]} == {"left"}
    assert len(d_relus(holder)) == 1
    assert graph(torch.randn(2, 6, 5, 5)).min() >= 0


class NumbersInPlace(nn.Module):
    """A number that is used under its old name after ``+=``."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = old = x.shape[0]
        rows += 5
        y = self.linear(x)
        y *= 2
        return functional.relu(y) * old + rows


def test_in_place_operators_mean_what_they_meant() -> None:
    original = NumbersInPlace()
    model = copy.deepcopy(original)
    open_caps(model, replace_activations(model))
    x = torch.randn(3, 4)
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), original(x))


def test_an_optional_argument_is_taken_at_its_default_and_another_refused() -> None:
    model = OptionalArgument()
    replace_activations(model)
    x = torch.randn(2, 5)
    model(x)
    with pytest.raises(ValueError, match=r"shift: got Tensor; this forward was rewritten .* for its default, None"):
        model(x, torch.ones(5))


class Caller(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.module(x, x)
        return result


def test_an_optional_argument_that_the_model_passes_stays() -> None:
    original = Caller(OptionalArgument())
    model = copy.deepcopy(original)
    open_caps(model, replace_activations(model))
    x = torch.randn(4, 5)
    assert torch.equal(model(x), original(x))
