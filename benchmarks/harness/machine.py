"""The machine that measures: its processor or GPU, its software, the commit, and how work on a processor is timed."""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch

import dreluop
from benchmarks.harness import implementations
from benchmarks.harness.interleave import Timed, release_free_memory, sample
from dreluop._internal.env import ENVIRONMENT_VARIABLE, requested
from dreluop.backends import native

RESULTS = Path(__file__).parent.parent / "results"
COMMIT_VARIABLE = "DRELUOP_COMMIT"  # HASH or HASH-dirty
DTYPES = {"float32": "fp32", "float64": "fp64", "float16": "fp16", "bfloat16": "bf16"}
USUAL_CACHE = 32 * 2**20  # bytes, where the system does not tell
MEMORY = Path("/proc/meminfo")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
# GB/s between a GPU and its memory at most, by what its name holds: the clock of the memory times its width.
PEAKS = {"H100 80GB HBM3": 3352.0, "H200": 4800.0}
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


class Device(TypedDict):
    """A processor; cores are those that this process may use."""

    name: str
    cores: int
    transparent_hugepages: str | None


class Gpu(TypedDict):
    type: str
    name: str
    capability: str
    multiprocessors: int
    memory_bytes: int
    cache_bytes: int
    driver: str | None


class Commit(TypedDict):
    """``dirty`` means that files other than results differed from the commit."""

    hash: str
    dirty: bool


class Launches(NamedTuple):
    kernels: int
    memsets: int
    copies: int


class Call(NamedTuple):
    """A call whose launches are to be counted, and what makes its argument first."""

    function: Callable[[Any], object]
    prepare: Callable[[], Any]


Step = Callable[[Any], Any]
Work = Callable[[], None]


class Platform:
    """How work is timed on a device: here on the processor, by the host's clock; ``cuda_graphs.Cuda`` is a GPU.

    Attributes:
        captures: whether ``capture`` makes CUDA graphs, in which the host takes no part.
    """

    device = torch.device("cpu")
    captures = False

    @property
    def kind(self) -> str:
        return self.device.type

    @property
    def cache_bytes(self) -> int:
        """Of the cache that has to be cold."""
        return last_level_cache()

    def free_bytes(self) -> int:
        """Memory that can be had."""
        return available_memory()

    def release(self) -> None:
        """Give freed memory back."""
        gc.collect()
        release_free_memory()

    def capture(self, steps: Sequence[Work], clear: Work) -> list[Work]:
        """Turn work that is done in this order into what repeats it; ``clear`` drops its results."""
        return list(steps)

    def sample(self, timed: Timed, number: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Time captured work, for ``interleave``."""
        return sample(timed, number)

    def sample_with_host(self, timed: Timed, number: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Time work that the host launches while the clock runs."""
        return sample(timed, number)

    def launches(self, calls: Sequence[Call]) -> list[Launches | None]:
        """What each call launches; None where that cannot be counted."""
        return [None] * len(calls)

    def growth(self, step: Work) -> int | None:
        """By how many bytes the allocated memory grows at most in a step; None where nobody counts."""
        return None

    def peaks(self, steps: Sequence[Step]) -> list[int] | None:
        """The most memory during each step above what was before the first; None where nobody counts."""
        return None


def available_memory(file: Path = MEMORY) -> int:
    """Bytes that can be had without swapping; where the system does not tell, of all memory."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", file.read_text(), re.MULTILINE) if file.exists() else None
    return int(found[1]) * 2**10 if found else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def last_level_cache(folder: Path = CACHES) -> int:
    """Bytes of the processor's largest cache."""
    found = []
    for path in folder.glob("index*/size"):
        size = re.fullmatch(r"(\d+)([KMG]?)", path.read_text().strip())
        if size:
            found.append(int(size[1]) * UNITS[size[2]])
    return max(found, default=USUAL_CACHE)


def require_native(parser: argparse.ArgumentParser, device: str = "cpu") -> str:
    """The backend of the device; ends the program where the native kernels do not run, unless that was asked for."""
    if device == "cuda":
        if not torch.cuda.is_available():
            parser.error(f"torch sees no CUDA device (torch {torch.__version__})")
        reason = native.cuda_reason()
        if reason is not None:
            parser.error(f"the native CUDA kernels do not serve, and the reference is not measured unasked: {reason}")
    elif native.load_error is not None:
        if requested() != "reference":
            parser.error(
                f"the compiled operators do not load: {native.load_error}. Build them, or set "
                f"{ENVIRONMENT_VARIABLE}=reference to measure the slow reference"
            )
        return "reference"
    return "native"


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    ours = {"python": platform.python_version(), "torch": torch.__version__, "dreluop": dreluop.__version__}
    return ours | implementations.versions()


def gpu_versions() -> dict[str, str]:
    return {**versions(), "cuda": str(torch.version.cuda)}


def describe_device(device: torch.device) -> Device:
    """The processor, or the GPU by its name, that ``device`` means."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {"name": name, "cores": cores, "transparent_hugepages": _transparent_hugepages()}


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


def describe(device: torch.device) -> tuple[Device | Gpu, dict[str, str]]:
    """The device and the versions, as a record has them."""
    if device.type == "cuda":
        return describe_gpu(), gpu_versions()
    return describe_device(device), versions()


def folder_of(device: Mapping[str, Any]) -> Path:
    """Where the results of a device are: one folder per GPU, or per name and number of cores of a processor."""
    return RESULTS / slug(device["name"] if is_gpu(device) else f"{device['name']}-{device['cores']}-cores")


def is_gpu(device: Mapping[str, Any]) -> bool:
    return "capability" in device


def peak_bandwidth(device: Mapping[str, Any]) -> float | None:
    """The most GB/s between a GPU and its memory; None for one that is not in ``PEAKS``."""
    return next((bandwidth for name, bandwidth in PEAKS.items() if name in device["name"]), None)


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def backend() -> dict[str, str | None]:
    """What runs on the processor."""
    return {
        "serves": "native" if native.is_loaded() else "reference",
        "load_error": native.load_error,
        "cpu_capability": _cpu_capability(),
    }


def commit_name(commit: Commit | None, digits: int = 10) -> str:
    """A commit in words."""
    if commit is None:
        return "no commit known"
    return commit["hash"][:digits] + (" with changes" if commit["dirty"] else "")


def commit() -> Commit | None:
    """The commit of the working tree, or what the environment says it is: a copy may be beside another history."""
    if COMMIT_VARIABLE in os.environ:
        name, _, dirty = os.environ[COMMIT_VARIABLE].partition("-")
        return {"hash": name, "dirty": dirty == "dirty"}
    head = _output("git", "rev-parse", "HEAD")
    # A run rewrites results, and the report tables and pictures: none of it makes the measured code another.
    written = (":(top,exclude)benchmarks/results", ":(top,exclude)docs/pictures", ":(top,exclude)*.md")
    changed = _output("git", "status", "--porcelain", "--", ":/", *written)
    return None if head is None else {"hash": head, "dirty": bool(changed)}


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


def _driver() -> str | None:
    tool = shutil.which("nvidia-smi")
    found = _output(tool, "--query-gpu=driver_version", "--format=csv,noheader") if tool else None
    return found.split()[0] if found else None


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
