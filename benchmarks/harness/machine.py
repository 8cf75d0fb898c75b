"""The result file: what was measured, on what and when. Written after every case, so that an interrupted run counts."""

from __future__ import annotations

import datetime
import importlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch

import dreluop
from benchmarks.harness import implementations
from benchmarks.harness.files import DamagedFileError, replacing
from benchmarks.kernels.suite import Failure, Row
from dreluop.backends import native

SCHEMA = 1
FILE_NAME = "kernels.json"
RESULTS = Path(__file__).parent.parent / "results"
COMMIT_VARIABLE = "DRELUOP_COMMIT"  # HASH or HASH-dirty


class Device(TypedDict):
    name: str
    cores: int
    transparent_hugepages: str | None


class Backend(TypedDict):
    serves: str
    load_error: str | None
    cpu_capability: str | None


class Commit(TypedDict):
    hash: str
    dirty: bool


class Document(TypedDict):
    """A run.

    ``complete`` is false while it goes on and after it was interrupted; ``quick`` marks one with few cases and samples;
    ``threads`` are those of all rows whose case's name says nothing else; ``dirty`` means that files other than results
    differed from the commit.
    """

    schema: int
    complete: bool
    quick: bool
    date: str
    device: Device
    threads: int
    versions: dict[str, str]
    backend: Backend
    commit: Commit | None
    failures: list[Failure]
    rows: list[Row]


def new_document(threads: int, *, quick: bool) -> Document:
    """A document without rows that describes this machine, these versions and this moment (UTC)."""
    return {
        "schema": SCHEMA,
        "complete": False,
        "quick": quick,
        "date": now(),
        "device": describe_device(torch.device("cpu")),
        "threads": threads,
        "versions": versions(),
        "backend": {
            "serves": "native" if native.is_loaded() else "reference",
            "load_error": native.load_error,
            "cpu_capability": _cpu_capability(),
        },
        "commit": commit(),
        "failures": [],
        "rows": [],
    }


def commit_name(commit: Commit | None, digits: int = 10) -> str:
    """A commit in words."""
    if commit is None:
        return "no commit known"
    return commit["hash"][:digits] + (" with changes" if commit["dirty"] else "")


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    ours = {"python": platform.python_version(), "torch": torch.__version__, "dreluop": dreluop.__version__}
    return ours | implementations.versions()


def save(document: Mapping[str, Any], path: Path) -> None:
    """Write the document so that a reader, or a crash, finds either the old file or the new one."""
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(document, indent=1) + "\n")


def load(path: Path) -> Document:
    """Read a document.

    Raises:
        DamagedFileError: the file is no JSON, or no document at all.
        ValueError: it is of another schema.
    """
    try:
        document: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise DamagedFileError(path, f"no valid JSON: {error}") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        reason = f"got schema {schema}; expected {SCHEMA}: measure again with this version"
        raise DamagedFileError(path, reason) if schema is None else ValueError(f"{path}: {reason}")
    result: Document = document
    return result


def default_path(device: Device) -> Path:
    """Where the results of a device lie: one folder per name and number of cores."""
    return RESULTS / f"{slug(device['name'])}-{device['cores']}-cores" / FILE_NAME


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def describe_device(device: torch.device) -> Device:
    """The processor, or the GPU, that ``device`` means; cores are those this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {"name": name, "cores": cores, "transparent_hugepages": _transparent_hugepages()}


def _cpu_name() -> str:
    info = _text(Path("/proc/cpuinfo"))
    for key in ("model name", "Hardware"):
        found = re.search(rf"^{key}\s*:\s*(.+)$", info, re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def _transparent_hugepages() -> str | None:
    # Decides what a fresh large tensor costs.
    found = re.search(r"\[(\w+)\]", _text(Path("/sys/kernel/mm/transparent_hugepage/enabled")))
    return found[1] if found else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _cpu_capability() -> str | None:
    try:
        built = importlib.import_module("dreluop._C")
    except ImportError:
        return None
    capability = getattr(built, "cpu_capability", None)
    return str(capability()) if callable(capability) else None


def commit() -> Commit | None:
    """The commit of the working tree, or what the environment says it is: a copy may lie beside another history."""
    if COMMIT_VARIABLE in os.environ:
        name, _, dirty = os.environ[COMMIT_VARIABLE].partition("-")
        return {"hash": name, "dirty": dirty == "dirty"}
    head = _git("rev-parse", "HEAD")
    # A run rewrites results, and the report tables and pictures: none of it makes the measured code another.
    written = (":(top,exclude)benchmarks/results", ":(top,exclude)docs/pictures", ":(top,exclude)*.md")
    changed = _git("status", "--porcelain", "--", ":/", *written)
    return None if head is None else {"hash": head, "dirty": bool(changed)}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
