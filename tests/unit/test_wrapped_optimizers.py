"""project_caps_after_step of optimizers in wrappers: the hook runs at each step of the wrapper, or it is refused."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dreluop
from dreluop import DReLU

MINIMUM = 0.01


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=1e-2)


class Accelerated(torch.optim.Optimizer):
    """As accelerate's: never initialized as an optimizer, so that it has no hooks."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.optimizer.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return self.optimizer.step(closure)


class Lookahead(Accelerated):
    """As timm's: hooks can be registered, and are never called."""

    def __init__(self, base: torch.optim.Optimizer, every: int = 3, alpha: float = 0.5) -> None:
        self._optimizer_step_pre_hooks: Any = OrderedDict()
        self._optimizer_step_post_hooks: Any = OrderedDict()
        self.optimizer, self.every, self.alpha, self.count = base, every, alpha, 0
        self.state = defaultdict(dict)
        self.slow = [(fast, fast.detach().clone()) for group in base.param_groups for fast in group["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        result = self.optimizer.step(closure)
        self.count += 1
        for fast, slow in self.slow if self.count % self.every == 0 else ():
            slow.lerp_(fast, self.alpha)
            fast.copy_(slow)
        return result


class Fabric:
    """As Lightning's: no optimizer at first, then of a class that is one."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self.__class__ = type("Fabric" + type(optimizer).__name__, (Fabric, type(optimizer)), {})

    def step(self) -> Any:
        return self._optimizer.step()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)


class Several:
    """No optimizer, but it holds some."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = {index: one for index, one in enumerate(optimizers)}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for one in self.optimizers.values() for group in one.param_groups]

    def zero_grad(self) -> None:
        for one in self.optimizers.values():
            one.zero_grad()

    def step(self) -> None:
        for one in self.optimizers.values():
            one.step()


class TwoSteps(torch.optim.Optimizer):
    """As SAM: ``second_step`` steps the inner optimizer without ``step`` of this one."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer.param_groups, {})
        self.base = optimizer

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return self.base.step(closure)

    second_step = step


class Doubling(torch.optim.Optimizer):
    """A wrapper with hooks that changes the parameters after the inner step."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer.param_groups, {})
        self.base = optimizer

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        result = self.base.step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(0.001)
        return result


def scheduled(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    optimizer = adam(parameters)
    torch.optim.lr_scheduler.StepLR(optimizer, 1000)  # wraps optimizer.step
    return optimizer


def second_steps(parameters: Iterable[nn.Parameter]) -> Any:
    optimizer = TwoSteps(adam(parameters))
    optimizer.called = optimizer.second_step
    return optimizer


WRAPPED: dict[str, Callable[[Iterable[nn.Parameter]], Any]] = {
    "plain": adam,
    "scheduled": scheduled,
    "accelerate": lambda parameters: Accelerated(adam(parameters)),
    "Lookahead": lambda parameters: Lookahead(adam(parameters)),
    "Lookahead in accelerate": lambda parameters: Accelerated(Lookahead(adam(parameters))),
    "accelerate in Lookahead": lambda parameters: Lookahead(Accelerated(adam(parameters))),
    "Fabric": lambda parameters: Fabric(adam(parameters)),
    "several": lambda parameters: Several(torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1), adam(parameters)),
    "second step": second_steps,
    "change after the inner step": lambda parameters: Doubling(adam(parameters)),
    "LBFGS": lambda parameters: torch.optim.LBFGS(parameters, lr=0.3),
}


def lowest(optimizer: Any, layer: DReLU, steps: int = 40) -> float:
    """The least cap after any step of training under the penalty alone, which Adam carries below 0."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = dreluop.cap_penalty(layer, 1.0)
        loss.backward()
        return loss

    seen = []
    for _ in range(steps):
        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)
        else:
            closure()
            getattr(optimizer, "called", optimizer.step)()
        seen.append(layer.cap.min().item())
    return min(seen)


@pytest.mark.parametrize("name", WRAPPED)
def test_no_step_of_a_wrapper_leaves_a_cap_below_the_minimum(name: str) -> None:
    layer = DReLU(3, init=0.05)
    optimizer = WRAPPED[name](layer.parameters())
    handle = dreluop.project_caps_after_step(optimizer, layer, MINIMUM)
    assert lowest(optimizer, layer) >= torch.tensor(MINIMUM).item()
    assert (layer.cap < 0.02).all()
    handle.remove()
    assert lowest(optimizer, layer) < 0.9 * MINIMUM


def test_caps_of_a_generator() -> None:
    layer = DReLU(3, init=0.05)
    optimizer = adam(layer.parameters())
    dreluop.project_caps_after_step(optimizer, (cap for cap in [layer.cap]), MINIMUM)
    assert lowest(optimizer, layer) >= torch.tensor(MINIMUM).item()


@pytest.mark.usefixtures("process_group")
def test_the_sharded_optimizer_of_torch() -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer  # noqa: PLC0415 (takes seconds)

    layer = DReLU(3, init=0.05)
    optimizer = ZeroRedundancyOptimizer(layer.parameters(), torch.optim.Adam, lr=1e-2)
    dreluop.project_caps_after_step(optimizer, layer, MINIMUM)
    assert lowest(optimizer, layer) >= torch.tensor(MINIMUM).item()


def test_a_step_that_the_scaler_skips() -> None:
    layer = DReLU(3, init=0.05)
    optimizer, scaler = adam(layer.parameters()), torch.amp.GradScaler("cpu", init_scale=1.0)
    dreluop.project_caps_after_step(optimizer, layer, 0.2)
    layer.cap.grad = torch.full((3,), torch.inf)
    scaler.scale(torch.ones(()))
    scaler.step(optimizer)
    assert torch.equal(layer.cap.detach(), torch.full((3,), 0.05))
    scaler.update()
    layer.cap.grad = torch.ones(3)
    scaler.step(optimizer)
    assert torch.equal(layer.cap.detach(), torch.full((3,), 0.2))


class WithoutHooks(torch.optim.Optimizer):
    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._optimizer_step_post_hooks: Any = OrderedDict()
        self.param_groups = [{"params": list(parameters)}]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        pass


def test_what_calls_no_hook_is_refused_by_name() -> None:
    layer = DReLU(3)
    for optimizer in (WithoutHooks(layer.parameters()), Accelerated(WithoutHooks(layer.parameters()))):
        with pytest.raises(
            ValueError,
            match=rf"optimizer: got a {type(optimizer).__name__}, whose step calls no hooks, and which holds",
        ):
            dreluop.project_caps_after_step(optimizer, layer)
    other = adam([nn.Parameter(torch.ones(1))])
    with pytest.raises(ValueError, match="optimizer: got one without 1 of the 1 caps"):
        dreluop.project_caps_after_step(Several(other, WithoutHooks(layer.parameters())), layer)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="optimizer: got one without 1 of the 1 caps"):
        dreluop.project_caps_after_step(Accelerated(other), layer)
    assert not other._optimizer_step_post_hooks  # type: ignore[attr-defined]


def test_what_is_no_optimizer_is_refused() -> None:
    layer = DReLU(3)
    optimizer = adam(layer.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5)
    averaged = torch.optim.swa_utils.AveragedModel(layer)
    for value in (scheduler, averaged, torch.optim.Adam, layer, None):
        with pytest.raises(TypeError, match=r"optimizer: got \w+; expected a torch\.optim\.Optimizer"):
            dreluop.project_caps_after_step(value, layer)  # type: ignore[arg-type]
