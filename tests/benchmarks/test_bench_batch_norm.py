"""The benchmark of batch norm measures every kind of memory, and its table has the ratios of the operator."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import bench_batch_norm
from benchmarks.bench_batch_norm import APART, BOTH, FORMATS, MEMORY, OURS, PASSES, WITH_RELU
from benchmarks.harness import records
from benchmarks.harness.interleave import Budget

LEAST = Budget(seconds=0, min_samples=1, max_samples=1, warmup=1, sample_seconds=0)


@pytest.mark.parametrize("memory", MEMORY)
def test_rows_of_a_process(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_batch_norm, "SHAPES", ((2, 3, 4, 5),))
    monkeypatch.setattr(bench_batch_norm, "fresh_memory", lambda _: lambda: None)
    rows = list(bench_batch_norm.measure(memory, LEAST))
    keys = [(row["format"], row["implementation"], row["pass"]) for row in rows]
    assert set(keys) == {(f, i, p) for f in FORMATS for i in (OURS, APART, WITH_RELU, "clone") for p in PASSES}
    assert len(set(keys)) == len(rows)
    for row in rows:
        assert row["memory"] == memory
        assert row[f"of {APART}"] > 0
        if row["implementation"] == APART:
            assert row[f"of {APART}"] == 1


def test_a_process_for_each_kind_of_memory_and_a_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environments: dict[str, Mapping[str, str]] = {}

    class Done:
        def __init__(self, memory: str) -> None:
            rows = [
                {
                    **{"case": f"{shape}, {name}, {memory}", "implementation": OURS, "pass": BOTH, "memory": memory},
                    **{"format": name, "ms": 1.0, f"of {APART}": 0.5 + shape / 10, f"of {WITH_RELU}": 0.25},
                }
                for shape in (0, 1)
                for name in FORMATS
            ]
            self.stdout = "".join(f"{json.dumps(row)}\n" for row in rows)

    def run(arguments: Sequence[str], env: Mapping[str, str], **_: Any) -> Done:
        memory = arguments[arguments.index("--memory") + 1]
        environments[memory] = env
        return Done(memory)

    monkeypatch.setattr(bench_batch_norm.machine, "commit", lambda: {"hash": "abc", "dirty": False})
    monkeypatch.setattr(bench_batch_norm.subprocess, "run", run)
    assert command.main(["batch-norm", "--out", str(tmp_path)]) == 0
    assert environments.keys() == MEMORY.keys()
    assert environments["large pages"]["THP_MEM_ALLOC_ENABLE"] == "1"
    assert "MALLOC_MMAP_THRESHOLD_" in environments["kept"]
    table = bench_batch_norm.table(records.load(tmp_path / bench_batch_norm.FILE_NAME))
    assert [row[1:] for row in table.rows] == [("0.50 to 0.60 / 0.25 to 0.25",) * 2] * len(MEMORY)
