"""python -m benchmarks.surgery: the files it writes, what counts as a failure, bad arguments."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.surgery import monitor, sweep
from benchmarks.surgery.__main__ import main
from tests.support.optional import torchvision_or_skip

ROW = sweep.Row("net", 10, 5, 4, 5, 5, 1, 0.1, True, 5)


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


def test_sweep_writes_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torchvision_or_skip()
    path = tmp_path / "sweep.json"
    assert main(["sweep", "--models", "squeezenet1_1", "--output", str(path)]) == 0
    document = json.loads(path.read_text())
    (row,) = document["rows"]
    assert (row["name"], row["replaced"], row["equal"], row["failure"]) == ("squeezenet1_1", 26, True, "")
    assert document["complete"] is False
    assert "torchvision" in document["versions"]
    assert "squeezenet1_1" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["sweep", "--models", "nothing*", "--output", str(path)])


def test_monitor_writes_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = next(name for name in monitor.CASES if name.startswith("dense"))
    monkeypatch.setattr(monitor, "CASES", {name: monitor.CASES[name]})
    monkeypatch.setattr(monitor, "SECONDS", 0)
    path = tmp_path / "monitor.json"
    assert main(["monitor", "--rounds", "3", "--output", str(path)]) == 0
    (row,) = json.loads(path.read_text())["rows"]
    assert (row["name"], row["capped_layers"], row["every"]) == (name, 1, 20)
    assert row["rounds"] == 3
    assert row["plain"] > 0


def test_bad_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["monitor", "--rounds", "0"])
    assert "--rounds: got 0; expected at least 1" in capsys.readouterr().err
