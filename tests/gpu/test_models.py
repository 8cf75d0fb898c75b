"""Whole models on the device: time, memory and the largest batch, of a network that is small."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.bench_models import Case, run_case
from benchmarks.harness import implementations as c
from benchmarks.harness.cuda_graphs import Cuda
from benchmarks.models import largest, networks
from benchmarks.models.implementations import FULL, FUSED, IMPLEMENTATIONS, OURS, RELU
from benchmarks.models.networks import NETWORKS, Network
from benchmarks.models.steps import AMP, EAGER, FP32, PASSES, PRECISIONS, TRAIN, Subject, memory_format
from tests.benchmarks.conftest import BUDGET, measured
from tests.benchmarks.models.conftest import TINY, TinyNetwork

IMAGE, BATCH = 64, 8


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, TINY, Network(TinyNetwork, image=IMAGE))


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows(precision: str, pass_: str) -> None:
    platform = Cuda()
    case = Case(TINY, FULL, precision, EAGER, pass_, IMPLEMENTATIONS, 1, BATCH, IMAGE)
    rows = measured(run_case(case, BUDGET, platform))
    platform.release()
    peaks = {row["implementation"]: row["peak_bytes"] or 0 for row in rows}
    for row in rows:
        assert row["ms"] > 0 and row["host_ms"] is not None and row["host_ms"] > 0
    # Images and labels alone are this large.
    assert min(peaks.values()) > BATCH * 3 * IMAGE**2 * 4
    if pass_ == TRAIN:
        assert peaks[c.RELU_MINIMUM.name] > peaks[OURS]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_all_implementations_compute_the_same(precision: str) -> None:
    data = networks.data(BATCH, IMAGE, Cuda().device, memory_format(precision))
    outputs = {
        name: Subject(TINY, FULL, name, data, precision=precision).outputs().float()
        for name in IMPLEMENTATIONS
        if name != RELU
    }
    expected = outputs[c.RELU_MINIMUM.name]
    tolerance = 2**-5 if precision == AMP else 1e-3
    for name, found in outputs.items():
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, msg=name)


@pytest.fixture
def little_memory() -> Iterator[int]:
    """As if the device had less of it."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties().total_memory
    allowed = torch.cuda.memory_reserved() + 2**30
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    yield 2**30
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_the_largest_batch(little_memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cuda, "free_bytes", lambda self: little_memory)
    found = measured(largest.find_all(largest.Search(TINY, FP32, (c.RELU_MINIMUM.name, FUSED), 1), Cuda()))
    for one in found:
        assert one["largest"] * one["bytes_per_image"] < little_memory
        assert one["too_large"] is None or one["too_large"] > one["largest"]
    plain, fused = (one["bytes_per_image"] for one in found)
    assert plain > fused
