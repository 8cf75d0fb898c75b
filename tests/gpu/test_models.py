"""Whole models on the device: time, memory and the largest batch, of a network that is small."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from benchmarks.harness import implementations as c
from benchmarks.models import largest, suite
from benchmarks.models.implementations import FULL, FUSED, IMPLEMENTATIONS, OURS, RELU
from benchmarks.models.networks import NETWORKS, Network
from benchmarks.models.steps import AMP, EAGER, FP32, PASSES, PRECISIONS, TRAIN, cuda_platform
from tests.benchmarks.models.conftest import BUDGET, TINY, TinyNetwork

IMAGE, BATCH = 64, 8


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, TINY, Network(TinyNetwork, image=IMAGE))


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows(precision: str, pass_: str) -> None:
    place = cuda_platform()
    case = suite.Case(TINY, FULL, precision, EAGER, pass_, IMPLEMENTATIONS, BATCH, IMAGE, 1)
    rows, failures = suite.run_case(case, BUDGET, place)
    suite.forget(case, place)
    assert failures == []
    peaks = {row["implementation"]: row["peak_bytes"] or 0 for row in rows}
    for row in rows:
        assert row["ms"] > 0 and row["host_ms"] is not None and row["host_ms"] > 0
    # Images and labels alone are this large.
    assert min(peaks.values()) > BATCH * 3 * IMAGE**2 * 4
    if pass_ == TRAIN:
        assert peaks[c.RELU_MINIMUM.name] > peaks[OURS]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_all_implementations_compute_the_same(precision: str) -> None:
    place = cuda_platform()
    case = suite.Case(TINY, FULL, precision, EAGER, TRAIN, IMPLEMENTATIONS, BATCH, IMAGE, 1)
    data = suite.networks.data(BATCH, IMAGE, place.device, suite.memory_format(precision))
    outputs = {
        name: suite.Subject(case.network, case.variant, name, data, precision=precision).outputs().float()
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


def test_the_largest_batch(little_memory: int) -> None:
    place = replace(cuda_platform(), free_bytes=lambda: little_memory)
    found, failures = largest.find_all(largest.Search(TINY, FP32, (c.RELU_MINIMUM.name, FUSED), 1), place)
    assert failures == []
    for one in found:
        assert one["batch"] * one["bytes_per_image"] < little_memory
        assert one["too_large"] is None or one["too_large"] > one["batch"]
    plain, fused = (one["bytes_per_image"] for one in found)
    assert plain > fused
