"""Time over the size of x and over the number of caps, with the floor: `python -m benchmarks scaling --help`.

=====  ====================================================================================================
axis   inputs
=====  ====================================================================================================
size   x of 1 KB to 1 GB (256 MB on a CPU) by powers of 4, 64 channel caps, NCHW, bf16 and fp32
caps   1 to 4096 channel caps by powers of 4, x of 64 MB, NCHW, 8 x 8 elements to a channel; on a CPU bf16
=====  ====================================================================================================

=====  ====================================================================================================
mode   what the calls of a sample find
=====  ====================================================================================================
hot    x, and room for all results, in the last-level cache: one buffer, few calls
cold   not in that cache: the calls go round buffers that together are larger; measured where they can be
eager  (CUDA) the same buffers as hot or cold, but the host launches each call while the clock runs; hot and
       cold are CUDA graphs, in which no host takes part. On a CPU the host is in every mode.
=====  ====================================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.harness import implementations as c
from benchmarks.harness import machine
from benchmarks.harness.activations import (
    BACKWARD,
    BOTH,
    COLD,
    EAGER_MODE,
    FORWARD,
    HOT,
    KEY,
    Rows,
    Visit,
    measure,
)
from benchmarks.harness.cli import Bench, Run
from benchmarks.harness.interleave import Budget
from benchmarks.harness.machine import DTYPES
from benchmarks.harness.records import Record
from benchmarks.harness.table import MISSING, Table, left_out, matching, size_name
from benchmarks.harness.workloads import Case

if TYPE_CHECKING:
    import pandas as pd

BUDGETS = {
    "cuda": Budget(seconds=0.04, min_samples=5, max_samples=12, warmup=1, sample_seconds=0),
    "cpu": Budget(seconds=0.15, min_samples=3, max_samples=15, warmup=1, sample_seconds=0),
}
QUICK = Budget(seconds=0.02, min_samples=3, max_samples=5, warmup=1, sample_seconds=0)
LEAST_CALLS = 3

SIZE, CAPS = "size", "caps"
CHANNELS = 64
LARGEST = {"cpu": 2**28, "cuda": 2**30}  # bytes of x
SIZES = tuple(2**power for power in range(10, 31, 2))
CAP_COUNTS = tuple(4**power for power in range(7))
X_OF_CAPS = 2**26  # bytes
MOST_INNER = 64 * 64  # elements of a channel in one sample, axis size
INNER_OF_CAPS = 8 * 8
IN_ORDER = (torch.bfloat16, torch.float32)

MOST_BUFFERS = 128
MOST_CALLS = 32  # on one buffer
TOUCHED = 8  # times x: what a call of the hungriest implementation touches
COMPILED_AT = (2**16, 2**22, 2**28)  # bytes of x: compiling takes seconds
# On a CPU eager takes seconds beyond, on one thread beyond the second.
EAGER_ON_CPU, ALONE_ON_CPU = 2**26, 2**24  # bytes of x
EAGER_CAPS_ON_CPU = (1, 64, 4096)
OVERHEAD_ENDS = 2.0  # where a call takes this many times what the smallest takes


@dataclass(frozen=True)
class Point(Case):
    """A case of an axis; no threads on a GPU."""

    axis: str = SIZE
    modes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        threads = {None: "", 1: ", 1 thread"}.get(self.threads, f", {self.threads} threads")
        return f"{self.axis}: {self.name}, {DTYPES[self.dtype_name]}{threads}"


def shape_of_size(elements: int) -> tuple[int, ...]:
    """NCHW with ``CHANNELS`` channels; elements are a power of 2, at least 4 to a channel.

    Raises:
        ValueError: they are not.
    """
    if elements < 4 * CHANNELS or elements & (elements - 1):
        raise ValueError(f"elements: got {elements}; expected a power of 2, at least {4 * CHANNELS}")
    per_channel = elements // CHANNELS
    inner = min(per_channel, MOST_INNER)
    height = 2 ** (int(math.log2(inner)) // 2)
    return per_channel // inner, CHANNELS, height, inner // height


def shape_of_caps(caps: int, elements: int) -> tuple[int, ...]:
    side = math.isqrt(INNER_OF_CAPS)
    return elements // (caps * INNER_OF_CAPS), caps, side, side


def buffers_when_cold(x_bytes: int, cache_bytes: int) -> int:
    """So many that x and y of all are twice the cache, if that is not too many."""
    return max(1, min(math.ceil(cache_bytes / x_bytes), MOST_BUFFERS))


def calls_when_hot(x_bytes: int, cache_bytes: int) -> int:
    return max(1, min(cache_bytes // (TOUCHED * x_bytes), MOST_CALLS))


def modes_of(x_bytes: int, cache_bytes: int) -> tuple[str, ...]:
    """Hot where a call fits in the cache, cold where the buffers do not."""
    hot = TOUCHED * x_bytes <= cache_bytes
    cold = 2 * x_bytes * buffers_when_cold(x_bytes, cache_bytes) >= 2 * cache_bytes
    return (HOT,) * hot + (COLD,) * (cold or not hot)


def cases(kind: str, settings: Mapping[str, Any]) -> Sequence[Point]:
    """All points, the more telling first; with ``quick`` every third size and number of caps, bfloat16 only."""
    cache = settings["cache_bytes"]
    step = 3 if settings.get("quick") else 1
    sizes = [size for size in SIZES if size <= LARGEST[kind]][::step]
    on_gpu = kind == "cuda"
    found = []
    for dtype in IN_ORDER[:1] if step > 1 else IN_ORDER:
        first = dtype == IN_ORDER[0]
        for size in sizes:
            eager = on_gpu or size <= EAGER_ON_CPU
            names = _implementations(kind, eager, eager and first and size in COMPILED_AT)
            modes = (*modes_of(size, cache), *((EAGER_MODE,) if on_gpu else ()))
            shape = shape_of_size(size // dtype.itemsize)
            found.append(Point(_name(size, CHANNELS), "channel", shape, dtype, names, axis=SIZE, modes=modes))
        for count in CAP_COUNTS[::step] if on_gpu or first else ():
            names = _implementations(kind, on_gpu or count in EAGER_CAPS_ON_CPU, False)
            shape = shape_of_caps(count, X_OF_CAPS // dtype.itemsize)
            modes = modes_of(X_OF_CAPS, cache)[-1:]
            found.append(Point(_name(X_OF_CAPS, count), "channel", shape, dtype, names, axis=CAPS, modes=modes))
    return found if on_gpu else _by_threads(found)


def _implementations(kind: str, eager: bool, compiled: bool) -> tuple[str, ...]:
    chosen = {
        c.OURS.name: True,
        c.RELU_MINIMUM.name: eager,
        c.OURS_TRITON.name: kind == "cuda",
        c.COMPILED.name: compiled,
    }
    return tuple(name for name, wanted in chosen.items() if wanted)


def _by_threads(found: Sequence[Point]) -> list[Point]:
    """On two threads, and the sizes on one too, where torch.compile and what takes seconds are left out."""
    both = [replace(point, threads=2) for point in found]
    for point in found:
        if point.axis == SIZE and point.x_bytes <= ALONE_ON_CPU:
            both.append(replace(point, threads=1, implementations=_implementations("cpu", True, False)))
    return both


def _name(x_bytes: int, caps: int) -> str:
    return f"{size_name(x_bytes)}, {caps} caps"


def visit(point: Point, mode: str, cache_bytes: int, captures: bool) -> Visit:
    """How a mode goes round its buffers."""
    if mode == HOT or (mode == EAGER_MODE and HOT in point.modes):
        buffers, calls = 1, calls_when_hot(point.x_bytes, cache_bytes)
    else:
        buffers = calls = buffers_when_cold(point.x_bytes, cache_bytes)
        if mode == EAGER_MODE:
            # One call alone would show the first launch rather than a loop.
            calls = max(buffers, LEAST_CALLS)
    return Visit(mode, buffers, calls, captures and mode != EAGER_MODE, facts=False)


def run(point: Point, with_: Run) -> Rows:
    """Time every implementation in all modes and passes of a point."""
    platform = with_.platform
    visits = [visit(point, mode, platform.cache_bytes, platform.captures) for mode in point.modes]
    rows = measure(point, visits, QUICK if with_.quick else BUDGETS[platform.kind], platform)
    return [{**row, "axis": point.axis} for row in rows]


@dataclass(frozen=True)
class Style:
    """A way of running: on so many threads, or as CUDA graphs, or launched by the host."""

    name: str
    threads: int | None
    eager: bool
    line: str


def styles(record: Record) -> tuple[Style, ...]:
    """The first is the main one, which both axes have."""
    if machine.is_gpu(record.run["device"]):
        return Style("CUDA graphs", None, False, "-"), Style("launched by the host", None, True, ":")
    return Style("2 threads", 2, False, "-"), Style("1 thread", 1, False, ":")


def line(
    frame: pd.DataFrame, axis: str, style: Style, implementation: str, pass_: str, dtype: str
) -> dict[int, dict[str, Any]]:
    """Rows by bytes of x or by caps: the cold one where there is one, else the hot."""
    rows = matching(frame, {"axis": axis, "implementation": implementation, "pass": pass_, "dtype": dtype})
    rows = rows[(rows["mode"] == EAGER_MODE) == style.eager]
    rows = rows[rows["threads"].isna() if style.threads is None else rows["threads"] == style.threads]
    key = {SIZE: "x_bytes", CAPS: "caps"}[axis]
    # A cold row comes last.
    rows = rows.sort_values([key, "mode"], ascending=[True, False], kind="stable")
    return {row[key]: row for row in rows.to_dict("records")}


def overhead_ends(found: Mapping[int, Mapping[str, Any]]) -> int | None:
    """The first size at which a call takes ``OVERHEAD_ENDS`` times as long as at the smallest; None if none does."""
    times: Sequence[tuple[int, float]] = [(size, row["ms"]) for size, row in found.items()]
    return next((size for size, ms in times if ms >= OVERHEAD_ENDS * times[0][1]), None)


def table(record: Record) -> Table:
    """One row per way of running, dtype and pass of ours."""
    frame = record.frame()
    rows = []
    for style in styles(record):
        for dtype in frame["dtype"].unique():
            for pass_ in (FORWARD, BACKWARD, BOTH):
                found = line(frame, SIZE, style, c.OURS.name, pass_, dtype)
                if found:
                    rows.append((style.name, DTYPES[dtype], pass_, *_cells(frame, style, pass_, dtype, found)))
    header = (
        *("how", "dtype", "pass", "fixed overhead, us", "ends at", "largest x, ms", "of copy_"),
        *(f"{c.RELU_MINIMUM.name} / ours", "the least of all sizes", "over caps"),
    )
    return Table("Scaling", header, rows)


def _cells(
    frame: pd.DataFrame, style: Style, pass_: str, dtype: str, found: Mapping[int, Mapping[str, Any]]
) -> tuple[str, ...]:
    smallest, largest = min(found), max(found)
    end = overhead_ends(found)
    eager = line(frame, SIZE, style, c.RELU_MINIMUM.name, pass_, dtype)
    ratios = {size: eager[size]["ms"] / found[size]["ms"] for size in eager.keys() & found.keys()}
    last = max(ratios, default=None)
    least = min(ratios, key=lambda size: ratios[size], default=None)
    by_caps = [row["ms"] for row in line(frame, CAPS, style, c.OURS.name, pass_, dtype).values()]
    return (
        f"{found[smallest]['ms'] * 1e3:.3g}",
        MISSING if end is None else size_name(end),
        f"{found[largest]['ms']:.3g} ({size_name(largest)})",
        f"{found[largest]['fraction_of_copy']:.0%}",
        MISSING if last is None else f"{ratios[last]:.2f} ({size_name(last)})",
        MISSING if least is None else f"{ratios[least]:.2f} ({size_name(least)})",
        f"{max(by_caps) / min(by_caps):.2f}" if by_caps else MISSING,
    )


def headline(record: Record) -> str:
    run, cache = record.run, record.run["settings"]["cache_bytes"]
    versions = run["versions"]
    source = f"dreluop {versions['dreluop']} ({machine.commit_name(run['commit'])})"
    facts = [run["device"]["name"], f"last-level cache {size_name(cache)}", f"torch {versions['torch']}, {source}"]
    return "; ".join([*facts, record.when(), *left_out(record, BENCH.missing(record))])


LEGEND = (
    "The smallest x is 1 KB; its time is the fixed overhead of a call, which ends at the first size (powers of 4) that "
    "takes twice as long. Of copy_: the bandwidth of the fewest bytes against that of `copy_` on the same buffers in "
    "the same run. The least of all sizes: the smallest of these ratios, and where. Over caps: the slowest number of "
    "caps, from 1 to 4096 on x of 64 MB, over the fastest."
)
BENCH = Bench(
    "scaling", "Time over the size of x and over the number of caps, with the floor.", cases, run, KEY, headline,
    lambda record: [table(record)], settings=lambda platform: {"cache_bytes": platform.cache_bytes},
)  # fmt: skip
BENCHES = {BENCH.name: BENCH}
