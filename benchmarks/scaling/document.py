"""The result file of the scaling suite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from benchmarks import resuming
from benchmarks.gpu import document as gpu
from benchmarks.harness import machine as results
from benchmarks.harness.cuda_graphs import Machine
from benchmarks.harness.table import DTYPES
from benchmarks.scaling.cases import CAPS, SIZE, Point
from benchmarks.scaling.suite import Failure, Row

FILE_NAME = "scaling.json"


class Document(TypedDict):
    """A run; the device is described, and ``earlier`` means, as in the files of the other suites."""

    schema: int
    complete: bool
    quick: bool
    date: str
    device: gpu.Gpu | results.Device
    cache_bytes: int
    versions: dict[str, str]
    commit: results.Commit | None
    earlier: list[resuming.Run]
    failures: list[Failure]
    rows: list[Row]


def new_document(machine: Machine, *, quick: bool) -> Document:
    cuda = machine.device.type == "cuda"
    return {
        "schema": results.SCHEMA,
        "complete": False,
        "quick": quick,
        "date": results.now(),
        "device": gpu.describe_gpu() if cuda else results.describe_device(machine.device),
        "cache_bytes": machine.cache_bytes,
        "versions": gpu.versions() if cuda else results.versions(),
        "commit": results.commit(),
        "earlier": [],
        "failures": [],
        "rows": [],
    }


def label(axis: str, name: str, dtype_name: str, count: int | None) -> str:
    """What a point is called, which runs on so many threads."""
    threads = "" if count is None else f", {count} threads" if count > 1 else ", 1 thread"
    return f"{axis}: {name}, {DTYPES[dtype_name]}{threads}"


def label_of(row: Row) -> str:
    """The label of the point that a row is of."""
    return label(row["axis"], row["case"], row["dtype"], row["threads"])


def _failed(document: Mapping[str, Any]) -> list[str]:
    # Older files do not tell the axis.
    return [
        label(axis, failure["case"], failure["dtype"], failure["threads"])
        for failure in document["failures"]
        for axis in ((failure["axis"],) if "axis" in failure else (SIZE, CAPS))
    ]


ROWS: resuming.Rows = {"rows": label_of}
SUITE: resuming.Suite[Point] = resuming.Suite(
    name=lambda point: label(point.axis, point.name, point.dtype_name, point.threads),
    implementations=lambda point: point.implementations,
    rows=ROWS,
    failed=_failed,
)


def folder(device: gpu.Gpu | results.Device) -> Path:
    """Where the results of a device lie."""
    if "capability" in device:
        return gpu.folder_of(device)
    return results.default_path(device).parent
