"""pytest-benchmark view of the suite, for looking at one case: `pytest benchmarks/kernels/bench_capped_relu.py -k ...`.

It is no test (nothing is asserted, and pytest collects it only when named), and its implementations do not take turns:
figures to quote come from `python -m benchmarks.kernels`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.harness import implementations as c
from benchmarks.harness.interleave import release_free_memory, threads
from benchmarks.harness.workloads import Repeated
from benchmarks.kernels import suite
from benchmarks.kernels.targets import THREADS


@pytest.fixture(autouse=True)
def fixed_threads() -> Iterator[None]:
    with threads(THREADS):
        yield


@pytest.mark.parametrize(
    ("case", "name"),
    [
        pytest.param(case, name, id=f"{case.name}-{case.dtype_name}-{name}".replace(", ", "-").replace(" ", "-"))
        for case in suite.cases()
        for name in case.implementations
    ],
)
@pytest.mark.parametrize("pass_", [suite.FORWARD, suite.BACKWARD, suite.BOTH])
def test_speed(benchmark: BenchmarkFixture, case: suite.Case, name: str, pass_: str) -> None:
    c.forget_compiled([name])
    work = Repeated(c.IMPLEMENTATIONS[name], [suite.make_data(case)], 1)
    forward, backward = work.first_forward, work.one_backward
    benchmark.group = f"{case.name}, {case.dtype_name}, {pass_}"
    prepared, timed = {
        suite.FORWARD: (lambda: None, forward),
        suite.BACKWARD: (lambda: forward(None), backward),
        suite.BOTH: (lambda: None, lambda _: backward(forward(None))),
    }[pass_]

    def setup() -> tuple[tuple[Any], dict[str, Any]]:
        release_free_memory()
        return (prepared(),), {}

    # The warm-up is where torch.compile compiles.
    benchmark.pedantic(timed, setup=setup, rounds=10, warmup_rounds=2)
