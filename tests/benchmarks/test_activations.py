from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.harness import activations
from benchmarks.harness import implementations as c
from benchmarks.harness.activations import BACKWARD, BOTH, COLD, EAGER_MODE, FORWARD, HOT, IN_PLACE, Visit, measure
from benchmarks.harness.interleave import Budget, sample
from benchmarks.harness.workloads import Case, make_data
from dreluop.ops import composite
from tests.benchmarks.conftest import CASES, EAGER, WHO, Accelerator, Clock, Processor, measured

PASSES = (FORWARD, BACKWARD, BOTH)
DENSE = Case("dense", "neuron", (6, 7), torch.float32, EAGER, threads=1)
HERE = Processor()


def wrong(x: torch.Tensor, cap: torch.Tensor, dim: int) -> torch.Tensor:
    return c.relu_minimum(x, cap, dim) + 1


@pytest.mark.parametrize(
    "case",
    [
        Case("channel", "channel", (2, 3, 4, 5), torch.float32, EAGER, in_place=True, threads=1),
        Case("channels-last", "channel", (2, 3, 4, 5), torch.bfloat16, EAGER, True, in_place=True, threads=1),
        Case("layer", "layer", (2, 3, 4, 5), torch.float16, EAGER, in_place=True, threads=2),
        Case("neuron", "neuron", (6, 7), torch.float64, EAGER, in_place=True, threads=1),
    ],
    ids=lambda case: case.name,
)
def test_rows_of_a_processor(case: Case, budget: Budget) -> None:
    rows = measured(measure(case, [Visit(HOT)], budget, HERE))
    found = {(row["pass"], row["implementation"]): row for row in rows}
    assert len(found) == len(rows)
    for pass_ in (*PASSES, IN_PLACE):
        floors = {c.COPY} if pass_ == IN_PLACE else {c.COPY, c.CLONE}
        assert {who for of, who in found if of == pass_} == {*floors, *EAGER}
        floor = c.COPY if pass_ == IN_PLACE else c.CLONE
        assert found[pass_, floor]["ratio_to_floor"] == 1 and found[pass_, floor]["floor"] == floor
        assert found[pass_, c.COPY]["fraction_of_copy"] == pytest.approx(1)
    for row in rows:
        assert 0 < row["min_ms"] <= row["q1_ms"] <= row["ms"] <= row["q3_ms"]
        assert row["ratio_to_floor"] == pytest.approx(row["ms"] / row["floor_ms"])
        assert row["gb_per_s"] == pytest.approx(row["min_bytes"] / row["ms"] * 1e-6)
        assert row["fraction_of_copy"] == pytest.approx(row["gb_per_s"] / row["copy_gb_per_s"])
        assert (row["samples"], row["calls_per_sample"]) == (budget.min_samples, 1)
        assert (row["mode"], row["threads"], row["x_bytes"]) == (HOT, case.threads, case.x_bytes)
        if row["implementation"] in EAGER and row["pass"] != IN_PLACE:
            assert row["saves_x"] == (row["implementation"] != c.OURS.name)
            assert row["saves_y"] == (row["implementation"] != c.CLAMP.name)
        else:
            assert not {"saved_bytes", "saves_x", "saves_y"} & set(row)
        assert "kernels" not in row and "peak_bytes" not in row, "only a GPU counts"
    for who in EAGER:
        forward, backward, both = (found[of, who] for of in PASSES)
        assert max(forward["min_ms"], backward["min_ms"]) < both["min_ms"]
        assert both["min_bytes"] == forward["min_bytes"] + backward["min_bytes"] == 5 * both["x_bytes"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rows_of_a_gpu(case: Case, budget: Budget) -> None:
    rows = measured(measure(case, [Visit(COLD, 5, 5, captured=True)], budget, Accelerator()))
    found = {(row["pass"], row["implementation"]): row for row in rows}
    assert set(found) == {(pass_, who) for pass_ in PASSES for who in (*c.COPIES, *WHO)}
    for (pass_, who), row in found.items():
        assert (row["samples"], row["calls_per_sample"], row["mode"], row["threads"]) == (3, 5, COLD, None)
        copies = [found[pass_, name]["gb_per_s"] for name in c.COPIES]
        assert row["copy_gb_per_s"] == pytest.approx(max(copies))
        assert row.get("kernels") == (None if who in c.COPIES else 2 if pass_ == BOTH else 1)
        assert row.get("peak_bytes") == (None if who in c.COPIES else 1 if pass_ == FORWARD else 2)
        mask = -(-torch.Size(case.shape).numel() // 4)
        if who == c.OURS_MASK.name:
            assert (row["saved_bytes"], row["saves_x"], row["saves_y"]) == (mask, False, False)
        if who == c.OURS.name:
            assert (row["saved_bytes"], row["saves_x"], row["saves_y"]) == (0, False, True)
    assert found[FORWARD, c.COPY]["min_bytes"] == 2 * case.x_bytes


@pytest.mark.parametrize(
    ("more", "who", "forward", "backward"),
    [
        ((), c.OURS, 2 * 240, 3 * 240),
        ((), c.OURS_MASK, 2 * 240 + 15, 2 * 240 + 15),
        (("bias",), c.OURS, 2 * 240, 3 * 240),
        (("residual",), c.OURS, 3 * 240, 3 * 240),
        (("bias", "residual"), c.OURS_MASK, 3 * 240 + 15, 2 * 240 + 15),
    ],
)
def test_byte_model(more: tuple[str, ...], who: c.Implementation, forward: int, backward: int) -> None:
    # 60 elements of 4 bytes; their packed mask takes 15.
    case = replace(CASES[0], shape=(1, 3, 4, 5), bias_and_residual=more)
    found = [activations.min_bytes(case, pass_, who.name) for pass_ in PASSES]
    assert found == [forward, backward, forward + backward]
    assert [activations.min_bytes(case, pass_, c.COPY) for pass_ in PASSES] == [480, 480, 960]


def test_every_implementation_can_be_measured(budget: Budget) -> None:
    eager = tuple(name for name, of in c.IMPLEMENTATIONS.items() if not of.compiled and of is not c.OURS_TRITON)
    who = c.installed(eager)
    case = Case("layer", "layer", (2, 3, 4, 5), torch.bfloat16, who, in_place=True)
    rows = measured(measure(case, [Visit(HOT)], budget, HERE))
    assert {row["implementation"] for row in rows if row["pass"] == BOTH} == {c.COPY, c.CLONE, *who}
    inplace = {name for name in who if c.IMPLEMENTATIONS[name].inplace is not None}
    assert {row["implementation"] for row in rows if row["pass"] == IN_PLACE} == {c.COPY, *inplace}


@pytest.mark.parametrize("platform", [HERE, Accelerator()], ids=["processor", "gpu"])
def test_what_fails_is_left_out_with_its_reason(
    platform: Processor, monkeypatch: pytest.MonkeyPatch, budget: Budget
) -> None:
    def broken(*_: Any) -> torch.Tensor:
        raise RuntimeError("no kernel\nmore")

    monkeypatch.setitem(c.IMPLEMENTATIONS, "broken", c.Implementation("broken", broken))
    monkeypatch.setitem(c.IMPLEMENTATIONS, "wrong", c.Implementation("wrong", wrong, wrong))
    case = replace(DENSE, implementations=("broken", "wrong", c.OURS.name), in_place=True)
    rows = measure(case, [Visit(HOT)], budget, platform)
    failures = [(row["implementation"], row["mode"], row["failure"]) for row in rows if "failure" in row]
    assert failures == [
        ("broken", HOT, "RuntimeError: no kernel more"),
        ("wrong", HOT, "ValueError: wrong values: not timed"),
    ]
    floors = {c.CLONE, c.COPY} if platform is HERE else {*c.COPIES}
    assert {row["implementation"] for row in rows if "ms" in row} == {c.OURS.name, *floors}


def test_launches_that_cannot_be_counted_do_not_stop_the_rest(monkeypatch: pytest.MonkeyPatch, budget: Budget) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no profiler")

    monkeypatch.setattr(Accelerator, "launches", broken)
    monkeypatch.setattr(Accelerator, "peaks", lambda *_: None)
    rows = measure(CASES[0], [Visit(COLD, captured=True)], budget, Accelerator())
    assert [(row["implementation"], row["failure"]) for row in rows if "failure" in row] == [
        ("launches", "RuntimeError: no profiler")
    ]
    times = [row for row in rows if "ms" in row]
    assert len(times) == 3 * (len(c.COPIES) + len(WHO))
    assert not any("kernels" in row or "peak_bytes" in row for row in times)


@pytest.mark.parametrize(("platform", "times"), [(HERE, 24), (Accelerator(), 40)], ids=["processor", "gpu"])
def test_a_case_for_which_memory_is_short_is_left_out(platform: Processor, times: int, budget: Budget) -> None:
    case = Case("large", "channel", (2**10, 2**4, 2**14), torch.float32, EAGER)
    short = type(platform)(free_bytes=2**30)
    (row,) = measure(case, [Visit(COLD)], budget, short)
    assert row["implementation"] is None
    assert row["failure"] == f"MemoryError: needs {times} GB of free memory, and there are 1"


def test_threads_of_a_case(budget: Budget) -> None:
    before = torch.get_num_threads()
    rows = measure(replace(DENSE, threads=before + 1), [Visit(HOT)], budget, HERE)
    assert {row["threads"] for row in rows} == {before + 1}
    assert torch.get_num_threads() == before


def test_forward_and_backward_are_distinguished(monkeypatch: pytest.MonkeyPatch, budget: Budget, clock: Clock) -> None:
    def slow_forward(x: torch.Tensor, cap: torch.Tensor, dim: int) -> torch.Tensor:
        clock.sleep(10e-3)
        return c.ours(x, cap, dim)

    monkeypatch.setitem(c.IMPLEMENTATIONS, "slow", c.Implementation("slow", slow_forward))
    rows = measure(replace(DENSE, implementations=("slow",), in_place=True), [Visit(HOT)], budget, HERE)
    fastest = {row["pass"]: row["min_ms"] for row in rows if row["implementation"] == "slow"}
    assert fastest.keys() == set(PASSES), "there is no in-place form"
    assert (fastest[BACKWARD], fastest[FORWARD]) == pytest.approx((1e-6, 10))


@pytest.mark.parametrize(("limit", "trims"), [(4 * 42, True), (4 * 42 + 1, False)])
def test_free_memory_is_released_before_calls_on_large_tensors(
    monkeypatch: pytest.MonkeyPatch, budget: Budget, limit: int, trims: bool
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(activations, "LARGE", limit)
    monkeypatch.setattr(activations, "fresh_memory", lambda size: lambda: calls.append(size))
    measure(DENSE, [Visit(COLD)], budget, HERE)
    per_implementation = budget.warmup + budget.min_samples
    expected = (2 + len(EAGER)) * per_implementation * trims
    assert calls == [activations.TENSORS_OF_A_CALL * 4 * 42] * expected


def test_every_in_place_call_sees_the_data_afresh(monkeypatch: pytest.MonkeyPatch, budget: Budget) -> None:
    case = replace(DENSE, implementations=("spy",), in_place=True)
    data = make_data(case)
    seen = []

    def spy(x: torch.Tensor, cap: torch.Tensor, dim: int) -> torch.Tensor:
        seen.append(torch.equal(x, data.x))
        return x.zero_()

    monkeypatch.setitem(c.IMPLEMENTATIONS, "spy", c.Implementation("spy", c.ours, spy))
    measure(case, [Visit(HOT)], budget, HERE)
    assert len(seen) == budget.warmup + budget.min_samples
    assert all(seen)


@pytest.mark.parametrize("captured", [True, False])
def test_every_buffer_is_used_and_results_stay_until_all_are_there(
    captured: bool, monkeypatch: pytest.MonkeyPatch, budget: Budget
) -> None:
    seen: list[tuple[int, int]] = []

    def spy(x: torch.Tensor, cap: torch.Tensor, dim: int) -> torch.Tensor:
        y = c.relu_minimum(x, cap, dim)
        seen.append((x.data_ptr(), y.data_ptr()))
        return y

    monkeypatch.setitem(c.IMPLEMENTATIONS, "spy", c.Implementation("spy", spy))
    platform = Accelerator() if captured else HERE
    measure(replace(DENSE, implementations=("spy",)), [Visit(COLD, 5, 5, captured)], budget, platform)
    last = seen[-5:]
    assert len({x for x, _ in last}) == len({y for _, y in last}) == 5
    assert [x for x, _ in last] == [x for x, _ in seen[-10:-5]], "the calls go round the same buffers"


def test_only_what_is_captured_is_timed_without_the_host(monkeypatch: pytest.MonkeyPatch, budget: Budget) -> None:
    captured: list[int] = []
    by_host: list[str] = []

    def capture(self: Accelerator, steps: Any, clear: Any) -> Any:
        captured.append(len(steps))
        return list(steps)

    def with_host(self: Accelerator, timed: Any, number: int) -> Any:
        by_host.append(timed.name)
        return sample(timed, number)

    monkeypatch.setattr(Accelerator, "capture", capture)
    monkeypatch.setattr(Accelerator, "sample_with_host", with_host)
    measure(DENSE, [Visit(HOT, captured=True, facts=False)], budget, Accelerator())
    assert (captured, by_host) == ([2] * 5, [])
    captured.clear()
    measure(DENSE, [Visit(EAGER_MODE, facts=False)], budget, Accelerator())
    assert captured == [] and set(by_host) == {*c.COPIES, *EAGER}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_data_are_in_all_three_regions(dtype: torch.dtype) -> None:
    data = make_data(Case("", "channel", (8, 64, 92, 92), dtype, ()))
    assert data.x.dtype == data.cap.dtype == data.grad.dtype == dtype
    m = composite.effective_cap(data.cap, data.x, 1)
    inside, capped = composite.regions_of_output(composite.value(data.x, m), m)
    assert 0.25 < inside.float().mean() < 0.45
    assert 0.1 < capped.float().mean() < 0.25
    assert not torch.equal(data.x, data.grad)


def test_memory_format_of_the_data() -> None:
    data = make_data(Case("", "channel", (2, 3, 4, 5), torch.float32, (), channels_last=True))
    assert data.x.stride() == data.grad.stride() == (60, 1, 15, 3)


def test_unknown_granularity() -> None:
    with pytest.raises(ValueError, match="granularity: got 'pixel'"):
        make_data(Case("", "pixel", (2, 3), torch.float32, ()))
