"""How work on a GPU is timed: captured into CUDA graphs, replayed by turns, between events.

- A graph holds many calls, each on buffers of its own (``suite`` says how many), so L2 is cold and neither Python nor
  launches are in the time, which for tensors of 64 MB is already shorter than they are.
- Before each sample the stream is kept busy, so that the host has queued all of it before it starts.
- A ``Machine`` is all that ``suite`` knows of the device; tests run the suite on one made of the CPU.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType

from benchmarks.kernels.measure import Sampler, Timed

Work = Callable[[], None]
HEAD_START = 2_000_000  # clock cycles, about a millisecond
WARM_UP = 3


class Launches(NamedTuple):
    kernels: int
    memsets: int
    copies: int


@dataclass(frozen=True)
class Machine:
    """A device to measure on.

    Attributes:
        capture: turns work that is done in this order into what repeats it; the second argument drops its results.
        sampler: times the steps of a contender, for ``measure.interleave``.
        launches: counts what a call launches, given what makes its argument; None where it cannot be counted.
        cache_bytes: of the cache that has to be cold.
        free_bytes: memory that can be had.
        release: gives freed memory back.
    """

    device: torch.device
    capture: Callable[[Sequence[Work], Work], list[Work]]
    sampler: Sampler
    launches: Callable[[Callable[[Any], object], Callable[[], Any]], Launches | None]
    cache_bytes: int
    free_bytes: Callable[[], int]
    release: Callable[[], None]


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


def sample(contender: Timed, number: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """By events; ``number`` has to be 1, as a graph repeats its calls itself."""
    assert number == 1, "give Effort(sample_seconds=0)"
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(contender.steps) + 1)]
    torch.cuda._sleep(HEAD_START)
    marks[0].record()
    for step, mark in zip(contender.steps, marks[1:], strict=True):
        step(None)
        mark.record()
    torch.cuda.synchronize()
    seconds = tuple(before.elapsed_time(after) * 1e-3 for before, after in pairwise(marks))
    return seconds, (0.0,) * len(seconds)


def launches(function: Callable[[Any], object], prepare: Callable[[], Any]) -> Launches | None:
    """What a call launches, by the profiler; None if that sees nothing, as where the host keeps counters to itself."""
    function(prepare())
    argument = prepare()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        function(argument)
        torch.cuda.synchronize()
    names = [event.name for event in profile.events() if event.device_type == DeviceType.CUDA]
    memsets, copies = (sum(name.startswith(kind) for name in names) for kind in ("Memset", "Memcpy"))
    return Launches(len(names) - memsets - copies, memsets, copies) if names else None


def release() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def cuda_machine() -> Machine:
    """The current CUDA device."""
    device = torch.device("cuda", torch.cuda.current_device())
    return Machine(
        device=device,
        capture=capture,
        sampler=sample,
        launches=launches,
        cache_bytes=torch.cuda.get_device_properties(device).L2_cache_size,
        free_bytes=lambda: torch.cuda.mem_get_info(device)[0],
        release=release,
    )
