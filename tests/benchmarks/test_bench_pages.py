"""The benchmark of large pages runs every choice in a process of its own, and shows median, mean and tail."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import bench_pages
from benchmarks.harness import records
from benchmarks.harness.interleave import Budget


def test_both_kinds_are_measured(monkeypatch: pytest.MonkeyPatch):
    claimed: list[int] = []
    monkeypatch.setattr(bench_pages, "fresh_memory", lambda size: lambda: claimed.append(size))
    found = bench_pages.measure(Budget(seconds=0, min_samples=3, max_samples=3, sample_seconds=0), (2, 3, 4, 5))
    assert list(found) == list(bench_pages.KINDS)
    assert all(len(ms) == 3 and min(ms) > 0 for ms in found.values())
    # Only for one of them, before every call: two to warm up, and three.
    assert claimed == 5 * [3 * 4 * 120]


def test_command_and_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def run(_: Any, *, env: dict[str, str], **__: Any) -> Any:
        asked.append(env["DRELUOP_HUGE_PAGES"])
        times = {"as it comes": [1.0] * 18 + [101.0] * 2, "claimed": [2.0] * 20}
        return subprocess.CompletedProcess([], 0, json.dumps(times))

    monkeypatch.setattr(bench_pages.machine, "commit", lambda: {"hash": "abc", "dirty": False})
    monkeypatch.setattr(bench_pages.subprocess, "run", run)
    assert command.main(["pages", "--rounds", "2", "--out", str(tmp_path)]) == 0
    assert asked == 2 * ["auto", "never", "always"]
    table = bench_pages.table(records.load(tmp_path / bench_pages.FILE_NAME))
    assert table.rows == [(f"`{choice}`", "1 / 11 / 101", "2 / 2 / 2") for choice in ("auto", "never", "always")]
