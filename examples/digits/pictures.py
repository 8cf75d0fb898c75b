"""The demo's two pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # Needs no display.

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from benchmarks.harness.plot import BLUE, GRAY, GREEN, ORANGE, PURPLE
from examples.digits.experiment import WARM_UP_EPOCHS, Network
from examples.digits.timing import milliseconds

IMPLEMENTATION_COLORS = {"dreluop": BLUE, "clamp": ORANGE, "relu(minimum)": GREEN}
DPI = 150


def draw_training(drelu: Network, relu: Network, path: Path) -> None:
    """Validation accuracy of both networks and the zero-gradient share over the epochs; below, the caps."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7.5, 6.5), sharex=True, layout="constrained")
    for network, color, style in ((drelu, BLUE, "-"), (relu, ORANGE, "--")):
        accuracies = [record.validation_accuracy for record in network.records]
        top.plot(network.epochs, accuracies, style, color=color, label=f"accuracy, {network.name}")
    masked = [record.validation_zero_gradient for record in drelu.records]
    top.plot(drelu.epochs, masked, ":", color=PURPLE, linewidth=2, label="digits with zero gradient, D-ReLU")
    top.set(ylabel="share of validation digits", ylim=(-0.03, 1.03), title="Training with a D-ReLU head")
    top.yaxis.set_major_formatter(PercentFormatter(1))
    top.legend(loc="center right")

    low, mean, high = (
        [getattr(record, name) for record in drelu.records] for name in ("cap_min", "cap_mean", "cap_max")
    )
    bottom.fill_between(drelu.epochs, low, high, color=BLUE, alpha=0.15, linewidth=0, label="smallest to largest")
    bottom.plot(drelu.epochs, mean, color=BLUE, label="mean")
    bottom.set(xlabel="epoch", ylabel="cap of the head's neurons", yscale="log")
    bottom.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    bottom.legend(loc="upper right")
    for axes in (top, bottom):
        axes.axvline(WARM_UP_EPOCHS, color=GRAY, linewidth=0.8, linestyle="--")
        _tidy(axes)
    bottom.annotate(
        "caps calibrated", (WARM_UP_EPOCHS, 1), xycoords=("data", "axes fraction"), xytext=(4, -4),
        textcoords="offset points", va="top", color=GRAY, fontsize=9,
    )  # fmt: skip
    _save(figure, path)


def draw_timing(rows: Sequence[Any], threads: int, path: Path) -> None:
    """Bars: times as multiples of the floor, one panel per dtype, labeled with milliseconds."""
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    figure, panels = plt.subplots(
        len(dtypes), 1, figsize=(7.5, 1.4 + 2.5 * len(dtypes)), squeeze=False, layout="constrained"
    )
    for axes, dtype in zip(panels[:, 0], dtypes, strict=True):
        _draw_dtype(axes, [row for row in rows if row["dtype"] == dtype])
        axes.set_title(dtype)
    panels[-1, 0].set_xlabel("time in multiples of the floor, a clone of the tensor (less is better)")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(f"capped_relu on the CPU, {threads} threads")
    _save(figure, path)


def _draw_dtype(axes: Axes, rows: Sequence[Any]) -> None:
    passes = list(dict.fromkeys(row["pass"] for row in rows))
    implementations = sorted({row["implementation"] for row in rows}, key=lambda name: (name != "dreluop", name))
    height = 0.8 / len(implementations)
    for index, implementation in enumerate(implementations):
        own = [row for row in rows if row["implementation"] == implementation]
        positions = [passes.index(row["pass"]) + (index - (len(implementations) - 1) / 2) * height for row in own]
        ratios = [row["ratio_to_floor"] for row in own]
        bars = axes.barh(
            positions, ratios, height * 0.9, label=implementation, color=IMPLEMENTATION_COLORS.get(implementation, GRAY)
        )
        labels = [f"{row['ratio_to_floor']:.2f}x, {milliseconds(row['ms'])} ms" for row in own]
        axes.bar_label(bars, labels, padding=3, fontsize=8)
    axes.axvline(1, color="black", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(passes)), passes)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    _tidy(axes, grid_axis="x")


def _tidy(axes: Axes, grid_axis: str = "both") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid_axis, color="#E4E4E4", linewidth=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def _save(figure: plt.Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
