"""Time over the size of x and over the number of caps, with the floor; the speed-up, and the share of the floor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, PercentFormatter

from benchmarks.harness import implementations as c
from benchmarks.harness.palette import BLUE, ORANGE
from benchmarks.harness.table import DTYPES, size_name
from benchmarks.kernels.suite import BACKWARD, BOTH, FORWARD
from benchmarks.pictures.drawing import COLORS, save
from benchmarks.pictures.source import Source
from benchmarks.scaling.cases import CAPS, SIZE
from benchmarks.scaling.series import line, overhead_ends, styles

FLOORS = {c.COPY: "black", c.CLONE: "#56B4E9"}
LINES = {**FLOORS, **COLORS}
MAIN_DTYPE = "bfloat16"
OF_DTYPE = {"bfloat16": BLUE, "float32": ORANGE}


def draw(document: dict[str, Any], path: Path, source: Source) -> None:
    """Size above, caps below; forward left, backward right."""
    figure, grid = plt.subplots(2, 2, figsize=(13, 9), sharey="row", layout="constrained")
    for column, pass_ in enumerate((FORWARD, BACKWARD)):
        for axes, axis in zip(grid[:, column], (SIZE, CAPS), strict=True):
            _times(document, axes, axis, pass_)
    for axes in grid[:, 0]:
        axes.set_ylabel("ms")
    figure.suptitle(f"{document['device']['name']}, {DTYPES[MAIN_DTYPE]}, {document['date'][:10]}")
    save(figure, path, source)


def _times(document: dict[str, Any], axes: Axes, axis: str, pass_: str) -> None:
    for style in styles(document):
        for name, color in LINES.items():
            found = line(document, axis, style, name, pass_, MAIN_DTYPE)
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
        axes.set(title=f"{pass_}, {styles(document)[0].name}", xlabel="caps, x of 64 MB")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, loc="lower right" if axis == SIZE else "best")


def _name_places(axes: Axes, axis: str) -> None:
    # The lines across say nothing about places.
    places = sorted({float(x) for found in axes.lines if len(found.get_xdata()) > 2 for x in found.get_xdata()})
    axes.set_xticks(places[::2] if len(places) > 8 else places)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: size_name(round(x)) if axis == SIZE else f"{round(x)}"))
    axes.minorticks_off()


def draw_speed_up(document: dict[str, Any], path: Path, source: Source) -> None:
    """Left how many times faster than eager, right the share of the floor, over the size of x."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    first = styles(document)[0]
    for dtype, color in OF_DTYPE.items():
        for style in styles(document):
            ours, theirs = (
                line(document, SIZE, style, name, BOTH, dtype) for name in (c.OURS.name, c.RELU_MINIMUM.name)
            )
            sizes = [size for size in ours if size in theirs]
            if sizes:
                ratios = [theirs[size]["ms"] / ours[size]["ms"] for size in sizes]
                left.plot(sizes, ratios, style.line, marker=".", color=color, label=f"{DTYPES[dtype]}, {style.name}")
        for pass_, dashes in ((FORWARD, "-"), (BACKWARD, "--")):
            found = line(document, SIZE, first, c.OURS.name, pass_, dtype)
            shares = [row["fraction_of_copy"] for row in found.values()]
            if found:
                right.plot(list(found), shares, dashes, marker=".", color=color, label=f"{DTYPES[dtype]}, {pass_}")
    left.axhline(1, color="black", linewidth=1)
    left.set(title=f"dreluop against {c.RELU_MINIMUM.name}, {BOTH}", ylabel="times faster", ylim=(0, None))
    right.axhline(1, color="black", linewidth=1)
    right.set(title=f"dreluop's share of the bandwidth of copy_, {first.name}", ylim=(0, None))
    right.yaxis.set_major_formatter(PercentFormatter(1))
    for axes in (left, right):
        axes.set(xscale="log", xlabel="bytes of x, 64 caps")
        axes.grid(alpha=0.3)
        _name_places(axes, SIZE)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    figure.suptitle(f"{document['device']['name']}, {document['date'][:10]}")
    save(figure, path, source)
