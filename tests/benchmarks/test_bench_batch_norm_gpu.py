"""The benchmark of batch norm on a GPU: its rows, its bytes and its tables, from a run on the CPU."""

from __future__ import annotations

import pytest
import torch

from benchmarks import bench_batch_norm_gpu as bench
from benchmarks.bench_batch_norm_gpu import BACKWARD, BOTH, FORWARD, IMPLEMENTATIONS, OURS, RESIDUAL, WITH_RELU, Norm
from benchmarks.harness import implementations as c
from benchmarks.harness.cli import Run
from benchmarks.harness.machine import Platform
from benchmarks.harness.records import Record
from benchmarks.harness.workloads import Case, make_data

SHAPE = (4, 8, 6, 6)


def case_of(*more: str) -> Case:
    return Case("x", "channel", SHAPE, torch.float32, IMPLEMENTATIONS, True, bias_and_residual=more)


@pytest.mark.parametrize("more", [(), (RESIDUAL,)], ids=["", "residual"])
def test_implementations_agree(more: tuple[str, ...]) -> None:
    case = case_of(*more)
    data = make_data(case)
    data.cap.fill_(1e6)
    results = []
    for name in IMPLEMENTATIONS:
        work = Norm(name, case, data)
        y = work.one_forward()
        assert y.is_contiguous(memory_format=torch.channels_last)
        results.append([y, *work.one_backward(y)[: 3 + len(more)]])
    for other in results[1:]:
        for got, want in zip(results[0], other, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_bytes_count_every_pass_over_memory() -> None:
    x, mask = 4 * torch.Size(SHAPE).numel(), torch.Size(SHAPE).numel() // 4
    assert bench.min_bytes(case_of(), FORWARD) == 3 * x
    assert bench.min_bytes(case_of(), BACKWARD) == 5 * x
    assert bench.min_bytes(case_of(RESIDUAL), FORWARD) == 4 * x + mask
    assert bench.min_bytes(case_of(RESIDUAL), BACKWARD) == 6 * x + 2 * mask
    assert bench.min_bytes(case_of(RESIDUAL), BOTH) == 10 * x + 3 * mask


def test_rows_and_tables() -> None:
    device = {"type": "cuda", "name": "NVIDIA H100", "driver": "1"}
    record = Record([{"id": "run", "device": device, "settings": {"quick": True}}])
    rows = bench.run(case_of(), Run(Platform(), quick=True))
    assert not [row for row in rows if "failure" in row]
    assert {row["implementation"] for row in rows} == {c.COPY_BY_KERNEL, *IMPLEMENTATIONS}
    record.add("a case", rows, bench.BENCH.key)
    ours, theirs = (
        next(row["ms"] for row in rows if (row["implementation"], row["pass"]) == (name, BOTH))
        for name in (OURS, WITH_RELU)
    )
    found, targets = bench.tables(record)
    assert found.rows[0][-1] == f"{ours / theirs:.2f}"
    assert len(targets.rows) == 1
    assert targets.rows[0][-1] != "not measured"


def test_cases_are_larger_than_the_cache() -> None:
    found = bench.cases("cuda", {})
    assert len({case.label for case in found}) == len(found)
    assert min(case.x_bytes for case in found) >= 64 * 2**20
    assert len(bench.cases("cuda", {"quick": True})) < len(found)
