"""What the demo times: capped_relu against the clamp references, with the harness of the kernel benchmark."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks import kernel_cases
from benchmarks.harness.interleave import Budget
from benchmarks.harness.workloads import Case


def rows(threads: int, quick: bool = False) -> list[Any]:
    """Time forward and backward on tensors of 64 MiB, or, quick, on a tiny one, which only shows that it runs.

    Returns:
        A row per implementation, dtype and pass, with ``ms`` (the median), ``floor_ms`` (a clone of x) and
        ``ratio_to_floor``.
    """
    if not quick:
        return kernel_cases.demo_rows(threads)
    case = Case("tiny", "channel", (2, 8, 16, 16), torch.float32, kernel_cases.EAGER)
    budget = Budget(seconds=0.02, min_samples=3, max_samples=3, warmup=1)
    return kernel_cases.demo_rows(threads, [case], budget)


def milliseconds(value: float) -> str:
    """Three digits, never in scientific notation from 100 on."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
