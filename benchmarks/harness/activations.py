"""How one input is measured, on a processor and on a GPU alike.

========================  ========================================  ===================  =========================
pass                      timed                                     bytes per element    floor on a processor
========================  ========================================  ===================  =========================
forward                   ``y = f(x, cap)``, with a graph recorded  2s: read x, write y  ``x.clone()``
in-place                  ``f_(x, cap)``, without gradients         2s: read x, write x  ``y.copy_(x)``
backward                  ``autograd.grad(y, (x, cap), g)``         3s: read g and y,    ``g.clone()``
                                                                    write dx
forward+backward          the two, one after the other              5s                   both clones
========================  ========================================  ===================  =========================

s is the size of an element. A residual adds s forward; with the packed mask, forward writes s/4 and backward reads
that in place of y; caps and bias are negligible. The bytes are the fewest that any implementation can move, and GB/s is
those bytes over the time: an implementation that moves more shows fewer GB/s. ``fraction_of_copy`` is that bandwidth
over the one of the fastest copy to a tensor that exists, in the same mode and run. Forward and backward are laps of the
same calls, and every call builds its own graph. In all passes but in-place the result is a fresh tensor: on a processor
its page faults are part of the time, the clone's too (``interleave`` says more). Before each in-place call x is
restored, untimed, so that the data stay random.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import implementations as c
from benchmarks.harness.attempts import failure
from benchmarks.harness.interleave import Budget, Samples, Timed, fresh_memory, interleave, threads
from benchmarks.harness.machine import Call, Launches, Platform
from benchmarks.harness.memory import Saved
from benchmarks.harness.workloads import (
    Case,
    Clones,
    Copies,
    KernelCopies,
    Repeated,
    Work,
    make_bias_and_residual,
    make_data,
)

FORWARD, IN_PLACE, BACKWARD, BOTH = "forward", "in-place", "backward", "forward+backward"
# Which steps of a training call belong to a pass.
PASSES = {FORWARD: slice(0, 1), BACKWARD: slice(1, 2), BOTH: slice(0, 2)}
HOT, COLD, EAGER_MODE = "hot", "cold", "eager"
LARGE = 64 * 2**20  # bytes of x
TENSORS_OF_A_CALL = 3  # of x's size, about: y, dx, and one that eager forms need between
MEMORY_OF_X = {"cpu": 24, "cuda": 40}  # times x: what all implementations of a case need at once
KEY = ("mode", "pass", "implementation")

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Visit:
    """How the calls of a sample go round their buffers.

    Attributes:
        mode: what the calls find: ``HOT``: x in the cache; ``COLD``: not; ``EAGER_MODE``: launched by the host.
        captured: whether the platform captures the calls (CUDA graphs).
        facts: whether saved memory, peaks and launches are found too.
    """

    mode: str
    buffers: int = 1
    calls: int = 1
    captured: bool = False
    facts: bool = True


@dataclass(frozen=True)
class Facts:
    """What is found without timing; ``peaks`` and ``launched`` are of forward and backward."""

    saved: Saved | None = None
    peaks: Sequence[int] | None = None
    launched: tuple[Launches | None, ...] = ()


def min_bytes(case: Case, pass_: str, implementation: str) -> int:
    """The fewest bytes that a call moves."""
    if implementation in c.FLOORS:
        return 2 * case.x_bytes * (2 if pass_ == BOTH else 1)
    mask = -(-torch.Size(case.shape).numel() // 4) if implementation == c.OURS_MASK.name else 0
    residual = case.x_bytes if "residual" in case.bias_and_residual else 0
    forward = 2 * case.x_bytes + residual + mask
    backward = 2 * case.x_bytes + (mask or case.x_bytes)
    return {FORWARD: forward, IN_PLACE: 2 * case.x_bytes, BACKWARD: backward, BOTH: forward + backward}[pass_]


def measure(case: Case, visits: Sequence[Visit], budget: Budget, platform: Platform) -> Rows:
    """Time every implementation in all modes and passes; what fails is left out, with its reason."""
    needed, free = MEMORY_OF_X[platform.kind] * case.x_bytes, platform.free_bytes()
    if case.x_bytes >= LARGE and needed > free:
        short = f"needs {needed / 2**30:.0f} GB of free memory, and there are {free / 2**30:.0f}"
        return [{**failure(MemoryError(short)), "mode": None}]
    c.forget_compiled(case.implementations)
    rows: Rows = []
    with contextlib.nullcontext() if case.threads is None else threads(case.threads):
        for visit in visits:
            found = _training_rows(case, visit, budget, platform)
            rows += found
            if case.in_place:
                failed = {row["implementation"] for row in found if "failure" in row}
                left = tuple(name for name in case.implementations if name not in failed)
                rows += _in_place_rows(replace(case, implementations=left), visit, budget, platform)
    if platform.captures:
        platform.release()
        # What is left lives as long as the program: torch's modules and what torch.compile keeps, long to search.
        gc.freeze()
    return rows


def _training_rows(case: Case, visit: Visit, budget: Budget, platform: Platform) -> Rows:
    data = [make_data(case, seed, platform.device) for seed in range(visit.buffers)]
    more = make_bias_and_residual(case, platform.device)
    floors: dict[str, Work] = {c.COPY: Copies(data, visit.calls)}
    if platform.kind == "cpu":
        # There a fresh tensor costs page faults, a clone's too.
        floors[c.CLONE] = Clones(data, visit.calls)
    else:
        floors[c.COPY_BY_KERNEL] = KernelCopies(data, visit.calls)
    timed = [_timed(name, floor, case, visit, platform) for name, floor in floors.items()]
    facts: dict[str, Facts] = {}
    works: dict[str, Repeated] = {}
    failures: Rows = []
    for name in case.implementations:
        try:
            work = Repeated(c.IMPLEMENTATIONS[name], data, visit.calls, more)
            if not more:
                work.check()
            if visit.facts:
                facts[name] = Facts(work.kept(), platform.peaks((work.first_forward, work.one_backward)))
            timed.append(_timed(name, work, case, visit, platform))
            works[name] = work
        except Exception as error:
            failures.append({**failure(error, name), "mode": visit.mode})
    # They are the same for a larger tensor.
    if visit.facts and case.x_bytes < 2 * LARGE:
        try:
            launched = _launches(works, platform)
        except Exception as error:
            failures.append({**failure(error, "launches"), "mode": visit.mode})
        else:
            facts = {name: replace(of, launched=launched.get(name, ())) for name, of in facts.items()}
    samples = interleave(timed, budget, sampler=platform.sample if visit.captured else platform.sample_with_host)
    rows = []
    for pass_, which in PASSES.items():
        rows += _rows(case, pass_, visit, {name: of.steps(which) for name, of in samples.items()}, facts)
    return rows + failures


def _timed(name: str, work: Work, case: Case, visit: Visit, platform: Platform) -> Timed:
    if visit.captured:
        forward, backward = platform.capture((work.forward, work.backward), work.clear)
        return Timed(name, (lambda _: forward(), lambda _: backward()))
    prepare = preparation(case.x_bytes) if platform.kind == "cpu" else None
    if visit.calls == 1:
        return Timed(name, (work.first_forward, work.one_backward), prepare)
    return Timed(name, (work.forwards, work.backwards), prepare)


def preparation(x_bytes: int) -> Callable[[], None] | None:
    """What comes before each call on an x of this size, untimed."""
    # A small tensor never leaves the heap: trimming would only add faults that no user sees.
    return fresh_memory(TENSORS_OF_A_CALL * x_bytes) if x_bytes >= LARGE else None


def _launches(works: Mapping[str, Repeated], platform: Platform) -> dict[str, tuple[Launches | None, ...]]:
    """Of forward and backward."""
    calls = []
    for work in works.values():
        calls += [Call(work.first_forward, lambda: None), Call(work.one_backward, work.one_forward)]
    found = platform.launches(calls)
    return {name: tuple(found[2 * index : 2 * index + 2]) for index, name in enumerate(works)}


@torch.no_grad()
def _in_place_rows(case: Case, visit: Visit, budget: Budget, platform: Platform) -> Rows:
    data = make_data(case, 0, platform.device)
    x, y = torch.empty_like(data.x), torch.empty_like(data.x)

    def restore() -> Tensor:
        return x.copy_(data.x)

    def step(activation: c.Activation) -> Callable[[object], Tensor]:
        return lambda _: activation(x, data.cap, 1)

    timed = [Timed(c.COPY, (lambda _: y.copy_(x),), restore)]
    for name in case.implementations:
        inplace = c.IMPLEMENTATIONS[name].inplace
        if inplace is not None:
            timed.append(Timed(name, (step(inplace),), restore))
    samples = interleave(timed, budget, sampler=platform.sample_with_host)
    return _rows(case, IN_PLACE, replace(visit, calls=1), samples, {})


def _rows(case: Case, pass_: str, visit: Visit, samples: Mapping[str, Samples], facts: Mapping[str, Facts]) -> Rows:
    calls = visit.calls
    ms = {name: found.seconds().median * 1e3 / calls for name, found in samples.items()}
    floor = c.CLONE if c.CLONE in ms else c.COPY
    copies = [ms[name] for name in c.COPIES if name in ms]
    copy_gb_per_s = min_bytes(case, pass_, c.COPY) / min(copies) * 1e-6
    rows: Rows = []
    for name, found in samples.items():
        moved = min_bytes(case, pass_, name)
        rows.append(
            {
                "mode": visit.mode,
                "pass": pass_,
                "implementation": name,
                "input": case.name,
                "granularity": case.granularity,
                "memory_format": "channels-last" if case.channels_last else "contiguous",
                "bias_and_residual": " and ".join(case.bias_and_residual),
                "shape": list(case.shape),
                "dtype": case.dtype_name,
                "x_bytes": case.x_bytes,
                "caps": torch.Size(case.cap_shape).numel(),
                "threads": torch.get_num_threads() if case.threads is not None else None,
                "buffers": visit.buffers,
                **found.seconds().in_ms(calls),
                "calls_per_sample": calls * found.number,
                "page_faults": found.page_faults(),
                **_known(facts.get(name, Facts()), pass_),
                "floor": floor,
                "floor_ms": ms[floor],
                "ratio_to_floor": ms[name] / ms[floor],
                "min_bytes": moved,
                "gb_per_s": moved / ms[name] * 1e-6,
                "copy_gb_per_s": copy_gb_per_s,
                "fraction_of_copy": moved / ms[name] * 1e-6 / copy_gb_per_s,
            }
        )
    return rows


def _known(facts: Facts, pass_: str) -> dict[str, Any]:
    """The facts of a pass; what is not known is left out."""
    if pass_ not in PASSES:
        return {}
    known: dict[str, Any] = {} if facts.saved is None else facts.saved._asdict()
    if facts.peaks:
        known["peak_bytes"] = max(facts.peaks[PASSES[pass_]])
    counts = [count for count in facts.launched[PASSES[pass_]] if count is not None]
    if counts and len(counts) == len(facts.launched[PASSES[pass_]]):
        known |= {name: sum(getattr(count, name) for count in counts) for name in ("kernels", "memsets")}
    return known
