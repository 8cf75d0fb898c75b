"""The two platforms: the processor, by the host's clock, and the current CUDA device, by CUDA graphs and events."""

from __future__ import annotations

import torch

from benchmarks.harness.cuda_graphs import Machine, cuda_machine, sample_with_host
from benchmarks.harness.interleave import sample
from benchmarks.processor import available_memory, last_level_cache
from benchmarks.scaling.suite import Platform


def platform_of(device: str) -> Platform:
    """ "cpu" or "cuda"."""
    if device == "cuda":
        return Platform(cuda_machine(), sample_with_host, graphs=True)
    return Platform(_cpu_machine(), sample, graphs=False)


def _cpu_machine() -> Machine:
    return Machine(
        device=torch.device("cpu"),
        capture=lambda steps, clear: list(steps),
        sampler=sample,
        launches=lambda calls: [None] * len(calls),
        peaks=lambda steps: None,
        cache_bytes=last_level_cache(),
        free_bytes=available_memory,
        release=lambda: None,
    )
