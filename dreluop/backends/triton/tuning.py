"""Launch parameters of a device: the built-in ones, or those that `tune` measured and left in the cache folder."""

from __future__ import annotations

import json
import os
import re
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from dreluop.backends.triton.plan import INTERPRETER, Tuning
from dreluop.version import __version__

FORMAT = 1
# Programs that the interpreter is asked to spread a pass over: enough that sums are shared.
INTERPRETED_PROCESSORS = 2

_chosen: dict[str, Tuning] = {}


def for_device(device: torch.device) -> Tuning:
    """The launch parameters in use; the file is read once per process and name of a device."""
    if device.type == "cpu":
        return _chosen.get("cpu", INTERPRETER)
    name = _name(device)
    if name not in _chosen:
        try:
            found = read(cache_file(name))
        except RuntimeError:  # a user without a home
            found = None
        _chosen[name] = found or Tuning()
    return _chosen[name]


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU (compute units, Xe cores)."""
    if device.type == "cpu":
        return INTERPRETED_PROCESSORS
    properties = torch.get_device_module(device).get_device_properties(device)
    count: int = getattr(properties, "multi_processor_count", 0) or getattr(properties, "max_compute_units", 1)
    return count


@cache
def _name(device: torch.device) -> str:
    return "cpu" if device.type == "cpu" else str(torch.get_device_module(device).get_device_name(device))


def _triton_version() -> str:
    # Not of the distribution: that has other names for ROCm and XPU.
    import triton  # noqa: PLC0415

    return str(triton.__version__)


def cache_file(device_name: str) -> Path:
    """``$XDG_CACHE_HOME/dreluop/triton-<device>-<versions>.json``; of ``~/.cache`` where the variable is not set."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = re.sub(r"[^A-Za-z0-9]+", "-", device_name).strip("-")
    return folder / "dreluop" / f"triton-{name}-dreluop-{__version__}-triton-{_triton_version()}.json"


def read(path: Path) -> Tuning | None:
    """What `tune` left; None where there is nothing, or, with a warning, nothing that can be used."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        _warn(path, f"{type(error).__name__}: {error}")
        return None
    try:
        content = json.loads(text)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"it does not say format {FORMAT}")
        return _from(content.get("tuning"))
    except ValueError as error:
        _warn(path, str(error))
        return None


def _from(values: Any) -> Tuning:
    names = {field.name for field in fields(Tuning)}
    if not isinstance(values, dict) or set(values) != names:
        raise ValueError(f"tuning: got {values!r}; expected a number for each of {', '.join(sorted(names))}")
    return Tuning(**values)


def _warn(path: Path, why: str) -> None:
    warnings.warn(
        f"{path}: not a tuning of this version of dreluop, ignored ({why}); remove it, or run "
        "dreluop.backends.triton.tune()",
        stacklevel=3,
    )


def write(path: Path, tuning: Tuning, measured: Mapping[str, float]) -> None:
    """All of the file or nothing of it: other processes may read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"format": FORMAT, "tuning": asdict(tuning), "milliseconds": dict(measured)}
    beside = path.with_suffix(f".{os.getpid()}.tmp")
    beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


# What is tried of each kind of pass, one after the other: everything else stays as the best so far.
CANDIDATES: dict[str, tuple[dict[str, int], ...]] = {
    "flat": tuple(
        {"flat_tile": tile, "flat_warps": warps}
        for warps, tile in ((4, 128), (4, 256), (4, 512), (4, 1024), (8, 256), (8, 512), (8, 1024))
    ),
    "row": tuple(
        {"row_tile": tile, "row_warps": warps, "row_programs": programs}
        for warps, tile in ((4, 128), (4, 256), (4, 512), (8, 256), (8, 512))
        for programs in (4, 8, 12)
    ),
    "column": tuple(
        {"column_tile": tile, "column_warps": warps, "column_programs": programs}
        for warps, tile in ((4, 128), (4, 256), (8, 256), (8, 512))
        for programs in (3, 6, 9)
    ),
}  # fmt: skip


def tune(
    device: torch.device | str = "cuda",
    *,
    measure: Callable[[Callable[[], object]], float] | None = None,
    mebibytes: int = 128,
) -> Tuning:
    """Measure launch parameters on this device, use them from now on, and keep them for later processes.

    Minutes on a GPU, and about four times `mebibytes` of its memory. Nothing is measured unless this is called.

    Args:
        device: the GPU; ``"cuda"`` is the current one.
        measure: milliseconds of a call; by default timed on the device, the median of 20.
        mebibytes: size of the tensors that are measured, fp32 and bf16.

    Raises:
        RuntimeError: where Triton cannot serve the device, with the reason, and on the CPU without a `measure`.
    """
    from dreluop.backends.triton import unavailable_reason  # noqa: PLC0415 (this module is imported by it)

    device = torch.device(device)
    reason = unavailable_reason(device.type)
    if reason is None and device.type == "cpu" and measure is None:
        reason = "the interpreter's times say nothing about a GPU"
    if reason is not None:
        raise RuntimeError(f'tune: needs a GPU that Triton serves, got device "{device}": {reason}')
    if device.type != "cpu" and device.index is None:
        device = torch.device(device.type, torch.get_device_module(device).current_device())
    timed = measure or _time_on(device)
    passes = _passes(device, mebibytes)
    best, measured = for_device(device), {}
    for kind, candidates in CANDIDATES.items():
        times = {}
        for candidate in ({}, *candidates):
            tried = replace(best, **candidate)
            with _using(device, tried):
                times[tried] = sum(timed(one) for one in passes[kind])
        best = min(times, key=lambda tried: times[tried])
        measured[kind] = times[best]
    _chosen[_name(device)] = best
    write(cache_file(_name(device)), best, measured)
    return best


@contextmanager
def _using(device: torch.device, tuning: Tuning) -> Iterator[None]:
    before = for_device(device)
    try:
        _chosen[_name(device)] = tuning
        yield
    finally:
        _chosen[_name(device)] = before


def _passes(device: torch.device, mebibytes: int) -> dict[str, list[Callable[[], object]]]:
    """Calls that each kind of launch parameter decides about: images and rows of features, in fp32 and bf16."""
    from dreluop.backends.triton import functions  # noqa: PLC0415

    operators = functions()
    passes: dict[str, list[Callable[[], object]]] = {kind: [] for kind in CANDIDATES}
    for dtype in (torch.float32, torch.bfloat16):
        rows = max(1, mebibytes * 2**20 // (dtype.itemsize * 64 * 32 * 32))
        for kind, shape in (("row", (rows, 64, 32, 32)), ("column", (rows * 64, 1024))):
            x = torch.randn(shape, device=device).to(dtype)
            cap = torch.full((shape[1],), 0.5, device=device)
            grad, y = torch.randn_like(x), operators["capped_relu"](x, cap, 1)
            passes["flat"].append(partial(operators["capped_relu"], x, cap, 1))
            passes[kind].append(partial(operators["capped_relu_backward"], grad, y, cap, 1, (), True, True, None, None))
    return passes


def _time_on(device: torch.device, repetitions: int = 20) -> Callable[[Callable[[], object]], float]:
    module = torch.get_device_module(device)

    def timed(call: Callable[[], object]) -> float:
        for _ in range(3):
            call()
        pairs = [(module.Event(enable_timing=True), module.Event(enable_timing=True)) for _ in range(repetitions)]
        for begin, end in pairs:
            begin.record()
            call()
            end.record()
        module.synchronize(device)
        return float(statistics.median(begin.elapsed_time(end) for begin, end in pairs))

    return timed
