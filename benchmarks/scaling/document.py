"""The result file of the scaling suite."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from benchmarks.gpu import document as gpu
from benchmarks.gpu.timing import Machine
from benchmarks.kernels import results
from benchmarks.scaling.suite import Failure, Row

FILE_NAME = "scaling.json"


class Document(TypedDict):
    """A run; the device is described as in the files of the other suites."""

    schema: int
    complete: bool
    quick: bool
    date: str
    device: gpu.Card | results.Device
    cache_bytes: int
    versions: dict[str, str]
    commit: results.Commit | None
    failures: list[Failure]
    rows: list[Row]


def new_document(machine: Machine, *, quick: bool) -> Document:
    cuda = machine.device.type == "cuda"
    return {
        "schema": results.SCHEMA,
        "complete": False,
        "quick": quick,
        "date": results.now(),
        "device": gpu.describe_card() if cuda else results.describe_device(machine.device),
        "cache_bytes": machine.cache_bytes,
        "versions": gpu.versions() if cuda else results.versions(),
        "commit": results.commit(),
        "failures": [],
        "rows": [],
    }


def folder(device: gpu.Card | results.Device) -> Path:
    """Where the results of a device lie."""
    if "capability" in device:
        return gpu.folder_of(device)
    return results.default_path(device).parent
