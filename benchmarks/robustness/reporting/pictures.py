"""Pictures of a study: each shows the adaptive worst and the share of inputs without a gradient beside the paper's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from benchmarks.harness.plot import BLUE, GRAY, GREEN, ORANGE, PURPLE, save
from benchmarks.robustness.reporting.frame import GENERATED, frame, is_blind, older_note
from benchmarks.robustness.study.configuration import Study
from benchmarks.robustness.study.names import PAPER
from benchmarks.robustness.study.records import Record

Draw = Callable[..., None]

WORST, ZERO = "adaptive worst", "inputs with zero gradient"
_COLORS = (BLUE, ORANGE, GREEN, PURPLE, "#D55E00", "#56B4E9", "#F0E442", GRAY)


def balancer(title: str, records: Sequence[Record], path: Path, source: str, columns: Sequence[str] = ()) -> None:
    """Accuracy over the balancer, a panel per network (the form of Figures 11 to 24); 0 is the ReLU network.

    Data sets, and first values of the caps, have panels of their own.
    ``columns`` are those of ``PAPER`` to show; empty: all that were measured.
    """
    runs = frame(records)
    runs = runs[runs.kind.isin(["natural", "drelu"])].assign(value=lambda f: f.balancer.fillna(0.0))
    if runs.empty:
        raise ValueError("records: got no run with ReLU or D-ReLU; expected at least one")
    shown = [name for name in columns or PAPER if name in runs and not runs[name].isna().all()]
    groups = _by_start(runs)
    figure, panels = _panels(len(groups), width=6.0)
    for axes, (name, group) in zip(panels, groups.items(), strict=True):
        ticks, places = _logarithmic(sorted(group.value.unique()))
        for column, color in zip(shown, _colors(len(shown)), strict=True):
            _line(axes, group, "value", column, ticks, color=color, label=PAPER[column], marker=".")
        _line(axes, group, "value", "worst", ticks, color="black", linewidth=2.5, label=WORST, marker="o")
        _line(axes, group, "value", "zero_gradient", ticks, color=GRAY, linestyle=":", linewidth=2, label=ZERO)
        axes.set(title=name, xlabel="balancer (0: ReLU)", xticks=list(ticks.values()))
        axes.set_xticklabels(places)
    panels[-1].legend(fontsize=8)
    _finish(figure, panels, title, path, source)


def bounds(title: str, records: Sequence[Record], path: Path, source: str) -> None:
    """Accuracy over the bound (the form of Figures 25 to 27): the paper's attack dashed, the adaptive worst solid."""
    runs = frame(records)
    for name, record in zip(runs.method, records, strict=True):
        if not record["evaluation"]["bounds"]:
            raise ValueError(f"records: got {name} without a sweep over bounds; expected attacks.bounds for every run")
    # The paper shows networks trained with and without generated images in one panel.
    runs = runs.assign(
        line=runs.method + runs.data.map(lambda data: GENERATED if data.endswith(GENERATED) else ""),
        data=runs.data.str.removesuffix(GENERATED),
    )
    points = pd.DataFrame(
        [
            {"panel": panel, "line": row.line, "eps": float(eps), "zero_gradient": row.zero_gradient, **values}
            for row, panel, record in zip(runs.itertuples(), _networks(runs), records, strict=True)
            for eps, values in {"0": _at_zero(record), **_at_bounds(record)}.items()
        ]
    )
    lines = points.line.unique()
    colors = dict(zip(lines, _colors(len(lines)), strict=True))
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
    _finish(figure, panels, title, path, source)


def initial_cap(title: str, records: Sequence[Record], path: Path, source: str) -> None:
    """Over the caps' first value: steps until training stopped, and what the networks are worth.

    A row of panels per network and balancer.
    """
    runs = frame(records)
    runs = runs[runs.kind == "drelu"]
    if runs.empty:
        raise ValueError("records: got no run with caps; expected at least one")
    several = runs.balancer.nunique() > 1
    groups = runs.assign(network=_networks(runs)).groupby(["network", "balancer"], sort=False)
    figure, grid = plt.subplots(len(groups), 2, figsize=(11, 4.4 * len(groups)), squeeze=False, layout="constrained")
    for (left, right), ((network, weight), group) in zip(grid, groups, strict=True):
        _starts(left, right, group)
        right.set_title(f"{network}, balancer {weight:g}" if several else network)
        right.legend(fontsize=8)
    _finish(figure, list(grid[:, 1]), title, path, source)


def _starts(left: Axes, right: Axes, runs: pd.DataFrame) -> None:
    order = [*sorted(runs.init.dropna().unique()), math.nan]
    names = [f"{value:g}" if not math.isnan(value) else "calibrated" for value in order]
    place = {name: index for index, name in enumerate(names)}
    runs = runs.assign(start=[place["calibrated" if math.isnan(value) else f"{value:g}"] for value in runs.init])
    left.bar(range(len(names)), [runs[runs.start == i].epochs.mean() for i in range(len(names))], color=BLUE, width=0.6)
    left.scatter(runs.start, runs.epochs, color="black", s=14, zorder=3, label="one run")
    left.set(ylabel="epochs, warm-up included")
    left.legend()
    for column, label, style in (
        ("clean", "clean", {"color": BLUE}),
        ("paper_worst", "worst of the paper's attacks", {"color": ORANGE}),
        ("worst", WORST, {"color": "black", "linewidth": 2.5}),
        ("zero_gradient", ZERO, {"color": GRAY, "linestyle": ":", "linewidth": 2}),
    ):
        _line(right, runs, "start", column, label=label, marker="o", **style)
    for axes in (left, right):
        axes.set(xticks=range(len(names)), xlabel="first value of the caps")
        axes.set_xticklabels(names)


def trajectory(title: str, records: Sequence[Record], path: Path, source: str) -> None:
    """The caps over the epochs (mean, and from smallest to largest), the zero-gradient share, the accuracy."""
    shown = [record for record in records if record["recipe"]["method"] == "drelu"]
    if not shown:
        raise ValueError("records: got no run with caps; expected at least one")
    labels = list(dict.fromkeys(record["label"] for record in shown))
    colors = dict(zip(labels, _colors(len(labels)), strict=True))
    runs = frame(shown)
    networks = _networks(runs)
    runs = runs.assign(network=networks)
    names = list(dict.fromkeys(networks))
    figure, grid = plt.subplots(
        2, len(names), figsize=(7.5 * len(names), 7.5), sharex="col", sharey="row", squeeze=False, layout="constrained"
    )
    for name, top, bottom in zip(names, *grid, strict=True):
        of_network = [record for record, network in zip(shown, networks, strict=True) if network == name]
        for record in of_network:
            color = colors[record["label"]]
            history = _joined(record)
            epochs = np.arange(len(history["cap_mean"]))
            bottom.plot(epochs, history["cap_mean"], color=color)
            bottom.fill_between(epochs, history["cap_min"], history["cap_max"], color=color, alpha=0.08, linewidth=0)
            top.plot(epochs, history["validation_zero_gradient"], ":", color=color, linewidth=2)
            top.plot(epochs, history["validation_accuracy"], color=color, linewidth=1)
        for label, color in colors.items():
            ends = runs[(runs.network == name) & (runs.method == label)].worst
            if len(ends):
                # As in tables, one run without a gradient to follow leaves no mean.
                end = "no gradient" if ends.isna().any() else f"{ends.mean():.0%}"
                bottom.plot([], [], color=color, label=f"{label}: {WORST} at the end {end}")
        top.plot([], [], "k-", linewidth=1, label="accuracy, validation")
        top.plot([], [], "k:", linewidth=2, label=ZERO)
        top.set(ylim=(-0.02, 1.02), title=name)
        top.yaxis.set_major_formatter(PercentFormatter(1))
        bottom.set(yscale="log", xlabel="epoch", ylabel="caps: mean, smallest to largest")
        for axes in (top, bottom):
            axes.legend(fontsize=8)
            axes.grid(alpha=0.3)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(figure, path, source)


PICTURES: dict[str, Draw] = {
    "balancer": balancer,
    "bounds": bounds,
    "initial_cap": initial_cap,
    "trajectory": trajectory,
}


def draw(study: Study, kind: str, records: Sequence[Record], path: Path, source: str) -> None:
    """One of ``PICTURES`` of a study, with the columns that it asks for."""
    chosen = {"columns": study.columns} if kind == "balancer" else {}
    PICTURES[kind](study.title + older_note(records), records, path, source, **chosen)


def _at_bounds(record: Record) -> dict[str, dict[str, float]]:
    """As evaluated; no worst where the adaptive attacks had no gradient to follow."""
    hidden = {"worst": math.nan} if is_blind(record["evaluation"]) else {}
    return {eps: values | hidden for eps, values in record["evaluation"]["bounds"].items()}


def _at_zero(record: Record) -> dict[str, float]:
    clean = record["evaluation"]["accuracy"]["clean"]
    return {"apgd_ce": clean, "worst": clean}


def _joined(record: Record) -> dict[str, Any]:
    """The histories of the warm-up and of training; between them the caps were calibrated."""
    before, after = record["warm_up"]["history"], record["training"]["history"]
    return {name: [*before.get(name, ()), *values] for name, values in after.items()}


def _networks(runs: pd.DataFrame) -> list[str]:
    """What each run belongs to: its model, with its data where a figure has several, as they must not be averaged."""
    several = runs.data.nunique() > 1
    return [f"{data}, {model}" if several else model for data, model in zip(runs.data, runs.model, strict=True)]


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


def _colors(number: int) -> Sequence[Any]:
    """Colors that differ, however many."""
    if number <= len(_COLORS):
        return _COLORS[:number]
    return list(plt.get_cmap("turbo")(np.linspace(0.0, 1.0, number)))


def _panels(number: int, width: float) -> tuple[Any, list[Axes]]:
    columns = min(number, 3)
    rows = math.ceil(number / columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(width * columns, 4.8 * rows), squeeze=False, sharey=True, layout="constrained"
    )
    panels = list(grid.flat)
    for empty in panels[number:]:
        empty.remove()
    return figure, panels[:number]


def _logarithmic(values: Sequence[float]) -> tuple[dict[float, float], list[str]]:
    """Positions on a logarithmic axis, on which 0 stands one step left of the smallest."""
    positive = [value for value in values if value > 0]
    least = math.log10(min(positive)) if positive else 0.0
    places = {value: math.log10(value) if value > 0 else least - 1 for value in values}
    return places, [f"{value:g}" for value in values]


def _line(
    axes: Axes, runs: pd.DataFrame, x: str, y: str, places: dict[float, float] | None = None, **style: Any
) -> None:
    """Means over the seeds, with a band of one standard deviation."""
    found = runs.groupby(x)[y].agg(["mean", "std"]).dropna(subset=["mean"])
    at = [places[value] if places else value for value in found.index]
    axes.plot(at, found["mean"], **style)
    spread = found["std"].fillna(0.0)
    axes.fill_between(at, found["mean"] - spread, found["mean"] + spread, color=style["color"], alpha=0.12, linewidth=0)


def _finish(figure: Any, panels: Sequence[Axes], title: str, path: Path, source: str) -> None:
    for axes in panels:
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("share of the test inputs")
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(figure, path, source)
