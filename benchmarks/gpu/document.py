"""The result file of the GPU benchmark: what was measured, on which GPU, with which software."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TypedDict

import torch

from benchmarks.gpu.suite import Row
from benchmarks.harness import machine as results
from benchmarks.harness.machine import Commit
from benchmarks.harness.table import DTYPES
from benchmarks.kernels.suite import Failure
from benchmarks.resuming import Rows, Run


class Gpu(TypedDict):
    type: str
    name: str
    capability: str
    multiprocessors: int
    memory_bytes: int
    cache_bytes: int
    driver: str | None


class Document(TypedDict):
    """A run. ``complete`` is false while it goes on and after it was interrupted; ``quick``: few cases.

    ``earlier``: the runs that it goes on from; date and commit are of the last. A case is always of one run.
    """

    schema: int
    complete: bool
    quick: bool
    date: str
    device: Gpu
    versions: dict[str, str]
    commit: Commit | None
    earlier: list[Run]
    failures: list[Failure]
    rows: list[Row]


def new_document(*, quick: bool) -> Document:
    return {
        "schema": results.SCHEMA,
        "complete": False,
        "quick": quick,
        "date": results.now(),
        "device": describe_gpu(),
        "versions": versions(),
        "commit": results.commit(),
        "earlier": [],
        "failures": [],
        "rows": [],
    }


def case_name(case: str, dtype_name: str) -> str:
    return f"{case}, {DTYPES[dtype_name]}"


def case_of(row: Row | Failure) -> str:
    """The name of the case that a row is of, or of which something failed."""
    return case_name(row["case"], row["dtype"])


ROWS: Rows = {"rows": case_of}


def versions() -> dict[str, str]:
    return {**results.versions(), "cuda": str(torch.version.cuda)}


def describe_gpu() -> Gpu:
    """The current CUDA device."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "type": "cuda",
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cache_bytes": properties.L2_cache_size,
        "driver": _driver(),
    }


def folder_of(gpu: Gpu) -> Path:
    return results.RESULTS / results.slug(gpu["name"])


def _driver() -> str | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split()[0] if done.stdout.split() else None
