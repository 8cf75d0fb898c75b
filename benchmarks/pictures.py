"""Pictures of records: the share of the floor, time over size and number of caps, memory over depth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, PercentFormatter

from benchmarks.bench_depth import CHAINS, IN_PLACE, RELU
from benchmarks.bench_kernels import TARGETS, frame_of
from benchmarks.bench_scaling import CAPS, SIZE, line, overhead_ends, styles
from benchmarks.harness import implementations as c
from benchmarks.harness import machine
from benchmarks.harness.activations import BACKWARD, BOTH, FORWARD, LARGE
from benchmarks.harness.machine import DTYPES
from benchmarks.harness.plot import BLUE, COLORS, GREEN, ORANGE, save
from benchmarks.harness.records import Record
from benchmarks.harness.table import matching, size_name

if TYPE_CHECKING:
    import pandas as pd

FLOORS = {c.COPY: "black", c.COPY_BY_KERNEL: "dimgray", c.CLONE: "#56B4E9"}
LINES = {**FLOORS, **COLORS}
MAIN_DTYPE = "bfloat16"
OF_DTYPE = {"bfloat16": BLUE, "float32": ORANGE}
BAR = 0.17  # of the space between two inputs


def roofline(record: Record, path: Path) -> None:
    """The share of the floor's bandwidth: forward and backward side by side, a group of bars per large input."""
    on_gpu = machine.is_gpu(record.run["device"])
    frame = _shares(record, on_gpu)
    inputs = list(frame["case"].unique())
    floor = "peak" if on_gpu else "clone"
    figure, sides = plt.subplots(
        1, 2, figsize=(13, 1.2 + 0.55 * max(len(inputs), 3)), sharey=True, layout="constrained"
    )
    present = [name for name in COLORS if name in set(frame["implementation"])]
    for axes, pass_ in zip(sides, (FORWARD, BACKWARD), strict=True):
        for place, name in enumerate(present):
            found = matching(frame, {"pass": pass_, "implementation": name}).set_index("case")["share"]
            places = [inputs.index(case) + (place - (len(present) - 1) / 2) * BAR for case in found.index]
            axes.barh(places, found, BAR, color=COLORS[name], label=name)
        axes.axvline(1, color="black", linewidth=1, label=floor)
        for target in TARGETS["cuda"] if on_gpu else ():
            if target.value == "fraction_of_peak" and target.where["pass"] == pass_:
                label = f"target {target.limit:.0%} ({target.subject[1].split(' without')[0]})"
                axes.axvline(target.limit, color="black", linewidth=1, linestyle="--", label=label)
        axes.set(title=pass_, xlabel="share of the peak bandwidth" if on_gpu else "share of a clone's bandwidth")
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.legend(loc="lower right", fontsize=8)
    sides[0].set_yticks(range(len(inputs)), inputs, fontsize=8)
    sides[0].invert_yaxis()
    threads = "" if on_gpu else f", {record.run['settings']['threads']} threads"
    figure.suptitle(f"{_device_and_day(record, threads)}, x of 64 MB and more")
    save(figure, path, _source(record, "kernels"))


def _shares(record: Record, on_gpu: bool) -> pd.DataFrame:
    """On a processor the floor of both passes is a clone, which reads and writes x once."""
    frame = frame_of(record)
    frame = frame[frame["x_bytes"] >= LARGE]
    if on_gpu:
        return frame[frame["bias_and_residual"] == ""].assign(share=lambda rows: rows["fraction_of_peak"])
    frame = frame[(frame["threads"] == record.run["settings"]["threads"]) & (frame["floor"] == c.CLONE)]
    return frame.assign(share=frame["min_bytes"] / frame["ms"] / (2 * frame["x_bytes"] / frame["floor_ms"]))


def scaling(record: Record, path: Path) -> None:
    """Time over size above, over caps below; forward left, backward right."""
    frame = record.frame()
    figure, grid = plt.subplots(2, 2, figsize=(13, 9), sharey="row", layout="constrained")
    for column, pass_ in enumerate((FORWARD, BACKWARD)):
        for axes, axis in zip(grid[:, column], (SIZE, CAPS), strict=True):
            _times(record, frame, axes, axis, pass_)
    for axes in grid[:, 0]:
        axes.set_ylabel("ms")
    figure.suptitle(_device_and_day(record, f", {DTYPES[MAIN_DTYPE]}"))
    save(figure, path, _source(record, "scaling"))


def _times(record: Record, frame: pd.DataFrame, axes: Axes, axis: str, pass_: str) -> None:
    for style in styles(record):
        for name, color in LINES.items():
            found = line(frame, axis, style, name, pass_, MAIN_DTYPE)
            if not found:
                continue
            label = f"{name}, {style.name}" if axis == SIZE else name
            places, times = list(found), [row["ms"] for row in found.values()]
            axes.plot(places, times, style.line, marker=".", color=color, label=label)
            low, high = ([row[key] for row in found.values()] for key in ("q1_ms", "q3_ms"))
            axes.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)
            end = overhead_ends(found) if axis == SIZE and name == c.OURS.name else None
            if end is not None:
                axes.plot([end], [found[end]["ms"]], "D", color=color, markersize=7, fillstyle="none")
    axes.set(xscale="log", yscale="log")
    axes.grid(alpha=0.3)
    _name_places(axes, axis)
    if axis == SIZE:
        axes.set(title=f"{pass_}; diamonds: the fixed overhead of dreluop ends", xlabel="bytes of x, 64 caps")
    else:
        axes.set(title=f"{pass_}, {styles(record)[0].name}", xlabel="caps, x of 64 MB")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, loc="lower right" if axis == SIZE else "best")


def _name_places(axes: Axes, axis: str) -> None:
    # The lines across say nothing about places.
    places = sorted({float(x) for found in axes.lines if len(found.get_xdata()) > 2 for x in found.get_xdata()})
    axes.set_xticks(places[::2] if len(places) > 8 else places)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: size_name(round(x)) if axis == SIZE else f"{round(x)}"))
    axes.minorticks_off()


def speed_up(record: Record, path: Path) -> None:
    """Left how many times faster than eager, right the share of the floor, over the size of x."""
    frame = record.frame()
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    first = styles(record)[0]
    for dtype, color in OF_DTYPE.items():
        for style in styles(record):
            ours, theirs = (line(frame, SIZE, style, n, BOTH, dtype) for n in (c.OURS.name, c.RELU_MINIMUM.name))
            ratios = {size: theirs[size]["ms"] / ours[size]["ms"] for size in ours if size in theirs}
            _plot(left, ratios, style.line, color, f"{DTYPES[dtype]}, {style.name}")
        for pass_, dashes in ((FORWARD, "-"), (BACKWARD, "--")):
            found = line(frame, SIZE, first, c.OURS.name, pass_, dtype)
            shares = {size: row["fraction_of_copy"] for size, row in found.items()}
            _plot(right, shares, dashes, color, f"{DTYPES[dtype]}, {pass_}")
    left.set(title=f"dreluop against {c.RELU_MINIMUM.name}, {BOTH}", ylabel="times faster")
    right.set(title=f"dreluop's share of the bandwidth of copy_, {first.name}")
    right.yaxis.set_major_formatter(PercentFormatter(1))
    for axes in (left, right):
        axes.axhline(1, color="black", linewidth=1)
        axes.set(xscale="log", xlabel="bytes of x, 64 caps", ylim=(0, None))
        axes.grid(alpha=0.3)
        _name_places(axes, SIZE)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    figure.suptitle(_device_and_day(record))
    save(figure, path, _source(record, "scaling"))


def _plot(axes: Axes, values: Mapping[int, float], dashes: str, color: str, label: str) -> None:
    if values:
        axes.plot(list(values), list(values.values()), dashes, marker=".", color=color, label=label)


# Some cover one another: wide ones under narrow ones.
OF_DEPTH: dict[str, tuple[Any, ...]] = {
    c.RELU_MINIMUM.name: (COLORS[c.RELU_MINIMUM.name], "-", 2),
    c.OURS.name: (COLORS[c.OURS.name], "-", 6),
    IN_PLACE: (GREEN, "--", 4),
    c.CLAMP.name: (COLORS[c.CLAMP.name], "-", 1.5),
    RELU: ("black", ":", 1.5),
    c.OURS_MASK.name: (ORANGE, "-", 2),
}
BLOCKS = {"plain": "h = f(linear(h))", "residual": "h = h + f(linear(h))"}


def depth(record: Record, path: Path) -> None:
    """Bytes kept for backward over the number of layers, one panel per chain."""
    frame = record.frame()
    figure, sides = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    for axes, chain in zip(sides, CHAINS, strict=True):
        for name, (color, dashes, width) in OF_DEPTH.items():
            rows = matching(frame, {"case": chain, "implementation": name})
            kept = rows["kept_bytes"] / rows["x_bytes"]
            axes.plot(rows["depth"], kept, dashes, color=color, linewidth=width, label=name)
        axes.set(title=BLOCKS[chain], xlabel="blocks")
        axes.grid(alpha=0.3)
    sides[0].set_ylabel("kept for backward, in activations")
    sides[0].legend(fontsize=8)
    figure.suptitle("Memory that the forward pass keeps, parameters left out")
    save(figure, path, _source(record, "memory"))


def _device_and_day(record: Record, more: str = "") -> str:
    return f"{record.run['device']['name']}{more}, {record.run['date'][:10]}"


def _source(record: Record, suite: str) -> str:
    return f"{machine.folder_of(record.run['device']).name}/{suite}.jsonl"


# By the name of the kind; ``report.PICTURES`` says which record each shows.
DRAW: dict[str, Callable[[Record, Path], None]] = {
    "roofline": roofline,
    "speed-up": speed_up,
    "scaling": scaling,
    "memory-over-depth": depth,
}
