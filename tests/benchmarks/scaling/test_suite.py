"""Points measured on the CPU, as itself and in the part of a GPU: rows, files, the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.harness import implementations as c
from benchmarks.harness import machine as results
from benchmarks.harness.cuda_graphs import Machine
from benchmarks.harness.interleave import Budget, sample
from benchmarks.kernels.suite import BACKWARD, BOTH, COLD_MODE, FORWARD, HOT_MODE
from benchmarks.running import INTERRUPTED
from benchmarks.scaling import __main__ as command
from benchmarks.scaling import platforms, suite, tables
from benchmarks.scaling.cases import EAGER_MODE, SIZE, Point
from benchmarks.scaling.document import Document
from tests.benchmarks.gpu.conftest import machine as fake_machine

BUDGET = Budget(seconds=0, min_samples=3, max_samples=3, warmup=1, sample_seconds=0)
WHO = (c.RELU_MINIMUM.name, c.OURS.name)
MODES = (HOT_MODE, COLD_MODE, EAGER_MODE)
POINT = Point("480 B, 3 caps", "channel", (2, 3, 4, 5), torch.float32, WHO, axis=SIZE, modes=MODES)
PASSES = (FORWARD, BACKWARD, BOTH)

machine = fake_machine


@pytest.fixture
def gpu(machine: Machine) -> suite.Platform:
    """Captures work, as a GPU does."""
    return suite.Platform(replace(machine, cache_bytes=4000), sample, graphs=True)


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> suite.Platform:
    monkeypatch.setattr(platforms, "last_level_cache", lambda: 4000)
    return platforms.platform_of("cpu")


@pytest.mark.parametrize("platform", ["gpu", "processor"])
def test_rows(platform: str, request: pytest.FixtureRequest) -> None:
    here: suite.Platform = request.getfixturevalue(platform)
    rows, failures = suite.run_point(POINT, BUDGET, here)
    assert failures == []
    found = {(row["mode"], row["pass"], row["implementation"]): row for row in rows}
    assert len(found) == len(rows)
    # Both are made of the CPU, where a clone is a floor too.
    assert set(found) == {(m, p, who) for m in MODES for p in PASSES for who in (c.COPY, c.CLONE, *WHO)}
    for (mode, pass_, who), row in found.items():
        assert set(row) == set(suite.Row.__annotations__)
        assert 0 < row["min_ms"] <= row["q1_ms"] <= row["ms"] <= row["q3_ms"]
        assert row["gb_per_s"] == pytest.approx(row["min_bytes"] / row["ms"] * 1e-6)
        assert row["copy_gb_per_s"] == pytest.approx(found[mode, pass_, c.COPY]["gb_per_s"])
        assert row["fraction_of_copy"] == pytest.approx(row["gb_per_s"] / row["copy_gb_per_s"])
        assert (row["x_bytes"], row["caps"], row["threads"]) == (480, 3, None)
        expected = {FORWARD: 2, BACKWARD: 2 if who in (c.COPY, c.CLONE) else 3}
        assert row["min_bytes"] == 480 * (sum(expected.values()) if pass_ == BOTH else expected[pass_])
    hot, cold, eager = (found[mode, FORWARD, c.OURS.name] for mode in MODES)
    assert (hot["buffers"], hot["calls_per_sample"]) == (1, 1)
    assert (cold["buffers"], cold["calls_per_sample"]) == (9, 9)
    assert (eager["buffers"], eager["calls_per_sample"]) == (1, 1), "as hot, where there is hot"


def test_without_hot_eager_goes_round_the_cold_buffers(gpu: suite.Platform) -> None:
    rows, _ = suite.run_point(replace(POINT, modes=(COLD_MODE, EAGER_MODE)), BUDGET, gpu)
    assert {(row["buffers"], row["calls_per_sample"]) for row in rows} == {(9, 9)}
    large = replace(gpu, machine=replace(gpu.machine, cache_bytes=400))
    rows, _ = suite.run_point(replace(POINT, modes=(EAGER_MODE,)), BUDGET, large)
    assert {(row["buffers"], row["calls_per_sample"]) for row in rows} == {(1, suite.LEAST_CALLS)}


def test_only_hot_and_cold_are_captured(gpu: suite.Platform) -> None:
    captured: list[int] = []
    by_host: list[str] = []

    def capture(steps: Any, clear: Any) -> Any:
        captured.append(len(steps))
        return list(steps)

    def with_host(implementation: Any, number: int) -> Any:
        by_host.append(implementation.name)
        return sample(implementation, number)

    here = replace(gpu, machine=replace(gpu.machine, capture=capture), with_host=with_host)
    suite.run_point(replace(POINT, modes=(HOT_MODE,)), BUDGET, here)
    assert (captured, by_host) == ([2] * 4, [])
    captured.clear()
    suite.run_point(replace(POINT, modes=(EAGER_MODE,)), BUDGET, here)
    assert captured == [] and set(by_host) == {c.COPY, c.CLONE, *WHO}


def test_cold_calls_go_round_the_buffers(processor: suite.Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def spy(x: torch.Tensor, cap: torch.Tensor, dim: int) -> torch.Tensor:
        seen.append(x.data_ptr())
        return c.relu_minimum(x, cap, dim)

    monkeypatch.setitem(c.IMPLEMENTATIONS, "spy", c.Implementation("spy", spy))
    suite.run_point(replace(POINT, implementations=("spy",), modes=(COLD_MODE,)), BUDGET, processor)
    assert len(set(seen[-9:])) == 9
    assert seen[-9:] == seen[-18:-9]


def test_what_fails_is_left_out_with_its_reason(gpu: suite.Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(x: torch.Tensor, cap: torch.Tensor, dim: int) -> torch.Tensor:
        return c.relu_minimum(x, cap, dim) + 1

    monkeypatch.setitem(c.IMPLEMENTATIONS, "wrong", c.Implementation("wrong", wrong))
    point = replace(POINT, implementations=("wrong", c.OURS.name), modes=(HOT_MODE,))
    rows, failures = suite.run_point(point, BUDGET, gpu)
    assert {row["implementation"] for row in rows} == {c.COPY, c.CLONE, c.OURS.name}
    assert [(f["implementation"], f["axis"], f["mode"], f["reason"]) for f in failures] == [
        ("wrong", SIZE, HOT_MODE, "ValueError: wrong values: not timed")
    ]


def test_a_point_for_which_memory_is_short_is_left_out(gpu: suite.Platform) -> None:
    point = replace(POINT, shape=(2**14, 64, 16, 16))
    short = replace(gpu, machine=replace(gpu.machine, free_bytes=lambda: 2**30))
    rows, failures = suite.run_point(point, BUDGET, short)
    assert rows == []
    assert (
        failures[0]["implementation"] is None and "needs 24 GB of free memory, and there are 1" in failures[0]["reason"]
    )


def test_threads_of_a_point(processor: suite.Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()

    def spy(x: torch.Tensor, cap: torch.Tensor, dim: int) -> torch.Tensor:
        seen.add(torch.get_num_threads())
        return c.relu_minimum(x, cap, dim)

    monkeypatch.setitem(c.IMPLEMENTATIONS, "spy", c.Implementation("spy", spy))
    before = torch.get_num_threads()
    rows, _ = suite.run_point(replace(POINT, implementations=("spy",), threads=3), BUDGET, processor)
    assert seen == {3}
    assert {row["threads"] for row in rows} == {3}
    assert torch.get_num_threads() == before


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> list[Point]:
    """What the command measures."""
    found = [replace(POINT, modes=(HOT_MODE,), threads=threads) for threads in (2, 1)]
    monkeypatch.setattr(command, "points", lambda *_, **__: found)
    monkeypatch.setattr(suite, "FULL", {"cpu": BUDGET})
    monkeypatch.setattr(suite, "QUICK", BUDGET)
    return found


@pytest.mark.usefixtures("tiny")
class TestCommand:
    def test_complete_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert command.main(["--out", str(tmp_path)]) == 0
        made = json.loads((tmp_path / "scaling.json").read_text())
        assert set(made) == set(Document.__annotations__)
        assert made["complete"] and not made["quick"]
        assert [row["threads"] for row in made["rows"][:: len(made["rows"]) - 1]] == [2, 1]
        printed = capsys.readouterr().out
        assert "480 B, 3 caps, fp32, 1 thread" in printed and "480 B, 3 caps, fp32, 2 threads" in printed

    def test_default_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(results, "RESULTS", tmp_path)
        assert command.main([]) == 0
        (path,) = tmp_path.glob("*/scaling.json")
        assert path.parent == results.default_path(json.loads(path.read_text())["device"]).parent

    def test_quick_runs_do_not_replace_results(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(results, "RESULTS", tmp_path)
        assert command.main(["--quick"]) == 0
        assert list(tmp_path.iterdir()) == []

    def test_interrupted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        run_point = suite.run_point

        def interrupted(point: Point, *arguments: Any) -> Any:
            if point.threads == 1:
                raise KeyboardInterrupt
            return run_point(point, *arguments)

        monkeypatch.setattr(suite, "run_point", interrupted)
        assert command.main(["--out", str(tmp_path)]) == INTERRUPTED
        made = json.loads((tmp_path / "scaling.json").read_text())
        assert not made["complete"]
        assert {row["threads"] for row in made["rows"]} == {2}

    def test_a_run_that_goes_on(self, tmp_path: Path, tiny: list[Point]) -> None:
        last = tiny.pop()
        assert command.main(["--out", str(tmp_path)]) == 0
        path = tmp_path / "scaling.json"
        former = json.loads(path.read_text())
        tiny.append(last)
        assert command.main(["--out", str(tmp_path), "--resume", str(path)]) == 0
        made = json.loads(path.read_text())
        assert made["complete"] and made["rows"][: len(former["rows"])] == former["rows"]
        assert len(made["rows"]) == 2 * len(former["rows"])
        assert [run["cases"] for run in made["earlier"]] == [["size: 480 B, 3 caps, fp32, 2 threads"]]
        assert "in several runs: 1 cases on " in tables.headline(made)

    def test_no_gpu(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(SystemExit, match="2"):
            command.main(["--device", "cuda"])
        assert "torch sees no CUDA device" in capsys.readouterr().err
