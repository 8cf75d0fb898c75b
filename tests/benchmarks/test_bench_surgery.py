"""The benchmarks of surgery: the records they write, what counts as a failure, and the table of libraries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_surgery
from benchmarks.harness.cli import main
from benchmarks.harness.machine import Platform
from benchmarks.harness.records import Record, load
from benchmarks.surgery import monitor, sweep
from benchmarks.surgery.zoo import networks
from tests.benchmarks.surgery.test_zoo import CASE
from tests.support.optional import torchvision_or_skip
from tools import report

ROW = sweep.Row("net", 10, 5, 4, 5, 5, 1, 0.1, True, 5)


def run(bench: Any, *options: str) -> int:
    return main(bench, ["--threads", "1", *options])


def test_failures_are_named() -> None:
    assert ROW.failure == ""
    assert replace(ROW, equal=None, caps_with_gradient=None).failure == ""
    assert replace(ROW, found=4).failure == "calls are missing, sites are left"
    assert replace(ROW, replaced=4).failure == "sites are left, caps are without gradient"
    assert replace(ROW, equal=False).failure == "outputs differ"
    assert replace(ROW, caps_with_gradient=3).failure == "caps are without gradient"


def test_the_monitors_share_of_a_step() -> None:
    cost = monitor.Cost("net", 1, 3, plain=100, idle=101, measured=141)
    assert cost.share(20) == pytest.approx(0.03)
    assert monitor.Cost("net", 1, 3, plain=100, idle=99, measured=99).share(1) == 0


def test_the_sweep_writes_its_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torchvision_or_skip()
    assert run(bench_surgery.SWEEP, "--cases", "squeezenet1_1", "--out", str(tmp_path)) == 0
    record = load(tmp_path / "surgery-sweep.jsonl")
    (row,) = record.rows
    assert row["key"] == {"case": "squeezenet1_1"}
    assert (row["name"], row["replaced"], row["equal"], row["wrong"]) == ("squeezenet1_1", 26, True, "")
    assert "resnet18" in bench_surgery.SWEEP.missing(record) and "torchvision" in record.run["versions"]
    assert "squeezenet1_1" in capsys.readouterr().out


def test_the_zoo_writes_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = replace(CASE, name="torch/broken", build=lambda: 1 / 0)
    monkeypatch.setattr(networks, "cases", lambda: [CASE, broken, replace(CASE, name="nothing/other")])
    assert run(bench_surgery.ZOO, "--cases", "torch/s*", "--out", str(tmp_path)) == 0
    (row,) = load(tmp_path / "surgery-zoo.jsonl").rows
    assert (row["key"]["case"], row["wrong"]) == ("torch/small", "")
    assert run(bench_surgery.ZOO, "--out", str(tmp_path)) == 1, "one network fails"
    record = load(tmp_path / "surgery-zoo.jsonl")
    assert [row["wrong"] for row in record.rows] == ["", "ZeroDivisionError: division by zero"]
    (failure,) = record.failures
    assert failure["key"]["case"] == "nothing/other" and "pip install -e '.[zoo]'" in failure["failure"]


def test_the_monitor_writes_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = next(name for name in monitor.CASES if name.startswith("dense"))
    monkeypatch.setattr(monitor, "CASES", {name: monitor.CASES[name]})
    monkeypatch.setattr(monitor, "SECONDS", 0)
    assert run(bench_surgery.MONITOR, "--quick", "--out", str(tmp_path)) == 0
    (row,) = load(tmp_path / "surgery-monitor.jsonl").rows
    assert (row["name"], row["capped_layers"], row["every"], row["rounds"]) == (name, 1, 20, bench_surgery.FEW)
    assert row["plain"] > 0


SWEPT = {"name": "resnet18", "calls_train": 17, "calls_eval": 16, "found": 17, "replaced": 17, "fused": 8}
ZOO = {"calls": 5, "sites": 6, "replaced": 4, "fused": 1, "remaining": 1, "remaining_independent": 1, "error": ""}


def row(**changes: Any) -> dict[str, Any]:
    return {"name": "timm/a", "equal": True, "gradients": True, "seconds": 0.5, **ZOO, **changes}


def record(*rows: dict[str, Any]) -> Record:
    made = bench_surgery.SWEEP.new_record(Platform())
    made.run.update(date="2026-11-30T20:00:00", commit={"hash": "0123456789"}, versions={"torch": "2.11.0"})
    for one in rows:
        made.add(one["name"], [one], ())
    return made


def test_a_row_per_library_with_sums(tmp_path: Path) -> None:
    swept = record({**SWEPT, "remaining": 0, "equal": True, "seconds": 0.1})
    of_zoo = record(row(), row(name="timm/b", remaining_independent=3, equal=False, seconds=1.5), row(calls=0))
    found = bench_surgery.library_table([swept, of_zoo])
    cells = [dict(zip(found.header, one, strict=True)) for one in found.rows]
    assert [one["library"] for one in cells] == ["torchvision, classifiers", "timm"]
    assert (cells[0]["calls"], cells[0]["sites"], cells[0]["equal gradients"]) == ("17", "17", "-")
    assert (cells[1]["networks"], cells[1]["with ReLU"], cells[1]["calls"]) == ("3", "2", "10")
    assert (cells[1]["remain"], cells[1]["in silence"], cells[1]["errors"]) == ("5", "2", "0")
    assert (cells[1]["equal outputs"], cells[1]["seconds"]) == ("1 of 2", "0.50 / 1.50")
    swept.save(tmp_path / "some" / "surgery-sweep.jsonl")
    of_zoo.save(tmp_path / "some" / "surgery-zoo-timm.jsonl")
    page = report.REPORTS["surgery"](tmp_path)
    assert "| torchvision, classifiers | 1 |" in page and "| timm | 3 |" in page


def test_an_error_counts_and_the_headline_says_when() -> None:
    failed = record(row(calls=None, seconds=None, error="TypeError: no", equal=None, gradients=None))
    (cells,) = bench_surgery.library_table([failed]).rows
    assert cells[-2] == "1" and cells[-1] == "-"
    assert bench_surgery.library_headline([failed]) == "2026-11-30, 0123456: torch 2.11.0"
