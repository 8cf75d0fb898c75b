"""A GPU, and a machine to measure on, made of the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from benchmarks.gpu import document as documents
from benchmarks.gpu.document import Document, Gpu
from benchmarks.gpu.suite import GpuCase, Row, run_case
from benchmarks.harness import implementations as c
from benchmarks.harness.cuda_graphs import Call, Launches, Machine
from benchmarks.harness.interleave import Budget, sample

BUDGET = Budget(seconds=0, min_samples=3, max_samples=3, warmup=1, sample_seconds=0)
GPU: Gpu = {
    "type": "cuda",
    "name": "Some GPU 80GB",
    "capability": "9.0",
    "multiprocessors": 132,
    "memory_bytes": 80 * 2**30,
    "cache_bytes": 50 * 2**20,
    "driver": "580.1",
}
WHO = (c.RELU_MINIMUM.name, c.CLAMP.name, c.OURS.name, c.OURS_MASK.name)
CASES = [
    GpuCase("tiny image", "channel", (2, 3, 4, 5), torch.float32, WHO, in_place=False),
    GpuCase(
        "tiny dense", "neuron", (4, 8), torch.bfloat16, WHO, in_place=False, bias_and_residual=("bias", "residual")
    ),
]


def count(calls: Sequence[Call]) -> list[Launches | None]:
    for call in calls:
        call.function(call.prepare())
    return [Launches(1, 0, 0)] * len(calls)


def peaks(steps: Sequence[Callable[[Any], Any]]) -> list[int]:
    """Their places, from 1 on."""
    value = None
    for step in steps:
        value = step(value)
    return list(range(1, len(steps) + 1))


@pytest.fixture
def machine() -> Machine:
    """Repeats work by doing it again, and measures by the host's clock."""
    return Machine(
        device=torch.device("cpu"),
        capture=lambda steps, clear: list(steps),
        sampler=sample,
        launches=count,
        peaks=peaks,
        cache_bytes=1000,
        free_bytes=lambda: 2**40,
        release=lambda: None,
    )


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """A GPU that is not there."""
    monkeypatch.setattr(documents, "describe_gpu", lambda: GPU)
    return GPU


@pytest.fixture
def rows(machine: Machine) -> list[Row]:
    return [row for case in CASES for row in run_case(case, BUDGET, machine)[0]]


@pytest.fixture
def document(gpu: Gpu, rows: list[Row]) -> Document:
    return {**documents.new_document(quick=False), "rows": rows, "complete": True}
