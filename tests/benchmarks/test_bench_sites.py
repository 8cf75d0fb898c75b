"""The benchmark of a site's host time has a row for each network, with the parts of its step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import bench_sites
from benchmarks.harness import records
from benchmarks.harness.interleave import Budget

CPU = torch.device("cpu")


def test_rows():
    budget = Budget(seconds=0, min_samples=1, max_samples=1, sample_seconds=0)
    rows = {row["network"]: row for row in bench_sites.measure(CPU, budget, sites=3)}
    assert list(rows) == list(bench_sites.NETWORKS)
    for row in rows.values():
        assert row["ms"] == pytest.approx(sum(row[f"{part}_ms"] for part in bench_sites.PARTS), rel=0.5)
        assert row["launches"] == 0 < row["operators"]
    # The penalty is an operator and its backward one, where the loss has it; 3 updates of a cap become 1.
    assert rows["`DReLU(C)`, `cap_penalty(model)`"]["operators"] > rows["`DReLU(C)`"]["operators"]
    assert rows["`caps.flatten`"]["operators"] < rows["`DReLU(C)`"]["operators"]


@pytest.mark.parametrize("name", bench_sites.NETWORKS)
def test_a_step_moves_the_caps_by_what_it_says(name: str):
    network = bench_sites.NETWORKS[name]
    step = bench_sites.Step(network, CPU, sites=2)
    step.x.clamp_(max=2.5)
    for group in step.optimizer.param_groups:
        group["lr"] = 0.5
    before = {key: value.clone() for key, value in step.model.state_dict().items()}
    step.run()
    after = step.model.state_dict()
    if network[1]:
        # Only the penalty's gradient: no element reaches a cap of 3.
        assert all(torch.allclose(after[key], 0.9 * before[key]) for key in before)
    elif "DReLU" in name or "flatten" in name:
        assert all(torch.equal(after[key], before[key]) for key in before)
    assert step.scale.grad is None, "zero_grad left a gradient"


def test_command_and_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench_sites, "SITES", 2)
    monkeypatch.setattr(bench_sites.machine, "commit", lambda: {"hash": "abc", "dirty": False})
    assert command.main(["sites", "--seconds", "0", "--out", str(tmp_path)]) == 0
    table = bench_sites.table(records.load(tmp_path / bench_sites.FILE_NAME))
    assert [row[0] for row in table.rows] == list(bench_sites.NETWORKS)
    assert all(len(row) == len(table.header) for row in table.rows)
