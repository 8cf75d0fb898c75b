"""A suite small enough for tests."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness import interleave as measure
from benchmarks.harness.interleave import Budget
from benchmarks.kernels import __main__ as command
from benchmarks.kernels import suite

BUDGET = Budget(seconds=0, min_samples=3, max_samples=3, warmup=1, sample_seconds=0)


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
    monkeypatch.setattr(measure, "time", made)
    return made


@pytest.fixture
def budget() -> Budget:
    return BUDGET


CASES = [
    suite.Case("tiny image", "channel", (2, 3, 4, 5), torch.float32, suite.EAGER),
    suite.Case("tiny dense", "neuron", (4, 8), torch.bfloat16, suite.EAGER, in_place=False),
]


@pytest.fixture
def tiny_cases() -> list[suite.Case]:
    """Two inputs of a few elements."""
    return list(CASES)


@pytest.fixture(scope="session")
def tiny_rows() -> list[suite.Row]:
    """What measuring them gave, once."""
    return [row for case in CASES for row in suite.run_case(case, BUDGET)[0]]


@pytest.fixture
def tiny_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run, of the command line too, measures the tiny cases with little budget."""
    for module in (suite, command):
        monkeypatch.setattr(module, "cases", lambda **_: CASES)
    for name in ("FULL", "QUICK"):
        monkeypatch.setattr(command, name, BUDGET)
    monkeypatch.setattr(suite, "DEMO", BUDGET)
