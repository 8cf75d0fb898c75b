"""The networks, who takes part, and how a step is timed: all contenders take turns in one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import dreluop
from benchmarks.kernels import contenders as c
from benchmarks.kernels.measure import Effort, Timed, interleave
from benchmarks.models.attempts import Failure, attempt
from benchmarks.models.contenders import CAP, SEED, PlainDReLU
from benchmarks.models.steps import LEARNING_RATE, MOMENTUM, cpu_place
from benchmarks.robustness.models import dense_relu
from dreluop.backends.choice import Form
from dreluop.layers import capped_layers
from dreluop.surgery import replace_activations

RELU, CLAMP = "relu", c.CLAMP.name
FORMS: dict[str, Form] = {"dreluop, opaque": "opaque", "dreluop, fused": "fuse"}
BY_RULE = "dreluop"
CONTENDERS = (CLAMP, *FORMS, BY_RULE, RELU)
CLASSES = 10
EFFORT = Effort(seconds=8.0, min_samples=15, max_samples=200, warmup=3, sample_seconds=0)
QUICK = Effort(seconds=0, min_samples=3, max_samples=3, warmup=1, sample_seconds=0)
COMPILER = "inductor"


@dataclass(frozen=True)
class Case:
    """A network and its batch.

    Attributes:
        build: makes the network with plain ReLUs, the same each time.
        sample: shape of an input.
    """

    name: str
    build: Callable[[], nn.Module]
    batch: int
    sample: tuple[int, ...]

    @property
    def label(self) -> str:
        return f"{self.name}, {self.batch} x {'x'.join(map(str, self.sample))}"


def _resnet18() -> nn.Module:
    from torchvision import models  # noqa: PLC0415 (optional)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model: nn.Module = models.resnet18(weights=None, num_classes=CLASSES)
    return model


DENSE = Case("dense", lambda: dense_relu(SEED), 64, (784,))
CASES = (Case("resnet18", _resnet18, 4, (3, 64, 64)), DENSE)


def build(case: Case, contender: str) -> nn.Module:
    """The network with every ReLU replaced, a cap per channel, residual sums where ours can take them."""
    model = case.build().train()
    if contender == RELU:
        return model
    replace_activations(model, init=CAP, fuse=contender != CLAMP)
    if contender == CLAMP:
        for name, layer in capped_layers(model).items():
            model.set_submodule(name, PlainDReLU(layer, c.clamp_tensor))
    return model


def training_step(case: Case, contender: str, data: Tensor, labels: Tensor) -> Callable[[], None]:
    """A step of SGD with momentum, the network compiled; compiles at the first call."""
    model = build(case, contender)
    forward = torch.compile(model, dynamic=False, fullgraph=True, backend=COMPILER)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=MOMENTUM, foreach=True)
    form = FORMS.get(contender, "auto")

    def step() -> None:
        with dreluop.when_compiling(form):
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(forward(data), labels).backward()
            optimizer.step()

    return step


def run_case(
    case: Case, names: tuple[str, ...], effort: Effort, until: float | None = None
) -> tuple[list[dict[str, Any]], list[Failure]]:
    """Time a step of every contender; one that fails, or for which no time is left, is left out, with its reason."""
    torch._dynamo.reset()
    # Workers that idle beside the measurement would be measured too.
    torch._inductor.config.compile_threads = 1
    generator = torch.Generator().manual_seed(SEED + 1)
    data = torch.randn(case.batch, *case.sample, generator=generator)
    labels = torch.randint(CLASSES, (case.batch,), generator=generator)

    def begin(name: str) -> Callable[[], None]:
        step = training_step(case, name, data, labels)
        step()
        return step

    begun, failures = attempt(names, case.label, begin, cpu_place().release, until)
    timed = [Timed(name, (lambda _, step=step: step(),)) for name, step in begun.items()]
    seconds = {name: samples.seconds() for name, samples in interleave(timed, effort).items()}
    clamp = seconds[CLAMP].median if CLAMP in seconds else None
    rows: list[dict[str, Any]] = [
        {
            "network": case.name,
            "batch": case.batch,
            "contender": name,
            **of.in_ms(),
            "ratio_to_clamp": None if clamp is None else of.median / clamp,
        }
        for name, of in seconds.items()
    ]
    return rows, failures
