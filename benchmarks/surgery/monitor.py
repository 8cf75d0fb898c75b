"""What SaturationMonitor adds to a training step.

The training steps of three copies of a network are interleaved: without a monitor, with one that does not measure this
step, with one that does. CPU seconds of one thread, so that the machine's other work counts little. The cost of a
monitor with ``every=n`` follows: all steps pay for the hooks, one in n for the measuring.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dreluop import cap_penalty
from dreluop.diagnostics import SaturationMonitor
from dreluop.surgery import replace_activations
from studies.drelu_paper.models import dense_drelu

NEVER = 1 << 30
SECONDS = 5


@dataclass(frozen=True)
class Cost:
    """Medians, in CPU milliseconds, over ``rounds`` training steps of each kind.

    Attributes:
        plain: a step without a monitor; idle: with one that does not measure; measured: with one that does.
    """

    name: str
    capped_layers: int
    rounds: int
    plain: float
    idle: float
    measured: float

    def share(self, every: int) -> float:
        """The part of a step that a monitor adds on average."""
        return ((self.measured - self.idle) / every + max(self.idle - self.plain, 0)) / self.plain


def resnet18() -> tuple[nn.Module, Tensor]:
    from torchvision import models  # noqa: PLC0415 (optional)

    model = models.resnet18(weights=None)
    replace_activations(model, init=3.0)
    return model, torch.randn(8, 3, 64, 64)


def dense() -> tuple[nn.Module, Tensor]:
    return dense_drelu(0, init=1.0), torch.rand(32, 784)


CASES: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "ResNet18, all 17 ReLUs replaced, 8 x 3 x 64 x 64": resnet18,
    "dense 784-256-256-[128]-10, batch 32": dense,
}


def measure(name: str, rounds: int) -> Cost:
    """Time one case: at least ``rounds`` steps of each kind, and at least about ``SECONDS`` of them."""
    model, x = CASES[name]()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    layers = sum(hasattr(module, "cap") for module in model.modules())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def step(monitor: SaturationMonitor | None) -> float:
        started = time.process_time()
        loss = model(x).square().mean() + cap_penalty(model, 1e-6)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds = time.process_time() - started
        if monitor is not None:
            monitor.close()
        return 1e3 * seconds

    def idle() -> SaturationMonitor:
        monitor = SaturationMonitor(model, every=NEVER)
        monitor.step = 1
        return monitor

    kinds: dict[str, Callable[[], Any]] = {
        "plain": lambda: None, "idle": idle, "measured": lambda: SaturationMonitor(model, every=1),
    }  # fmt: skip
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    try:
        # The first step warms up; short ones are repeated until a median of them means something.
        step(None)
        rounds = max(rounds, int(1e3 * SECONDS / step(None)))
        order = list(kinds)
        shuffled = random.Random(0)
        for _ in range(rounds):
            shuffled.shuffle(order)
            for kind in order:
                times[kind].append(step(kinds[kind]()))
    finally:
        torch.set_num_threads(threads)
    medians = {kind: statistics.median(values) for kind, values in times.items()}
    return Cost(name, layers, rounds, **medians)
