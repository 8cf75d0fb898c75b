"""The cases, the rows that one gives, and the memory that is reported."""

from __future__ import annotations

import functools
import gc
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.harness import implementations as c
from benchmarks.harness.interleave import Timed
from benchmarks.models import implementations, suite
from benchmarks.models.attempts import attempt, reason_of
from benchmarks.models.implementations import FULL, FUSED, HEAD, IMPLEMENTATIONS, IN_PLACE, OURS, RELU, VARIANTS
from benchmarks.models.largest import Search
from benchmarks.models.networks import CLASSES, NETWORKS, Network
from benchmarks.models.steps import AMP, COMPILED, EAGER, FP32, INFERENCE, PASSES, PRECISIONS, TRAIN, Platform
from benchmarks.running import NO_TIME
from tests.benchmarks.models.conftest import ACTIVATIONS, BUDGET, TINY, subject

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(scope="module")
def on_a_gpu() -> list[suite.Work]:
    return suite.cases(CUDA)


def test_the_cases_of_a_gpu(on_a_gpu: list[suite.Work]) -> None:
    assert len({one.label for one in on_a_gpu}) == len(on_a_gpu)
    cases = [one for one in on_a_gpu if isinstance(one, suite.Case)]
    first = cases[0]
    assert (first.network, first.variant, first.precision, first.mode, first.pass_) == (
        "resnet50",
        FULL,
        AMP,
        EAGER,
        TRAIN,
    )
    assert (first.batch, first.image, first.implementations) == (64, 224, IMPLEMENTATIONS)
    eager = {(one.network, one.variant, one.precision, one.pass_) for one in cases if one.mode == EAGER}
    names = ("resnet50", "resnet101", "mobilenet_v2", "inception_v3")
    for name in names:
        assert {(name, FULL, AMP, TRAIN), (name, FULL, FP32, TRAIN), (name, FULL, AMP, INFERENCE)} <= eager
        assert (name, HEAD, AMP, TRAIN) in eager
    assert {one.network for one in cases if one.mode == COMPILED} == {"resnet50", "mobilenet_v2"}
    assert {one.network for one in on_a_gpu if isinstance(one, Search)} == {"resnet50", "mobilenet_v2"}
    for one in on_a_gpu:
        assert {RELU, c.RELU_MINIMUM.name} < set(one.implementations) <= set(IMPLEMENTATIONS)
        assert one.seconds > 0
    # The target compares these two.
    assert all({FUSED, IN_PLACE} & {*one.implementations} for one in cases if one.mode == COMPILED)


def test_the_cases_of_a_cpu_are_small_and_take_less_than_five_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    found = suite.cases(CPU)
    assert all(one.batch <= 4 and one.mode == EAGER for one in found if isinstance(one, suite.Case))
    assert sum(one.seconds for one in found) < 300
    assert len(suite.cases(CPU, quick=True)) == len(suite.cases(CUDA, quick=True)) == 1


def test_cases_can_be_chosen(on_a_gpu: list[suite.Work]) -> None:
    found = suite.chosen(on_a_gpu, ("resnet50",), (RELU, FUSED), (EAGER,))
    assert {one.network for one in found} == {"resnet50"} and {one.mode for one in found} == {EAGER}
    assert all(set(one.implementations) <= {RELU, FUSED} for one in found)
    before = next(one for one in on_a_gpu if one.label == found[0].label)
    assert found[0].seconds == pytest.approx(before.seconds * 2 / len(before.implementations))
    assert suite.chosen(on_a_gpu, ("resnet101",), IMPLEMENTATIONS, (COMPILED,)) == []


def test_rows(cases: list[suite.Case], platform: Platform) -> None:
    for case in cases:
        rows, failures = suite.run_case(case, BUDGET, platform)
        assert failures == []
        assert [row["implementation"] for row in rows] == list(case.implementations)
        by_name = {row["implementation"]: row for row in rows}
        for name, row in by_name.items():
            assert set(row) == set(suite.Row.__annotations__)
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


def test_where_the_device_keeps_time_the_host_is_timed_too(
    cases: list[suite.Case], platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite.Subject, "step", lambda self: time.sleep(0.02))

    def ten_seconds(implementation: Timed, number: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        implementation.steps[0](None)
        return (10.0,), (0.0,)

    rows, failures = suite.run_case(cases[1], BUDGET, replace(platform, sampler=ten_seconds))
    assert failures == []
    for row in rows:
        assert row["ms"] == 10_000
        assert row["host_ms"] is not None and 20 <= row["host_ms"] != row["ms"]


def test_a_implementation_that_fails_is_left_out_with_its_reason(
    cases: list[suite.Case], platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\n  Tried to allocate\nmore")

    monkeypatch.setitem(implementations.PLAIN, c.CLAMP.name, broken)
    released = []
    rows, failures = suite.run_case(cases[0], BUDGET, replace(platform, release=lambda: released.append(1)))
    assert [row["implementation"] for row in rows] == [name for name in IMPLEMENTATIONS if name != c.CLAMP.name]
    reason = "OutOfMemoryError: CUDA out of memory. Tried to allocate"
    assert failures == [{"case": cases[0].label, "implementation": c.CLAMP.name, "reason": reason}]
    assert released == [1]


def test_without_relu_there_is_no_ratio(cases: list[suite.Case], platform: Platform) -> None:
    rows, _ = suite.run_case(replace(cases[0], implementations=(OURS,)), BUDGET, platform)
    assert [row["ratio_to_relu"] for row in rows] == [None]


def test_no_implementation_is_begun_that_would_end_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def take(name: str) -> str:
        now[0] += {"a": 5, "b": 3, "c": 0, "d": 0}[name]
        return name.upper()

    done, failures = attempt("abcd", "case", take, lambda: None, until=12)
    # After a and b, four seconds are left, and a took five.
    assert done == {"a": "A", "b": "B"}
    assert [(one["implementation"], one["reason"]) for one in failures] == [("c", NO_TIME), ("d", NO_TIME)]
    assert attempt("a", "case", take, lambda: None, until=None) == ({"a": "A"}, [])


def test_the_reason_of_a_compiler_names_the_cause() -> None:
    assert reason_of(RuntimeError("backend='inductor' raised:\n\nKeyError: 3\n\nmore")) == (
        "RuntimeError: backend='inductor' raised: KeyError: 3"
    )
    assert reason_of(ValueError()) == "ValueError: "


@pytest.mark.parametrize("pass_", PASSES)
def test_compiled(pass_: str, cases: list[suite.Case], platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a backend that generates no code, which takes long: what is asked of the compiler is what is tested."""
    asked: list[dict[str, Any]] = []
    real = torch.compile

    def compile_(model: nn.Module, **options: Any) -> Callable[..., Any]:
        asked.append(options)
        return real(model, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", compile_)
    names = (RELU, c.RELU_MINIMUM.name, FUSED)
    case = replace(cases[0], mode=COMPILED, pass_=pass_, implementations=names)
    rows, failures = suite.run_case(case, BUDGET, platform)
    assert failures == []
    assert [row["implementation"] for row in rows] == list(names)
    assert all(row["mode"] == COMPILED and row["saved_bytes"] is None for row in rows)
    assert asked == [{"dynamic": False, "fullgraph": True}] * 3
    compiled, eager = subject(FUSED, mode=COMPILED, pass_=pass_), subject(FUSED, pass_=pass_)
    torch.testing.assert_close(compiled.outputs(), eager.outputs())
    reset = []
    monkeypatch.setattr(torch._dynamo, "reset", lambda: reset.append(1))
    suite.forget(case, platform)
    suite.forget(cases[0], platform)
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
    variant: str, precision: str, platform: Platform
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

    assert of.peak_bytes(replace(platform, growth=growth)) == state + momentum + data + 1000
    assert all(gradient is None for gradient in seen[0]), "gradients of an earlier step would hide those of this one"
    assert of.peak_bytes(platform) is None


def test_who_takes_part_where_nothing_is_fused(on_a_gpu: list[suite.Work]) -> None:
    fused = functools.reduce(set.union, (set(one.implementations) for one in on_a_gpu if one.network == "mobilenet_v2"))
    assert FUSED not in fused and IN_PLACE in fused
