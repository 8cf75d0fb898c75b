"""The result file: models.json, one per device."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import TypedDict

import torch

from benchmarks.gpu import document as gpu
from benchmarks.gpu.document import Gpu
from benchmarks.harness import machine as results
from benchmarks.harness.machine import Commit, Device
from benchmarks.models.attempts import Failure
from benchmarks.models.largest import Largest
from benchmarks.models.suite import Row
from benchmarks.resuming import Run

FILE_NAME = "models.json"


class Document(TypedDict):
    """A run.

    ``complete`` is false while it goes on, after it was interrupted, and where there was no time for the cases that
    ``missing`` names; ``quick``: one case of reduced size; ``tf32``: whether cuDNN may use it in fp32; ``earlier``: as
    in ``gpu.document.Document``.
    """

    schema: int
    complete: bool
    quick: bool
    date: str
    device: Gpu | Device
    threads: int
    tf32: bool
    versions: dict[str, str]
    commit: Commit | None
    earlier: list[Run]
    missing: list[str]
    failures: list[Failure]
    rows: list[Row]
    largest: list[Largest]


def new_document(device: torch.device, *, quick: bool) -> Document:
    on_a_gpu = device.type == "cuda"
    versions = gpu.versions() if on_a_gpu else results.versions()
    return {
        "schema": results.SCHEMA,
        "complete": False,
        "quick": quick,
        "date": results.now(),
        "device": gpu.describe_gpu() if on_a_gpu else results.describe_device(device),
        "threads": torch.get_num_threads(),
        "tf32": torch.backends.cudnn.allow_tf32,
        "versions": {**versions, "torchvision": _torchvision()},
        "commit": results.commit(),
        "earlier": [],
        "missing": [],
        "failures": [],
        "rows": [],
        "largest": [],
    }


def _torchvision() -> str:
    try:
        return metadata.version("torchvision")
    except metadata.PackageNotFoundError:
        return "not installed"


def folder_of(document: Document) -> Path:
    """The device's folder under benchmarks/results."""
    device = document["device"]
    return gpu.folder_of(device) if "capability" in device else results.default_path(device).parent
