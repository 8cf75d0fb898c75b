"""The result file of the GPU benchmark: what was measured, on which card, with which software."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TypedDict

import torch

from benchmarks.gpu.suite import Row
from benchmarks.kernels import results
from benchmarks.kernels.results import Commit
from benchmarks.kernels.suite import Failure
from benchmarks.tables import DTYPES


class Card(TypedDict):
    type: str
    name: str
    capability: str
    multiprocessors: int
    memory_bytes: int
    cache_bytes: int
    driver: str | None


class Run(TypedDict):
    """What an earlier run of the same suite on the same card measured, by the names of its cases."""

    date: str
    commit: Commit | None
    cases: list[str]


class Document(TypedDict):
    """A run. ``complete`` is false while it goes on and after it was interrupted; ``quick``: few cases.

    ``earlier``: the runs that it goes on from; date and commit are of the last. A case is always of one run.
    """

    schema: int
    complete: bool
    quick: bool
    date: str
    device: Card
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
        "device": describe_card(),
        "versions": versions(),
        "commit": results.commit(),
        "earlier": [],
        "failures": [],
        "rows": [],
    }


def go_on(document: Document, former: Document) -> set[str]:
    """Take over what an earlier run measured, but for the cases of which something failed.

    Returns:
        The names of the cases that are done.

    Raises:
        ValueError: the earlier run was on another device, with other versions, or of the other kind.
    """
    for name in ("device", "versions", "quick"):
        if former[name] != document[name]:
            raise ValueError(f"resume: got {name} {former[name]}; expected what is measured now, {document[name]}")
    failed = {case_name(failure["case"], failure["dtype"]) for failure in former["failures"]}
    rows = [row for row in former["rows"] if case_name(row["case"], row["dtype"]) not in failed]
    done = list(dict.fromkeys(case_name(row["case"], row["dtype"]) for row in rows))
    earlier = former.get("earlier", [])
    known = {name for run in earlier for name in run["cases"]}
    last: Run = {
        "date": former["date"],
        "commit": former["commit"],
        "cases": [name for name in done if name not in known],
    }
    document["earlier"] = [*earlier, last] if last["cases"] else earlier
    document["rows"] = rows
    return set(done)


def case_name(case: str, dtype_name: str) -> str:
    return f"{case}, {DTYPES[dtype_name]}"


def versions() -> dict[str, str]:
    return {**results.versions(), "cuda": str(torch.version.cuda)}


def describe_card() -> Card:
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


def folder_of(card: Card) -> Path:
    return results.RESULTS / results.slug(card["name"])


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
