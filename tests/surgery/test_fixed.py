"""What a rewritten forward reads beside its inputs: read anew, or fixed and guarded."""

from __future__ import annotations

import copy
import functools
import pickle
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dreluop import DReLU
from dreluop.surgery import replace_activations, set_caps, to_plain
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
    report = replace_activations(model)
    assert report.replaced
    assert not report.left
    set_caps(model, torch.inf)
    return model


def test_a_number_that_is_passed_on_is_read_anew() -> None:
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
    """A number that is looked up, and asked for its type."""

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.linear(x)) if self.times in {2, 4} else x
        return x * {2: 5.0}.get(self.times, 0.0) if isinstance(self.times, int) else x


def test_a_number_that_is_looked_up_is_fixed() -> None:
    original = LookedUp()
    model = opened(copy.deepcopy(original))
    x = torch.randn(2, 4)
    assert torch.equal(model(x), original(x))
    model.times = 3
    with pytest.raises(ValueError, match="times: got 3"):
        model(x)


class Listed(OneCall):
    def __init__(self) -> None:
        super().__init__()
        self.kept = [0, 2]

    def forward(self, x: Tensor) -> list[Tensor]:
        parts = []
        for index in range(3):
            x = functional.relu(self.linear(x))
            if index in self.kept:
                parts.append(x)
        return parts


def test_a_list_that_changes_is_guarded() -> None:
    original = Listed()
    model = opened(copy.deepcopy(original))
    x = torch.randn(2, 4)
    for other in (model, pickle.loads(pickle.dumps(model))):
        assert all(map(torch.equal, other(x), original(x)))
        other.kept.append(1)
        with pytest.raises(ValueError, match=r"kept: got \[0, 2, 1\]; .* while it was \[0, 2\]"):
            other(x)
    assert original.kept == [0, 2]


class InPlaceInTraining(OneCall):
    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return functional.relu(x, inplace=self.training) + x


def test_a_call_that_differs_between_the_modes_is_left() -> None:
    original = InPlaceInTraining()
    model = copy.deepcopy(original)
    report = replace_activations(model)
    assert report.untraced == {"": "an activation differs between train and eval mode"}
    assert [site.action for site in report.sites] == ["left"]
    x = torch.randn(3, 4)
    for training in (True, False):
        assert torch.equal(model.train(training)(x), original.train(training)(x))


@pytest.mark.parametrize(("name", "value"), [("times", 3), ("flag", True), ("act", torch.tanh)])
def test_a_value_that_decides_is_guarded(name: str, value: Any) -> None:
    original = Deciding()
    model = opened(copy.deepcopy(original))
    x = torch.randn(5, 4)
    was = getattr(model, name)
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), original(x))
        setattr(other, name, value)
        with pytest.raises(ValueError, match=f"{name}: got .* the forward of this Deciding was rewritten by dreluop"):
            other(x)
        setattr(other, name, was)
        assert torch.equal(other(x), original(x))


def test_a_global_number_is_guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened(Deciding())
    x = torch.randn(2, 4)
    model(x)
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 4.0)
    with pytest.raises(ValueError, match=r"SCALE: got 4.0; .* while it was 3.0"):
        model(x)


def test_guards_outlive_a_second_surgery_and_do_not_stop_compilers() -> None:
    model = Deciding()
    replace_activations(model, select="relu")
    x = torch.randn(2, 4)
    want = model(x)
    torch.compiler.reset()
    assert torch.equal(torch.compile(model, fullgraph=True, backend="eager")(x), want)
    assert torch.equal(torch.export.export(model, (x,)).module()(x), want)
    assert torch.equal(to_plain(model.eval())(x), want)
    replace_activations(model)
    assert sum(isinstance(module, DReLU) for module in model.modules()) == 2
    model.flag = True
    with pytest.raises(ValueError, match="flag: got True"):
        model(x)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = functional.relu(self.linear(x))
        return x if mask is None else x * mask


class PassesNone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.masked = Masked()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.masked(x, None)
        return result


def test_none_for_an_argument_is_no_value() -> None:
    model = opened(Masked())
    x = torch.ones(2, 4)
    assert model(x, x).shape == x.shape
    with pytest.raises(ValueError, match="mask: got None; this forward was rewritten"):
        model(x, None)
    original = PassesNone()
    caller = copy.deepcopy(original)
    assert replace_activations(caller).untraced == {"masked": "its caller passes None for mask"}
    assert torch.equal(caller(x), original(x))


def test_a_profiler_goes_on() -> None:
    calls: list[str] = []
    profile = functools.partial(lambda frame, event, argument: calls.append(event))
    sys.setprofile(profile)
    try:
        replace_activations(Numbers())
        assert sys.getprofile() is profile
    finally:
        sys.setprofile(None)
