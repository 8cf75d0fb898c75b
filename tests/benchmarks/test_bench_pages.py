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


@pytest.mark.parametrize("kind", bench_pages.KINDS)
def test_every_kind_is_measured(kind: str, monkeypatch: pytest.MonkeyPatch):
    claimed: list[int] = []
    monkeypatch.setattr(bench_pages, "fresh_memory", lambda size: lambda: claimed.append(size))
    ms = bench_pages.measure(kind, Budget(seconds=0, min_samples=3, max_samples=3, sample_seconds=0), (2, 3, 4, 5))
    assert len(ms) == 3 and min(ms) > 0
    # Before every call: two to warm up, and three.
    assert claimed == (5 * [3 * 4 * 120] if kind == "claimed" else [])


def test_command_and_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[str, str]] = []

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> Any:
        asked.append((env["DRELUOP_HUGE_PAGES"], command[-1]))
        assert (command[-1] == "kept") == ("MALLOC_TRIM_THRESHOLD_" in env)
        times = [1.0] * 18 + [101.0] * 2 if command[-1] == "as it comes" else [2.0] * 20
        return subprocess.CompletedProcess([], 0, json.dumps(times))

    monkeypatch.setattr(bench_pages.machine, "commit", lambda: {"hash": "abc", "dirty": False})
    monkeypatch.setattr(bench_pages.subprocess, "run", run)
    assert command.main(["pages", "--rounds", "2", "--out", str(tmp_path)]) == 0
    assert asked == 2 * [(choice, kind) for choice in ("auto", "never", "always") for kind in bench_pages.KINDS]
    table = bench_pages.table(records.load(tmp_path / bench_pages.FILE_NAME))
    assert table.rows == [
        (f"`{choice}`", "1 / 11 / 101", "2 / 2 / 2", "2 / 2 / 2") for choice in ("auto", "never", "always")
    ]
