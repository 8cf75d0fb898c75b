"""The activation alone, against what a user could write instead: `python -m benchmarks kernels --help`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import implementations as c
from benchmarks.harness import machine
from benchmarks.harness.activations import BACKWARD, BOTH, FORWARD, IN_PLACE, KEY, LARGE
from benchmarks.harness.cli import THREADS, Bench
from benchmarks.harness.machine import DTYPES, Platform
from benchmarks.harness.records import Record
from benchmarks.harness.table import (
    Column,
    Table,
    Target,
    against,
    hardware,
    left_out,
    matching,
    noise,
    pivot,
    shape_name,
    software,
    target_table,
)
from benchmarks.kernel_cases import LARGEST, SMALL, cases, run

if TYPE_CHECKING:
    import pandas as pd

BY = ["case", "pass"]  # with whom ours is compared: the same input and pass


def frame_of(record: Record) -> pd.DataFrame:
    """The rows, with a column ``<implementation> / ours`` for every implementation; of a GPU shares of its peak."""
    frame = record.frame()
    device = record.run["device"]
    if machine.is_gpu(device):
        peak = machine.peak_bandwidth(device) or float("nan")
        frame = frame.assign(fraction_of_peak=frame["gb_per_s"] / peak, copy_of_peak=frame["copy_gb_per_s"] / peak)
    return frame.assign(**{f"{name} / ours": against(frame, name, BY) for name in frame["implementation"].unique()})


def _is_small(frame: pd.DataFrame) -> pd.Series:
    return frame["x_bytes"] <= 2**20


def _is_large(frame: pd.DataFrame) -> pd.Series:
    plain = frame["bias_and_residual"] == "" if "bias_and_residual" in frame else True
    return (frame["x_bytes"] >= LARGE) & plain


def _is_64_mb(frame: pd.DataFrame) -> pd.Series:
    return _is_large(frame) & (frame["x_bytes"] < LARGEST // 2)


def _is_1_gb(frame: pd.DataFrame) -> pd.Series:
    return _is_large(frame) & (frame["x_bytes"] >= LARGEST // 2)


def _cpu(pass_: str, other: str, limit: float, dtypes: tuple[str, ...] = (), small: bool = False) -> Target:
    floor = other in (c.CLONE, c.COPY)
    size = " x ".join(map(str, SMALL)) if small else f">= {LARGE // 2**20} MiB"
    return Target(
        (
            f"{pass_} against {other}",
            ", ".join([size, *(DTYPES[dtype] for dtype in dtypes)]),
            f"<= {limit:g} x" if floor else f">= {limit:g} x faster",
        ),
        {"implementation": c.OURS.name, "pass": pass_, **({"dtype": dtypes} if dtypes else {})},
        "ratio_to_floor" if floor else f"{other} / ours",
        limit,
        at_most=floor,
        select=_is_small if small else _is_large,
    )


KERNELS = "kernels"
HALF_AND_SINGLE = ("float32", "bfloat16", "float16")


def _of_peak(pass_: str, limit: float, size: str, select: Callable[[pd.DataFrame], pd.Series]) -> Target:
    dtypes = ", ".join(DTYPES[dtype] for dtype in HALF_AND_SINGLE)
    return Target(
        (f"{pass_}: of the peak bandwidth", f"{size} without bias and residual, {dtypes}", f">= {limit:.0%}"),
        {"implementation": c.OURS.name, "pass": pass_, "dtype": HALF_AND_SINGLE},
        "fraction_of_peak",
        limit,
        select=select,
        form="{measured:.1%}, copy {copy_of_peak:.1%} ({input}, {dtype})",
    )


def _gpu(
    pass_: str,
    other: str,
    limit: float,
    dtypes: tuple[str, ...] = (),
    small: bool = False,
    implementation: str = c.OURS.name,
) -> Target:
    mask = ", packed mask" if implementation == c.OURS_MASK.name else ""
    against_, value, shown, limited = {
        KERNELS: ("kernels launched", "kernels", "{measured:.0f}", f"<= {limit:g}"),
    }.get(other, (other, f"{other} / ours", "{measured:.2f}", f">= {limit:g} x faster"))
    size = "<= 1 MB" if small else ">= 64 MB without bias and residual"
    return Target(
        (f"{pass_}{mask}: {against_}", ", ".join([size, *(DTYPES[dtype] for dtype in dtypes)]), limited),
        {"implementation": implementation, "pass": pass_, **({"dtype": dtypes} if dtypes else {})},
        value,
        limit,
        at_most=other == KERNELS,
        select=_is_small if small else _is_large,
        form=f"{shown} ({{input}}, {{dtype}})",
    )


TARGETS = {
    "cpu": (
        _cpu(FORWARD, c.CLONE, 1.05),
        _cpu(IN_PLACE, c.COPY, 1.15),
        _cpu(BACKWARD, c.CLONE, 1.25),
        _cpu(BOTH, c.RELU_MINIMUM.name, 5, ("float32",)),
        _cpu(BOTH, c.RELU_MINIMUM.name, 8, ("bfloat16",)),
        _cpu(BOTH, c.COMPILED.name, 4),
        _cpu(BOTH, c.RELU_MINIMUM.name, 5, small=True),
    ),
    # On an H100 or H200.
    "cuda": (
        _of_peak(FORWARD, 0.90, "1 GB", _is_1_gb),
        _of_peak(BACKWARD, 0.88, "1 GB", _is_1_gb),
        _of_peak(FORWARD, 0.86, "64 MB", _is_64_mb),
        _of_peak(BACKWARD, 0.82, "64 MB", _is_64_mb),
        _gpu(BACKWARD, KERNELS, 1),
        _gpu(BOTH, c.RELU_MINIMUM.name, 4),
        _gpu(BOTH, c.CLAMP.name, 4),
        _gpu(BOTH, c.COMPILED.name, 1.15),
        _gpu(BOTH, c.COMPILED.name, 1.3, implementation=c.OURS_MASK.name),
        _gpu(FORWARD, KERNELS, 1, small=True),
        _gpu(BACKWARD, KERNELS, 1, small=True),
        _gpu(BOTH, c.RELU_MINIMUM.name, 2, small=True),
    ),
}


def targets(record: Record) -> Table:
    """Each target beside what was measured; on a processor, only on as many threads as the run has."""
    frame = frame_of(record)
    if machine.is_gpu(record.run["device"]):
        return target_table(("measure", "x", "target"), TARGETS["cuda"], frame)
    threads = record.run["settings"]["threads"]
    note = "" if threads == THREADS else f" (meant for {THREADS} threads)"
    return target_table(("time of", "x", "target"), TARGETS["cpu"], matching(frame, {"threads": threads}), note)


INPUT = (
    Column("x", "input"),
    Column("shape", lambda row: shape_name(row["shape"])),
    Column("dtype", lambda row: DTYPES[row["dtype"]]),
)
OURS_IN = {pass_: {"implementation": c.OURS.name, "pass": pass_} for pass_ in (FORWARD, IN_PLACE, BACKWARD, BOTH)}
COMPARED = (c.RELU_MINIMUM.name, c.CLAMP.name, c.COMPILED.name)
# Beside the kernels of the default rule: what it adds to the name of a column.
VARIANTS = {c.OURS.name: "", c.OURS_MASK.name: ", mask", c.OURS_TRITON.name: ", Triton"}


def _over(names: Sequence[str]) -> list[Column]:
    return [Column(f"{name} / ours", f"{name} / ours", "{:.2f}", OURS_IN[BOTH]) for name in names]


COLUMNS = {
    "cpu": (
        *INPUT,
        *(Column(f"{pass_}, ms", "ms", "{:.3g}", where) for pass_, where in OURS_IN.items()),
        *(
            Column(f"{pass_} / {floor}", "ratio_to_floor", "{:.2f}", OURS_IN[pass_])
            for pass_, floor in ((FORWARD, c.CLONE), (IN_PLACE, c.COPY), (BACKWARD, c.CLONE))
        ),
        *_over(COMPARED),
    ),
    "cuda": (
        *INPUT,
        *(Column(f"{pass_}, ms", "ms", "{:.3g}", OURS_IN[pass_]) for pass_ in (FORWARD, BACKWARD)),
        *(
            Column(f"{pass_}{variant}", "fraction_of_peak", "{:.0%}", {"implementation": name, "pass": pass_})
            for name, variant in VARIANTS.items()
            for pass_ in (FORWARD, BACKWARD)
        ),
        Column("copy", "copy_of_peak", "{:.0%}", OURS_IN[FORWARD]),
        *_over((*COMPARED, c.OURS_TRITON.name)),
    ),
}


def case_table(record: Record) -> Table:
    """Per input: our times, their ratios to the floors, and of the others' times to ours."""
    frame = frame_of(record)
    frame = frame[frame["case"].isin(frame[frame["implementation"] == c.OURS.name]["case"])]
    return pivot("dreluop", frame, ["case"], COLUMNS["cuda" if machine.is_gpu(record.run["device"]) else "cpu"])


EVERY_ROW = (
    *(Column("pass", "pass"), Column("implementation", "implementation"), Column("ms", "ms", "{:.4g}")),
    Column("quartiles", lambda row: f"{row['q1_ms']:.4g} to {row['q3_ms']:.4g}"),
    *(Column("/ floor", "ratio_to_floor", "{:.2f}"), Column("GB/s", "gb_per_s", "{:.1f}")),
    *(
        Column("page faults", "page_faults", "{:.0f}"),
        Column("samples", "samples"),
        Column("calls", "calls_per_sample"),
    ),
)


def tables(record: Record) -> list[Table]:
    """Every row, in one table per input; on a GPU one line per input; and the targets."""
    if machine.is_gpu(record.run["device"]):
        return [case_table(record), targets(record)]
    found = [
        pivot(f"{label}: {shape_name(group.iloc[0]['shape'])}", group, ["pass", "implementation"], EVERY_ROW)
        for label, group in record.frame().groupby("case", sort=False)
    ]
    return [*found, targets(record)]


def headline(record: Record) -> str:
    frame, device = record.frame(), record.run["device"]
    missing = BENCH.missing(record)
    if machine.is_gpu(device):
        detail = f", {device['multiprocessors']} multiprocessors"
        copies = matching(frame, {"implementation": c.COPY})
        facts = [hardware(record, detail), software(record), record.when(), _copy_bandwidth(copies)]
        return "; ".join([*facts, noise(copies, "the copy"), *left_out(record, missing)])
    backend = record.run["settings"]["backend"]
    capability = f" ({backend['cpu_capability']})" if backend["cpu_capability"] else ""
    facts = [hardware(record), f"{backend['serves']} kernels{capability}", software(record), record.when()]
    floors = frame[frame["implementation"] == frame["floor"]]
    return "; ".join([*facts, *left_out(record, missing), noise(floors, "a floor"), _page_faults(frame)])


def _copy_bandwidth(copies: pd.DataFrame) -> str:
    large = copies[copies["x_bytes"] >= LARGE]["copy_gb_per_s"]
    if large.empty:
        return "copy bandwidth not measured"
    return f"copy {statistics.median(large):.0f} GB/s ({min(large):.0f} to {max(large):.0f})"


def _page_faults(frame: pd.DataFrame) -> str:
    """How many page faults a forward pass takes, ours beside the clone's: the cause of most of their difference."""
    large = frame[(frame["pass"] == FORWARD) & (frame["x_bytes"] >= LARGE)]
    found = {name: matching(large, {"implementation": name})["page_faults"] for name in (c.CLONE, c.OURS.name)}
    if any(values.empty for values in found.values()):
        return "page faults not measured"
    counts = ", ".join(f"{name} {statistics.median(values):.0f}" for name, values in found.items())
    return f"page faults of a forward pass on >= {LARGE // 2**20} MiB: {counts}"


LEGENDS = {
    "cpu": "Times are medians; the implementations are interleaved in one process, on random data. Much of the time of "
    "a fresh large tensor is page faults, for a clone too; the native kernels ask for large pages, which are fewer. "
    "Floors: `x.clone()` for forward and backward, `y.copy_(x)` in place. "
    "The fewest bytes that can be moved, per element of s bytes, are 2s forward and in place (read x, write y) and 3s "
    "backward (read y and its gradient, write the gradient of x). Ratios to a floor: smaller is better. "
    "Ratios to ours: the other's forward + backward over ours, larger is better.",
    "cuda": "Times are medians of CUDA-graph replays between events, implementations interleaved, random data, buffers "
    "rotated so that L2 is cold; no Python and no launches are in them. Per cent: the fewest bytes that the pass must "
    "move over its time, of the peak bandwidth of the GPU's memory (H100 3.35, H200 4.8 TB/s); copy: the fastest copy "
    "of x in the same run. Ratios: the other's forward + backward over ours, larger is better.",
}


def _draw(record: Record, output: Path | None) -> int:
    """Draw beside the record of a GPU, as the machine may be gone when the documents are made."""
    if output is None or not machine.is_gpu(record.run["device"]):
        return 0
    try:
        from benchmarks import pictures  # noqa: PLC0415 (matplotlib and pandas may be missing: the figures are not)

        pictures.roofline(record, output.with_suffix(".png"))
    except ImportError as error:
        print(f"no picture: {error}")
    return 0


def _settings(platform: Platform) -> dict[str, Any]:
    return {} if platform.kind == "cuda" else {"backend": machine.backend()}


BENCH = Bench(
    "kernels", "Time capped_relu against what a user could write instead, and against plain copies.", cases, run, KEY,
    headline, tables, settings=_settings, finish=_draw,
)  # fmt: skip
BENCHES = {BENCH.name: BENCH}
