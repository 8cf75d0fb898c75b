"""Pictures of a study: each shows the adaptive worst and the share of inputs without a gradient beside the paper's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # No display is needed, nor looked for.

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from benchmarks.harness.plot import BLUE, GRAY, GREEN, ORANGE, PURPLE
from studies.drelu_paper.configuration import Study
from studies.drelu_paper.records import Record
from studies.drelu_paper.report.frame import GENERATED, frame, is_blind, older_note
from studies.drelu_paper.sections import PAPER_COLUMNS

DPI = 130
WORST, ZERO = "adaptive worst", "inputs with zero gradient"
_COLORS = (BLUE, ORANGE, GREEN, PURPLE, "#D55E00", "#56B4E9", "#F0E442", GRAY)
_WORST = {"color": "black", "linewidth": 2.5, "label": WORST}
_ZERO = {"color": GRAY, "linestyle": ":", "linewidth": 2, "label": ZERO}


def balancer(title: str, records: Sequence[Record], path: Path, columns: Sequence[str] = ()) -> None:
    """Accuracy over the balancer, a panel per network (the form of Figures 11 to 24); 0 is the ReLU network.

    Data sets, and first values of the caps, have panels of their own. ``columns`` are those of the paper to show;
    empty: all that were measured.
    """
    runs = frame(records)
    runs = runs[runs.kind.isin(["natural", "drelu"])].assign(value=lambda f: f.balancer.fillna(0.0))
    if runs.empty:
        raise ValueError("records: got no run with ReLU or D-ReLU; expected at least one")
    shown = [name for name in columns or PAPER_COLUMNS if name in runs and not runs[name].isna().all()]
    groups = _by_start(runs)
    figure, panels = _panels(len(groups), width=6.0)
    for axes, (name, group) in zip(panels, groups.items(), strict=True):
        ticks = _logarithmic(sorted(group.value.unique()))
        for column, color in zip(shown, _colors(len(shown)), strict=True):
            _line(axes, group, "value", column, ticks, color=color, label=PAPER_COLUMNS[column], marker=".")
        _line(axes, group, "value", "worst", ticks, marker="o", **_WORST)
        _line(axes, group, "value", "zero_gradient", ticks, **_ZERO)
        axes.set(title=name, xlabel="balancer (0: ReLU)", xticks=list(ticks.values()))
        axes.set_xticklabels([f"{value:g}" for value in ticks])
    panels[-1].legend(fontsize=8)
    _finish(figure, panels, title, path)


def bounds(title: str, records: Sequence[Record], path: Path) -> None:
    """Accuracy over the bound (the form of Figures 25 to 27): the paper's attack dashed, the adaptive worst solid."""
    runs = frame(records)
    for name, record in zip(runs.method, records, strict=True):
        if not record["evaluation"]["bounds"]:
            raise ValueError(f"records: got {name} without a sweep over bounds; expected attacks.bounds for every run")
    # The paper shows networks trained with and without generated images in one panel.
    mixed = runs.data.map(lambda data: GENERATED if data.endswith(GENERATED) else "")
    runs = runs.assign(line=runs.method + mixed, data=runs.data.str.removesuffix(GENERATED))
    points = pd.DataFrame(
        [
            {"panel": panel, "line": row.line, "eps": float(eps), "zero_gradient": row.zero_gradient, **values}
            for row, panel, record in zip(runs.itertuples(), _networks(runs), records, strict=True)
            for eps, values in {"0": {"apgd_ce": row.clean, "worst": row.clean}, **_at_bounds(record)}.items()
        ]
    )
    colors = _colors_of(points.line)
    figure, panels = _panels(points.panel.nunique(), width=7.5)
    for axes, (name, of_network) in zip(panels, points.groupby("panel", sort=False), strict=True):
        for line, group in of_network.groupby("line", sort=False):
            label = f"{line}, zero gradient {group.zero_gradient.mean():.0%}"
            _line(axes, group, "eps", "apgd_ce", color=colors[line], linestyle="--", marker=".")
            _line(axes, group, "eps", "worst", color=colors[line], linewidth=2.2, label=label, marker="o")
        axes.plot([], [], "k--", label="the paper's attack, APGD-CE")
        axes.plot([], [], "k-", linewidth=2.2, label=WORST)
        axes.set(title=name, xlabel="bound of the perturbation (L-infinity)")
        axes.legend(fontsize=8)
    _finish(figure, panels, title, path)


def initial_cap(title: str, records: Sequence[Record], path: Path) -> None:
    """Over the caps' first value: epochs until training stopped, and what the networks are worth.

    A row of panels per network and balancer.
    """
    runs = _capped(frame(records))
    several = runs.balancer.nunique() > 1
    groups = runs.assign(network=_networks(runs)).groupby(["network", "balancer"], sort=False)
    figure, grid = plt.subplots(len(groups), 2, figsize=(11, 4.4 * len(groups)), squeeze=False, layout="constrained")
    for (left, right), ((network, weight), group) in zip(grid, groups, strict=True):
        _starts(left, right, group)
        right.set_title(f"{network}, balancer {weight:g}" if several else network)
        right.legend(fontsize=8)
    _finish(figure, list(grid[:, 1]), title, path)


def _starts(left: Axes, right: Axes, runs: pd.DataFrame) -> None:
    names = [f"{value:g}" for value in sorted(runs.init.dropna().unique())] + ["calibrated"]
    starts = [names.index("calibrated" if math.isnan(value) else f"{value:g}") for value in runs.init]
    runs = runs.assign(start=starts)
    left.bar(range(len(names)), [runs[runs.start == i].epochs.mean() for i in range(len(names))], color=BLUE, width=0.6)
    left.scatter(runs.start, runs.epochs, color="black", s=14, zorder=3, label="one run")
    left.set(ylabel="epochs, warm-up included")
    left.legend()
    _line(right, runs, "start", "clean", color=BLUE, label="clean", marker="o")
    _line(right, runs, "start", "paper_worst", color=ORANGE, label="worst of the paper's attacks", marker="o")
    _line(right, runs, "start", "worst", marker="o", **_WORST)
    _line(right, runs, "start", "zero_gradient", marker="o", **_ZERO)
    for axes in (left, right):
        axes.set(xticks=range(len(names)), xlabel="first value of the caps")
        axes.set_xticklabels(names)


def trajectory(title: str, records: Sequence[Record], path: Path) -> None:
    """The caps over the epochs (mean, and from smallest to largest), the zero-gradient share, the accuracy."""
    runs = _capped(frame(records).assign(record=records))
    runs = runs.assign(network=_networks(runs))
    colors = _colors_of(runs.method)
    networks = runs.groupby("network", sort=False)
    size = (7.5 * len(networks), 7.5)
    figure, grid = plt.subplots(
        2, len(networks), figsize=size, sharex="col", sharey="row", squeeze=False, layout="constrained"
    )
    for (name, group), top, bottom in zip(networks, *grid, strict=True):
        for record, method in zip(group.record, group.method, strict=True):
            _course(top, bottom, record, colors[method])
        for method, ends in group.groupby("method", sort=False).worst:
            # As in tables, one run without a gradient to follow leaves no mean.
            end = "no gradient" if ends.isna().any() else f"{ends.mean():.0%}"
            bottom.plot([], [], color=colors[method], label=f"{method}: {WORST} at the end {end}")
        top.plot([], [], "k-", linewidth=1, label="accuracy, validation")
        top.plot([], [], "k:", linewidth=2, label=ZERO)
        top.set(ylim=(-0.02, 1.02), title=name)
        top.yaxis.set_major_formatter(PercentFormatter(1))
        bottom.set(yscale="log", xlabel="epoch", ylabel="caps: mean, smallest to largest")
        for axes in (top, bottom):
            axes.legend(fontsize=8)
            axes.grid(alpha=0.3)
    _save(figure, title, path)


def _course(top: Axes, bottom: Axes, record: Record, color: Any) -> None:
    """The histories of the warm-up and of training; between them the caps were calibrated."""
    before, after = record["warm_up"]["history"], record["training"]["history"]
    history = {name: [*before.get(name, ()), *values] for name, values in after.items()}
    epochs = np.arange(len(history["cap_mean"]))
    bottom.plot(epochs, history["cap_mean"], color=color)
    bottom.fill_between(epochs, history["cap_min"], history["cap_max"], color=color, alpha=0.08, linewidth=0)
    top.plot(epochs, history["validation_zero_gradient"], ":", color=color, linewidth=2)
    top.plot(epochs, history["validation_accuracy"], color=color, linewidth=1)


PICTURES: dict[str, Callable[..., None]] = {
    "balancer": balancer,
    "bounds": bounds,
    "initial_cap": initial_cap,
    "trajectory": trajectory,
}


def draw(study: Study, kind: str, records: Sequence[Record], path: Path) -> None:
    """One of ``PICTURES`` of a study, with the columns that it asks for."""
    chosen = {"columns": study.columns} if kind == "balancer" else {}
    PICTURES[kind](study.title + older_note(records), records, path, **chosen)


def _capped(runs: pd.DataFrame) -> pd.DataFrame:
    runs = runs[runs.kind == "drelu"]
    if runs.empty:
        raise ValueError("records: got no run with caps; expected at least one")
    return runs


def _at_bounds(record: Record) -> dict[str, dict[str, float]]:
    """As evaluated; no worst where the adaptive attacks had no gradient to follow."""
    hidden = {"worst": math.nan} if is_blind(record["evaluation"]) else {}
    return {eps: values | hidden for eps, values in record["evaluation"]["bounds"].items()}


def _networks(runs: pd.DataFrame) -> pd.Series[str]:
    """What each run belongs to: its model, with its data where a figure has several, as they must not be averaged."""
    return runs.data + ", " + runs.model if runs.data.nunique() > 1 else runs.model


def _by_start(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The runs of each network and first value of its caps, with the ReLU network beside each."""
    groups: dict[str, pd.DataFrame] = {}
    several = runs[runs.kind == "drelu"].init.nunique(dropna=False) > 1
    for network, group in runs.assign(network=_networks(runs)).groupby("network", sort=False):
        plain, capped = group[group.kind == "natural"], group[group.kind == "drelu"]
        if capped.empty:
            groups[network] = plain
        for init, of_start in capped.groupby("init", sort=False, dropna=False):
            start = "calibrated" if math.isnan(init) else f"from {init:g}"
            groups[f"{network}, caps {start}" if several else network] = pd.concat([plain, of_start])
    return groups


def _colors_of(names: pd.Series[str]) -> dict[str, Any]:
    return dict(zip(names.unique(), _colors(names.nunique()), strict=True))


def _colors(number: int) -> Sequence[Any]:
    """Colors that differ, however many."""
    return _COLORS[:number] if number <= len(_COLORS) else list(plt.get_cmap("turbo")(np.linspace(0.0, 1.0, number)))


def _panels(number: int, width: float) -> tuple[Any, list[Axes]]:
    columns = min(number, 3)
    rows = math.ceil(number / columns)
    size = (width * columns, 4.8 * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, sharey=True, layout="constrained")
    panels = list(grid.flat)
    for empty in panels[number:]:
        empty.remove()
    return figure, panels[:number]


def _logarithmic(values: Sequence[float]) -> dict[float, float]:
    """Positions on a logarithmic axis, on which 0 is one step left of the smallest."""
    positive = [value for value in values if value > 0]
    least = math.log10(min(positive)) if positive else 0.0
    return {value: math.log10(value) if value > 0 else least - 1 for value in values}


def _line(
    axes: Axes, runs: pd.DataFrame, x: str, y: str, places: dict[float, float] | None = None, **style: Any
) -> None:
    """Means over the seeds, with a band of one standard deviation."""
    found = runs.groupby(x)[y].agg(["mean", "std"]).dropna(subset=["mean"])
    at = [places[value] if places else value for value in found.index]
    axes.plot(at, found["mean"], **style)
    spread = found["std"].fillna(0.0)
    axes.fill_between(at, found["mean"] - spread, found["mean"] + spread, color=style["color"], alpha=0.12, linewidth=0)


def _finish(figure: Any, panels: Sequence[Axes], title: str, path: Path) -> None:
    for axes in panels:
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("share of the test inputs")
    _save(figure, title, path)


def _save(figure: Any, title: str, path: Path) -> None:
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
