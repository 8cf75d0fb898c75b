"""A network small enough for tests: convolutions, batch normalization, ReLUs in place, a residual sum."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from benchmarks import bench_models
from benchmarks.bench_models import Case
from benchmarks.harness import implementations as c
from benchmarks.harness.interleave import threads
from benchmarks.models.implementations import FULL, HEAD, IMPLEMENTATIONS, OURS, RELU
from benchmarks.models.networks import CLASSES, NETWORKS, Network, data
from benchmarks.models.steps import EAGER, FP32, INFERENCE, TRAIN, Subject
from tests.benchmarks.conftest import BUDGET, Processor

ACTIVATIONS = 3
TINY = "tiny"


CASES = tuple(
    Case(TINY, variant, FP32, EAGER, pass_, implementations, 1.0, batch=6, image=8)
    for variant, pass_, implementations in (
        (FULL, TRAIN, IMPLEMENTATIONS),
        (FULL, INFERENCE, (RELU, OURS)),
        (HEAD, TRAIN, (RELU, c.RELU_MINIMUM.name, OURS)),
    )
)


class TinyNetwork(nn.Module):
    """Its ``relu`` is called three times, the last time on a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm1(self.conv1(x)))
        y = self.relu(self.norm2(self.conv2(x)))
        y = self.norm3(self.conv3(y))
        y += x
        logits: Tensor = self.fc(self.relu(y).mean((2, 3)))
        return logits


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is known by name, and all that a CPU measures are three cases of it."""
    monkeypatch.setitem(NETWORKS, TINY, Network(TinyNetwork, image=8, batch=6, small_image=8, small_batch=6))
    monkeypatch.setattr(bench_models, "ON_A_CPU", CASES)
    monkeypatch.setattr(bench_models, "BUDGETS", {"cpu": BUDGET})


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other would take most of the time."""
    with threads(1):
        yield


@pytest.fixture
def platform() -> Processor:
    return Processor()


def subject(implementation: str, variant: str = FULL, **options: str) -> Subject:
    """The tiny network, with six images of 8 x 8 pixels."""
    return Subject(TINY, variant, implementation, data(6, 8, torch.device("cpu")), **{"precision": FP32, **options})
