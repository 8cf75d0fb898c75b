"""The inputs of ``bench_kernels``, and how one is measured.

On a processor x is a fresh large tensor, or a small hot one, and the floor is a clone. On a GPU the calls of a CUDA
graph go round so many buffers that L2 is cold, and the floor is a copy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.harness import implementations as c
from benchmarks.harness.activations import COLD, HOT, LARGE, Rows, Visit, measure
from benchmarks.harness.cli import THREADS, Run
from benchmarks.harness.interleave import Budget
from benchmarks.harness.machine import Platform
from benchmarks.harness.workloads import Case

BUDGETS = {
    "cpu": Budget(),
    "cuda": Budget(seconds=0.15, min_samples=7, max_samples=25, warmup=2, sample_seconds=0),
}
QUICK = {
    "cpu": Budget(seconds=0.3, min_samples=3, max_samples=8),
    "cuda": Budget(seconds=0.1, min_samples=5, max_samples=15, warmup=2, sample_seconds=0),
}
DEMO = Budget(seconds=0.3, min_samples=3, max_samples=8, warmup=1)

FIRST, LAST, LAYER, NEURON = (
    *("channel caps, NCHW", "channel caps, channels-last"),
    *("layer cap, NCHW", "neuron caps, dense"),
)
GRANULARITIES = {FIRST: "channel", LAST: "channel", LAYER: "layer", NEURON: "neuron"}
IMAGE, DENSE = (64, 92, 92), (4096,)
BATCHES = {IMAGE: 32, DENSE: 4096}  # in fp32
SMALL = (64, 512)
MAIN = (torch.float32, torch.bfloat16)

EAGER = (c.RELU_MINIMUM.name, c.CLAMP.name, c.OURS.name)
EAGER_ON_GPU = (*EAGER, c.OURS_MASK.name, c.OURS_TRITON.name)
# Beside those, on the first input.
OTHER_FORMS = (c.WHERE.name, c.PACT.name, c.BREVITAS.name, c.REFERENCE.name)
OTHER_FORMS_COMPILED = (c.COMPILED_CLAMP.name, c.COMPILED_WHERE.name, c.COMPILED_PACT.name)
FIXED = (c.HARDTANH.name, c.RELU6.name)  # one cap only

COLD_CACHES = 4  # what the calls of one graph touch
MOST_CALLS = 512
LARGEST = 2**30  # bytes of x of the largest cases, about


def cases(kind: str, settings: Mapping[str, Any]) -> Sequence[Case]:
    """Tensors of 64 MiB and more, and small ones; with ``quick``, only few inputs in fp32 and bf16."""
    quick = bool(settings.get("quick"))
    return _cases_on_gpu(quick) if kind == "cuda" else _cases_on_cpu(quick)


def _case(name: str, dtype: torch.dtype, implementations: tuple[str, ...], times: int = 1, **more: Any) -> Case:
    rest = DENSE if name == NEURON else IMAGE
    shape = (BATCHES[rest] * times * 4 // dtype.itemsize, *rest)
    return Case(name, GRANULARITIES[name], shape, dtype, implementations, channels_last=name == LAST, **more)


def _cases_on_cpu(quick: bool) -> list[Case]:
    """All on two threads, some on one too."""
    everyone = (*EAGER, c.COMPILED.name)

    def implementations(name: str, dtype: torch.dtype) -> tuple[str, ...]:
        # Eager takes a second a call in half types: elsewhere only what the targets ask for is compared.
        if dtype not in MAIN:
            return EAGER if name == FIRST else (c.OURS.name,)
        others = c.installed((*OTHER_FORMS, *OTHER_FORMS_COMPILED)) if name == FIRST and dtype == torch.float32 else ()
        return everyone + others + (FIXED if name == LAYER else ())

    if quick:
        found = [_case(FIRST, dtype, everyone, in_place=True) for dtype in MAIN]
    else:
        found = [
            _case(name, dtype, implementations(name, dtype), in_place=True)
            for name in (FIRST, LAST, LAYER, NEURON)
            for dtype in (*MAIN, torch.float16, torch.float64)
        ]
    found += [Case(f"{NEURON}, small", "neuron", SMALL, dtype, everyone) for dtype in MAIN]
    if not quick:
        alone = [case for case in found if case.dtype == torch.float32 and (case.name == FIRST or case.shape == SMALL)]
        found += [replace(case, name=f"{case.name}, 1 thread", threads=1, implementations=EAGER) for case in alone]
    return found


def _cases_on_gpu(quick: bool) -> list[Case]:
    """What the targets need first.

    torch.compile takes seconds for each case, so it takes part where a target compares with it, and in a few others.
    """
    main = MAIN[::-1]
    everyone = (*EAGER_ON_GPU, c.COMPILED.name)

    def implementations(name: str, dtype: torch.dtype, times: int) -> tuple[str, ...]:
        if dtype not in MAIN or (times > 1 and name != FIRST):
            return EAGER_ON_GPU
        if times == 1 and name == FIRST:
            others = OTHER_FORMS_COMPILED if dtype == torch.bfloat16 else ()
            return c.installed((*everyone, *OTHER_FORMS, *others))
        return (*everyone, *FIXED) if name == LAYER and times == 1 else everyone

    large = []
    for dtype in (*main, torch.float16, torch.float64):
        for name in (FIRST, LAST, NEURON, LAYER):
            for times in (1, 16):
                case = _case(name, dtype, implementations(name, dtype, times), times)
                large.append(case if times == 1 else replace(case, name=f"{name}, 1 GB"))
    small = [
        replace(_case(name, dtype, EAGER_ON_GPU), name=f"{name}, small", shape=shape)
        for dtype in main
        for name, shape in ((NEURON, SMALL), (FIRST, (32, 64, 8, 8)), (LAST, (32, 64, 8, 8)), (LAYER, (32, 64, 8, 8)))
    ]
    added = []
    for case in (case for case in large if case.dtype in main and case.x_bytes < 2 * LARGE):
        for more in (("bias",), ("residual",), ("bias", "residual")):
            first = len(more) == 2 and case.dtype == torch.bfloat16 and case.name == FIRST
            names = everyone if first else EAGER_ON_GPU
            name = f"{case.name}, {' and '.join(more)}"
            added.append(replace(case, name=name, bias_and_residual=more, implementations=names))

    def of(*dtypes: torch.dtype) -> list[Case]:
        return [case for case in large if case.dtype in dtypes]

    found = [*of(*main), *small, *of(torch.float16), *added, *of(torch.float64)]
    if quick:
        return [case for case in found if case.dtype in main and case.name in (FIRST, NEURON, f"{NEURON}, small")]
    return found


def calls_per_graph(x_bytes: int, cache_bytes: int) -> int:
    """So many buffers that a pass over all touches ``COLD_CACHES`` caches; of one that is far larger, one."""
    wanted = math.ceil(COLD_CACHES * cache_bytes / (2 * x_bytes))
    return max(1 if x_bytes >= LARGEST // 2 else 2, min(wanted, MOST_CALLS))


def run(case: Case, with_: Run, budget: Budget | None = None) -> Rows:
    """Time every implementation of a case in all its passes."""
    platform = with_.platform
    budget = budget or (QUICK if with_.quick else BUDGETS)[platform.kind]
    if platform.captures:
        calls = calls_per_graph(case.x_bytes, platform.cache_bytes)
        return measure(case, [Visit(COLD, calls, calls, captured=True)], budget, platform)
    visit = Visit(COLD if 2 * case.x_bytes > platform.cache_bytes else HOT)
    return measure(replace(case, threads=case.threads or torch.get_num_threads()), [visit], budget, platform)


def demo_rows(threads: int = THREADS, selected: Sequence[Case] | None = None, budget: Budget = DEMO) -> Rows:
    """A quick look for the demo, about 20 s on 2 cores: channel caps on NCHW tensors of 64 MiB, fp32 and bf16.

    Returns:
        A row per implementation, dtype and pass, in this order of importance: with ``implementation``
        ("relu(minimum)", "clamp" or "dreluop"), ``dtype``, ``pass``, ``ms`` (median), ``floor_ms`` (a clone of x; two
        clones for both passes) and ``ratio_to_floor``.

    Raises:
        RuntimeError: an implementation could not be measured.
    """
    if selected is None:
        selected = [_case(FIRST, dtype, EAGER) for dtype in MAIN]
    rows = [
        row for case in selected for row in run(replace(case, threads=threads), Run(Platform(), quick=True), budget)
    ]
    for row in rows:
        if "failure" in row:
            raise RuntimeError(f"{row['implementation']}: {row['failure']}")
    return [row for row in rows if row["implementation"] not in c.FLOORS]
