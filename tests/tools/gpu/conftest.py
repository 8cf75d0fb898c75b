"""A GPU that is not there."""

from __future__ import annotations

import pytest

from benchmarks.harness.machine import Gpu


@pytest.fixture
def gpu() -> Gpu:
    return {
        "type": "cuda",
        "name": "Some GPU 80GB",
        "capability": "9.0",
        "multiprocessors": 132,
        "memory_bytes": 80 * 2**30,
        "cache_bytes": 50 * 2**20,
        "driver": "580.1",
    }
