"""Forwards that are written anew, and those that cannot be."""

from __future__ import annotations

import copy
import pickle

import torch
from torch import Tensor, nn
from torch.nn import functional

from dreluop.surgery import replace_activations, set_caps
from tests.surgery.helpers import d_relus, open_caps, weights_of
from tests.surgery.models import (
    DataDependent,
    Functional,
    OptionalArgument,
    ResidualBlock,
    SharedBlock,
)


def test_a_block_called_often_has_one_cap_for_all_calls_and_says_so() -> None:
    model = SharedBlock()
    report = replace_activations(model, example_input=torch.randn(2, 5))
    (site,) = report.replaced
    assert (site.name, site.reason) == ("block.act", "it is called 3 times in a forward pass, with the same caps")
    assert len(weights_of(model)) == 2
    set_caps(model, 1e-3)
    assert model(torch.randn(20, 5)).max() <= 1e-3


def test_code_that_goes_by_its_data_is_changed_like_any_other() -> None:
    original = DataDependent()
    model = copy.deepcopy(original)
    report = replace_activations(model, granularity="layer")
    assert list(d_relus(model)) == ["inner.act", "act", "relu"]
    assert not report.remaining
    open_caps(model, report)
    for x in torch.randn(20, 3, 5):
        assert torch.equal(model(x), original(x))


class FreshTensor(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x) + torch.ones(3)


def test_a_tensor_that_depends_on_no_input_is_no_matter() -> None:
    original = nn.Sequential(nn.Linear(3, 3), FreshTensor())
    model = copy.deepcopy(original)
    open_caps(model, replace_activations(model))
    x = torch.randn(4, 3)
    assert torch.equal(model(x), original(x))


def test_transformer_layers_are_done_and_rnns_are_reported() -> None:
    original = nn.ModuleList([nn.TransformerEncoderLayer(8, 2), nn.RNN(8, 8, nonlinearity="relu")]).eval()
    model = copy.deepcopy(original)
    report = replace_activations(model)
    assert [site.name for site in report.replaced] == ["0.activation"]
    assert [(one.module, one.reason) for one in report.remaining] == [("1", "it computes its ReLU inside")]
    open_caps(model, report)
    x = torch.randn(4, 2, 8)
    torch.testing.assert_close(model[0](x), original[0](x))
    set_caps(model, 1e-3)
    with torch.no_grad():
        # Torch's fast path would compute a ReLU.
        assert (model[0](x) - original[0](x)).abs().max() > 1e-2


def test_graphs_and_scripts_are_reported() -> None:
    graph = torch.fx.symbolic_trace(ResidualBlock(6, 3, False))
    scripted = torch.jit.trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.ones(2, 4))
    holder = nn.Sequential(graph, scripted, torch.fx.symbolic_trace(Functional()))
    report = replace_activations(holder, granularity="layer")
    assert [site.name for site in report.replaced] == ["0.relu"]
    assert {one.module: one.reason for one in report.remaining} == {
        "1.1": "it is a TorchScript module, which has no Python code to change",
        "2": "it is a torch.fx graph; apply surgery to the module before it is traced",
    }
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


def test_an_optional_argument_stays_optional() -> None:
    original = OptionalArgument()
    model = copy.deepcopy(original)
    open_caps(model, replace_activations(model))
    x = torch.randn(2, 5)
    for shift in (None, torch.ones(5)):
        assert torch.equal(model(x, shift), original(x, shift))


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
