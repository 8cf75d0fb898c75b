"""The timing harness: implementations are interleaved in one process, and medians are compared.

- Interleaved: every round calls each implementation once, in a shuffled order, so that a slow second of the machine
  affects all of them. Implementations too slow for every round sit some out, evenly spread.
- One call is one or more steps (forward, then backward), each timed by its own lap. Results live until the last lap has
  ended: freeing them is not timed. Whatever an implementation frees inside a step is.
- Steps shorter than a clock can resolve are repeated within a sample, and the sample is their mean.
- A large fresh tensor costs page faults (the system zeroes its memory on first touch), often more than its arithmetic.
  The floors allocate as torch does and pay likewise, so they do not measure memory bandwidth, and an implementation
  that asks the system for large pages, as the native kernels do, can be faster than a clone. Which tensor finds a hole
  in the heap and pays nothing depends on everything allocated before: ``fresh_memory`` as ``prepare`` removes that
  luck for all alike. The page faults of every step are counted.
- The garbage collector is off while timing.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import mmap
import random
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Timed:
    """What is timed under one name.

    Attributes:
        name: the implementation's name, unique within one ``interleave``.
        steps: called one after another, each with the result of the one before (the first with None).
        prepare: called before the first step of every call, not timed.
    """

    name: str
    steps: tuple[Callable[[Any], Any], ...]
    prepare: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Budget:
    """How long to measure.

    Attributes:
        seconds: time to spend on each implementation, roughly; one that is slow still gets ``min_samples``.
        min_samples, max_samples: bounds on the number of samples of each implementation.
        warmup: calls of each implementation before the first sample; at least 1.
        sample_seconds: a sample repeats its call until it takes about this long.
    """

    seconds: float = 1.0
    min_samples: int = 5
    max_samples: int = 30
    warmup: int = 2
    sample_seconds: float = 2e-3

    def __post_init__(self) -> None:
        for name in ("seconds", "sample_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: got {getattr(self, name)}; expected a number >= 0")
        if self.warmup < 1:
            raise ValueError(f"warmup: got {self.warmup}; expected at least 1, which also sets the number of repeats")
        if not 1 <= self.min_samples <= self.max_samples:
            raise ValueError(
                f"min_samples, max_samples: got {self.min_samples} and {self.max_samples}; "
                "expected 1 <= min_samples <= max_samples"
            )


@dataclass(frozen=True)
class Samples:
    """Means over the ``number`` calls of a sample: ``laps[i][k]`` is step k of sample i.

    Attributes:
        laps: seconds.
        faults: page faults that needed no disk.
        number: calls in a sample.
    """

    laps: list[tuple[float, ...]]
    faults: list[tuple[float, ...]]
    number: int

    def steps(self, which: slice) -> Samples:
        """The same samples with only some of the steps."""
        return Samples([laps[which] for laps in self.laps], [faults[which] for faults in self.faults], self.number)

    def seconds(self) -> Statistics:
        return summarize([sum(laps) for laps in self.laps])

    def page_faults(self) -> float:
        return statistics.median(sum(faults) for faults in self.faults)


@dataclass(frozen=True)
class Statistics:
    """Median, quartiles and minimum of some samples, in the samples' unit."""

    median: float
    q1: float
    q3: float
    minimum: float
    samples: int

    def in_ms(self, calls: int = 1) -> dict[str, Any]:
        """The fields of a row, of one of so many calls that a sample in seconds holds."""
        ms = 1e3 / calls
        return {
            "ms": self.median * ms,
            "q1_ms": self.q1 * ms,
            "q3_ms": self.q3 * ms,
            "min_ms": self.minimum * ms,
            "samples": self.samples,
        }


def summarize(samples: Sequence[float]) -> Statistics:
    """Statistics of at least one sample.

    Raises:
        ValueError: there is no sample.
    """
    if not samples:
        raise ValueError("samples: got none; expected at least one")
    if len(samples) == 1:
        q1 = median = q3 = samples[0]
    else:
        q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
    return Statistics(median, q1, q3, min(samples), len(samples))


# Times the steps of so many calls of an implementation: their means in seconds, and their page faults.
Sampler = Callable[[Timed, int], tuple[tuple[float, ...], tuple[float, ...]]]


def interleave(
    implementations: Sequence[Timed], budget: Budget, *, seed: int = 0, sampler: Sampler | None = None
) -> dict[str, Samples]:
    """Measure all implementations against each other.

    Args:
        implementations: what to time, each with a name of its own.
        budget: how long to measure.
        seed: of the order within the rounds.
        sampler: what takes a sample; by default the host's clock around each step.

    Returns:
        The samples by the implementation's name.

    Raises:
        ValueError: two implementations have one name, or one has no steps.
    """
    if len({c.name for c in implementations}) < len(implementations):
        raise ValueError(f"implementations: got the names {[c.name for c in implementations]}; expected each once")
    for implementation in implementations:
        if not implementation.steps:
            raise ValueError(f"implementations: {implementation.name!r} has no steps; expected at least one")
    take = sampler or sample
    with _without_garbage_collection():
        numbers: dict[str, int] = {}
        counts: dict[str, int] = {}
        for implementation in implementations:
            for _ in range(budget.warmup):
                started = time.perf_counter()
                laps, _ = take(implementation, 1)
                elapsed = time.perf_counter() - started
            numbers[implementation.name] = max(1, math.ceil(budget.sample_seconds / max(sum(laps), 1e-9)))
            affordable = budget.seconds / max(elapsed * numbers[implementation.name], 1e-9)
            counts[implementation.name] = round(min(max(affordable, budget.min_samples), budget.max_samples))
        rounds = max(counts.values(), default=0)
        found = {c.name: Samples([], [], numbers[c.name]) for c in implementations}
        order = list(implementations)
        shuffle = random.Random(seed).shuffle
        for index in range(rounds):
            shuffle(order)
            for implementation in order:
                count = counts[implementation.name]
                if (index + 1) * count // rounds > index * count // rounds:
                    laps, faults = take(implementation, numbers[implementation.name])
                    found[implementation.name].laps.append(laps)
                    found[implementation.name].faults.append(faults)
    return found


def sample(
    implementation: Timed, number: int, clock: Callable[[], int] | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """By the host's clock, or by another one that counts nanoseconds."""
    clock, faults = clock or time.perf_counter_ns, _page_faults
    elapsed = [0] * len(implementation.steps)
    faulted = [0] * len(implementation.steps)
    for _ in range(number):
        if implementation.prepare is not None:
            implementation.prepare()
        kept = []
        value = None
        for index, step in enumerate(implementation.steps):
            faults_before = faults()
            before = clock()
            value = step(value)
            elapsed[index] += clock() - before
            faulted[index] += faults() - faults_before
            kept.append(value)
        del kept, value
    return tuple(total / number * 1e-9 for total in elapsed), tuple(total / number for total in faulted)


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def release_free_memory() -> None:
    """Give the heap's free pages back to the system, so that the next large tensors are fresh (glibc; else a no-op)."""
    if _malloc_trim is not None:
        _malloc_trim(ctypes.c_size_t(0))


# The environment of a process whose glibc keeps what it is given back, so that no large tensor is fresh for long.
KEPT = {
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "16000000000",
    "MALLOC_TOP_PAD_": "268435456",
}

# Of a processor with 4 kB pages; elsewhere it is merely a stride.
LARGE_PAGE = 2**21


def fresh_memory(size: int) -> Callable[[], None]:
    """A ``prepare`` after which large tensors are fresh, and the system has ``size`` bytes of large pages at hand.

    The host of a virtual machine takes free large pages back, and to get them again takes longer than a step: that
    would be in the time of the next implementation, and says nothing about it.
    """

    def prepare() -> None:
        release_free_memory()
        with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            if hasattr(mmap, "MADV_HUGEPAGE"):
                memory.madvise(mmap.MADV_HUGEPAGE)
            for at in range(0, size, LARGE_PAGE):
                memory[at] = 1

    return prepare


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """Run torch's CPU kernels on this many threads, and restore the number afterwards.

    Raises:
        TypeError: number is no int.
        ValueError: number is below 1.
    """
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f"threads: got {type(number).__name__}; expected an int")
    if number < 1:
        raise ValueError(f"threads: got {number}; expected at least 1")
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
