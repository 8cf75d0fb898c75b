"""The cases of the GPU benchmark, the fewest bytes that each must move, and how one is measured.

==========  ==========================================  ==============================
pass        read and written                            bytes per element of s bytes
==========  ==========================================  ==============================
forward     x, y; a residual; the packed mask           2s; + s; + 1/4
backward    gradient, y (or the mask), dx               3s (2s + 1/4)
==========  ==========================================  ==============================

Caps, bias and their gradients are negligible. "forward+backward" is both, one graph after the other. The floor is a
copy of x to another tensor, interleaved with the implementations: ``fraction_of_copy`` is the bandwidth of these bytes
over the copy's (a read and a write). An implementation that moves more bytes than the fewest shows a smaller fraction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import torch
from torch import Tensor

from benchmarks.harness import implementations as c
from benchmarks.harness.cuda_graphs import Call, Launches, Machine
from benchmarks.harness.interleave import Budget, Samples, Timed, interleave
from benchmarks.harness.memory import Saved
from benchmarks.harness.workloads import Copies, Repeated
from benchmarks.kernels.suite import (
    BACKWARD,
    BOTH,
    COLD_MODE,
    FIRST,
    FIXED,
    FORWARD,
    LARGE,
    LAYER,
    OTHER_FORMS,
    OTHER_FORMS_COMPILED,
    PASSES,
    Case,
    Failure,
    failure_of,
    make_data,
)

FULL = Budget(seconds=0.15, min_samples=7, max_samples=25, warmup=2, sample_seconds=0)
QUICK = Budget(seconds=0.1, min_samples=5, max_samples=15, warmup=2, sample_seconds=0)

COLD = 4  # times the cache: what the calls of one graph touch
MOST_CALLS = 512
LARGEST = 2**30  # bytes of x of the largest cases, about
MEMORY_OF_X = 40  # times x: what all implementations of a case need at once
BIAS_AND_RESIDUAL = ("bias", "residual")
MAIN = (torch.bfloat16, torch.float32)
EAGER = (c.RELU_MINIMUM.name, c.CLAMP.name, c.OURS.name, c.OURS_MASK.name, c.OURS_TRITON.name)
EVERYONE = (*EAGER, c.COMPILED.name)

Row = TypedDict(
    "Row",
    {
        "case": str,
        "granularity": str,
        "memory_format": str,
        "bias_and_residual": list[str],
        "shape": list[int],
        "dtype": str,
        "x_bytes": int,
        "pass": str,
        "implementation": str,
        "ms": float,
        "q1_ms": float,
        "q3_ms": float,
        "min_ms": float,
        "samples": int,
        "calls_per_sample": int,
        "mode": str,
        "threads": int | None,
        "kernels": int | None,
        "memsets": int | None,
        "saved_bytes": int | None,
        "saves_x": bool | None,
        "saves_y": bool | None,
        "peak_bytes": int | None,
        "min_bytes": int,
        "gb_per_s": float,
        "copy_gb_per_s": float,
        "fraction_of_copy": float,
    },
)


@dataclass(frozen=True)
class Facts:
    """What is found without timing; ``peaks`` and ``launched`` are of forward and backward."""

    kept: Saved | None = None
    peaks: Sequence[int] | None = None
    launched: tuple[Launches | None, ...] = ()


@dataclass(frozen=True)
class GpuCase(Case):
    """A case with what is added to x first: some of ``BIAS_AND_RESIDUAL``."""

    bias_and_residual: tuple[str, ...] = ()


def cases(*, quick: bool = False) -> list[GpuCase]:
    """What the targets need first; of ``quick``, only the two main dtypes at 64 MB and one small tensor.

    torch.compile takes seconds for each case, so it takes part where a target compares with it, and in a few others.
    """
    inputs = (
        (FIRST, "channel", (64, 92, 92), 32, False),
        ("channel caps, channels-last", "channel", (64, 92, 92), 32, True),
        ("neuron caps, dense", "neuron", (4096,), 4096, False),
        (LAYER, "layer", (64, 92, 92), 32, False),
    )
    small = (
        ("neuron caps, dense, small", "neuron", (512,), 64, False),
        ("channel caps, NCHW, small", "channel", (64, 8, 8), 32, False),
        ("channel caps, channels-last, small", "channel", (64, 8, 8), 32, True),
        ("layer cap, NCHW, small", "layer", (64, 8, 8), 32, False),
    )
    large = []
    for dtype in (*MAIN, torch.float16, torch.float64):
        for name, granularity, rest, batch, channels_last in inputs:
            for times in (1, 16):
                implementations = _implementations(name, dtype, times)
                shape = (batch * times * 4 // dtype.itemsize, *rest)
                title = name if times == 1 else f"{name}, 1 GB"
                large.append(GpuCase(title, granularity, shape, dtype, implementations, channels_last, in_place=False))
    found = [case for case in large if case.dtype in MAIN]
    for dtype in MAIN:
        for name, granularity, rest, batch, channels_last in small:
            found.append(GpuCase(name, granularity, (batch, *rest), dtype, EAGER, channels_last, in_place=False))
    found += [case for case in large if case.dtype == torch.float16]
    for case in (case for case in large if case.dtype in MAIN and case.x_bytes < 2 * LARGE):
        for bias_and_residual in (("bias",), ("residual",), BIAS_AND_RESIDUAL):
            first = bias_and_residual == BIAS_AND_RESIDUAL and case.dtype == torch.bfloat16 and case.name == FIRST
            implementations = EVERYONE if first else EAGER
            name = f"{case.name}, {' and '.join(bias_and_residual)}"
            found.append(replace(case, name=name, bias_and_residual=bias_and_residual, implementations=implementations))
    found += [case for case in large if case.dtype == torch.float64]
    if quick:
        names = (FIRST, "neuron caps, dense", "neuron caps, dense, small")
        return [case for case in found if case.dtype in MAIN and case.name in names]
    return found


def _implementations(name: str, dtype: torch.dtype, times: int) -> tuple[str, ...]:
    if dtype not in MAIN:
        return EAGER
    if times > 1:
        return EVERYONE if name == FIRST else EAGER
    if name == FIRST:
        others = OTHER_FORMS_COMPILED if dtype == torch.bfloat16 else ()
        return c.installed((*EVERYONE, *OTHER_FORMS, *others))
    return (*EVERYONE, *FIXED) if name == LAYER else EVERYONE


def is_small(row: Row) -> bool:
    return row["x_bytes"] <= 2**20


def is_plain_and_large(row: Row) -> bool:
    return row["x_bytes"] >= LARGE and not row["bias_and_residual"]


def min_bytes(case: GpuCase, pass_: str, *, code: bool) -> int:
    codes = -(-torch.Size(case.shape).numel() // 4) if code else 0
    residual = case.x_bytes if "residual" in case.bias_and_residual else 0
    forward = 2 * case.x_bytes + residual + codes
    backward = 2 * case.x_bytes + (codes if code else case.x_bytes)
    return {FORWARD: forward, BACKWARD: backward, BOTH: forward + backward}[pass_]


def calls_per_graph(x_bytes: int, cache_bytes: int) -> int:
    """So many buffers that a pass over all touches ``COLD`` caches; of one that is far larger, one."""
    wanted = math.ceil(COLD * cache_bytes / (2 * x_bytes))
    return max(1 if x_bytes >= LARGEST // 2 else 2, min(wanted, MOST_CALLS))


def run_case(case: GpuCase, budget: Budget, machine: Machine) -> tuple[list[Row], list[Failure]]:
    """Time every implementation of a case in all its passes; one that fails is left out, with its reason."""
    needed, free = MEMORY_OF_X * case.x_bytes, machine.free_bytes()
    if case.x_bytes >= LARGE and needed > free:
        reason = f"needs {needed / 2**30:.0f} GB of free memory, and there are {free / 2**30:.0f}"
        return [], [{"case": case.name, "dtype": case.dtype_name, "implementation": None, "reason": reason}]
    c.forget_compiled(case.implementations)
    calls = calls_per_graph(case.x_bytes, machine.cache_bytes)
    data = [make_data(case, seed, machine.device) for seed in range(calls)]
    copies = Copies(data, calls)
    timed = [_timed(c.COPY, machine.capture((copies.forward, copies.backward), copies.clear))]
    facts: dict[str, Facts] = {}
    repeated: dict[str, Repeated] = {}
    failures: list[Failure] = []
    for name in case.implementations:
        try:
            work = Repeated(c.IMPLEMENTATIONS[name], data, calls, _bias_and_residual(case, machine.device))
            if not case.bias_and_residual:
                work.check()
            facts[name] = Facts(work.kept(), machine.peaks((work.first_forward, work.one_backward)))
            timed.append(_timed(name, machine.capture((work.forward, work.backward), work.clear)))
            repeated[name] = work
        except Exception as error:
            failures.append(failure_of(case, name, error))
    # They are the same for a larger tensor.
    if case.x_bytes < 2 * LARGE:
        try:
            launched = _launches(repeated, machine)
        except Exception as error:
            failures.append(failure_of(case, "launches", error))
        else:
            facts = {name: replace(of, launched=launched.get(name, ())) for name, of in facts.items()}
    samples = interleave(timed, budget, sampler=machine.sampler)
    rows = []
    for pass_, which in PASSES.items():
        copied = samples[c.COPY].steps(which).seconds().median / calls
        copy_gb_per_s = 2 * case.x_bytes * (2 if pass_ == BOTH else 1) / copied * 1e-9
        for name, found in samples.items():
            rows.append(_row(case, pass_, name, found.steps(which), calls, facts.get(name, Facts()), copy_gb_per_s))
    return rows, failures


def _launches(repeated: dict[str, Repeated], machine: Machine) -> dict[str, tuple[Launches | None, ...]]:
    """Of forward and backward."""
    calls = []
    for work in repeated.values():
        calls += [Call(work.first_forward, lambda: None), Call(work.one_backward, work.one_forward)]
    found = machine.launches(calls)
    return {name: tuple(found[2 * index : 2 * index + 2]) for index, name in enumerate(repeated)}


def _bias_and_residual(case: GpuCase, device: torch.device) -> dict[str, Tensor]:
    generator = torch.Generator(device).manual_seed(7)
    more = {}
    if "bias" in case.bias_and_residual:
        shape = case.cap_shape if case.granularity == "neuron" else case.shape[1:2]
        bias = torch.randn(shape, generator=generator, dtype=case.dtype, device=device)
        more["bias"] = bias.requires_grad_()
    if "residual" in case.bias_and_residual:
        # Its gradient is x's, the same tensor: asking for it too would only make eager copy.
        more["residual"] = make_data(case, 1000, device).x
    return more


def _timed(name: str, replays: Sequence[Callable[[], None]]) -> Timed:
    forward, backward = replays
    return Timed(name, (lambda _: forward(), lambda _: backward()))


def _row(case: GpuCase, pass_: str, name: str, found: Samples, calls: int, facts: Facts, copy_gb_per_s: float) -> Row:
    seconds = found.seconds()
    size = min_bytes(case, pass_, code=name == c.OURS_MASK.name)
    if name == c.COPY:
        size = 2 * case.x_bytes * (2 if pass_ == BOTH else 1)
    counts = facts.launched[PASSES[pass_]]
    known = [count for count in counts if count is not None]
    counted = bool(counts) and len(known) == len(counts)
    gb_per_s = size / (seconds.median / calls) * 1e-9
    kept = facts.kept
    return {
        "case": case.name,
        "granularity": case.granularity,
        "memory_format": "channels-last" if case.channels_last else "contiguous",
        "bias_and_residual": list(case.bias_and_residual),
        "shape": list(case.shape),
        "dtype": case.dtype_name,
        "x_bytes": case.x_bytes,
        "pass": pass_,
        "implementation": name,
        **seconds.in_ms(calls),
        "calls_per_sample": calls,
        "mode": COLD_MODE,
        "threads": None,
        "kernels": sum(count.kernels for count in known) if counted else None,
        "memsets": sum(count.memsets for count in known) if counted else None,
        "saved_bytes": None if kept is None else kept.saved_bytes,
        "saves_x": None if kept is None else kept.saves_x,
        "saves_y": None if kept is None else kept.saves_y,
        "peak_bytes": max(facts.peaks[PASSES[pass_]]) if facts.peaks else None,
        "min_bytes": size,
        "gb_per_s": gb_per_s,
        "copy_gb_per_s": copy_gb_per_s,
        "fraction_of_copy": gb_per_s / copy_gb_per_s,
    }
