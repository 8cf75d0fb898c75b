"""How work on a GPU is timed: captured into CUDA graphs whose replays are interleaved, between events.

- A graph holds many calls, each on buffers of its own, so L2 is cold and neither Python nor launches are in the time,
  which for tensors of 64 MB is already shorter than they are.
- Before each sample the stream is kept busy, so that the host has queued all of it before it starts.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.autograd import DeviceType

from benchmarks.harness.interleave import Timed
from benchmarks.harness.machine import Call, Launches, Platform, Work

HEAD_START = 2_000_000  # clock cycles, about a millisecond
WARM_UP = 2  # beyond the calls that have checked the values
SEPARATOR = "spin_kernel"  # what torch.cuda._sleep launches


def capture(steps: Sequence[Work], clear: Work) -> list[Work]:
    """One CUDA graph per step, in one memory pool: they are to be replayed in this order."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            for step in steps:
                step()
    torch.cuda.synchronize()
    clear()
    torch.cuda.empty_cache()
    pool = torch.cuda.graph_pool_handle()
    replays: list[Work] = []
    for step in steps:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            step()
        replays.append(_replay(graph, step))
    # The results' memory belongs to the pool, which lives as long as the graphs.
    clear()
    return replays


def _replay(graph: torch.cuda.CUDAGraph, step: Work) -> Work:
    """Replays the graph, and keeps what its step holds: a graph does not keep the memory that it reads."""

    def replay(_: Work = step) -> None:
        graph.replay()

    return replay


def sample(
    implementation: Timed, number: int, head_start: int = HEAD_START
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """By events; ``number`` has to be 1, as a graph repeats its calls itself.

    Args:
        head_start: clock cycles for which the stream is kept busy first.
    """
    assert number == 1, "give Budget(sample_seconds=0)"
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(implementation.steps) + 1)]
    torch.cuda._sleep(head_start)
    marks[0].record()
    for step, mark in zip(implementation.steps, marks[1:], strict=True):
        step(None)
        mark.record()
    torch.cuda.synchronize()
    seconds = tuple(before.elapsed_time(after) * 1e-3 for before, after in pairwise(marks))
    return seconds, (0.0,) * len(seconds)


def sample_with_host(implementation: Timed, number: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The same for work that the host launches while the clock runs: each step begins with an idle device."""
    assert number == 1, "give Budget(sample_seconds=0)"
    seconds = []
    kept: list[Any] = []
    value = None
    for step in implementation.steps:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        value = step(value)
        end.record()
        torch.cuda.synchronize()
        kept.append(value)
        seconds.append(begin.elapsed_time(end) * 1e-3)
    return tuple(seconds), (0.0,) * len(seconds)


def sample_in_a_row(implementation: Timed, number: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """By the host's clock, over so many calls, of one step each, that end together: as in a loop that never waits.

    The slower of host and device decides.
    """
    (step,) = implementation.steps
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(number):
        step(None)
    torch.cuda.synchronize()
    return ((time.perf_counter() - started) / number,), (0.0,)


def launches(calls: Sequence[Call]) -> list[Launches | None]:
    """By the profiler, in one session, as each takes its time; None if it sees nothing, as where the host forbids."""
    for call in calls:
        call.function(call.prepare())
    arguments = [call.prepare() for call in calls]

    def run() -> None:
        for call, argument in zip(calls, arguments, strict=True):
            call.function(argument)
            torch.cuda._sleep(1)

    names = _launched(run)
    ends = [index for index, name in enumerate(names) if SEPARATOR in name]
    if not names:
        return [None] * len(calls)
    if len(ends) != len(calls):
        return [_count(_launched(lambda call=call: call.function(call.prepare()))) for call in calls]
    begins = [0, *(end + 1 for end in ends)]
    return [_count(names[begin:end]) for begin, end in zip(begins, ends, strict=False)]


def _launched(work: Work) -> list[str]:
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
        torch.cuda.synchronize()
    events = [event for event in profile.events() if event.device_type == DeviceType.CUDA]
    # All are of one stream.
    return [event.name for event in sorted(events, key=lambda event: event.time_range.start)]


def _count(names: Sequence[str]) -> Launches:
    memsets, copies = (sum(name.startswith(kind) for name in names) for kind in ("Memset", "Memcpy"))
    return Launches(len(names) - memsets - copies, memsets, copies)


def peaks(steps: Sequence[Callable[[Any], Any]]) -> list[int]:
    """By the statistics of torch's allocator."""
    value = None
    for step in steps:
        # torch.compile compiles and tries things out.
        value = step(value)
    kept: list[Any] = []
    found = []
    value = None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for step in steps:
        torch.cuda.reset_peak_memory_stats()
        value = step(value)
        kept.append(value)
        found.append(torch.cuda.max_memory_allocated() - before)
    return found


def growth(step: Work) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


class Cuda(Platform):
    """The current CUDA device."""

    captures = True

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())

    @property
    def cache_bytes(self) -> int:
        return torch.cuda.get_device_properties(self.device).L2_cache_size

    def free_bytes(self) -> int:
        return torch.cuda.mem_get_info(self.device)[0]

    def release(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()

    capture = staticmethod(capture)
    sample = staticmethod(sample)
    sample_with_host = staticmethod(sample_with_host)
    launches = staticmethod(launches)
    peaks = staticmethod(peaks)
    growth = staticmethod(growth)


def platform_of(device: str) -> Platform:
    """The platform of "cpu" or "cuda"."""
    return Cuda() if device == "cuda" else Platform()
