"""Streaming quantiles against torch.quantile: exact while they are few, within the promised error afterwards."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dreluop.caps.quantiles import DECADES, StreamingQuantiles

FLOOR = 1e-3


def stream(values: Tensor, exact_values: int, relative_error: float = 0.01, parts: int = 7) -> StreamingQuantiles:
    sketch = StreamingQuantiles(values.shape[0], FLOOR, relative_error, exact_values)
    for part in values.tensor_split(parts, dim=1):
        sketch.add(part)
    return sketch


DATA = {
    "uniform": lambda: torch.rand(3, 5000),
    "normal": lambda: torch.randn(3, 5000) * torch.tensor([[0.01], [1.0], [300.0]]),
    "heavy": lambda: torch.randn(3, 5000).mul(3).exp(),
    "constant": lambda: torch.full((3, 5000), 0.7),
    "double": lambda: torch.rand(3, 5000, dtype=torch.float64),
}


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("name", DATA)
def test_exact_while_few(name: str, q: float) -> None:
    values = DATA[name]()
    sketch = stream(values, exact_values=15000)
    assert sketch.is_exact
    assert torch.equal(sketch.quantile(q), values.quantile(q, dim=1))


@pytest.mark.parametrize("relative_error", [0.001, 0.01, 0.1])
@pytest.mark.parametrize("q", [0.01, 0.5, 0.9, 0.99, 0.9999, 1.0])
@pytest.mark.parametrize("name", DATA)
def test_binned_within_the_relative_error(name: str, q: float, relative_error: float) -> None:
    values = DATA[name]()
    sketch = stream(values, 4000, relative_error)
    assert not sketch.is_exact
    # The order statistic itself: no interpolation between two.
    expected = values.quantile(q, dim=1, interpolation="lower").double().clamp(min=FLOOR)
    assert (sketch.quantile(q).double() / expected - 1).abs().max() <= relative_error * 1.02 + 1e-6


def test_the_cut_into_batches_does_not_matter() -> None:
    values = torch.randn(4, 3000)
    assert torch.equal(stream(values, 100, parts=1).quantile(0.9), stream(values, 100, parts=50).quantile(0.9))


def test_above_the_range_the_largest_is_given() -> None:
    top = FLOOR * 10.0 ** (DECADES + 2)
    sketch = stream(torch.tensor([[1.0] * 9 + [top]]), 1)
    assert sketch.quantile(1.0).item() == top
    assert sketch.quantile(0.5).item() == pytest.approx(1, rel=0.01)


def test_memory_is_that_of_the_histogram() -> None:
    sketch = StreamingQuantiles(8, FLOOR, 0.01, exact_values=1000)
    for _ in range(100):
        sketch.add(torch.rand(8, 500))
    assert not sketch._kept
    assert sketch._histogram is not None
    assert sketch._histogram.nbytes == sketch.histogram_bytes == 4 * 8 * 1039
    assert sketch._histogram.sum() == 8 * 100 * 500


@pytest.mark.parametrize("exact_values", [20000, 100])
def test_share_at_least(exact_values: int) -> None:
    values = torch.randn(2, 10000)
    caps = torch.tensor([0.5, 1.5])
    expected = (values >= caps[:, None]).float().mean().item()
    assert stream(values, exact_values).share_at_least(caps) == pytest.approx(expected, abs=0.005)


def test_infinity_and_counts_beyond_32_bits() -> None:
    sketch = stream(torch.tensor([[1.0, math.inf, -math.inf, 2.0]]), 1)
    assert sketch.quantile(1.0).item() == math.inf
    assert sketch.quantile(0.0).item() == pytest.approx(FLOOR)
    sketch.count = 2**31
    sketch.add(torch.ones(1, 1))
    assert sketch._histogram is not None
    assert sketch._histogram.dtype is torch.int64
