"""Memory over depth: the counts are exact, so they are compared with what each chain must keep."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import bench_depth
from benchmarks.bench_depth import IN_PLACE, RELU
from benchmarks.harness import implementations as c
from benchmarks.harness.cli import main
from benchmarks.harness.records import load

X = 4 * bench_depth.BATCH * bench_depth.WIDTH
CODE = X // 16
BOUNDS = 4 * bench_depth.WIDTH  # the zeros of clamp
# Of so many blocks, n of them, whose input is left out: what the linear layers keep, and what the activations add.
PLAIN = {
    RELU: lambda n: n * X,
    c.OURS.name: lambda n: n * X,
    IN_PLACE: lambda n: n * X,
    c.OURS_MASK.name: lambda n: (n - 1) * X + n * CODE,
    c.RELU_MINIMUM.name: lambda n: 2 * n * X,
    c.CLAMP.name: lambda n: (2 * n - 1) * X + n * BOUNDS,
}
RESIDUAL = {
    RELU: lambda n: (2 * n - 1) * X,
    c.OURS.name: lambda n: (2 * n - 1) * X,
    IN_PLACE: lambda n: (2 * n - 1) * X,
    c.OURS_MASK.name: lambda n: (n - 1) * X + n * CODE,
    c.RELU_MINIMUM.name: lambda n: (3 * n - 1) * X,
    c.CLAMP.name: lambda n: (2 * n - 1) * X + n * BOUNDS,
}


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("name", bench_depth.ACTIVATIONS)
def test_bytes_kept(name: str, blocks: int) -> None:
    assert bench_depth.row_of("plain", name, blocks)["kept_bytes"] == PLAIN[name](blocks)
    assert bench_depth.row_of("residual", name, blocks)["kept_bytes"] == RESIDUAL[name](blocks)


def test_parts_are_left_out_and_storages_count_once() -> None:
    x = torch.ones(10, requires_grad=True)
    weight = torch.ones(10)
    # exp keeps its result twice: for itself, and for the product.
    assert bench_depth.kept_bytes(lambda: x.exp() * weight, [x, weight]) == 40
    assert bench_depth.kept_bytes(lambda: x.exp() * weight, [x]) == 80


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench_depth, "DEPTHS", (1, 2, 32))
    assert main(bench_depth.BENCH, ["--out", str(tmp_path)]) == 0
    made = load(tmp_path / "memory.jsonl")
    assert bench_depth.BENCH.missing(made) == []
    assert len(made.rows) == len(bench_depth.CHAINS) * len(bench_depth.ACTIVATIONS) * 3
    per_block = {cells[:2]: cells[2] for cells in bench_depth.table(made).rows}
    assert per_block["residual", c.OURS_MASK.name] == "1.062", "1 + 1 / 16"
    assert per_block["plain", c.OURS.name] == "1.000"
    assert "1.062" in capsys.readouterr().out
