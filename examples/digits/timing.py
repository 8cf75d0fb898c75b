"""What the demo times: capped_relu against the clamp references, with the harness of the kernel benchmark."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.harness.interleave import Budget
from benchmarks.kernels import suite


def rows(threads: int, quick: bool = False) -> list[Any]:
    """Time forward and backward on tensors of 64 MiB, or, quick, on a tiny one, which only shows that it runs.

    Returns:
        A row per implementation, dtype and pass, with ``ms`` (the median), ``floor_ms`` (a clone of x) and
        ``ratio_to_floor``.
    """
    if not quick:
        return suite.demo_rows(threads)
    case = suite.Case("tiny", "channel", (2, 8, 16, 16), torch.float32, suite.EAGER, in_place=False)
    budget = Budget(seconds=0.02, min_samples=3, max_samples=3, warmup=1)
    found = [row for _, rows in suite.run([case], budget, threads) for row in rows]
    return [row for row in found if row["implementation"] != row["floor"]]


def milliseconds(value: float) -> str:
    """Three digits, never in scientific notation from 100 on."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
