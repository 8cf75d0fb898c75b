"""What changed code reads beside its inputs is read anew in each pass."""

from __future__ import annotations

import copy
import pickle
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dreluop import DReLU
from dreluop.surgery import replace_activations, set_caps, to_torch
from tests.surgery.models import OneCall

SCALE = 3.0


class Numbers(OneCall):
    """Numbers that are read, passed on, and decide; a function held by the module, a global, another's attribute."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.linear(x)) * self.alpha
        x = functional.dropout(x, self.probability, self.training)
        return x[:, : self.linear.out_features]


class Deciding(OneCall):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = self.act(self.linear(x))
        return x * SCALE if self.flag is None or not self.flag else x


def opened(model: nn.Module) -> nn.Module:
    report = replace_activations(model, granularity="layer")
    assert report.replaced
    assert not report.left
    set_caps(model, torch.inf)
    return model


def test_a_number_that_is_passed_on_may_change() -> None:
    original = Numbers()
    model = opened(copy.deepcopy(original))
    x = torch.randn(5, 4)
    for alpha, probability in ((0.5, 0.3), (2.0, 0.9), (-1, 0.0)):
        for one in (original, model):
            one.alpha, one.probability = alpha, probability
        for training in (True, False):
            torch.manual_seed(0)
            want = original.train(training)(x)
            torch.manual_seed(0)
            assert torch.equal(model.train(training)(x), want)


class LookedUp(OneCall):
    """A number that is looked up, asked for its type, and a list of indices."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = [0, 2]

    def forward(self, x: Tensor) -> Any:
        x = functional.relu(self.linear(x)) if self.times in {2, 4} else x
        x = x * {2: 5.0}.get(self.times, 0.5) if isinstance(self.times, int) else x
        return sum(functional.relu(self.linear(x)) * index for index in range(4) if index in self.kept)


@pytest.mark.parametrize("cls", [Deciding, LookedUp])
@pytest.mark.parametrize(("name", "value"), [("times", 3), ("flag", True), ("act", torch.tanh), ("kept", [1, 3])])
def test_a_value_that_decides_may_change(cls: type[OneCall], name: str, value: Any) -> None:
    original = cls()
    model = opened(copy.deepcopy(original))
    x = torch.randn(5, 4)
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        baseline = copy.deepcopy(original)
        assert torch.equal(other(x), baseline(x))
        setattr(other, name, value), setattr(baseline, name, value)
        assert torch.equal(other(x), baseline(x))


def test_a_global_number_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Deciding()
    model = opened(copy.deepcopy(original))
    x = torch.randn(2, 4)
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 4.0)
    assert torch.equal(model(x), original(x))


class InPlaceInTraining(OneCall):
    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return functional.relu(x, inplace=self.training) + x


def test_a_call_that_is_in_place_in_one_mode_is_left() -> None:
    original = InPlaceInTraining()
    model = copy.deepcopy(original)
    report = replace_activations(model)
    assert [site.action for site in report.sites] == ["left"]
    assert [one.reason for one in report.remaining] == ["whether it is in place is decided when it runs"]
    x = torch.randn(3, 4)
    for training in (True, False):
        assert torch.equal(model.train(training)(x), original.train(training)(x))


class TwoCalls(OneCall):
    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.linear(functional.relu(self.linear(x))))


def test_a_second_surgery_adds_to_the_first_and_does_not_stop_compilers() -> None:
    model = TwoCalls()
    first = replace_activations(model, select="relu")
    assert [(site.name, site.action) for site in first.sites] == [("relu", "replaced"), ("relu_1", "left")]
    x = torch.randn(2, 4)
    want = model(x)
    torch.compiler.reset()
    assert torch.equal(torch.compile(model, fullgraph=True, backend="eager")(x), want)
    assert torch.equal(torch.export.export(model, (x,)).module()(x), want)
    assert torch.equal(to_torch(model.eval())(x), want)
    assert [site.name for site in replace_activations(model).replaced] == ["relu_1"]
    assert sum(isinstance(module, DReLU) for module in model.modules()) == 2
    assert type(model).__mro__[1] is TwoCalls
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))
