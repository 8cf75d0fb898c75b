"""The harness of the benchmarks on the device it is for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.bench_scaling import Point, modes_of, shape_of_size, visit
from benchmarks.harness import implementations as c
from benchmarks.harness.activations import BACKWARD, COLD, EAGER_MODE, Visit, measure
from benchmarks.harness.cuda_graphs import Cuda, launches, peaks, sample_with_host
from benchmarks.harness.interleave import Timed
from benchmarks.harness.machine import Call, Launches
from benchmarks.harness.workloads import Case
from tests.benchmarks.conftest import BUDGET, measured

WHO = (c.RELU_MINIMUM.name, c.PACT.name, c.WHERE.name, c.REFERENCE.name, c.OURS.name, c.OURS_MASK.name)


def test_launches_are_counted_call_by_call() -> None:
    x = torch.ones(1000, device="cuda")
    calls = [
        Call(lambda _: x + 1, lambda: None),
        Call(lambda _: None, lambda: None),
        Call(lambda y: (y + 1, y * 2), lambda: x * 3),
        Call(lambda _: x.clone(), lambda: None),
    ]
    found = launches(calls)
    if found[0] is None:
        pytest.skip("the profiler records no kernels on this machine")
    assert found == [Launches(1, 0, 0), Launches(0, 0, 0), Launches(2, 0, 0), Launches(0, 0, 1)]


def test_peaks_are_above_what_was_before() -> None:
    megabyte = 2**20
    before = torch.zeros(7 * megabyte, dtype=torch.uint8, device="cuda")

    def first(_: object) -> Tensor:
        # Freed again before the step ends.
        torch.zeros(2 * megabyte, dtype=torch.uint8, device="cuda")
        return torch.zeros(megabyte, dtype=torch.uint8, device="cuda")

    def second(y: Tensor) -> Tensor:
        return torch.zeros(4 * megabyte, dtype=torch.uint8, device="cuda")

    # The allocator may give a little more than it is asked for.
    of_first, of_second = peaks((first, second))
    assert 2 * megabyte <= of_first < 4 * megabyte
    assert 5 * megabyte <= of_second < 7 * megabyte
    assert before.sum() == 0


def test_time_with_the_host_is_longer_than_the_work() -> None:
    x = torch.ones(10, device="cuda")
    seen: list[Any] = []

    def many(value: Any) -> str:
        seen.append(value)
        for _ in range(100):
            x.add_(1)
        return "result"

    (first, second), _ = sample_with_host(Timed("adds", (many, many)), 1)
    assert seen == [None, "result"]
    # A launch takes the host a microsecond at least.
    assert min(first, second) > 100e-6


def test_a_case_of_the_benchmark() -> None:
    case = Case("tiny", "channel", (8, 16, 8, 8), torch.float32, WHO)
    rows = measured(measure(case, [Visit(COLD, 2, 2, captured=True)], BUDGET, Cuda()))
    found = {(row["pass"], row["implementation"]): row for row in rows}
    assert {who for _, who in found} == {c.COPY, *WHO}
    for (_, who), row in found.items():
        assert row["ms"] > 0
        if who != c.COPY:
            assert row["peak_bytes"] is not None and row["peak_bytes"] >= case.x_bytes
    ours = found[BACKWARD, c.OURS.name]
    assert (ours["saved_bytes"], ours["saves_x"], ours["saves_y"]) == (0, False, True)
    assert ours.get("kernels") in (1, None)


@pytest.mark.parametrize("x_bytes", [2**14, 2**22])
def test_a_point_of_the_scaling_suite(x_bytes: int) -> None:
    platform = Cuda()
    modes = (*modes_of(x_bytes, platform.cache_bytes), EAGER_MODE)
    shape = shape_of_size(x_bytes // 4)
    point = Point("tiny", "channel", shape, torch.float32, (c.RELU_MINIMUM.name, c.OURS.name), modes=modes)
    visits = [visit(point, mode, platform.cache_bytes, platform.captures) for mode in modes]
    rows = measured(measure(point, visits, BUDGET, platform))
    assert len(rows) == len(modes) * 3 * 3
    assert all(row["ms"] > 0 for row in rows)
