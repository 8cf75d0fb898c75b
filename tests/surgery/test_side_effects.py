"""Forwards that do more than compute: they do it after surgery too."""

from __future__ import annotations

import contextlib
import copy
import logging
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from dreluop import DReLU
from dreluop.surgery import replace_activations, set_caps
from tests.surgery.models import OneCall

SEEN: list[Any] = []
FLAG = False
LOGGER = logging.getLogger(__name__)


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * 100


EFFECTS: dict[str, type[OneCall]] = {}


def effect(forward: Callable[..., Any]) -> None:
    name = forward.__name__
    EFFECTS[name] = type(name, (OneCall,), {"forward": forward})


@effect
def attribute(self: Any, x: Tensor) -> Tensor:
    self.last = x
    return functional.relu(self.linear(x))


@effect
def counter(self: Any, x: Tensor) -> Tensor:
    self.count += 1
    return functional.relu(self.linear(x))


@effect
def global_variable(self: Any, x: Tensor) -> Tensor:
    global FLAG  # noqa: PLW0603
    FLAG = False
    return functional.relu(self.linear(x))


@effect
def append(self: Any, x: Tensor) -> Tensor:
    self.log.append(x.shape)
    return functional.relu(self.linear(x))


@effect
def dictionary(self: Any, x: Tensor) -> Tensor:
    self.cache["x"] = x
    return functional.relu(self.linear(x))


@effect
def list_in_a_dictionary(self: Any, x: Tensor) -> Tensor:
    self.cache["shapes"].append(x.shape)
    return functional.relu(self.linear(x))


@effect
def list_of_an_object(self: Any, x: Tensor) -> Tensor:
    self.settings.seen.append(x.shape)
    return functional.relu(self.linear(x))


@effect
def append_to_a_global(self: Any, x: Tensor) -> Tensor:
    SEEN.append(x.shape)
    return functional.relu(self.linear(x))


@effect
def prints(self: Any, x: Tensor) -> Tensor:
    print("seen")
    return functional.relu(self.linear(x))


def _say(x: Tensor) -> Tensor:
    print("seen")
    return x


@effect
def prints_in_a_helper(self: Any, x: Tensor) -> Tensor:
    return functional.relu(self.linear(_say(x)))


@effect
def logger(self: Any, x: Tensor) -> Tensor:
    LOGGER.info("seen")
    return functional.relu(self.linear(x))


@effect
def logs(self: Any, x: Tensor) -> Tensor:
    logging.info("seen")
    return functional.relu(self.linear(x))


@effect
def clock(self: Any, x: Tensor) -> Tensor:
    return functional.relu(self.linear(x)) * (time.time() > 0)


@effect
def no_grad(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = self.linear(x)
    return functional.relu(x + self.linear.bias)


@effect
def autocast(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        x = self.linear(x)
    return functional.relu(x)


@effect
def record_function(self: Any, x: Tensor) -> Tensor:
    with torch.profiler.record_function("block"):
        return functional.relu(self.linear(x))


@effect
@torch.no_grad()
def decorated(self: Any, x: Tensor) -> Tensor:
    return functional.relu(self.linear(x))


@effect
def grad_mode(self: Any, x: Tensor) -> Tensor:
    torch.set_grad_enabled(True)
    return functional.relu(self.linear(x))


@effect
def asks_for_the_grad_mode(self: Any, x: Tensor) -> Tensor:
    return functional.relu(self.linear(x)) if torch.is_grad_enabled() else x


@effect
def checkpointed(self: Any, x: Tensor) -> Any:
    return functional.relu(checkpoint(self.linear, x, use_reentrant=False))


@effect
def own_gradient(self: Any, x: Tensor) -> Tensor:
    return functional.relu(Squared.apply(self.linear(x)))


@effect
def python_random(self: Any, x: Tensor) -> Tensor:
    return x if random.random() < self.probability else functional.relu(self.linear(x))


@effect
def numpy_random(self: Any, x: Tensor) -> Tensor:
    return functional.relu(self.linear(x)) if np.random.rand() < 2 else x


@effect
def stochastic_depth(self: Any, x: Tensor) -> Tensor:
    if self.training and torch.rand(1).item() < self.probability:
        return x
    return x + functional.relu(self.linear(x))


@effect
def seed(self: Any, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    return functional.relu(self.linear(x))


@effect
def isinstance_of_input(self: Any, x: Tensor) -> Tensor:
    return functional.relu(self.linear(x)) if isinstance(x, Tensor) else x


@effect
def isinstance_of_parameter(self: Any, x: Tensor) -> Tensor:
    return x if isinstance(x, nn.Parameter) else functional.relu(self.linear(x))


@effect
def is_tensor(self: Any, x: Tensor) -> Tensor:
    return functional.relu(self.linear(x)) if torch.is_tensor(x) else x


@effect
def type_of_input(self: Any, x: Tensor) -> Tensor:
    return functional.relu(self.linear(x)) if type(x) is Tensor else x


@effect
def attribute_of_input(self: Any, x: Tensor) -> Tensor:
    return x if hasattr(x, "mask") else functional.relu(self.linear(x))


@effect
def identity(self: Any, x: Tensor) -> Tensor:
    return functional.relu(self.linear(x)) if x.dtype is torch.float32 else x


@effect
def exceptions(self: Any, x: Tensor) -> Tensor:
    try:
        if x.sum() > 0:
            return x
    except Exception:
        pass
    return functional.relu(self.linear(x))


@effect
def suppressed(self: Any, x: Tensor) -> Tensor:
    with contextlib.suppress(Exception):
        if x.sum() > 0:
            return x
    return functional.relu(self.linear(x))


@effect
def settings(self: Any, x: Tensor) -> Tensor:
    return functional.relu(self.linear(x)) * self.settings.scale


@effect
def buffer_decides(self: Any, x: Tensor) -> Tensor:
    return x if self.steps > 3 else functional.relu(self.linear(x))


@effect
def setattr_called(self: Any, x: Tensor) -> Tensor:
    setattr(self, "last", 1)  # noqa: B010
    return functional.relu(self.linear(x))


@effect
def dict_of_the_module(self: Any, x: Tensor) -> Tensor:
    self.__dict__["last"] = 1
    return functional.relu(self.linear(x))


@effect
def freezes(self: Any, x: Tensor) -> Tensor:
    self.linear.requires_grad_(True)
    return functional.relu(self.linear(x))


def facts(module: nn.Module) -> dict[str, Any]:
    own = {name: copy.deepcopy(value) for name, value in vars(module).items() if not name.startswith("_")}
    buffers = {name: value.clone() for name, value in module.named_buffers()}
    return {**own, **buffers, "seen": list(SEEN)}


@pytest.mark.parametrize("name", EFFECTS)
def test_code_with_effects_keeps_them(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    original = EFFECTS[name]()
    model = copy.deepcopy(original)
    states = torch.get_rng_state(), random.getstate()
    SEEN.clear()
    before = str(facts(model))
    report = replace_activations(model, granularity="layer")
    # Without an example nothing runs.
    assert [site.action for site in report.sites] == ["replaced"]
    assert str(facts(model)) == before
    assert (torch.get_rng_state() == states[0]).all()
    assert random.getstate() == states[1]
    assert capsys.readouterr().out == ""
    set_caps(model, torch.inf)
    results = []
    for one in (original, model):
        SEEN.clear()
        random.seed(1), torch.manual_seed(1)
        x = torch.linspace(-1, 1, 12).view(3, 4).requires_grad_()
        y = one(x)
        gradient = torch.autograd.grad(y.sum(), x, allow_unused=True)[0] if y.requires_grad else None
        results.append((y, gradient, str(facts(one)), capsys.readouterr().out))
    assert torch.equal(results[0][0], results[1][0])
    assert str(results[0][1:]) == str(results[1][1:])


@pytest.mark.parametrize("name", EFFECTS)
def test_a_run_on_an_example_leaves_the_model_as_it_is(name: str) -> None:
    model = EFFECTS[name]()
    before = facts(model)
    before.pop("seen")
    x = torch.randn(3, 4).abs()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    report = replace_activations(model, example_input=x)
    after = facts(model)
    assert str({key: after[key] for key in before}) == str(before)
    assert (torch.get_rng_state() == states[0]).all()
    assert (random.getstate(), str(np.random.get_state())) == (states[1], str(states[2]))
    assert torch.is_grad_enabled()
    assert report.verified == ("eval", "train")


class InPlaceStatistics(OneCall):
    """A buffer and a plain tensor that the forward updates: operations, which a graph holds."""

    def forward(self, x: Tensor) -> Tensor:
        self.steps.add_(1)
        self.shift.mul_(2)
        return functional.relu(self.linear(x)) * self.steps + self.shift


def test_updates_of_tensors_go_on() -> None:
    original = InPlaceStatistics()
    model = copy.deepcopy(original)
    set_caps(model, {site.name: torch.inf for site in replace_activations(model).replaced})
    x = torch.randn(3, 4)
    for _ in range(3):
        assert torch.equal(model(x), original(x))
    assert (model.steps, model.shift[0]) == (3, 8)
    assert isinstance(model.relu, DReLU)
