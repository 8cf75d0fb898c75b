"""What the tests of benchmarks share: a little budget, a clock, a GPU made of the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from benchmarks.harness import implementations as c
from benchmarks.harness import interleave, machine
from benchmarks.harness.interleave import Budget
from benchmarks.harness.machine import Call, Gpu, Launches, Platform, Step
from benchmarks.harness.workloads import Case

BUDGET = Budget(seconds=0, min_samples=3, max_samples=3, warmup=1, sample_seconds=0)
EAGER = (c.RELU_MINIMUM.name, c.CLAMP.name, c.OURS.name)
WHO = (*EAGER, c.OURS_MASK.name)
CASES = [
    Case("tiny image", "channel", (2, 3, 4, 5), torch.float32, WHO),
    Case("tiny dense", "neuron", (4, 8), torch.bfloat16, WHO, bias_and_residual=("bias", "residual")),
]
GPU: Gpu = {
    "type": "cuda",
    "name": "Some H100 80GB HBM3",
    "capability": "9.0",
    "multiprocessors": 132,
    "memory_bytes": 80 * 2**30,
    "cache_bytes": 50 * 2**20,
    "driver": "580.1",
}


class Clock:
    """Stands in for ``time``: goes on where a test sleeps, and by 1 ns where it is read, as no time is zero."""

    def __init__(self) -> None:
        self.now = 0

    def sleep(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)

    def perf_counter_ns(self) -> int:
        self.now += 1
        return self.now

    def perf_counter(self) -> float:
        return self.perf_counter_ns() * 1e-9


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of what is measured."""
    made = Clock()
    monkeypatch.setattr(interleave, "time", made)
    return made


@pytest.fixture
def budget() -> Budget:
    return BUDGET


class Processor(Platform):
    """The processor with a cache, and memory, of these bytes."""

    def __init__(self, cache_bytes: int = 2**25, free_bytes: int = 2**40) -> None:
        self.cache, self.free = cache_bytes, free_bytes

    @property
    def cache_bytes(self) -> int:
        return self.cache

    def free_bytes(self) -> int:
        return self.free

    def release(self) -> None:
        pass


class Accelerator(Processor):
    """A GPU made of the CPU: it repeats work by doing it again, and measures by the host's clock."""

    captures = True

    def __init__(self, cache_bytes: int = 1000, free_bytes: int = 2**40) -> None:
        super().__init__(cache_bytes, free_bytes)

    @property
    def kind(self) -> str:
        return "cuda"

    def launches(self, calls: Sequence[Call]) -> list[Launches | None]:
        for call in calls:
            call.function(call.prepare())
        return [Launches(1, 0, 0)] * len(calls)

    def peaks(self, steps: Sequence[Step]) -> list[int] | None:
        """Their places, from 1 on."""
        value = None
        for step in steps:
            value = step(value)
        return list(range(1, len(steps) + 1))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """A GPU that is not there."""
    monkeypatch.setattr(machine, "describe", lambda device: (GPU, {**machine.versions(), "cuda": "13.0"}))
    return GPU


def measured(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, of which none is a failure."""
    assert [row for row in rows if "failure" in row] == []
    return list(rows)
