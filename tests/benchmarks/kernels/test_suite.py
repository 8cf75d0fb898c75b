from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.harness import implementations as c
from benchmarks.harness.interleave import Budget
from benchmarks.kernels import suite
from dreluop.ops import composite
from tests.benchmarks.kernels.conftest import Clock


@pytest.mark.parametrize(
    "case",
    [
        suite.Case("channel", "channel", (2, 3, 4, 5), torch.float32, suite.EAGER),
        suite.Case("channels-last", "channel", (2, 3, 4, 5), torch.bfloat16, suite.EAGER, channels_last=True),
        suite.Case("layer", "layer", (2, 3, 4, 5), torch.float16, suite.EAGER),
        suite.Case("neuron", "neuron", (6, 7), torch.float64, suite.EAGER),
    ],
    ids=lambda case: case.name,
)
def test_rows(case: suite.Case, budget: Budget) -> None:
    rows, failures = suite.run_case(case, budget)
    assert failures == []
    found = {(row["pass"], row["implementation"]): row for row in rows}
    assert len(found) == len(rows)
    for pass_ in (suite.FORWARD, suite.BACKWARD, suite.BOTH, suite.IN_PLACE):
        floor = c.COPY if pass_ == suite.IN_PLACE else c.CLONE
        assert {who for of, who in found if of == pass_} == {floor, *suite.EAGER}
        assert found[pass_, floor]["ratio_to_floor"] == 1
    for row in rows:
        assert set(row) == set(suite.Row.__annotations__)
        assert 0 < row["min_ms"] <= row["q1_ms"] <= row["ms"] <= row["q3_ms"]
        assert row["ratio_to_floor"] == pytest.approx(row["ms"] / row["floor_ms"])
        assert row["samples"] == budget.min_samples
        assert (row["mode"], row["threads"]) == ("hot", torch.get_num_threads())
        if row["implementation"] in suite.EAGER and row["pass"] != suite.IN_PLACE:
            assert row["saves_x"] == (row["implementation"] != c.OURS.name)
            assert row["saves_y"] == (row["implementation"] != c.CLAMP.name)
        else:
            assert row["saved_bytes"] is row["saves_x"] is row["saves_y"] is None
        assert row["x_bytes"] == torch.Size(case.shape).numel() * case.dtype.itemsize
    for who in suite.EAGER:
        forward, backward, both = (found[of, who] for of in (suite.FORWARD, suite.BACKWARD, suite.BOTH))
        assert max(forward["min_ms"], backward["min_ms"]) < both["min_ms"]
        assert both["min_bytes"] == forward["min_bytes"] + backward["min_bytes"] == 5 * both["x_bytes"]
        assert both["gb_per_s"] == pytest.approx(both["min_bytes"] / both["ms"] * 1e-6)


def test_every_implementation_can_be_measured(budget: Budget) -> None:
    who = c.installed(
        tuple(name for name, of in c.IMPLEMENTATIONS.items() if not of.compiled and of is not c.OURS_TRITON)
    )
    rows, failures = suite.run_case(suite.Case("layer", "layer", (2, 3, 4, 5), torch.bfloat16, who), budget)
    assert failures == []
    assert {row["implementation"] for row in rows if row["pass"] == suite.BOTH} == {c.CLONE, *who}
    inplace = {name for name in who if c.IMPLEMENTATIONS[name].inplace is not None}
    assert {row["implementation"] for row in rows if row["pass"] == suite.IN_PLACE} == {c.COPY, *inplace}


def test_a_implementation_that_fails_is_left_out_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, budget: Budget
) -> None:
    def wrong(x: torch.Tensor, cap: torch.Tensor, dim: int) -> torch.Tensor:
        return c.relu_minimum(x, cap, dim) + 1

    monkeypatch.setitem(c.IMPLEMENTATIONS, "wrong", c.Implementation("wrong", wrong, wrong))
    case = suite.Case("dense", "neuron", (6, 7), torch.float32, ("wrong", c.OURS.name))
    rows, failures = suite.run_case(case, budget)
    assert {row["implementation"] for row in rows} == {c.CLONE, c.COPY, c.OURS.name}
    reason = "ValueError: wrong values: not timed"
    assert failures == [{"case": "dense", "dtype": "float32", "implementation": "wrong", "reason": reason}]
    with pytest.raises(RuntimeError, match="wrong: ValueError: wrong values"):
        list(suite.run([case], budget, 1))


def test_threads_of_a_case(budget: Budget) -> None:
    before = torch.get_num_threads()
    case = suite.Case("dense", "neuron", (6, 7), torch.float32, (c.OURS.name,), threads=before + 1)
    assert {row["threads"] for row in suite.run_case(case, budget)[0]} == {before + 1}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("cache", "mode"), [(2 * 4 * 42, "hot"), (2 * 4 * 42 - 1, "cold")])
def test_x_and_y_beyond_the_cache_are_cold(
    monkeypatch: pytest.MonkeyPatch, budget: Budget, cache: int, mode: str
) -> None:
    monkeypatch.setattr(suite, "last_level_cache", lambda: cache)
    rows, _ = suite.run_case(suite.Case("dense", "neuron", (6, 7), torch.float32, (c.OURS.name,)), budget)
    assert {row["mode"] for row in rows} == {mode}


def test_no_in_place_rows_unless_asked(budget: Budget) -> None:
    case = suite.Case("dense", "neuron", (6, 7), torch.float32, suite.EAGER, in_place=False)
    assert suite.IN_PLACE not in {row["pass"] for row in suite.run_case(case, budget)[0]}


def test_forward_and_backward_are_distinguished(monkeypatch: pytest.MonkeyPatch, budget: Budget, clock: Clock) -> None:
    def slow_forward(x: torch.Tensor, cap: torch.Tensor, dim: int) -> torch.Tensor:
        clock.sleep(10e-3)
        return c.ours(x, cap, dim)

    monkeypatch.setitem(c.IMPLEMENTATIONS, "slow", c.Implementation("slow", slow_forward))
    rows, _ = suite.run_case(suite.Case("dense", "neuron", (6, 7), torch.float32, ("slow",)), budget)
    fastest = {row["pass"]: row["min_ms"] for row in rows if row["implementation"] == "slow"}
    assert fastest.keys() == {suite.FORWARD, suite.BACKWARD, suite.BOTH}, "there is no in-place form"
    assert (fastest[suite.BACKWARD], fastest[suite.FORWARD]) == pytest.approx((1e-6, 10))


@pytest.mark.parametrize(("limit", "trims"), [(4 * 42, True), (4 * 42 + 1, False)])
def test_free_memory_is_released_before_calls_on_large_tensors(
    monkeypatch: pytest.MonkeyPatch, budget: Budget, limit: int, trims: bool
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(suite, "LARGE", limit)
    monkeypatch.setattr(suite, "fresh_memory", lambda size: lambda: calls.append(size))
    suite.run_case(suite.Case("dense", "neuron", (6, 7), torch.float32, suite.EAGER), budget)
    per_implementation = budget.warmup + budget.min_samples
    assert calls == [suite.TENSORS_OF_A_CALL * 4 * 42] * ((1 + len(suite.EAGER)) * per_implementation * trims)


def test_every_in_place_call_sees_the_data_afresh(monkeypatch: pytest.MonkeyPatch, budget: Budget) -> None:
    case = suite.Case("dense", "neuron", (6, 7), torch.float32, ("spy",))
    data = suite.make_data(case)
    seen = []

    def spy(x: torch.Tensor, cap: torch.Tensor, dim: int) -> torch.Tensor:
        seen.append(torch.equal(x, data.x))
        return x.zero_()

    monkeypatch.setitem(c.IMPLEMENTATIONS, "spy", c.Implementation("spy", c.ours, spy))
    suite.run_case(case, budget)
    assert len(seen) == budget.warmup + budget.min_samples
    assert all(seen)


@pytest.mark.parametrize("case", suite.cases(quick=True), ids=lambda case: f"{case.name}-{case.dtype_name}")
def test_data_lie_in_all_three_regions(case: suite.Case) -> None:
    data = suite.make_data(replace(case, shape=(8, *case.shape[1:])))
    assert data.x.dtype == data.cap.dtype == data.grad.dtype == case.dtype
    m = composite.effective_cap(data.cap, data.x, 1)
    inside, capped = composite.regions_of_output(composite.value(data.x, m), m)
    assert 0.25 < inside.float().mean() < 0.45
    assert 0.1 < capped.float().mean() < 0.25
    assert not torch.equal(data.x, data.grad)


def test_memory_format_of_the_data() -> None:
    case = suite.Case("", "channel", (2, 3, 4, 5), torch.float32, (), channels_last=True)
    data = suite.make_data(case)
    assert data.x.stride() == data.grad.stride() == (60, 1, 15, 3)


def test_cases_are_those_that_the_targets_need() -> None:
    found = suite.cases()
    large = [case for case in found if case.shape != suite.SMALL]
    assert all(suite.LARGE <= case.x_bytes <= 1.1 * suite.LARGE for case in large)
    dtypes = {torch.float32, torch.bfloat16, torch.float16, torch.float64}
    for granularity, channels_last in (("channel", False), ("channel", True), ("layer", False), ("neuron", False)):
        of = [case for case in large if (case.granularity, case.channels_last) == (granularity, channels_last)]
        assert {case.dtype for case in of} == dtypes
        assert all(c.OURS.name in case.implementations and case.in_place for case in of)
        assert any(case.threads is None for case in of)
    assert any(case.shape == suite.SMALL and c.RELU_MINIMUM.name in case.implementations for case in found)
    expected = set(c.installed(tuple(c.IMPLEMENTATIONS))) - {c.OURS_MASK.name, c.OURS_TRITON.name}
    assert {name for case in found for name in case.implementations} == expected
    alone = [case for case in found if case.threads is not None]
    assert {case.threads for case in alone} == {1} and len({case.shape for case in alone}) == 2
    assert all(case.name.endswith(", 1 thread") for case in alone)


def test_cases_without_compile() -> None:
    assert any(c.COMPILED.name in case.implementations for case in suite.cases())
    assert not any(c.COMPILED.name in case.implementations for case in suite.cases(compiled=False))


def test_unknown_granularity() -> None:
    with pytest.raises(ValueError, match="granularity: got 'pixel'"):
        suite.make_data(suite.Case("", "pixel", (2, 3), torch.float32, ()))


@pytest.mark.usefixtures("tiny_suite")
def test_demo_rows() -> None:
    before = torch.get_num_threads()
    rows = suite.demo_rows(threads=1)
    assert torch.get_num_threads() == before
    passes = (suite.FORWARD, suite.BACKWARD, suite.BOTH)
    assert [(row["implementation"], row["dtype"], row["pass"]) for row in rows] == [
        (who, "float32", pass_) for pass_ in passes for who in suite.EAGER
    ]
    for row in rows:
        assert set(row) == {"implementation", "dtype", "pass", "ms", "floor_ms", "ratio_to_floor"}
        assert row["ms"] / row["floor_ms"] == pytest.approx(row["ratio_to_floor"])


def test_the_demo_measures_the_two_large_image_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[suite.Case] = []
    monkeypatch.setattr(suite, "run", lambda selected, *_: asked.extend(selected) or iter(()))
    suite.demo_rows()
    assert [(case.granularity, case.dtype, case.implementations, case.in_place) for case in asked] == [
        ("channel", torch.float32, suite.EAGER, False),
        ("channel", torch.bfloat16, suite.EAGER, False),
    ]
