"""Compiled training steps on the device, of networks that are small."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import bench_compile, bench_triton_op
from benchmarks.bench_compile import CLAMP, DENSE, FORMS, Case
from benchmarks.harness.cli import Run
from benchmarks.harness.cuda_graphs import Cuda
from benchmarks.harness.interleave import Budget
from benchmarks.models.steps import AMP
from tests.benchmarks.conftest import measured
from tests.benchmarks.models.conftest import TinyNetwork

BUDGET = Budget(seconds=0, min_samples=3, max_samples=3, warmup=1, sample_seconds=1e-3)
CASES = (
    replace(DENSE, batch=8, graphs=True),
    Case("tiny", TinyNetwork, 8, (3, 16, 16), AMP),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rows(case: Case) -> None:
    names = (CLAMP, *FORMS)
    rows = measured(bench_compile.run(replace(case, implementations=names), Run(Cuda()), BUDGET))
    assert [row["implementation"] for row in rows] == list(names)
    for row in rows:
        assert row["ms"] > 0 and row["host_ms"] > 0
        assert row["how"] == case.how


@pytest.mark.parametrize("graphs", [False, True])
def test_traced_and_opaque_kernels(graphs: bool) -> None:
    case = bench_triton_op.Case(64, torch.bfloat16, bench_triton_op.POINTWISE, graphs)
    rows = measured(bench_triton_op.run(case, Run(Cuda())))
    assert [row["implementation"] for row in rows] == list(bench_triton_op.IMPLEMENTATIONS)
    assert all(row["ms"] > 0 and row["device_ms"] > 0 for row in rows)
