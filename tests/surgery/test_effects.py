"""Forwards that do more than compute: rewritten only where nothing is lost, else left as they are and told."""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
import random
import time
from collections.abc import Callable
from typing import Any

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


EFFECTS: dict[str, tuple[type[OneCall], str]] = {}


def effect(reason: str) -> Callable[[Callable[..., Any]], None]:
    def add(forward: Callable[..., Any]) -> None:
        name = forward.__name__
        EFFECTS[name] = type(name, (OneCall,), {"forward": forward}), reason

    return add


@effect("its forward sets the attribute last")
def attribute(self: Any, x: Tensor) -> Tensor:
    self.last = x
    return functional.relu(self.linear(x))


@effect("its forward sets the attribute count")
def counter(self: Any, x: Tensor) -> Tensor:
    self.count += 1
    return functional.relu(self.linear(x))


@effect("its forward sets FLAG, which lives outside of it")
def global_variable(self: Any, x: Tensor) -> Tensor:
    global FLAG  # noqa: PLW0603
    FLAG = False
    return functional.relu(self.linear(x))


@effect("its forward changes log")
def append(self: Any, x: Tensor) -> Tensor:
    self.log.append(x.shape)
    return functional.relu(self.linear(x))


@effect("its forward changes cache")
def dictionary(self: Any, x: Tensor) -> Tensor:
    self.cache["x"] = x
    return functional.relu(self.linear(x))


@effect("its forward changes cache")
def list_in_a_dictionary(self: Any, x: Tensor) -> Tensor:
    self.cache["shapes"].append(x.shape)
    return functional.relu(self.linear(x))


@effect("its forward changes settings")
def list_of_an_object(self: Any, x: Tensor) -> Tensor:
    self.settings.seen.append(x.shape)
    return functional.relu(self.linear(x))


@effect("its forward changes SEEN")
def append_to_a_global(self: Any, x: Tensor) -> Tensor:
    SEEN.append(x.shape)
    return functional.relu(self.linear(x))


@effect("its forward calls print")
def prints(self: Any, x: Tensor) -> Tensor:
    print("seen")
    return functional.relu(self.linear(x))


def _say(x: Tensor) -> Tensor:
    print("seen")
    return x


@effect("its forward calls print")
def prints_in_a_helper(self: Any, x: Tensor) -> Tensor:
    return functional.relu(self.linear(_say(x)))


@effect("its forward calls logging.info")
def logger(self: Any, x: Tensor) -> Tensor:
    LOGGER.info("seen")
    return functional.relu(self.linear(x))


@effect("its forward calls logging.info")
def logs(self: Any, x: Tensor) -> Tensor:
    logging.info("seen")
    return functional.relu(self.linear(x))


@effect("its forward calls time")
def clock(self: Any, x: Tensor) -> Tensor:
    return functional.relu(self.linear(x)) * (time.time() > 0)


@effect("its forward changes the grad or autocast mode")
def no_grad(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = self.linear(x)
    return functional.relu(x + self.linear.bias)


@effect("its forward changes the grad or autocast mode")
def autocast(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        x = self.linear(x)
    return functional.relu(x)


@effect("its forward has a with statement")
def record_function(self: Any, x: Tensor) -> Tensor:
    with torch.profiler.record_function("block"):
        return functional.relu(self.linear(x))


@effect("its forward is decorated")
@torch.no_grad()
def decorated(self: Any, x: Tensor) -> Tensor:
    return functional.relu(self.linear(x))


@effect("its forward calls torch.autograd.grad_mode.set_grad_enabled")
def grad_mode(self: Any, x: Tensor) -> Tensor:
    torch.set_grad_enabled(True)
    return functional.relu(self.linear(x))


@effect("its forward calls is_grad_enabled")
def asks_for_the_grad_mode(self: Any, x: Tensor) -> Tensor:
    return functional.relu(self.linear(x)) if torch.is_grad_enabled() else x


@effect("its forward calls torch.utils.checkpoint.checkpoint")
def checkpointed(self: Any, x: Tensor) -> Any:
    return functional.relu(checkpoint(self.linear, x, use_reentrant=False))


@effect("its forward calls torch.autograd.function.apply")
def own_gradient(self: Any, x: Tensor) -> Tensor:
    return functional.relu(Squared.apply(self.linear(x)))


@effect("its forward draws random numbers")
def python_random(self: Any, x: Tensor) -> Tensor:
    return x if random.random() < self.probability else functional.relu(self.linear(x))


@effect("its forward draws random numbers")
def stochastic_depth(self: Any, x: Tensor) -> Tensor:
    if self.training and torch.rand(1).item() < self.probability:
        return x
    return x + functional.relu(self.linear(x))


@effect("its forward calls torch.random.manual_seed")
def seed(self: Any, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    return functional.relu(self.linear(x))


@effect("its forward asks for the type of an input")
def isinstance_of_input(self: Any, x: Tensor) -> Tensor:
    return functional.relu(self.linear(x)) if isinstance(x, Tensor) else x


@effect("its forward asks for the type of an input")
def isinstance_of_parameter(self: Any, x: Tensor) -> Tensor:
    return x if isinstance(x, nn.Parameter) else functional.relu(self.linear(x))


@effect("its forward calls torch.is_tensor")
def is_tensor(self: Any, x: Tensor) -> Tensor:
    return functional.relu(self.linear(x)) if torch.is_tensor(x) else x


@effect("its forward asks for the type of a value")
def type_of_input(self: Any, x: Tensor) -> Tensor:
    return functional.relu(self.linear(x)) if type(x) is Tensor else x


@effect("its forward asks whether an input has an attribute")
def attribute_of_input(self: Any, x: Tensor) -> Tensor:
    return x if hasattr(x, "mask") else functional.relu(self.linear(x))


@effect("its forward asks whether two values are one object")
def identity(self: Any, x: Tensor) -> Tensor:
    return functional.relu(self.linear(x)) if x.dtype is torch.float32 else x


@effect("its forward handles exceptions")
def exceptions(self: Any, x: Tensor) -> Tensor:
    try:
        if x.sum() > 0:
            return x
    except Exception:
        pass
    return functional.relu(self.linear(x))


@effect("its forward changes the grad or autocast mode, which|its forward has a with|TraceError")
def suppressed(self: Any, x: Tensor) -> Tensor:
    with contextlib.suppress(Exception):
        if x.sum() > 0:
            return x
    return functional.relu(self.linear(x))


@effect("its forward reads the attribute settings, a Settings, which may change")
def settings(self: Any, x: Tensor) -> Tensor:
    return functional.relu(self.linear(x)) * self.settings.scale


@effect("TraceError")
def buffer_decides(self: Any, x: Tensor) -> Tensor:
    return x if self.steps > 3 else functional.relu(self.linear(x))


@effect("its forward calls setattr")
def setattr_called(self: Any, x: Tensor) -> Tensor:
    setattr(self, "last", 1)  # noqa: B010
    return functional.relu(self.linear(x))


@effect("its forward reads __dict__")
def dict_of_the_module(self: Any, x: Tensor) -> Tensor:
    self.__dict__["last"] = 1
    return functional.relu(self.linear(x))


@effect("its forward calls torch.nn.modules.module.requires_grad_")
def freezes(self: Any, x: Tensor) -> Tensor:
    self.linear.requires_grad_(True)
    return functional.relu(self.linear(x))


def facts(module: nn.Module) -> dict[str, Any]:
    own = {name: copy.deepcopy(value) for name, value in vars(module).items() if not name.startswith("_")}
    return {**own, **{name: value.clone() for name, value in module.state_dict().items()}, "seen": list(SEEN)}


@pytest.mark.parametrize("name", EFFECTS)
def test_an_effect_leaves_the_forward_and_is_told(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    cls, reason = EFFECTS[name]
    model = cls()
    before = facts(model)
    states = torch.get_rng_state(), random.getstate()
    report = replace_activations(model)
    assert type(model) is cls
    assert not report.replaced
    assert any(report.untraced[""].startswith(one) for one in reason.split("|")), report.untraced
    assert capsys.readouterr().out == ""
    assert str(facts(model)) == str(before)
    assert (torch.get_rng_state() == states[0]).all()
    assert random.getstate() == states[1]
    assert torch.is_grad_enabled()


class LocalClosure(OneCall):
    """Writes into a list of its own pass, from a function inside."""

    def forward(self, x: Tensor) -> Tensor:
        parts: list[Tensor] = []

        def keep(part: Tensor) -> None:
            parts.append(part)

        keep(functional.relu(self.linear(x)))
        keep(x)
        return torch.cat(parts, 1)


def test_a_list_of_an_enclosing_function_is_an_effect() -> None:
    seen: list[Any] = []

    class Remembering(OneCall):
        def remember(self, x: Tensor) -> Tensor:
            seen.append(x.shape)
            return x

        def forward(self, x: Tensor) -> Tensor:
            return functional.relu(self.linear(self.remember(x)))

    report = replace_activations(Remembering())
    assert report.untraced == {"": "its forward changes seen"}
    assert not seen


def test_a_list_of_the_pass_itself_is_no_effect() -> None:
    original = LocalClosure()
    model = copy.deepcopy(original)
    report = replace_activations(model)
    assert [site.action for site in report.sites] == ["replaced"]
    x = torch.randn(3, 4).relu()
    set_caps(model, torch.inf)
    assert torch.equal(model(x), original(x))


class Branches(OneCall):
    """Asks an input for its type: the trace sees one branch of two."""

    def __init__(self) -> None:
        super().__init__()
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return self.relu1(x) if isinstance(x, Tensor) else self.relu2(x)


def test_modules_of_the_branch_that_a_trace_misses_are_replaced() -> None:
    model = Branches()
    report = replace_activations(model, granularity="layer")
    assert type(model) is Branches
    assert [site.name for site in report.replaced] == ["relu2", "relu1"]
    assert report.untraced == {"": "its forward asks for the type of an input"}
    with pytest.raises(ValueError, match="example_input: the layer before 'relu1' does not tell how many channels"):
        replace_activations(Branches())


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


def test_what_a_garbage_collection_runs_is_no_effect() -> None:
    seen = 0

    def count(*_: object) -> None:
        nonlocal seen
        seen += 1

    before = gc.get_threshold()
    gc.callbacks.append(count)
    gc.set_threshold(1)
    try:
        (site,) = replace_activations(LocalClosure(), granularity="layer").sites
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(count)
    assert seen > 0 and gc.isenabled()
    assert site.action == "replaced"
