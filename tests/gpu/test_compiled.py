"""Compiled training steps on the device, of networks that are small."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.compiled import suite, triton_op
from benchmarks.harness.interleave import Budget
from benchmarks.models.steps import AMP, cuda_platform
from tests.benchmarks.models.conftest import TinyNetwork

BUDGET = Budget(seconds=0, min_samples=3, max_samples=3, warmup=1, sample_seconds=1e-3)
CASES = (
    replace(suite.DENSE, batch=8, graphs=True),
    suite.Case("tiny", TinyNetwork, 8, (3, 16, 16), AMP),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rows(case: suite.Case) -> None:
    names = (suite.CLAMP, *suite.FORMS)
    rows, failures = suite.run_case(case, names, BUDGET, suite.platform_of("cuda"))
    assert failures == []
    assert [row["implementation"] for row in rows] == list(names)
    for row in rows:
        assert row["ms"] > 0 and row["host_ms"] > 0
        assert row["how"] == case.how


@pytest.mark.parametrize("graphs", [False, True])
def test_traced_and_opaque_kernels(graphs: bool) -> None:
    case = triton_op.Case(64, torch.bfloat16, triton_op.POINTWISE, graphs)
    rows, failures = triton_op.run_case(case, triton_op.IMPLEMENTATIONS, cuda_platform())
    assert failures == []
    assert [row["implementation"] for row in rows] == list(triton_op.IMPLEMENTATIONS)
    assert all(row["ms"] > 0 and row["device"]["ms"] > 0 for row in rows)
