from __future__ import annotations

import gc
import os
import resource
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.harness import interleave as measure
from benchmarks.harness.interleave import (
    LARGE_PAGE,
    Budget,
    Timed,
    fresh_memory,
    interleave,
    release_free_memory,
    summarize,
    threads,
)
from tests.benchmarks.conftest import Clock


def test_times_are_those_of_the_steps(clock: Clock) -> None:
    implementation = Timed("two", (lambda _: clock.sleep(2e-3), lambda _: clock.sleep(6e-3)))
    found = interleave([implementation], Budget(seconds=0, min_samples=5, max_samples=5, warmup=1))["two"]
    first, second, both = (found.steps(slice(*of)).seconds().median for of in ((0, 1), (1, 2), (0, 2)))
    assert (first, second, both) == pytest.approx((2e-3, 6e-3, 8e-3))
    assert [sum(laps) for laps in found.laps] == pytest.approx([8e-3] * 5)


def test_preparation_is_not_timed(clock: Clock) -> None:
    implementation = Timed("prepared", (lambda _: None,), prepare=lambda: clock.sleep(5e-3))
    budget = Budget(seconds=0, min_samples=3, max_samples=3, warmup=1, sample_seconds=0)
    assert interleave([implementation], budget)["prepared"].seconds().minimum == pytest.approx(1e-9)


def test_each_step_gets_the_result_of_the_one_before_and_each_call_starts_anew() -> None:
    seen: list[Any] = []

    def first(value: Any) -> int:
        seen.append(value)
        return 1

    def second(value: Any) -> int:
        seen.append(value)
        return 2

    interleave([Timed("chain", (first, second), lambda: seen.append("prepare"))], Budget(0, 2, 2, 1, 0))
    assert seen == ["prepare", None, 1] * 3


def test_results_live_until_the_last_step_and_are_gone_before_the_next_call() -> None:
    class Result:
        pass

    made: list[weakref.ref[Result]] = []
    alive_in_second_step: list[bool] = []
    alive_in_preparation: list[bool] = []

    def first(_: Any) -> Result:
        result = Result()
        made.append(weakref.ref(result))
        return result

    def second(_: Any) -> Result:
        alive_in_second_step.append(made[-1]() is not None)
        return first(_)

    def prepare() -> None:
        alive_in_preparation.extend(one() is not None for one in made)

    interleave([Timed("chain", (first, second, lambda _: None), prepare)], Budget(0, 2, 2, 1, 0))
    assert alive_in_second_step == [True] * 3
    assert alive_in_preparation == [False] * (2 + 4)


def test_short_calls_are_repeated_within_a_sample() -> None:
    calls = 0

    def count(_: Any) -> None:
        nonlocal calls
        calls += 1

    found = interleave([Timed("short", (count,))], Budget(0, 4, 4, warmup=3, sample_seconds=1e-4))["short"]
    assert found.number > 10
    assert calls == 3 + 4 * found.number
    assert found.seconds().median < 1e-4 / 10


def test_all_take_turns_in_changing_order() -> None:
    calls: list[str] = []
    names = ("a", "b", "c")
    implementations = [Timed(name, (lambda _, name=name: calls.append(name),)) for name in names]
    interleave(implementations, Budget(0, 20, 20, warmup=1, sample_seconds=0))
    rounds = [tuple(calls[i : i + 3]) for i in range(3, len(calls), 3)]
    assert len(rounds) == 20
    assert all(sorted(one) == list(names) for one in rounds)
    assert len(set(rounds)) > 3


def test_a_slow_implementation_is_sampled_less_but_spread_over_the_run(clock: Clock) -> None:
    calls: list[str] = []

    def record(name: str, seconds: float) -> None:
        calls.append(name)
        clock.sleep(seconds)

    implementations = [
        Timed("slow", (lambda _: record("slow", 20e-3),)),
        Timed("fast", (lambda _: record("fast", 1e-3),)),
    ]
    found = interleave(implementations, Budget(0.06, min_samples=2, max_samples=10, warmup=1, sample_seconds=0))
    assert 2 <= len(found["slow"].laps) <= 3
    assert len(found["fast"].laps) == 10
    # Half-way through the fast ones, about half of the slow ones are done.
    half = [index for index, name in enumerate(calls) if name == "fast"][6]
    assert "slow" in calls[3:half] and "slow" in calls[half:]


@pytest.mark.skipif(sys.platform != "linux", reason="counts on Linux's page size and allocator")
def test_page_faults_of_a_fresh_tensor_are_counted() -> None:
    size = 64 * 2**20
    implementations = [
        Timed("fresh", (lambda _: torch.ones(size, dtype=torch.uint8),), release_free_memory),
        Timed("reused", (lambda _: None,)),
    ]
    found = interleave(implementations, Budget(0, 3, 3, warmup=1, sample_seconds=0))
    # Huge pages, where the system gives them unasked, make it fewer.
    assert size / 2**21 <= found["fresh"].page_faults() <= 1.1 * size / 4096
    assert found["reused"].page_faults() < 10


@pytest.mark.skipif(measure._malloc_trim is None, reason="needs malloc_trim of glibc")
def test_released_memory_faults_again() -> None:
    blocks = 4000
    above: list[torch.Tensor] = []

    def allocate(_: Any) -> list[torch.Tensor]:
        result = [torch.ones(16 * 1024, dtype=torch.uint8) for _ in range(blocks)]
        # What lies above keeps the allocator from giving the hole back by itself.
        above.append(torch.ones(16 * 1024, dtype=torch.uint8))
        return result

    budget = Budget(0, 3, 3, warmup=2, sample_seconds=0)
    # One after the other: trimming for one would take the hole away from the other.
    hole = interleave([Timed("hole", (allocate,))], budget)["hole"].page_faults()
    trimmed = interleave([Timed("trimmed", (allocate,), release_free_memory)], budget)["trimmed"].page_faults()
    pages = blocks * 16 * 1024 / resource.getpagesize()
    assert hole < 0.1 * pages < 0.5 * pages < trimmed


def test_fresh_memory_has_been_touched_and_is_free_again() -> None:
    pages = 8
    prepare = fresh_memory(pages * LARGE_PAGE)
    prepare()
    before, held = measure._page_faults(), resident_bytes()
    prepare()
    assert measure._page_faults() - before >= pages
    assert resident_bytes() - held < LARGE_PAGE


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_garbage_collection_is_off_while_timing_only() -> None:
    states: list[bool] = []

    def fail(_: Any) -> None:
        states.append(gc.isenabled())
        raise RuntimeError("stop")

    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="stop"):
        interleave([Timed("fails", (fail,))], Budget(0, 1, 1, 1, 0))
    assert states == [False]
    assert gc.isenabled()


def test_statistics() -> None:
    found = summarize([5.0, 1.0, 4.0, 2.0, 3.0])
    assert (found.minimum, found.q1, found.median, found.q3, found.samples) == (1, 2, 3, 4, 5)
    assert summarize([7.0]).q1 == summarize([7.0]).q3 == 7


def test_threads_are_set_and_restored() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="stop"), threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError("stop")
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: summarize([]), ValueError, "samples: got none"),
        (lambda: Budget(seconds=-1), ValueError, "seconds: got -1"),
        (lambda: Budget(seconds=float("nan")), ValueError, "seconds: got nan"),
        (lambda: Budget(warmup=0), ValueError, "warmup: got 0"),
        (lambda: Budget(min_samples=9, max_samples=8), ValueError, "min_samples, max_samples: got 9 and 8"),
        (
            lambda: interleave([Timed("a", (lambda _: None,))] * 2, Budget()),
            ValueError,
            r"implementations: got the names \['a', 'a'\]",
        ),
        (lambda: interleave([Timed("a", ())], Budget()), ValueError, "implementations: 'a' has no steps"),
        (lambda: threads(0).__enter__(), ValueError, "threads: got 0"),
        (lambda: threads(2.0).__enter__(), TypeError, "threads: got float"),  # type: ignore[arg-type]
        (lambda: threads(True).__enter__(), TypeError, "threads: got bool"),
    ],
)
def test_bad_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
