"""The road's benchmark times every form in the checkout that it is given, and shows both beside each other."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import bench_road, road_cases
from benchmarks.harness import records
from benchmarks.harness.interleave import Budget
from benchmarks.harness.table import MISSING

LEAST = Budget(seconds=0, min_samples=1, max_samples=1, warmup=1, sample_seconds=0)


def test_a_process_times_every_call_of_the_table(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(road_cases, "SMALL", LEAST)
    monkeypatch.setattr(road_cases, "LARGE", LEAST)
    monkeypatch.setattr(road_cases, "IMAGES", (2, 3, 4, 4))
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert road_cases.main([str(bench_road.ROOT)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {f"{name} 4 x 8 {lap}" for name in bench_road.CALLS for lap in road_cases.LAPS} <= found.keys()
    assert {"jvp", "jvp, composite", "double backward, composite"} <= found.keys()
    assert all(us > 0 for us in found.values())
    assert all(found[f"{name} 4 x 8 forward"] < found[f"{name} 4 x 8 forward+backward"] for name in bench_road.CALLS)


def test_two_checkouts_are_measured_in_turn_and_recorded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    ran: list[str] = []

    class Done:
        def __init__(self, checkout: str) -> None:
            times = {"bias 4 x 8 forward": 10.0, "jvp": 2000.0, "jvp, composite": 9000.0}
            self.stdout = "a warning\n" + json.dumps(
                {name: us * (2 if checkout == "/other" else 1 + len(ran) / 10) for name, us in times.items()}
            )

    def run(arguments: Sequence[str], **_: Any) -> Done:
        ran.append(arguments[-1])
        return Done(arguments[-1])

    monkeypatch.setattr(bench_road.machine, "commit", lambda: {"hash": "abc", "dirty": False})
    monkeypatch.setattr(bench_road.subprocess, "run", run)
    monkeypatch.setattr(bench_road.subprocess, "check_output", lambda *_, **__: "0123456789abcdef\n")
    assert command.main(["road", "--against", "/other", "--rounds", "2", "--out", str(tmp_path)]) == 0
    assert ran == ["/other", str(bench_road.ROOT)] * 2
    assert "written:" in capsys.readouterr().out
    record = records.load(tmp_path / bench_road.FILE_NAME)
    table = bench_road.call_table(record)
    # 12 and 14 us: the median.
    assert ("with a bias", "13", "20", MISSING, MISSING) in table.rows
    assert bench_road.derivative_table(record).rows == [("jvp", "2.6", "11.7", "4.5")]
    assert "before: 0123456789" in bench_road.headline(record)


def test_without_a_checkout_there_is_nothing_to_compare(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        bench_road.main([])
    assert "--against: got nothing; expected a checkout" in capsys.readouterr().err
