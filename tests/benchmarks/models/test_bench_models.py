"""The cases, the rows that one gives, and the memory that is reported."""

from __future__ import annotations

import functools
import gc
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import bench_models
from benchmarks.bench_models import BENCH, Case
from benchmarks.harness import implementations as c
from benchmarks.harness.attempts import attempt, failure
from benchmarks.harness.cli import Run, main
from benchmarks.harness.interleave import Timed
from benchmarks.harness.machine import Gpu, Platform
from benchmarks.harness.records import NO_TIME, Record, load
from benchmarks.models import implementations
from benchmarks.models.implementations import FULL, FUSED, HEAD, IMPLEMENTATIONS, IN_PLACE, OURS, RELU, VARIANTS
from benchmarks.models.largest import Search
from benchmarks.models.networks import CLASSES, NETWORKS, Network
from benchmarks.models.steps import AMP, COMPILED, EAGER, FP32, INFERENCE, PASSES, PRECISIONS, TRAIN
from tests.benchmarks.conftest import BUDGET, Processor, measured
from tests.benchmarks.models.conftest import ACTIVATIONS, CASES, TINY, subject
from tools import report


def test_the_cases_of_a_gpu() -> None:
    found = bench_models.cases("cuda", {})
    cases = [one for one in found if isinstance(one, Case)]
    assert cases[0].label == "resnet50, full, AMP bf16, eager, train step, batch 64"
    assert (cases[0].batch, cases[0].image, cases[0].implementations) == (64, 224, IMPLEMENTATIONS)
    eager = {(one.network, one.variant, one.precision, one.pass_) for one in cases if one.mode == EAGER}
    for name in ("resnet50", "resnet101", "mobilenet_v2", "inception_v3"):
        assert {(name, FULL, AMP, TRAIN), (name, FULL, FP32, TRAIN), (name, FULL, AMP, INFERENCE)} <= eager
        assert (name, HEAD, AMP, TRAIN) in eager
    assert {one.network for one in cases if one.mode == COMPILED} == {"resnet50", "mobilenet_v2"}
    assert {one.network for one in found if isinstance(one, Search)} == {"resnet50", "mobilenet_v2"}
    for one in found:
        assert {RELU, c.RELU_MINIMUM.name} < set(one.implementations) <= set(IMPLEMENTATIONS)
        assert one.seconds > 0
    # The target compares these two.
    assert all({FUSED, IN_PLACE} & {*one.implementations} for one in cases if one.mode == COMPILED)
    nothing_to_fuse = [set(one.implementations) for one in found if one.network == "mobilenet_v2"]
    fused = functools.reduce(set.union, nothing_to_fuse)
    assert FUSED not in fused and IN_PLACE in fused


def test_the_cases_of_a_cpu_are_small_and_take_less_than_five_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    found = bench_models.cases("cpu", {})
    assert all(one.batch <= 4 and one.mode == EAGER for one in found if isinstance(one, Case))
    assert sum(one.seconds for one in found) < 300
    assert all(len(bench_models.cases(kind, {"quick": True})) == 1 for kind in ("cpu", "cuda"))


def test_rows(platform: Processor) -> None:
    for case in CASES:
        rows = measured(bench_models.run_case(case, BUDGET, platform))
        assert [row["implementation"] for row in rows] == list(case.implementations)
        by_name = {row["implementation"]: row for row in rows}
        for name, row in by_name.items():
            assert (row["network"], row["variant"], row["pass"]) == (TINY, case.variant, case.pass_)
            assert (row["precision"], row["mode"], row["batch"], row["image"]) == (FP32, EAGER, 6, 8)
            assert 0 < row["min_ms"] <= row["q1_ms"] <= row["ms"] <= row["q3_ms"]
            assert row["samples"] == 3
            assert row["images_per_s"] == pytest.approx(6e3 / row["ms"])
            assert row["ratio_to_relu"] == pytest.approx(row["ms"] / by_name[RELU]["ms"])
            assert row["caps"] == (0 if name == RELU else 8 * ACTIVATIONS if case.variant == FULL else 8)
            assert row["peak_bytes"] is None and row["host_ms"] is None, "only a GPU tells"
            assert (row["saved_bytes"] is None) is (case.pass_ == INFERENCE)
        if case.variant == FULL and case.pass_ == TRAIN:
            saved = {name: row["saved_bytes"] or 0 for name, row in by_name.items()}
            # Of six images with eight channels of 8 x 8 pixels.
            size = 6 * 8 * 64 * 4
            assert saved[OURS] == saved[IN_PLACE] == saved[FUSED] == saved[RELU]
            # A code takes 2 bits of an element's 32, and what the mean gets is then not kept.
            assert saved[implementations.FUSED_MASK] == saved[OURS] + ACTIVATIONS * size // 16 - size
            assert saved[c.RELU_MINIMUM.name] >= saved[OURS] + ACTIVATIONS * size


def test_where_the_device_keeps_time_the_host_is_timed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_models.Subject, "step", lambda self: time.sleep(0.02))

    class TenSeconds(Processor):
        kind = "cuda"

        def sample(self, timed: Timed, number: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
            timed.steps[0](None)
            return (10.0,), (0.0,)

    for row in measured(bench_models.run_case(CASES[1], BUDGET, TenSeconds())):
        assert row["ms"] == 10_000
        assert row["host_ms"] is not None and 20 <= row["host_ms"] != row["ms"]


def test_what_fails_is_left_out_with_its_reason(platform: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\n  Tried to allocate\nmore")

    monkeypatch.setitem(implementations.PLAIN, c.CLAMP.name, broken)
    released = []
    monkeypatch.setattr(Processor, "release", lambda self: released.append(1))
    *rows, failed = bench_models.run_case(CASES[0], BUDGET, platform)
    assert [row["implementation"] for row in rows] == [name for name in IMPLEMENTATIONS if name != c.CLAMP.name]
    reason = "OutOfMemoryError: CUDA out of memory. Tried to allocate"
    assert failed == {"implementation": c.CLAMP.name, "failure": reason}
    assert released == [1]


def test_without_relu_there_is_no_ratio(platform: Processor) -> None:
    rows = measured(bench_models.run_case(replace(CASES[0], implementations=(OURS,)), BUDGET, platform))
    assert [row["ratio_to_relu"] for row in rows] == [None]


def test_no_implementation_is_begun_that_would_end_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def take(name: str) -> str:
        now[0] += {"a": 5, "b": 3, "c": 0, "d": 0}[name]
        return name.upper()

    done, failures = attempt("abcd", take, lambda: None, until=12)
    # After a and b, four seconds are left, and a took five.
    assert done == {"a": "A", "b": "B"}
    assert [(one["implementation"], one["failure"]) for one in failures] == [("c", NO_TIME), ("d", NO_TIME)]
    assert attempt("a", take, lambda: None) == ({"a": "A"}, [])


def test_the_reason_of_a_compiler_names_the_cause() -> None:
    found = failure(RuntimeError("backend='inductor' raised:\n\nKeyError: 3\n\nmore"), "x")
    assert found == {"implementation": "x", "failure": "RuntimeError: backend='inductor' raised: KeyError: 3"}
    assert failure(ValueError()) == {"implementation": None, "failure": "ValueError: "}


@pytest.mark.parametrize("pass_", PASSES)
def test_compiled(pass_: str, platform: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a backend that generates no code, which takes long: what is asked of the compiler is what is tested."""
    asked: list[dict[str, Any]] = []
    real = torch.compile

    def compile_(model: nn.Module, **options: Any) -> Callable[..., Any]:
        asked.append(options)
        return real(model, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", compile_)
    names = (RELU, c.RELU_MINIMUM.name, FUSED)
    reset = []
    monkeypatch.setattr(torch._dynamo, "reset", lambda: reset.append(1))
    case = replace(CASES[0], mode=COMPILED, pass_=pass_, implementations=names)
    rows = measured(bench_models.run(case, Run(platform)))
    assert reset == [1]
    assert [row["implementation"] for row in rows] == list(names)
    assert all(row["mode"] == COMPILED and row["saved_bytes"] is None for row in rows)
    assert asked == [{"dynamic": False, "fullgraph": True}] * 3
    compiled, eager = subject(FUSED, mode=COMPILED, pass_=pass_), subject(FUSED, pass_=pass_)
    torch.testing.assert_close(compiled.outputs(), eager.outputs())
    bench_models.run(CASES[1], Run(platform))
    assert reset == [1]


class Line(nn.Module):
    """Two linear layers with one ReLU between them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 16), nn.ReLU(), nn.Linear(16, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


@pytest.mark.parametrize("name", [RELU, OURS, c.RELU_MINIMUM.name])
def test_what_is_saved_for_backward_is_counted_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, TINY, Network(Line))
    # What comes out of the activation, for it and for the next layer; the log-softmax; the loss's total weight.
    expected = 4 * (6 * 16 + 6 * CLASSES + 1)
    if name == c.RELU_MINIMUM.name:
        # x for the minimum, and for the penalty the caps as one tensor.
        expected += 4 * 6 * 16 + 4 * 16
    assert subject(name).saved_bytes() == pytest.approx(expected, abs=8)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_counting_keeps_nothing(name: str) -> None:
    of = subject(name)
    assert of.saved_bytes() == of.saved_bytes() > 0
    alive = [weakref.ref(parameter) for parameter in of.model.parameters()]
    del of
    gc.collect()
    assert not any(one() is not None for one in alive)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_peak_memory_is_what_belongs_to_the_network_and_what_a_step_adds(
    variant: str, precision: str, platform: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = subject(OURS, variant, precision=precision)
    of.step()
    state = sum(tensor.numel() * tensor.element_size() for tensor in of.model.state_dict().values())
    momentum = sum(parameter.numel() * 4 for parameter in of.model.parameters())
    data = of.images.numel() * 4 + of.labels.numel() * 8
    seen: list[list[Tensor | None]] = []

    def growth(step: Callable[[], None]) -> int:
        seen.append([parameter.grad for parameter in of.model.parameters()])
        step()
        return 1000

    assert of.peak_bytes(platform) is None, "nobody counts"
    monkeypatch.setattr(platform, "growth", growth, raising=False)
    assert of.peak_bytes(platform) == state + momentum + data + 1000
    assert all(gradient is None for gradient in seen[0]), "gradients of an earlier step would hide those of this one"


def test_a_case_that_fails_is_recorded_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_case = bench_models.run_case
    searching = []

    def broken(case: Case, *rest: Any) -> Any:
        searching.append(torch.backends.cudnn.benchmark)
        if case is CASES[0]:
            raise RuntimeError("no kernel image")
        return run_case(case, *rest)

    monkeypatch.setattr(bench_models, "run_case", broken)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    assert main(BENCH, ["--device", "cpu", "--threads", "1", "--out", str(tmp_path)]) == 0
    assert searching == [True] * 3 and torch.backends.cudnn.benchmark is False, "only while timing"
    made = load(tmp_path / "models.jsonl")
    assert [(one["key"], one["failure"]) for one in made.failures] == [
        ({"case": CASES[0].label, "implementation": None}, "RuntimeError: no kernel image")
    ]
    assert len(made.rows) == 5 and "torchvision" in made.run["versions"] and "tf32" in made.run["settings"]
    printed = capsys.readouterr().out
    assert f"[1/3] {CASES[0].label}" in printed and "Times, ms" in printed


def row(implementation: str, **changes: Any) -> dict[str, Any]:
    return {
        "network": "resnet50", "variant": "full", "precision": "AMP bf16", "mode": COMPILED, "pass": TRAIN,
        "implementation": implementation, "batch": 64, "image": 224, "ms": 20.0, "q1_ms": 20.0, "q3_ms": 20.0,
        "min_ms": 20.0, "samples": 9, "host_ms": None, "ratio_to_relu": None, "peak_bytes": None, "saved_bytes": None,
        **changes,
    }  # fmt: skip


def record(*rows: dict[str, Any]) -> Record:
    made = BENCH.new_record(Platform())
    for one in rows:
        label = [str(one.get(name, "")) for name in ("network", "variant", "precision", "mode", "pass")]
        made.add(", ".join([*label, f"batch {one.get('batch')}"]), [one], BENCH.key)
    return made


@pytest.mark.parametrize(
    ("ours", "noise", "met"), [(20.0, 0.0, True), (19.0, 0.0, True), (20.2, 0.0, False), (20.2, 0.3, True)]
)
@pytest.mark.parametrize("name", [FUSED, IN_PLACE])
def test_the_target_of_a_compiled_model(name: str, ours: float, noise: float, met: bool) -> None:
    rows = [row(c.RELU_MINIMUM.name, q3_ms=20.0 + noise), row(name, ms=ours, q1_ms=ours, q3_ms=ours), row(RELU, ms=1.0)]
    train, inference = bench_models.targets(record(*rows)).rows
    worst = f"{ours / 20:.3f} (noise {noise / 20:.1%}; resnet50, {name})"
    assert train[3:] == (worst, worst, "yes, 1 of 1" if met else "**missed** in 1 of 1")
    assert inference[0] == INFERENCE and inference[-1] == "not measured"


def test_the_target_is_for_compiled_rows_of_one_case() -> None:
    theirs = row(c.RELU_MINIMUM.name)
    for other in (row(FUSED, mode=EAGER), row(OURS), row(FUSED, network="mobilenet_v2"), row(FUSED, batch=256)):
        assert bench_models.targets(record(theirs, other)).rows[0][-1] == "not measured"


def test_tables_headline_and_report(gpu: Gpu, tmp_path: Path) -> None:
    made = record(
        row(RELU, ratio_to_relu=1.0, peak_bytes=3_000_000_000, host_ms=12.5),
        row(c.RELU_MINIMUM.name, ms=44.0, ratio_to_relu=2.2, peak_bytes=4_500_000_000, host_ms=13.0),
        row(FUSED, ms=50.0, ratio_to_relu=2.5, peak_bytes=3_000_000_000, host_ms=14.0),
        row(OURS, mode=EAGER, saved_bytes=12_345_678),
    )
    found: dict[str, Any] = {
        "network": "resnet50", "precision": "AMP bf16", "implementation": RELU, "image": 224, "largest": 800,
        "too_large": 816, "tries": 4, "ended": False, "bytes_per_image": 9.1e7,
    }  # fmt: skip
    made.add("resnet50, full, AMP bf16, largest batch", [found], BENCH.key)
    tables = {table.title: table for table in BENCH.tables(made)}
    for table in tables.values():
        assert all(len(line) == len(table.header) for line in table.rows)
    (compiled, eager) = tables["Times, ms"].rows
    assert compiled[:4] == ("resnet50, full, AMP bf16, compiled, train step", "64 x 224 px", "20", "44 (2.20)")
    assert eager[tables["Times, ms"].header.index(OURS)] == "20"
    assert tables["Memory, MB"].rows[0][2:4] == ("3000", "4500")
    assert "saved 12.3" in tables["Memory, MB"].rows[1]
    assert len(tables["Time of the host to launch it, ms"].rows) == 1
    assert tables["Largest batch"].rows == [("resnet50, AMP bf16, train step, 224 px", RELU, "800", "816", "91.0")]
    assert tables["Targets"].rows[0][-1] == "**missed** in 1 of 1"
    text = BENCH.headline(made)
    assert f"{gpu['name']}, driver 580.1" in text and "missing" in text and "torchvision" in text
    made.save(tmp_path / "some" / BENCH.file_name)
    page = report.REPORTS["models"](tmp_path)
    assert "| resnet50, full, AMP bf16, compiled, train step | 64 x 224 px | 20 | 44 (2.20) |" in page
